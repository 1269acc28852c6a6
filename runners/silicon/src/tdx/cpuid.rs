//! CPUID of a TD: what its host may configure, and what the module answers (TDX module ABI, "CPUID Virtualization").
//!
//! Each virtualised bit is one of four: always 1, always 0, as the processor has it, or as the host says for this TD if
//! the processor has it. The table is a small one: what a Linux guest looks at and these processors have.

use std::collections::BTreeMap;

use privet_cpu::CpuidResult;
use serde::{Deserialize, Serialize};

/// A leaf, and the subleaf if it has such.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct LeafId {
    pub(super) leaf: u32,
    pub(super) subleaf: Option<u32>,
}

impl LeafId {
    const fn of(leaf: u32) -> LeafId {
        LeafId { leaf, subleaf: None }
    }

    const fn with(leaf: u32, subleaf: u32) -> LeafId {
        LeafId { leaf, subleaf: Some(subleaf) }
    }

    /// As CPUID_CONFIG_LEAVES and the extended error of TDH.MNG.INIT name it.
    pub(super) fn encode(self) -> u64 {
        u64::from(self.leaf) | u64::from(self.subleaf.unwrap_or(u32::MAX)) << 32
    }

    /// Of the low half of the identifier of CPUID_VALUES: bit 16 bit 31 of the leaf, 15:9 the leaf, 8 no subleaf, 7:1 the
    /// subleaf (all ones without one). None where a bit is set that has to be clear, or a subleaf beside "none".
    pub(super) fn of_field(code: u32) -> Option<LeafId> {
        let leaf = code >> 9 & 0x7F | (code >> 16 & 1) << 31;
        let subleaf = match (code >> 8 & 1 != 0, code >> 1 & 0x7F) {
            (true, 0x7F) => None,
            (true, _) => return None,
            (false, subleaf) => Some(subleaf),
        };
        (code >> 17 == 0).then_some(LeafId { leaf, subleaf })
    }
}

/// The four registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Bits(pub(super) [u32; 4]);

impl Bits {
    /// EBX:EAX and EDX:ECX, as metadata fields hold them.
    pub(super) fn halves(self) -> [u64; 2] {
        let [eax, ebx, ecx, edx] = self.0.map(u64::from);
        [eax | ebx << 32, ecx | edx << 32]
    }

    fn zip(self, other: Bits, combine: impl Fn(u32, u32) -> u32) -> Bits {
        Bits(std::array::from_fn(|register| combine(self.0[register], other.0[register])))
    }
}

impl From<CpuidResult> for Bits {
    fn from(result: CpuidResult) -> Bits {
        Bits([result.eax, result.ebx, result.ecx, result.edx])
    }
}

impl From<Bits> for CpuidResult {
    fn from(bits: Bits) -> CpuidResult {
        let [eax, ebx, ecx, edx] = bits.0;
        CpuidResult { eax, ebx, ecx, edx }
    }
}

/// How a leaf is virtualised.
struct Virtual {
    id: LeafId,
    /// Bits as the processor has them.
    native: [u32; 4],
    /// Bits that are 1 whatever the processor says.
    fixed: [u32; 4],
    /// Bits as the host configures them for the TD, of those that the processor has.
    configured: [u32; 4],
}

const NONE: [u32; 4] = [0; 4];
const ALL: [u32; 4] = [u32::MAX; 4];

const fn native(leaf: u32) -> Virtual {
    Virtual { id: LeafId::of(leaf), native: ALL, fixed: NONE, configured: NONE }
}

const fn native_subleaf(leaf: u32, subleaf: u32) -> Virtual {
    Virtual { id: LeafId::with(leaf, subleaf), native: ALL, fixed: NONE, configured: NONE }
}

