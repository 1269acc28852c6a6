//! The CPUID page of an SNP guest (SNP firmware ABI 56860, "CPUID Reporting"): what a VMM wants its guest to see, as far as the
//! processor has it.

use kvm_bindings::kvm_cpuid_entry2;
use privet_harness::units::PAGE_SIZE;

const ENTRIES: usize = 64;
/// Bytes of the page's header, and of an entry.
const HEADER: usize = 16;
const ENTRY: usize = 48;
/// The leaf whose entries depend on XCR0.
const EXTENDED_STATE: u32 = 0xd;

/// The page with `entries`, which are KVM's.
pub(crate) fn page(entries: &[kvm_cpuid_entry2]) -> Vec<u8> {
    let mut page = vec![0; PAGE_SIZE as usize];
    let entries = &entries[..entries.len().min(ENTRIES)];
    page[..4].copy_from_slice(&(entries.len() as u32).to_le_bytes());
    for (index, entry) in entries.iter().enumerate() {
        let xcr0 = u64::from(entry.function == EXTENDED_STATE && entry.index < 2);
        let words = [entry.function, entry.index, xcr0 as u32, 0, 0, 0, entry.eax, entry.ebx, entry.ecx, entry.edx];
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        page[HEADER + index * ENTRY..][..bytes.len()].copy_from_slice(&bytes);
    }
    page
}

/// What KVM offers, for a guest's processor with this number. Features are left out that KVM emulates though this processor lacks
/// them: the firmware refuses a page that promises them.
pub(crate) fn of_processor(id: u8, mut entries: Vec<kvm_cpuid_entry2>) -> Vec<kvm_cpuid_entry2> {
    /// CPUID.1:EBX, which has the ID of the local APIC above.
    const BELOW_APIC_ID: u32 = 0x00ff_ffff;
    /// CPUID.1:ECX, which no processor sets.
    const HYPERVISOR: u32 = 1 << 31;
    for entry in &mut entries {
        let has = std::arch::x86_64::__cpuid_count(entry.function, entry.index);
        match (entry.function, entry.index) {
            (1, _) => {
                entry.ebx = entry.ebx & BELOW_APIC_ID | u32::from(id) << 24;
                entry.ecx &= has.ecx | HYPERVISOR;
            }
            (0xb, _) => entry.edx = id.into(),
            (7, _) => {
                entry.ebx &= has.ebx;
                entry.ecx &= has.ecx;
                entry.edx &= has.edx;
            }
            (0x8000_0001, _) => {
                entry.ecx &= has.ecx;
                entry.edx &= has.edx;
            }
            (0x8000_0008, _) => entry.ebx &= has.ebx,
            (0x8000_0021, _) => entry.eax &= has.eax,
            _ => {}
        }
    }
    entries
}
