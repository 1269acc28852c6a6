//! The machine's log: what a guest asked for and the machine has not.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

/// Something that a guest uses and the machine does not simulate. It got what hardware gives that has it not either;
/// that its guest would have seen the same on a real machine is not sure any more.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Unknown {
    /// A port was read.
    PortRead {
        /// Its number.
        port: u16,
    },
    /// A port was written.
    PortWrite {
        /// Its number.
        port: u16,
    },
    /// Something that is neither memory nor a device was read.
    MmioRead {
        /// System-physical address of the page.
        page: u64,
    },
    /// Something that is neither memory nor a device was written.
    MmioWrite {
        /// System-physical address of the page.
        page: u64,
    },
    /// RDMSR of this index; the guest got #GP.
    MsrRead(u32),
    /// WRMSR of this index; the guest got #GP.
    MsrWrite(u32),
    /// An instruction; the guest got #UD.
    Instruction {
        /// What could be fetched of it.
        bytes: Vec<u8>,
    },
    /// A function of something that is there, named by whoever lacks it.
    Function(String),
}

impl fmt::Display for Unknown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unknown::PortRead { port } => write!(f, "read of port {port:#x}"),
            Unknown::PortWrite { port } => write!(f, "write to port {port:#x}"),
            Unknown::MmioRead { page } => write!(f, "read of MMIO page {page:#x}"),
            Unknown::MmioWrite { page } => write!(f, "write to MMIO page {page:#x}"),
            Unknown::MsrRead(index) => write!(f, "RDMSR {index:#x}"),
            Unknown::MsrWrite(index) => write!(f, "WRMSR {index:#x}"),
            Unknown::Instruction { bytes } => {
                f.write_str("instruction")?;
                bytes.iter().try_for_each(|byte| write!(f, " {byte:02x}"))
            }
            Unknown::Function(name) => f.write_str(name),
        }
    }
}

/// An entry of the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// What is missing.
    pub what: Unknown,
    /// The processor that met it first.
    pub cpu: usize,
    /// Its RIP then.
    pub rip: u64,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "not simulated: {} (CPU {}, RIP {:#x})", self.what, self.cpu, self.rip)
    }
}

/// What was met since somebody looked, each once.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Log {
    findings: Vec<Finding>,
    known: BTreeSet<Unknown>,
    /// Where the running processor was when it asked for something last. No state: a machine that remembers
    /// translations asks less often.
    #[serde(skip)]
    at: (usize, u64),
}

impl Log {
    /// Says where the processor is that may find something.
    pub(crate) fn locate(&mut self, cpu: usize, rip: u64) {
        self.at = (cpu, rip);
    }

    pub(crate) fn unknown(&mut self, what: Unknown) {
        if self.known.insert(what.clone()) {
            let (cpu, rip) = self.at;
            self.findings.push(Finding { what, cpu, rip });
        }
    }

    /// Everything since the last call.
    pub(crate) fn take(&mut self) -> Vec<Finding> {
        self.known.clear();
        std::mem::take(&mut self.findings)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_told_once_until_somebody_looks() {
        let mut log = Log::default();
        log.locate(1, 0x1000);
        log.unknown(Unknown::MsrRead(0x123));
        log.locate(0, 0x2000);
        log.unknown(Unknown::MsrRead(0x123));
        let told: Vec<String> = log.take().iter().map(ToString::to_string).collect();
        assert_eq!(told, ["not simulated: RDMSR 0x123 (CPU 1, RIP 0x1000)"]);
        assert_eq!(log.take(), []);
        log.unknown(Unknown::MsrRead(0x123));
        assert_eq!(log.take().len(), 1);
    }
}
