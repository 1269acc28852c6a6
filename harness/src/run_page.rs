//! `struct kvm_run`, by offsets: the page that KVM and user space share for each vCPU.
//!
//! Fields are read from the mapping when they are asked for. Source of the offsets:
//! `include/uapi/linux/kvm.h`, `struct kvm_run`.

use std::ops::Range;

use kvm_bindings as kvm;

use crate::mapping::Mapping;
use crate::outcome::{Outcome, Stop};
use crate::uapi::{EXIT_SNP_REQ_CERTS, EXIT_TDX};

/// What `exit_reason` is set to before each run: if it is still there afterwards, KVM_RUN was refused before
/// the guest ran (`x86.c:vcpu_run` stores KVM_EXIT_UNKNOWN first thing).
pub(crate) const SENTINEL: u32 = 0xFFFF;

const IMMEDIATE_EXIT: u64 = 1;
const EXIT_REASON: u64 = 8;
/// The union of what exits tell.
pub(crate) const EXIT: u64 = 32;
/// Bytes in that union.
pub(crate) const EXIT_LEN: u64 = 256;
/// What is written over all that user space does not answer.
const FORGOTTEN: u8 = 0x5a;
const HYPERCALL_RET: u64 = 88;
const HYPERCALL_FLAGS: u64 = 96;
const TDX_RET: u64 = 48;
/// `tdx.get_tdvmcall_info.r11`, and R12 to R14 behind it.
const TDX_INFO: u64 = 64;
const MMIO_DATA: u64 = 40;
const IO_DATA_OFFSET: u64 = 40;
const CERTIFICATES_PAGES: u64 = 40;
const CERTIFICATES_RET: u64 = 48;

/// The kvm_run page of a vCPU.
#[derive(Debug)]
pub struct RunPage(Mapping);

impl RunPage {
    /// A view of `mapping`, which is that of a vCPU descriptor, or memory that looks like it.
    ///
    /// # Errors
    /// `Stop::Error` if the mapping is too short to hold the exit data.
    pub fn new(mapping: Mapping) -> Outcome<RunPage> {
        if mapping.len() < EXIT + EXIT_LEN {
            return Err(Stop::Error(format!("a kvm_run page of {:#x} bytes is too short", mapping.len())));
        }
        Ok(RunPage(mapping))
    }

    /// The memory, from the start of `struct kvm_run` to the end of what KVM maps after it.
    pub fn bytes(&self) -> &Mapping {
        &self.0
    }

    /// `exit_reason`.
    ///
    /// # Errors
    /// `Stop::Error` if the page cannot be read; likewise below.
    pub(crate) fn exit_reason(&self) -> Outcome<u32> {
        self.u32(EXIT_REASON)
    }

    /// Sets `exit_reason`, which KVM never reads.
    ///
    /// # Errors
    /// As above.
    pub(crate) fn set_exit_reason(&self, reason: u32) -> Outcome {
        self.0.write(EXIT_REASON, &reason.to_le_bytes())
    }

    /// Overwrites what the last exit has told, but for what user space answers: it may do with that what it likes, and KVM
    /// has to remember by itself what it has asked.
    ///
    /// # Errors
    /// As above.
    pub(crate) fn forget_exit(&self) -> Outcome {
        let Some(answers) = answers(self.exit_reason()?) else { return Ok(()) };
        let mut told = [FORGOTTEN; EXIT_LEN as usize];
        // KVM leaves the flags of page-state changes as they are (arch/x86/kvm/svm/sev.c: snp_begin_psc_msr, snp_do_psc): a
        // row says so, and the others are about other things.
        for answer in answers.into_iter().chain([words(HYPERCALL_FLAGS, 1)]) {
            self.0.read(answer.start, &mut told[(answer.start - EXIT) as usize..(answer.end - EXIT) as usize])?;
        }
        self.0.write(EXIT, &told)
    }

    /// Sets `immediate_exit`: KVM_RUN completes what is pending and returns EINTR.
    ///
    /// # Errors
    /// As above.
    pub(crate) fn set_immediate_exit(&self, on: bool) -> Outcome {
        self.0.write(IMMEDIATE_EXIT, &[on.into()])
    }

    /// `hypercall.ret`, RAX of the guest unless userspace sets another.
    ///
    /// # Errors
    /// As above.
    pub fn hypercall_ret(&self) -> Outcome<u64> {
        self.u64(HYPERCALL_RET)
    }

    /// Sets `hypercall.ret`, RAX of the guest after a KVM_EXIT_HYPERCALL.
    ///
    /// # Errors
    /// As above.
    pub fn set_hypercall_ret(&self, ret: u64) -> Outcome {
        self.0.write(HYPERCALL_RET, &ret.to_le_bytes())
    }

    /// Sets `hypercall.flags`, which are KVM's to set.
    ///
    /// # Errors
    /// As above.
    pub fn set_hypercall_flags(&self, flags: u64) -> Outcome {
        self.0.write(HYPERCALL_FLAGS, &flags.to_le_bytes())
    }

