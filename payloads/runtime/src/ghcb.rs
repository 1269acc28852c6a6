//! The GHCB: what an SEV-ES or SEV-SNP guest and its host say to each other, and VMGEXIT (AMD's GHCB specification,
//! 56421; what KVM makes of it is in arch/x86/kvm/svm/sev.c).
#![expect(unsafe_code, reason = "the GHCB MSR and VMGEXIT, and a page that is found by its address")]

use core::arch::asm;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;

use privet_protocol::{Refusal, Reply, WORDS, Words};

use crate::paging::PAGE_SIZE;

const GHCB_MSR: u32 = 0xc001_0130;

/// A register or field of the page: the index of its word, which is the number of its valid bit, too.
pub(crate) type Field = usize;
/// CPL is one byte of its word.
pub(crate) const CPL: Field = 0xc8 / 8;
pub(crate) const RAX: Field = 0x1f8 / 8;
pub(crate) const RCX: Field = 0x308 / 8;
pub(crate) const RDX: Field = 0x310 / 8;
pub(crate) const RBX: Field = 0x318 / 8;
pub(crate) const RSI: Field = 0x330 / 8;
pub(crate) const XCR0: Field = 0x3e8 / 8;
const EXIT_CODE: Field = 0x390 / 8;
const EXIT_INFO_1: Field = 0x398 / 8;
const EXIT_INFO_2: Field = 0x3a0 / 8;
pub(crate) const SCRATCH: Field = 0x3a8 / 8;
const VALID_BITMAP: usize = 0x3f0 / 8;
const SHARED_BUFFER: usize = 0x800 / 8;
/// Bytes of the buffer for what does not fit into registers.
pub(crate) const BUFFER_BYTES: u64 = 0xff0 - 0x800;
/// Bits 15:0 of the word at 0xff8 are reserved, the next 16 are the version of the protocol, then comes the usage: 0.
const VERSION: usize = 0xff8 / 8;
const VERSION_2: u64 = 2 << 16;

/// SW_EXITINFO2 of an answer that is an exception, as EVENTINJ of the VMCB (APM volume 2, 15.20).
const EVENT_ERROR_CODE: u64 = 1 << 11;
const EVENT_VALID: u64 = 1 << 31;

/// The exit code of a port access.
pub(crate) const IOIO: u64 = 0x7b;
/// SZ8 of its SW_EXITINFO1; SZ16 and SZ32 are the next bits, as the number of bytes is (APM volume 2, 15.10.2).
const IOIO_SIZE_SHIFT: u32 = 4;

/// Requests of the MSR protocol, and the code of the answer.
const REGISTER: u64 = 0x12;
const TERMINATE: u64 = 0x100;
/// A set of reasons that no other guest has. Its codes are vectors of exceptions, and one more.
const PRIVET_REASONS: u64 = 0xe << 12;
/// The reason of a guest whose doorbell is refused, so that it can tell nothing else. No vector.
pub(crate) const NO_DOORBELL: u64 = 0xff;

/// What the host answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    /// It was done. SW_EXITINFO2.
    Done(u64),
    /// The instruction raises this exception: vector and error code.
    Raise(u64, u64),
    /// The request made no sense to the host: SW_EXITINFO1 and 2.
    Refused(u64, u64),
}

/// The GHCB of the vCPU that executes this.
#[derive(Clone, Copy)]
pub struct Ghcb {
    gpa: u64,
    page: &'static Words,
}

impl Ghcb {
    /// The page at `gpa`.
    ///
    /// # Safety
    /// The page is mapped there as shared memory, for good, and only used as this vCPU's GHCB.
    pub(crate) unsafe fn at(gpa: u64) -> Self {
        // SAFETY: the caller's; a page is aligned for words, and they are atomics, so that the host may write too.
        Self { gpa, page: unsafe { &*(gpa as *const Words) } }
    }

    /// Tells an SNP guest's host where its GHCB will be, which it may do once. Whether the host has understood.
    pub(crate) fn register(self) -> bool {
        vmgexit(self.gpa | REGISTER) == self.gpa | (REGISTER + 1)
    }

