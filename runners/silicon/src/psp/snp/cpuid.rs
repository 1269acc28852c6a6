//! What a CPUID page may tell a guest (56860, "CPUID Reporting").

use privet_cpu::CpuidResult;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

const MAX_FUNCTIONS: usize = 64;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct Function {
    leaf: U32,
    subleaf: U32,
    xcr0: U64,
    xss: U64,
    eax: U32,
    ebx: U32,
    ecx: U32,
    edx: U32,
    reserved: U64,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct CpuidPage {
    count: U32,
    reserved: U32,
    reserved_2: U64,
    functions: [Function; MAX_FUNCTIONS],
    rest: [u8; 1008],
}

/// How a register of a leaf may differ from what the processor says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Policy {
    /// It need not have to do with it: topology, names, what software decides.
    Free,
    /// No bit that the processor lacks, but for those in the mask, which software decides.
    Subset(u32),
    /// The same.
    Equal,
    /// Not more.
    AtMost,
}

/// CPUID.1:ECX.OSXSAVE follows the guest's CR4.
const OSXSAVE: u32 = 1 << 27;
/// CPUID.1:ECX.HYPERVISOR is the hypervisor's to set.
const HYPERVISOR: u32 = 1 << 31;
/// CPUID.1:EDX.APIC follows the guest's APIC base.
const APIC: u32 = 1 << 9;
/// CPUID.7:ECX.OSPKE follows the guest's CR4.
const OSPKE: u32 = 1 << 4;

/// Policies of EAX, EBX, ECX and EDX. The rule of 56860: a feature that the processor lacks must not be shown, nor
/// a size that it does not have. Its table knows more leaves than those that decide what a guest relies on; the
/// others are free here.
fn policies(leaf: u32, subleaf: u32) -> [Policy; 4] {
    use Policy::{AtMost, Equal, Free, Subset};
    match (leaf, subleaf) {
        (0x0 | 0x8000_0000, _) => [AtMost, Equal, Equal, Equal],
        (0x1, _) => [Free, Free, Subset(OSXSAVE | HYPERVISOR), Subset(APIC)],
        (0x7, 0) => [AtMost, Subset(0), Subset(OSPKE), Subset(0)],
        (0x7, _) => [Subset(0); 4],
        // Sizes of the state that is enabled now are the guest's to compute (sev-shared.c: snp_cpuid_postprocess).
        (0xD, 0) => [Subset(0), Free, AtMost, Subset(0)],
        (0xD, 1) => [Subset(0), Free, Subset(0), Subset(0)],
        (0xD, _) => [AtMost, Equal, Equal, Free],
        (0x8000_0001, _) => [Free, Free, Subset(0), Subset(0)],
        (0x8000_0007, _) => [Free, Free, Free, Subset(0)],
        (0x8000_0008, _) => [Free, Subset(0), Free, Free],
        (0x8000_000A, _) => [Free, Free, Free, Subset(0)],
        (0x8000_001F, _) => [Subset(0), Free, Free, Free],
        (0x8000_0021, _) => [Subset(0), Free, Free, Free],
        _ => [Free; 4],
    }
}

impl Policy {
    fn corrected(self, given: u32, processor: u32) -> u32 {
        match self {
            Policy::Free => given,
            Policy::Subset(free) => given & (processor | free),
            Policy::Equal => processor,
            Policy::AtMost => given.min(processor),
        }
    }
}

/// The page as the firmware would take it, if it does not take it as it is.
pub(super) fn corrected(page: &[u8], cpuid: &dyn Fn(u32, u32) -> CpuidResult) -> Option<Vec<u8>> {
    let mut table = CpuidPage::read_from_bytes(page).ok()?;
    table.count = U32::new(table.count.get().min(MAX_FUNCTIONS as u32));
    table.reserved = U32::ZERO;
    table.reserved_2 = U64::ZERO;
    for function in table.functions.iter_mut().take(table.count.get() as usize) {
        let (leaf, subleaf) = (function.leaf.get(), function.subleaf.get());
        let processor = cpuid(leaf, subleaf);
        let [eax, ebx, ecx, edx] = policies(leaf, subleaf);
        function.eax = U32::new(eax.corrected(function.eax.get(), processor.eax));
        function.ebx = U32::new(ebx.corrected(function.ebx.get(), processor.ebx));
        function.ecx = U32::new(ecx.corrected(function.ecx.get(), processor.ecx));
        function.edx = U32::new(edx.corrected(function.edx.get(), processor.edx));
        function.reserved = U64::ZERO;
    }
    (table.as_bytes() != page).then(|| table.as_bytes().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn processor(leaf: u32, _subleaf: u32) -> CpuidResult {
        match leaf {
            0 => CpuidResult { eax: 0x10, ebx: 1, ecx: 2, edx: 3 },
            _ => CpuidResult { eax: 0xFF, ebx: 0xFF, ecx: 0xFF, edx: 0xFF },
        }
    }

    fn page(leaf: u8, registers: [u32; 4]) -> Vec<u8> {
        let mut page = vec![0; 4096];
        page[0] = 1;
        page[16] = leaf;
        for (index, register) in registers.into_iter().enumerate() {
            page[16 + 0x18 + index * 4..][..4].copy_from_slice(&register.to_le_bytes());
        }
        page
    }

    #[test]
    fn a_guest_may_see_less_than_there_is() {
        assert_eq!(corrected(&page(1, [0x12345, 77, 0x0F, 0xF0]), &processor), None);
        assert_eq!(corrected(&page(1, [0, 0, OSXSAVE | HYPERVISOR, APIC]), &processor), None);
        assert_eq!(corrected(&page(0, [0xD, 1, 2, 3]), &processor), None);
    }

    #[test]
    fn a_guest_may_not_see_more_than_there_is() {
        assert_eq!(corrected(&page(1, [0, 0, 0x101, 0]), &processor), Some(page(1, [0, 0, 1, 0])));
        assert_eq!(corrected(&page(0, [0x11, 9, 2, 3]), &processor), Some(page(0, [0x10, 1, 2, 3])));
        assert_eq!(corrected(&page(7, [0, 0x1FF, 0, 0]), &processor), Some(page(7, [0, 0xFF, 0, 0])));
    }

    #[test]
    fn there_are_64_functions_and_reserved_fields_are_zero() {
        let mut given = page(1, [0; 4]);
        given[0] = 65;
        assert_eq!(corrected(&given, &processor).unwrap()[0], 64);
        let mut given = page(1, [0; 4]);
        given[4] = 1;
        given[16 + 0x28] = 1;
        assert_eq!(corrected(&given, &processor), Some(page(1, [0; 4])));
    }
}
