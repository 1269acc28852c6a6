//! The launch of a TD, step by step; a step that is out of order does not compile.
//!
//! ```
//! # use privet_harness::{host::Host, launch::tdx, mapping::Mapping, outcome::Outcome, units::Gpa, vm::Vm};
//! # fn story(host: &Host, vm: &Vm, source: &Mapping) -> Outcome {
//! let mut launch = tdx::Launch::create(vm, host, 0)?;
//! let vcpu = launch.vcpu(0, 0)?;
//! launch.add(&vcpu, tdx::Measured::Yes, Gpa(0xffff_f000), source, 0..0x1000)?;
//! launch.finalize()?;
//! # Ok(())
//! # }
//! ```
//!
//! No page after the end:
//! ```compile_fail,E0599
//! # use privet_harness::{host::Host, launch::tdx, mapping::Mapping, outcome::Outcome, units::Gpa, vm::Vm};
//! # fn story(host: &Host, vm: &Vm, source: &Mapping) -> Outcome {
//! let mut launch = tdx::Launch::create(vm, host, 0)?;
//! let vcpu = launch.vcpu(0, 0)?;
//! let mut finished = launch.finalize()?;
//! finished.add(&vcpu, tdx::Measured::Yes, Gpa(0xffff_f000), source, 0..0x1000)?;
//! # Ok(())
//! # }
//! ```

use std::ops::Range;

use nix::errno::Errno;

use super::plan::Part;
use crate::errno;
use crate::host::Host;
use crate::mapping::Mapping;
use crate::measure::{EventLog, Method, SevFeatures};
use crate::outcome::{Outcome, Stop};
use crate::sev::{Memory, PageType};
use crate::tdx::{Capabilities, Commands, InitVm, MEASURE_MEMORY_REGION, Refused, Region};
use crate::uapi::Capability;
use crate::units::{Gpa, PAGE_SIZE};
use crate::vcpu::Vcpu;
use crate::vm::Vm;

/// Width of a TD's addresses; the last bit is the shared one.
pub const GPA_WIDTH: u32 = 48;
/// Pins of the I/O APIC that is not there: KVM has the local APICs of a TD and no other interrupt controller.
const PINS: u64 = 24;
/// How often a command is given again that was refused for a while.
const ATTEMPTS: usize = 1000;

/// Whether the content of pages counts for MRTD; that they are there always does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Measured {
    /// It does.
    Yes,
    /// It does not.
    No,
}

/// `INIT_VM` is done: the TD has its keys, and gets vCPUs and pages.
#[derive(Debug)]
pub struct Building<'a> {
    host: &'a Host,
    log: EventLog,
}
/// The TD may run.
#[derive(Debug)]
pub struct Running(());

/// A launch of which the last step led to `S`.
#[derive(Debug)]
pub struct Launch<'a, S> {
    commands: Commands<'a>,
    state: S,
}

/// All that a TD can have here, however many leaves of CPUID there are.
///
/// # Errors
/// What KVM says.
pub fn capabilities(commands: Commands<'_>) -> Result<Capabilities, Refused> {
    let mut entries = 32;
    loop {
        match commands.capabilities(entries) {
            // KVM does not tell how many there are.
            Err(Refused { errno: Errno::E2BIG, .. }) if entries < 4096 => entries *= 2,
            other => return other,
        }
    }
}