    /// Makes a request: its code, SW_EXITINFO1 and 2, and the registers that go with it.
    pub(crate) fn request(self, code: u64, info: [u64; 2], registers: &[(Field, u64)]) -> Answer {
        self.word(VALID_BITMAP).store(0, Relaxed);
        self.word(VALID_BITMAP + 1).store(0, Relaxed);
        self.word(VERSION).store(VERSION_2, Relaxed);
        let fields = [(EXIT_CODE, code), (EXIT_INFO_1, info[0]), (EXIT_INFO_2, info[1])];
        for (field, value) in fields.iter().chain(registers) {
            self.word(*field).store(*value, Relaxed);
            self.word(VALID_BITMAP + field / 64).fetch_or(1 << (field % 64), Relaxed);
        }
        vmgexit(self.gpa);
        match (self.get(EXIT_INFO_1) as u32, self.get(EXIT_INFO_2)) {
            (0, information) => Answer::Done(information),
            (1, event) if event & EVENT_VALID != 0 => {
                let error_code = if event & EVENT_ERROR_CODE != 0 { event >> 32 } else { 0 };
                Answer::Raise(event & 0xff, error_code)
            }
            (_, information) => Answer::Refused(self.get(EXIT_INFO_1), information),
        }
    }

    /// VMGEXIT with `msr` in the GHCB MSR and the page at `page`, which the host has made, as the contents of the GHCB;
    /// what is in the GHCB afterwards replaces it. Values of the reply: the MSR afterwards.
    pub fn exchange(self, msr: u64, page: u64) -> Reply {
        if !page.is_multiple_of(PAGE_SIZE) {
            return Reply::Refused(Refusal::Unaligned, page);
        }
        // SAFETY: the host vouches for the page, as for every address that it sends; a page is aligned for words.
        let image: &Words = unsafe { &*(page as *const Words) };
        let copy = |from: &Words, to: &Words| {
            (0..WORDS).for_each(|word| to[word].store(from[word].load(Relaxed), Relaxed));
        };
        copy(image, self.page);
        let answered = vmgexit(msr);
        copy(self.page, image);
        Reply::done([answered])
    }

    /// What the host has written for a register.
    pub(crate) fn get(self, field: Field) -> u64 {
        self.word(field).load(Relaxed)
    }

    /// The GPA of the buffer, for SW_SCRATCH.
    pub(crate) fn buffer(self) -> u64 {
        self.gpa + SHARED_BUFFER as u64 * 8
    }

    /// Word `index` of the buffer.
    pub(crate) fn buffer_word(self, index: usize) -> &'static AtomicU64 {
        self.word(SHARED_BUFFER + index)
    }

    fn word(self, index: usize) -> &'static AtomicU64 {
        &self.page[index]
    }
}

/// VMGEXIT with `msr` in the GHCB MSR: that MSR afterwards. Neither access to it is ever intercepted.
pub fn vmgexit(msr: u64) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: what the host changes lies in memory that is only accessed as atomics, and registers are the guest's own.
    unsafe {
        asm!(
            "wrmsr",
            ".byte 0xf3, 0x0f, 0x01, 0xd9",
            "rdmsr",
            in("ecx") GHCB_MSR,
            inout("eax") msr as u32 => low,
            inout("edx") (msr >> 32) as u32 => high,
            options(nostack, preserves_flags),
        );
    }
    u64::from(high) << 32 | u64::from(low)
}

/// SW_EXITINFO1 of an access of `bytes` bytes to a port, but for its direction.
pub(crate) const fn port_access(port: u16, bytes: u64) -> u64 {
    (port as u64) << 16 | bytes << IOIO_SIZE_SHIFT
}

/// Ends the guest without a GHCB, because of the exception `vector` or [`NO_DOORBELL`]: the host sees `KVM_SYSTEM_EVENT_SEV_TERM`.
pub(crate) fn terminate(vector: u64) -> ! {
    loop {
        vmgexit(vector << 16 | PRIVET_REASONS | TERMINATE);
    }
}