/// 1:ECX: SSE3, SSSE3, CX16, PCID, SSE4.1, SSE4.2, OSXSAVE.
const ECX_1: u32 = 1 << 0 | 1 << 9 | 1 << 13 | 1 << 17 | 1 << 19 | 1 << 20 | 1 << 27;
/// 1:ECX: PCLMULQDQ, FMA, MOVBE, POPCNT, AES, AVX, F16C, RDRAND.
const ECX_1_CONFIGURED: u32 = 1 << 1 | 1 << 12 | 1 << 22 | 1 << 23 | 1 << 25 | 1 << 28 | 1 << 29 | 1 << 30;
/// 1:ECX: x2APIC, TSC deadline, XSAVE, hypervisor.
const ECX_1_FIXED: u32 = 1 << 21 | 1 << 24 | 1 << 26 | 1 << 31;
/// 1:EDX: MCE, APIC, MTRR, MCA.
const EDX_1_FIXED: u32 = 1 << 7 | 1 << 9 | 1 << 12 | 1 << 14;
/// 1:EDX without ACPI, DS and TM, which are not virtualised.
const EDX_1: u32 = !(1 << 21 | 1 << 22 | 1 << 29 | 1 << 31);
/// 7.0:EBX: FSGSBASE, SMEP, ERMS, INVPCID, CLFLUSHOPT, CLWB, SMAP.
const EBX_7: u32 = 1 << 0 | 1 << 7 | 1 << 9 | 1 << 10 | 1 << 20 | 1 << 23 | 1 << 24;
/// 7.0:EBX: BMI1, AVX2, BMI2, RDSEED, ADX, SHA.
const EBX_7_CONFIGURED: u32 = 1 << 3 | 1 << 5 | 1 << 8 | 1 << 18 | 1 << 19 | 1 << 29;
/// 7.0:ECX: UMIP, RDPID, MOVDIRI, MOVDIR64B.
const ECX_7: u32 = 1 << 2 | 1 << 22 | 1 << 27 | 1 << 28;
/// 7.0:ECX: VAES, VPCLMULQDQ.
const ECX_7_CONFIGURED: u32 = 1 << 9 | 1 << 10;
/// 7.0:EDX: FSRM, ARCH_CAPABILITIES.
const EDX_7: u32 = 1 << 4 | 1 << 29;
/// 80000008:EBX: WBNOINVD.
const EBX_80000008_CONFIGURED: u32 = 1 << 9;

/// All leaves that the module answers. Any other raises #VE.
static VIRTUAL: &[Virtual] = &[
    native(0x0),
    Virtual {
        id: LeafId::of(0x1),
        native: [u32::MAX, 0xFF00, ECX_1, EDX_1],
        fixed: [0, 0, ECX_1_FIXED, EDX_1_FIXED],
        configured: [0, 0xFF_0000, ECX_1_CONFIGURED, 0],
    },
    native_subleaf(0x4, 0),
    native_subleaf(0x4, 1),
    native_subleaf(0x4, 2),
    native_subleaf(0x4, 3),
    native_subleaf(0x4, 4),
    native(0x5),
    Virtual {
        id: LeafId::with(0x7, 0),
        native: [u32::MAX, EBX_7, ECX_7, EDX_7],
        fixed: NONE,
        configured: [0, EBX_7_CONFIGURED, ECX_7_CONFIGURED, 0],
    },
    native_subleaf(0xD, 0),
    native_subleaf(0xD, 1),
    native_subleaf(0xD, 2),
    native_subleaf(0x14, 0),
    native(0x15),
    native(0x19),
    native_subleaf(0x1D, 0),
    native_subleaf(0x1E, 0),
    native_subleaf(0x21, 0),
    native(0x8000_0000),
    native(0x8000_0001),
    native(0x8000_0006),
    native(0x8000_0007),
    Virtual {
        id: LeafId::of(0x8000_0008),
        native: [u32::MAX, 0, 0, 0],
        fixed: NONE,
        configured: [0, EBX_80000008_CONFIGURED, 0, 0],
    },
];

/// "IntelTDX    " of leaf 21h.
const SIGNATURE: [u32; 4] = [0, 0x6574_6E49, 0x2020_2020, 0x5844_546C];
/// The highest basic leaf of a TD.
const HIGHEST: u32 = 0x21;

/// A leaf of which the host configures bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Configurable {
    pub(super) id: LeafId,
    pub(super) bits: Bits,
}

/// The leaves that TD_PARAMS configures, in its order. Their subleaf is said exactly where it matters.
pub(super) fn configurable(native: &dyn Fn(u32, u32) -> CpuidResult) -> Vec<Configurable> {
    let leaves = VIRTUAL.iter().filter(|leaf| leaf.configured != NONE);
    let bits = |leaf: &Virtual| Bits(leaf.configured).zip(processor(native, leaf.id), |mask, native| mask & native);
    leaves.map(|leaf| Configurable { id: leaf.id, bits: with_free_values(leaf.id, bits(leaf)) }).collect()
}

