//! What VM entry checks of the controls (SDM volume 3, 27.2.1): each rule that is broken is VMfailValid 7.

use privet_cpu::vector;

use super::capability::{CR3_TARGETS, ENTRY_FIXED, EXIT_FIXED, PIN_DEFAULT1, PROC_FIXED};
use super::controls::{Controls, exit, pin, proc, proc2};
use super::ept;
use super::features::Features;
use super::field::{self, Field};
use super::vmcs::Vmcs;
use crate::Rule as Switch;
use crate::event::{ERROR_VALID, KIND_EXCEPTION, KIND_NMI, KIND_PRIVILEGED, KIND_SOFT_EXCEPTION, KIND_SOFTWARE, VALID};

/// What is checked, and the processor that it is checked against.
pub(super) struct Checked<'a> {
    pub(super) vmcs: &'a Vmcs,
    pub(super) controls: &'a Controls,
    pub(super) features: &'a Features,
    /// The virtual-APIC page's task priority, if there is such a page.
    pub(super) task_priority: u8,
}

/// The name of the first rule that the controls break.
pub(super) fn violated(checked: &Checked) -> Option<&'static str> {
    RULES.iter().find(|(_, broken)| broken(checked)).map(|(name, _)| *name)
}

type Rule = (&'static str, fn(&Checked) -> bool);

const RULES: [Rule; 27] = [
    ("a reserved pin-based control", reserved_pin),
    ("a reserved processor-based control", reserved_proc),
    ("a reserved secondary control", reserved_proc2),
    ("a reserved VM-exit control", reserved_exit),
    ("a reserved VM-entry control", reserved_entry),
    ("too many CR3 targets", too_many_cr3_targets),
    ("an I/O bitmap that is no page", io_bitmaps),
    ("an MSR bitmap that is no page", msr_bitmap),
    ("a virtual-APIC page that is none", virtual_apic_page),
    ("reserved bits of the TPR threshold", tpr_threshold_reserved),
    ("a TPR threshold above the task priority", tpr_threshold_above),
    ("APIC virtualization without a TPR shadow", apic_without_shadow),
    ("virtual NMIs without NMI exiting", virtual_nmis),
    ("NMI windows without virtual NMIs", nmi_windows),
    ("an APIC-access page that is none", apic_access_page),
    ("x2APIC mode and an APIC-access page", x2apic_and_page),
    ("virtual interrupts without external-interrupt exiting", virtual_interrupts),
    ("posted interrupts without what they need", posted_interrupts),
    ("VPID 0", vpid_zero),
    ("an EPT pointer that is none", ept_pointer),
    ("a log of modified pages without EPT, or none", modification_log),
    ("an unrestricted guest without EPT", unrestricted_without_ept),
    ("a TSC multiplier of 0", tsc_multiplier),
    ("saving the preemption timer without it", saving_timer),
    ("a list of MSRs that is none", msr_lists),
    ("an event to inject that is none", illegal_event),
    ("an event to inject with a wrong error code or length", illegal_event_details),
];

impl Checked<'_> {
    fn is_page(&self, field: Field) -> bool {
        let pa = self.vmcs.get(field);
        pa & 0xfff == 0 && pa >> self.features.address_bits() == 0
    }

    fn holds(&self, rule: Switch) -> bool {
        self.features.rules.hold(rule)
    }
}

/// Whether a word of controls has a bit that has to be 0, or lacks one that has to be 1 (appendix A.3 to A.5).
fn reserved(value: u32, must: u32, can: u32) -> bool {
    value & must != must || value & !(must | can) != 0
}

fn reserved_pin(it: &Checked) -> bool {
    reserved(it.controls.pin, PIN_DEFAULT1, it.features.controls().pin)
}

fn reserved_proc(it: &Checked) -> bool {
    reserved(it.controls.proc, PROC_FIXED, it.features.controls().proc)
}

fn reserved_proc2(it: &Checked) -> bool {
    it.controls.proc2 & !it.features.controls().proc2 != 0
}

fn reserved_exit(it: &Checked) -> bool {
    reserved(it.controls.exit, EXIT_FIXED, it.features.controls().exit)
}

fn reserved_entry(it: &Checked) -> bool {
    reserved(it.controls.entry, ENTRY_FIXED, it.features.controls().entry)
}

fn too_many_cr3_targets(it: &Checked) -> bool {
    it.vmcs.get(field::CR3_TARGETS) > CR3_TARGETS
}

fn io_bitmaps(it: &Checked) -> bool {
    it.controls.proc(proc::IO_BITMAPS) && !(it.is_page(field::IO_BITMAP_A) && it.is_page(field::IO_BITMAP_B))
}

fn msr_bitmap(it: &Checked) -> bool {
    it.controls.proc(proc::MSR_BITMAPS) && !it.is_page(field::MSR_BITMAP)
}

fn virtual_apic_page(it: &Checked) -> bool {
    it.controls.proc(proc::TPR_SHADOW) && !it.is_page(field::VIRTUAL_APIC)
}

fn tpr_threshold_reserved(it: &Checked) -> bool {
    it.controls.proc(proc::TPR_SHADOW)
        && !it.controls.proc2(proc2::VIRTUAL_INTERRUPTS)
        && it.vmcs.get(field::TPR_THRESHOLD) >> 4 != 0
}

fn tpr_threshold_above(it: &Checked) -> bool {
    it.controls.proc(proc::TPR_SHADOW)
        && !it.controls.proc2(proc2::VIRTUAL_INTERRUPTS | proc2::APIC_ACCESSES)
        && it.vmcs.get(field::TPR_THRESHOLD) & 0xf > u64::from(it.task_priority >> 4)
}

