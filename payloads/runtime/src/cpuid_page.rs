//! The table of CPUID that an SNP guest was launched with (arch/x86/include/asm/sev.h: struct snp_cpuid_table).
#![expect(unsafe_code, reason = "the host says where the table is")]

use core::ptr::with_exposed_provenance;
use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::Relaxed;

use crate::vcpu::Vcpu;

/// How many functions there can be.
const MOST: usize = 64;

/// One function: EAX, ECX, XCR0 and XSS before; EAX, EBX, ECX and EDX afterwards.
#[repr(C)]
struct Function {
    leaf: AtomicU32,
    subleaf: AtomicU32,
    _xcr0_and_xss: [AtomicU32; 4],
    answer: [AtomicU32; 4],
    _reserved: [AtomicU32; 2],
}

/// The table, at the start of its page.
#[repr(C)]
pub(crate) struct Table {
    count: AtomicU32,
    _reserved: [AtomicU32; 3],
    functions: [Function; MOST],
}

/// A guest's table, which lasts as long as the guest.
pub(crate) type CpuidPage = &'static Table;

/// The table that the host has told this vCPU of, if there is one.
pub(crate) fn of(vcpu: &Vcpu) -> Option<CpuidPage> {
    match vcpu.mailbox().start().ok()?.cpuid {
        0 => None,
        // SAFETY: the host vouches for the page, which is mapped for good; its fields are atomics, for which any content
        // will do.
        gva => Some(unsafe { &*with_exposed_provenance(gva as usize) }),
    }
}

impl Table {
    /// EAX, EBX, ECX and EDX of a function; zeroes, as in Linux, if it is not in the table.
    pub(crate) fn answer(&self, leaf: u32, subleaf: u32) -> [u64; 4] {
        let count = self.count.load(Relaxed) as usize;
        let is_it = |one: &&Function| one.leaf.load(Relaxed) == leaf && one.subleaf.load(Relaxed) == subleaf;
        let found = self.functions.iter().take(count).find(is_it);
        found.map_or([0; 4], |one| one.answer.each_ref().map(|word| word.load(Relaxed).into()))
    }
}