impl<'a> Launch<'a, Building<'a>> {
    /// Makes `vm`, of type TDX and without vCPUs so far, a TD with these attributes and all else that KVM and the module
    /// offer.
    ///
    /// # Errors
    /// `Stop::Fail` with what KVM and the module say.
    pub fn create(vm: &'a Vm, host: &'a Host, attributes: u64) -> Outcome<Self> {
        let commands = Commands::new(vm);
        let capabilities = capabilities(commands)?;
        let cpuid = capabilities.configured(host.supported_cpuid()?, GPA_WIDTH);
        Self::create_as(vm, host, &InitVm::new(attributes, capabilities.xfam, cpuid))
    }

    /// The same with this said of it.
    ///
    /// # Errors
    /// `Stop::Fail` with what KVM and the module say.
    pub fn create_as(vm: &'a Vm, host: &'a Host, init: &InitVm) -> Outcome<Self> {
        let commands = Commands::new(vm);
        vm.enable_cap(Capability::SPLIT_IRQCHIP, [PINS, 0, 0, 0])
            .map_err(|errno| Stop::Fail(format!("KVM_ENABLE_CAP(SPLIT_IRQCHIP): {errno:?}")))?;
        patiently(|| commands.init_vm(init, 0))?;
        let log = EventLog::new(Method::Mrtd, SevFeatures::NONE);
        Ok(Launch { commands, state: Building { host, log } })
    }

    /// Makes vCPU `id`, which begins at the reset vector with `argument` in RCX and R8.
    ///
    /// # Errors
    /// `Stop::Fail` with what KVM says.
    pub fn vcpu(&self, id: u64, argument: u64) -> Outcome<Vcpu> {
        let vcpu = self.commands.vm().create_vcpu(id)?;
        // Its local APIC is in x2APIC mode, which KVM refuses where CPUID does not tell of that.
        let cpuid = self.state.host.supported_cpuid()?;
        vcpu.kvm()?
            .set_cpuid2(cpuid)
            .map_err(|error| Stop::Fail(format!("KVM_SET_CPUID2 of vCPU {id}: {:?}", errno::of_kvm(error))))?;
        self.commands.init_vcpu(&vcpu, argument)??;
        Ok(vcpu)
    }

    /// Adds pages from `gpa` on, which have to be private and in a slot with a guest_memfd, with the content of `bytes`
    /// of `source`. KVM may do it in parts; this goes on until all is done. Any vCPU will do.
    ///
    /// # Errors
    /// `Stop::Fail` with the first GPA that was not done, how many were, and what KVM says.
    pub fn add(&mut self, vcpu: &Vcpu, measured: Measured, gpa: Gpa, source: &Mapping, bytes: Range<u64>) -> Outcome {
        self.add_part(vcpu, measured, gpa, source, bytes, None)
    }

    /// The same with what these pages are of a guest's own memory.
    pub(crate) fn add_part(
        &mut self,
        vcpu: &Vcpu,
        measured: Measured,
        gpa: Gpa,
        source: &Mapping,
        bytes: Range<u64>,
        part: Option<Part>,
    ) -> Outcome {
        let all = (bytes.end - bytes.start) / PAGE_SIZE;
        let (flags, page_type) = match measured {
            Measured::Yes => (MEASURE_MEMORY_REGION, PageType::Normal),
            Measured::No => (0, PageType::Unmeasured),
        };
        let mut region = Region { source: Memory::In(source, bytes.start), gpa, pages: all, flags };
        for attempt in 1.. {
            match self.commands.init_mem_region(vcpu, &mut region)? {
                Ok(()) => break,
                Err(refused) if refused.is_transient() && attempt < ATTEMPTS => {}
                Err(refused) => {
                    let done = all - region.pages.min(all);
                    return Err(Stop::Fail(format!(
                        "page at gpa {}, after {done} of {all} pages: {refused}",
                        region.gpa
                    )));
                }
            }
        }
        let mut content = vec![0; (bytes.end - bytes.start) as usize];
        source.read(bytes.start, &mut content)?;
        self.state.log.add(page_type, gpa, content, part);
        Ok(())
    }

    /// MRTD as the module will have it if the launch ends here.
    pub fn digest(&self) -> Vec<u8> {
        self.state.log.digest()
    }

    /// Ends the launch.
    ///
    /// # Errors
    /// `Stop::Fail` with what KVM and the module say.
    pub fn finalize(self) -> Outcome<Launch<'a, Running>> {
        patiently(|| self.commands.finalize())?;
        self.commands.vm().launched(self.state.log);
        Ok(Launch { commands: self.commands, state: Running(()) })
    }
}

/// Gives a command again as long as it is refused for a while only.
fn patiently(command: impl Fn() -> Result<(), Refused>) -> Result<(), Refused> {
    let mut result = command();
    for _ in 1..ATTEMPTS {
        match result {
            Err(refused) if refused.is_transient() => result = command(),
            _ => break,
        }
    }
    result
}

impl<'a, S> Launch<'a, S> {
    /// The commands, for what may come in any state.
    pub fn commands(&self) -> Commands<'a> {
        self.commands
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::tdx::{Command, HwError};

    fn refused(errno: Errno) -> Refused {
        Refused { command: Command::FINALIZE_VM, errno, hw_error: HwError::SUCCESS }
    }

    #[test]
    fn what_is_refused_for_a_while_is_tried_again_and_nothing_else() {
        let calls = Cell::new(0);
        let busy_twice = || {
            calls.set(calls.get() + 1);
            if calls.get() < 3 { Err(refused(Errno::EBUSY)) } else { Ok(()) }
        };
        assert_eq!(patiently(busy_twice), Ok(()));
        assert_eq!(calls.get(), 3);
        assert_eq!(patiently(|| Err(refused(Errno::EINVAL))), Err(refused(Errno::EINVAL)));
        assert_eq!(patiently(|| Err(refused(Errno::EAGAIN))), Err(refused(Errno::EAGAIN)), "not for ever");
    }
}
