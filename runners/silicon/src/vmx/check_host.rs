//! What VM entry checks of the host-state area (SDM volume 3, 27.2.2 to 27.2.4): each rule that is broken is
//! VMfailValid 8.

use privet_cpu::CpuState;
use privet_cpu::state::{cr4, efer};

use super::capability::{CR0_FIXED_ONES, CR4_FIXED_ONES};
use super::controls::{Controls, entry, exit};
use super::features::Features;
use super::field;
use super::invalidate::is_canonical;
use super::vmcs::Vmcs;

/// What is checked, and the processor that it is checked against.
pub(super) struct Checked<'a> {
    pub(super) vmcs: &'a Vmcs,
    pub(super) controls: &'a Controls,
    pub(super) features: &'a Features,
    /// The processor before the entry.
    pub(super) host: &'a CpuState,
}

/// The name of the first rule that the host state breaks.
pub(super) fn violated(checked: &Checked) -> Option<&'static str> {
    RULES.iter().find(|(_, broken)| broken(checked)).map(|(name, _)| *name)
}

type Rule = (&'static str, fn(&Checked) -> bool);

const RULES: [Rule; 11] = [
    ("a bit of CR0 that VMX operation does not allow", cr0_bits),
    ("a bit of CR4 that VMX operation does not allow", cr4_bits),
    ("a CR3 that is too wide", wide_cr3),
    ("an address that is not canonical", not_canonical),
    ("a type of memory in the PAT that there is not", pat),
    ("a reserved bit of EFER", efer_bits),
    ("EFER of another mode than the host's address space", efer_mode),
    ("a selector with a privilege or of the LDT", selectors),
    ("a null CS or TR", null_selectors),
    ("an address space of another size than the processor is in", address_space),
    ("64-bit mode without PAE, or an RIP that it does not have", long_mode),
];

fn cr0_bits(it: &Checked) -> bool {
    let value = it.vmcs.get(field::HOST_CR0);
    value & CR0_FIXED_ONES != CR0_FIXED_ONES || value >> 32 != 0
}

fn cr4_bits(it: &Checked) -> bool {
    let value = it.vmcs.get(field::HOST_CR4);
    value & CR4_FIXED_ONES != CR4_FIXED_ONES || value & !it.features.cr4 != 0
}

fn wide_cr3(it: &Checked) -> bool {
    it.vmcs.get(field::HOST_CR3) >> it.features.address_bits() != 0
}

fn not_canonical(it: &Checked) -> bool {
    let cr4 = it.vmcs.get(field::HOST_CR4);
    let addresses = [
        field::HOST_FS_BASE,
        field::HOST_GS_BASE,
        field::HOST_TR_BASE,
        field::HOST_GDTR_BASE,
        field::HOST_IDTR_BASE,
        field::HOST_SYSENTER_ESP,
        field::HOST_SYSENTER_EIP,
    ];
    addresses.into_iter().any(|address| !is_canonical(it.vmcs.get(address), cr4))
}

fn pat(it: &Checked) -> bool {
    it.controls.exit(exit::LOAD_PAT) && !is_pat(it.vmcs.get(field::HOST_PAT))
}

/// Whether all eight types of memory are ones that there are.
pub(super) fn is_pat(value: u64) -> bool {
    value.to_le_bytes().iter().all(|kind| matches!(kind, 0 | 1 | 4..=7))
}

fn efer_bits(it: &Checked) -> bool {
    it.controls.exit(exit::LOAD_EFER) && it.vmcs.get(field::HOST_EFER) & !it.features.efer != 0
}

fn efer_mode(it: &Checked) -> bool {
    let (value, long) = (it.vmcs.get(field::HOST_EFER), it.controls.exit(exit::HOST_64));
    it.controls.exit(exit::LOAD_EFER) && [efer::LMA, efer::LME].into_iter().any(|bit| (value & bit != 0) != long)
}

fn selectors(it: &Checked) -> bool {
    field::HOST_SELECTORS.into_iter().chain([field::HOST_TR]).any(|selector| it.vmcs.get(selector) & 7 != 0)
}

fn null_selectors(it: &Checked) -> bool {
    let null_ss = it.vmcs.get(field::HOST_SS) == 0 && !it.controls.exit(exit::HOST_64);
    it.vmcs.get(field::HOST_CS) == 0 || it.vmcs.get(field::HOST_TR) == 0 || null_ss
}

/// A host in long mode comes back in it, and no other can have guests in it.
fn address_space(it: &Checked) -> bool {
    let long = it.controls.exit(exit::HOST_64);
    long != it.host.long_mode() || it.controls.entry(entry::IA32E) && !long
}

fn long_mode(it: &Checked) -> bool {
    let (cr4, rip) = (it.vmcs.get(field::HOST_CR4), it.vmcs.get(field::HOST_RIP));
    if it.controls.exit(exit::HOST_64) {
        cr4 & cr4::PAE == 0 || !is_canonical(rip, cr4)
    } else {
        cr4 & cr4::PCIDE != 0 || rip >> 32 != 0
    }
}