fn apic_without_shadow(it: &Checked) -> bool {
    !it.controls.proc(proc::TPR_SHADOW)
        && it.controls.proc2(proc2::X2APIC | proc2::APIC_REGISTERS | proc2::VIRTUAL_INTERRUPTS)
}

fn virtual_nmis(it: &Checked) -> bool {
    it.controls.pin(pin::VIRTUAL_NMI) && !it.controls.pin(pin::NMI)
}

fn nmi_windows(it: &Checked) -> bool {
    it.controls.proc(proc::NMI_WINDOW) && !it.controls.pin(pin::VIRTUAL_NMI)
}

fn apic_access_page(it: &Checked) -> bool {
    it.controls.proc2(proc2::APIC_ACCESSES) && !it.is_page(field::APIC_ACCESS)
}

fn x2apic_and_page(it: &Checked) -> bool {
    it.controls.proc2(proc2::APIC_ACCESSES) && it.controls.proc2(proc2::X2APIC)
}

fn virtual_interrupts(it: &Checked) -> bool {
    it.controls.proc2(proc2::VIRTUAL_INTERRUPTS) && !it.controls.pin(pin::EXTERNAL_INTERRUPT)
}

fn posted_interrupts(it: &Checked) -> bool {
    let descriptor = it.vmcs.get(field::POSTED_DESCRIPTOR);
    it.controls.pin(pin::POSTED_INTERRUPTS)
        && !(it.controls.proc2(proc2::VIRTUAL_INTERRUPTS)
            && it.controls.exit(exit::ACKNOWLEDGE)
            && it.vmcs.get(field::POSTED_VECTOR) < 0x100
            && descriptor & 0x3f == 0
            && descriptor >> it.features.address_bits() == 0)
}

fn vpid_zero(it: &Checked) -> bool {
    it.controls.proc2(proc2::VPID) && it.vmcs.get(field::VPID) == 0 && it.holds(Switch::VpidNotZero)
}

fn ept_pointer(it: &Checked) -> bool {
    it.controls.proc2(proc2::EPT) && !ept::is_pointer(it.vmcs.get(field::EPTP), it.features)
}

fn modification_log(it: &Checked) -> bool {
    it.controls.proc2(proc2::PML) && !(it.controls.proc2(proc2::EPT) && it.is_page(field::PML_ADDRESS))
}

fn unrestricted_without_ept(it: &Checked) -> bool {
    it.controls.proc2(proc2::UNRESTRICTED) && !it.controls.proc2(proc2::EPT)
}

fn tsc_multiplier(it: &Checked) -> bool {
    it.controls.proc2(proc2::TSC_SCALING) && it.vmcs.get(field::TSC_MULTIPLIER) == 0
}

fn saving_timer(it: &Checked) -> bool {
    it.controls.exit(exit::SAVE_TIMER) && !it.controls.pin(pin::PREEMPTION_TIMER)
}

/// 16 bytes an entry, aligned to 16, and no wider than addresses are.
fn msr_lists(it: &Checked) -> bool {
    let lists = [
        (field::EXIT_MSR_STORE, field::EXIT_MSR_STORE_COUNT),
        (field::EXIT_MSR_LOAD, field::EXIT_MSR_LOAD_COUNT),
        (field::ENTRY_MSR_LOAD, field::ENTRY_MSR_LOAD_COUNT),
    ];
    lists.into_iter().any(|(address, count)| {
        let (address, count) = (it.vmcs.get(address), it.vmcs.get(count));
        let last = address.wrapping_add((count * 16).wrapping_sub(1));
        count != 0 && (address & 0xf != 0 || (address | last) >> it.features.address_bits() != 0)
    })
}

/// Section 27.2.1.3: a type that there is, with a vector that it can have.
fn illegal_event(it: &Checked) -> bool {
    let event = it.vmcs.get32(field::ENTRY_EVENT);
    if event & VALID == 0 || !it.holds(Switch::InjectedEvents) {
        return false;
    }
    match (event >> 8 & 7, event as u8) {
        (1 | 7, _) => true,
        (KIND_NMI, vector) => vector != vector::NMI,
        (KIND_EXCEPTION, vector) => vector > 31,
        _ => false,
    }
}

/// An error code for exceptions that push one and for no others, and the length of an instruction for software events.
fn illegal_event_details(it: &Checked) -> bool {
    let event = it.vmcs.get32(field::ENTRY_EVENT);
    if event & VALID == 0 || !it.holds(Switch::InjectedEvents) {
        return false;
    }
    let kind = event >> 8 & 7;
    let protected = it.vmcs.get(field::GUEST_CR0) & 1 != 0 || !it.controls.proc2(proc2::UNRESTRICTED);
    let pushes = kind == KIND_EXCEPTION && protected && has_error_code(event as u8);
    let of_instruction = matches!(kind, KIND_SOFTWARE | KIND_PRIVILEGED | KIND_SOFT_EXCEPTION);
    event >> 12 & 0x7_ffff != 0
        || (event & ERROR_VALID != 0) != pushes
        || pushes && it.vmcs.get(field::ENTRY_ERROR) >> 16 != 0
        || of_instruction && it.vmcs.get(field::ENTRY_LENGTH) > 15
}

fn has_error_code(number: u8) -> bool {
    matches!(number, vector::DF | vector::TS..=vector::PF | vector::AC | vector::CP)
}