/// Fields that are numbers, not features: the host may say any whatever the processor says.
fn with_free_values(id: LeafId, mut bits: Bits) -> Bits {
    if id == LeafId::of(0x1) {
        bits.0[1] |= 0xFF_0000;
    }
    bits
}

fn processor(native: &dyn Fn(u32, u32) -> CpuidResult, id: LeafId) -> Bits {
    native(id.leaf, id.subleaf.unwrap_or(0)).into()
}

/// What a TD finds, from TDH.MNG.INIT on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct TdCpuid(BTreeMap<LeafId, Bits>);

impl TdCpuid {
    /// Of a TD that is configured with these values, in the order of [`configurable`].
    ///
    /// # Errors
    /// The first leaf that has a bit which is not configurable.
    pub(super) fn new(
        native: &dyn Fn(u32, u32) -> CpuidResult,
        values: &[[u32; 4]],
        xfam: u64,
    ) -> Result<TdCpuid, LeafId> {
        let configurable = configurable(native);
        let mut configured = BTreeMap::new();
        for (leaf, &value) in configurable.iter().zip(values) {
            let mut rest = Bits(value).zip(leaf.bits, |value, bits| value & !bits);
            if leaf.id == LeafId::of(0x1) && rest.0[0] == processor(native, leaf.id).0[0] {
                // Family, model and stepping may be said, if they are what they are.
                rest.0[0] = 0;
            }
            if rest != Bits::default() {
                return Err(leaf.id);
            }
            configured.insert(leaf.id, Bits(value).zip(leaf.bits, |value, bits| value & bits));
        }
        let mut table = BTreeMap::new();
        for leaf in VIRTUAL {
            let own = processor(native, leaf.id).zip(Bits(leaf.native), |native, mask| native & mask);
            let given = configured.get(&leaf.id).copied().unwrap_or_default();
            let bits = own.zip(given, |own, given| own | given).zip(Bits(leaf.fixed), |bits, fixed| bits | fixed);
            table.insert(leaf.id, adjusted(leaf.id, bits, xfam));
        }
        Ok(TdCpuid(table))
    }

    /// CPUID_VALUES of this leaf; none in this form.
    pub(super) fn field(&self, id: LeafId) -> Option<Bits> {
        self.0.get(&id).copied()
    }

    /// What CPUID gives; none where it raises #VE.
    pub(super) fn answer(&self, leaf: u32, subleaf: u32) -> Option<Bits> {
        // Hypervisors' leaves are the host's.
        if (0x4000_0000..0x5000_0000).contains(&leaf) {
            return None;
        }
        let highest_extended = self.0.get(&LeafId::of(0x8000_0000)).map_or(0, |bits| bits.0[0]);
        let leaf = match leaf {
            0..=HIGHEST => leaf,
            0x8000_0000.. if leaf <= highest_extended => leaf,
            // As processors of Intel do it: the highest basic leaf.
            _ => HIGHEST,
        };
        self.field(LeafId::of(leaf)).or_else(|| self.field(LeafId::with(leaf, subleaf))).or_else(|| {
            // Of a leaf with subleaves the rest is empty.
            self.field(LeafId::with(leaf, 0)).map(|_| Bits::default())
        })
    }
}