    /// Sets `ret` of `KVM_EXIT_TDX`, R10 of the guest.
    ///
    /// # Errors
    /// As above.
    pub fn set_tdx_ret(&self, ret: u64) -> Outcome {
        self.0.write(TDX_RET, &ret.to_le_bytes())
    }

    /// Sets what GetTdVmCallInfo answers in R11 to R14.
    ///
    /// # Errors
    /// As above.
    pub fn set_tdx_info(&self, registers: [u64; 4]) -> Outcome {
        self.0.write(TDX_INFO, registers.map(u64::to_le_bytes).as_flattened())
    }

    /// Sets `mmio.data`, what the guest's load reads.
    ///
    /// # Errors
    /// As above.
    pub fn set_mmio_data(&self, data: u64) -> Outcome {
        self.0.write(MMIO_DATA, &data.to_le_bytes())
    }

    /// Sets `snp_req_certs.ret`, an error number or 0, and `npages`, which counts with ENOSPC.
    ///
    /// # Errors
    /// As above.
    pub fn set_certificates(&self, ret: u64, pages: u64) -> Outcome {
        self.0.write(CERTIFICATES_PAGES, &pages.to_le_bytes())?;
        self.0.write(CERTIFICATES_RET, &ret.to_le_bytes())
    }

    /// Writes what the guest's `in` reads to where `io.data_offset` points.
    ///
    /// # Errors
    /// As above, or the offset points out of the page.
    pub fn set_io_in_data(&self, data: &[u8]) -> Outcome {
        self.0.write(self.u64(IO_DATA_OFFSET)?, data)
    }

    /// The 32-bit field at `offset`.
    ///
    /// # Errors
    /// As above.
    pub fn u32(&self, offset: u64) -> Outcome<u32> {
        let mut bytes = [0; 4];
        self.0.read(offset, &mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    /// The 64-bit field at `offset`.
    ///
    /// # Errors
    /// As above.
    pub fn u64(&self, offset: u64) -> Outcome<u64> {
        let mut bytes = [0; 8];
        self.0.read(offset, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }
}

/// What user space answers to an exit; nothing if that is not known here, or an answer to an earlier one may be due still.
fn answers(exit_reason: u32) -> Option<Vec<Range<u64>>> {
    match exit_reason {
        kvm::KVM_EXIT_HYPERCALL => Some(vec![words(HYPERCALL_RET, 1)]),
        kvm::KVM_EXIT_MMIO => Some(vec![words(MMIO_DATA, 1)]),
        EXIT_TDX => Some(vec![words(TDX_RET, 1), words(TDX_INFO, 4)]),
        EXIT_SNP_REQ_CERTS => Some(vec![words(CERTIFICATES_PAGES, 2)]),
        // The answer to the first is elsewhere in the page.
        kvm::KVM_EXIT_IO
        | kvm::KVM_EXIT_HLT
        | kvm::KVM_EXIT_SHUTDOWN
        | kvm::KVM_EXIT_MEMORY_FAULT
        | kvm::KVM_EXIT_INTERNAL_ERROR
        | kvm::KVM_EXIT_FAIL_ENTRY
        | kvm::KVM_EXIT_SYSTEM_EVENT
        | kvm::KVM_EXIT_DIRTY_RING_FULL => Some(Vec::new()),
        _ => None,
    }
}

/// The place of so many 64-bit fields.
const fn words(at: u64, count: u64) -> Range<u64> {
    at..at + 8 * count
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_answers_outlive_an_exit() {
        let page = RunPage::new(Mapping::anonymous(4096).unwrap()).unwrap();
        page.bytes().fill(EXIT, EXIT_LEN, 0x11).unwrap();
        page.set_exit_reason(SENTINEL).unwrap();
        page.forget_exit().unwrap();
        assert_eq!(page.u64(EXIT).unwrap(), 0x1111_1111_1111_1111, "an answer may be due");
        page.set_exit_reason(kvm::KVM_EXIT_MMIO).unwrap();
        page.set_mmio_data(7).unwrap();
        page.forget_exit().unwrap();
        assert_eq!((page.u64(EXIT).unwrap(), page.u64(MMIO_DATA).unwrap()), (0x5a5a_5a5a_5a5a_5a5a, 7));
        assert_eq!(page.u64(EXIT + EXIT_LEN - 8).unwrap(), 0x5a5a_5a5a_5a5a_5a5a);
        page.set_exit_reason(kvm::KVM_EXIT_HYPERCALL).unwrap();
        page.set_hypercall_ret(8).unwrap();
        page.forget_exit().unwrap();
        assert_eq!((page.u64(MMIO_DATA).unwrap(), page.hypercall_ret().unwrap()), (0x5a5a_5a5a_5a5a_5a5a, 8));
    }
}
