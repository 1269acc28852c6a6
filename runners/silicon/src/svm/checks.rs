//! The consistency checks of VMRUN (APM volume 2, 15.5.1 and where noted): each ends in VMEXIT_INVALID.
//!
//! What hardware does not check is not checked here, and the CPU copes with it: null segments, an RIP that is not
//! canonical, segment attributes that no descriptor has.

use privet_cpu::state::{cr0, cr4, efer};
use privet_cpu::{Seg, vector};

use super::control::Control;
use super::features::Features;
use super::intercepts::Code;
use super::permission_maps::{IOPM_BYTES, MSRPM_BYTES};
use super::save::Swapped;
use crate::event::{KIND_EXCEPTION, KIND_INTERRUPT, KIND_NMI, KIND_SOFTWARE, VALID};

/// What a VMRUN is about to enter, and the processor that it is checked against.
pub(crate) struct Entry<'a> {
    pub(crate) control: &'a Control,
    pub(crate) guest: &'a Swapped,
    /// The host's CR0.PG.
    pub(crate) host_paging: bool,
    pub(crate) features: &'a Features,
}

/// The name of the first rule that an entry breaks.
pub(crate) fn violated(entry: &Entry) -> Option<&'static str> {
    RULES.iter().find(|(_, broken)| broken(entry)).map(|(name, _)| *name)
}

type Rule = (&'static str, fn(&Entry) -> bool);

const RULES: [Rule; 18] = [
    ("EFER.SVME is zero", svme_clear),
    ("CR0.CD is zero and CR0.NW is set", not_writethrough_without_cache_disable),
    ("CR0[63:32] are not zero", high_cr0),
    ("a reserved bit of CR3 is set", reserved_cr3),
    ("a reserved bit of CR4 is set", reserved_cr4),
    ("DR6[63:32] are not zero", high_dr6),
    ("DR7[63:32] are not zero", high_dr7),
    ("a reserved bit of EFER is set", reserved_efer),
    ("long mode without CR4.PAE", long_mode_without_pae),
    ("long mode without CR0.PE", long_mode_without_protection),
    ("long mode with CS.L and CS.D", code_segment_both_long_and_32_bit),
    ("the VMRUN intercept is clear", vmrun_not_intercepted),
    ("the I/O permission map ends beyond physical memory", io_map_beyond_memory),
    ("the MSR permission map ends beyond physical memory", msr_map_beyond_memory),
    ("the event to inject is not one", illegal_event),
    ("the ASID is the host's or too large", illegal_asid),
    ("nested paging without host paging", nested_paging_without_host_paging),
    ("a reserved bit of nCR3 or an illegal type in G_PAT", illegal_nested_root),
];

fn svme_clear(entry: &Entry) -> bool {
    entry.guest.efer & efer::SVME == 0
}

fn not_writethrough_without_cache_disable(entry: &Entry) -> bool {
    entry.guest.cr0 & cr0::CD == 0 && entry.guest.cr0 & cr0::NW != 0
}

fn high_cr0(entry: &Entry) -> bool {
    entry.guest.cr0 >> 32 != 0
}

/// The manual says "any MBZ bit" and does not say of which mode: address bits that the processor has not are reserved
/// in all of them.
fn reserved_cr3(entry: &Entry) -> bool {
    let c_bit = entry.features.sev.map_or(0, |sev| 1 << sev.c_bit);
    (entry.guest.cr3 & !c_bit) >> entry.features.physical_bits != 0
}

fn reserved_cr4(entry: &Entry) -> bool {
    entry.guest.cr4 & !entry.features.cr4 != 0
}

fn high_dr6(entry: &Entry) -> bool {
    entry.guest.dr6 >> 32 != 0
}

fn high_dr7(entry: &Entry) -> bool {
    entry.guest.dr7 >> 32 != 0
}

fn reserved_efer(entry: &Entry) -> bool {
    entry.guest.efer & !entry.features.efer != 0
}

fn long_mode_without_pae(entry: &Entry) -> bool {
    entry.guest.in_long_mode() && entry.guest.cr4 & cr4::PAE == 0
}

fn long_mode_without_protection(entry: &Entry) -> bool {
    entry.guest.in_long_mode() && entry.guest.cr0 & cr0::PE == 0
}

fn code_segment_both_long_and_32_bit(entry: &Entry) -> bool {
    let cs = &entry.guest.segments[Seg::Cs as usize];
    entry.guest.in_long_mode() && entry.guest.cr4 & cr4::PAE != 0 && cs.long && cs.db
}

fn vmrun_not_intercepted(entry: &Entry) -> bool {
    !entry.control.intercepts.has(Code::VMRUN)
}

fn io_map_beyond_memory(entry: &Entry) -> bool {
    map_beyond_memory(entry.control.iopm, IOPM_BYTES, entry.features)
}

fn msr_map_beyond_memory(entry: &Entry) -> bool {
    map_beyond_memory(entry.control.msrpm, MSRPM_BYTES, entry.features)
}

fn map_beyond_memory(map: u64, bytes: u64, features: &Features) -> bool {
    (map & !0xfff).checked_add(bytes - 1).is_none_or(|last| last >> features.physical_bits != 0)
}

/// Section 15.20: a reserved type, or an exception that is none.
fn illegal_event(entry: &Entry) -> bool {
    let event = entry.control.event_injection;
    if event & VALID == 0 {
        return false;
    }
    match event >> 8 & 7 {
        KIND_INTERRUPT | KIND_NMI | KIND_SOFTWARE => false,
        KIND_EXCEPTION => !is_exception(event as u8),
        _ => true,
    }
}

/// Vectors of exceptions that a processor of today raises; that leaves out the NMI and the coprocessor's overrun (9).
fn is_exception(number: u8) -> bool {
    matches!(number, vector::DE | vector::DB | vector::BP..=vector::DF | vector::TS..=vector::PF | vector::MF..=19 | 21 | 28..=30)
}

/// Section 15.5.1 for 0, 15.16 for the number of ASIDs that CPUID gives.
fn illegal_asid(entry: &Entry) -> bool {
    entry.control.asid == 0 || entry.control.asid >= entry.features.asids
}

/// Section 15.25.3.
fn nested_paging_without_host_paging(entry: &Entry) -> bool {
    entry.control.nested_paging() && !entry.host_paging
}

/// Section 15.25.3 and 15.25.4.
fn illegal_nested_root(entry: &Entry) -> bool {
    entry.control.nested_paging()
        && (entry.control.nested_cr3 >> entry.features.physical_bits != 0
            || entry.guest.pat.to_le_bytes().iter().any(|kind| !matches!(kind, 0 | 1 | 4..=7)))
}