/// What follows from the rest of the TD.
fn adjusted(id: LeafId, mut bits: Bits, xfam: u64) -> Bits {
    match (id.leaf, id.subleaf) {
        (0x0, None) => bits.0[0] = HIGHEST,
        (0x1, None) if xfam & 1 << 2 == 0 => bits.0[2] &= !(1 << 12 | 1 << 28 | 1 << 29),
        (0x7, Some(0)) if xfam & 1 << 2 == 0 => bits.0[1] &= !(1 << 5),
        (0xD, Some(0)) => {
            bits.0[0] &= xfam as u32;
            bits.0[3] &= (xfam >> 32) as u32;
        }
        (0xD, Some(1)) => {
            bits.0[2] &= (xfam & 0x1_DD00) as u32;
            bits.0[3] = 0;
        }
        (0xD, Some(2)) if xfam & 1 << 2 == 0 => bits = Bits::default(),
        (0x21, Some(0)) => bits = Bits(SIGNATURE),
        // TSX, VMX and other hosts' features are in no mask above.
        _ => {}
    }
    bits
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tdx::test_machine::cpuid;

    fn table() -> TdCpuid {
        let values = vec![[0; 4]; configurable(&cpuid).len()];
        TdCpuid::new(&cpuid, &values, 7).unwrap()
    }

    #[test]
    fn a_td_sees_that_it_is_one() {
        let bits = table().answer(0x21, 0).unwrap();
        let name: Vec<u8> = [bits.0[1], bits.0[3], bits.0[2]].into_iter().flat_map(u32::to_le_bytes).collect();
        assert_eq!(name, b"IntelTDX    ");
        assert_eq!(table().answer(0, 0).unwrap().0[0], 0x21);
    }

    #[test]
    fn hosts_features_are_hidden_and_a_tds_own_are_there() {
        let ecx = table().answer(1, 0).unwrap().0[2];
        assert_eq!(ecx & 1 << 5, 0, "VMX");
        assert_eq!(ecx & ECX_1_FIXED, ECX_1_FIXED);
    }

    #[test]
    fn what_the_host_configures_is_there_if_the_processor_has_it() {
        let leaves = configurable(&cpuid);
        let index = leaves.iter().position(|leaf| leaf.id == LeafId::of(1)).unwrap();
        assert_ne!(leaves[index].bits.0[2] & 1 << 28, 0, "AVX");
        assert_eq!(leaves[index].bits.0[2] & 1 << 25, 0, "AES, which the processors of this test lack");
        let mut values = vec![[0; 4]; leaves.len()];
        values[index] = [0, 0x2_0000, 1 << 28, 0];
        let ecx = |values: &[[u32; 4]]| TdCpuid::new(&cpuid, values, 7).unwrap().answer(1, 0).unwrap().0;
        assert_eq!((ecx(&values)[2] & 1 << 28, ecx(&values)[1] & 0xFF_0000), (1 << 28, 0x2_0000));
        values[index][2] = 0;
        assert_eq!(ecx(&values)[2] & 1 << 28, 0);
        values[index][2] = 1 << 25;
        assert_eq!(TdCpuid::new(&cpuid, &values, 7), Err(LeafId::of(1)));
        values[index] = [cpuid(1, 0).eax, 0, 0, 0];
        assert!(TdCpuid::new(&cpuid, &values, 7).is_ok(), "what the processor is may be said");
    }

    #[test]
    fn features_of_a_state_that_the_td_has_not_are_gone() {
        let leaves = configurable(&cpuid);
        let values: Vec<[u32; 4]> = leaves.iter().map(|leaf| leaf.bits.0).collect();
        let without_avx = TdCpuid::new(&cpuid, &values, 3).unwrap();
        assert_eq!(without_avx.answer(1, 0).unwrap().0[2] & 1 << 28, 0);
        assert_eq!(without_avx.answer(0xD, 0).unwrap().0[0], 3);
    }

    #[test]
    fn other_leaves_are_the_hosts_or_the_highest() {
        let table = table();
        assert_eq!(table.answer(0x4000_0000, 0), None);
        assert_eq!(table.answer(0x2, 0), None);
        assert_eq!(table.answer(0x1234, 0), table.answer(0x21, 0));
        assert_eq!(table.answer(0x21, 5), Some(Bits::default()));
    }

    /// arch/x86/kvm/vmx/tdx.c: tdx_read_cpuid().
    #[test]
    fn linux_names_leaves_in_identifiers() {
        assert_eq!(LeafId::of_field(0x1FE), Some(LeafId::of(0)));
        assert_eq!(LeafId::of_field(1 << 16 | 8 << 9 | 0x1FE | 1), Some(LeafId::of(0x8000_0008)));
        assert_eq!(LeafId::of_field(0xD << 9 | 1 << 1), Some(LeafId::with(0xD, 1)));
        assert_eq!(LeafId::of_field(1 << 8), None);
        assert_eq!(LeafId::of_field(1 << 17 | 0x1FE), None);
        assert_eq!(LeafId::of(0x8000_0008).encode(), 0xFFFF_FFFF_8000_0008);
    }
}
