//! What KVM and the module let a TD have (`struct kvm_tdx_capabilities`).

use kvm_bindings::{CpuId, kvm_cpuid_entry2};

/// Words of 8 bytes before the list of CPUID, and of one entry in it.
pub(super) const HEADER_WORDS: usize = 256;
pub(super) const ENTRY_WORDS: usize = 5;

/// The leaf whose EAX bits 23:16 are the width of guest-physical addresses.
const ADDRESS_SIZES: u32 = 0x8000_0008;
const WIDTH: u32 = 0xff << 16;

/// All that there is to choose from.
#[derive(Clone, Debug, Default)]
pub struct Capabilities {
    /// Attributes that may be set.
    pub attributes: u64,
    /// States that may be had.
    pub xfam: u64,
    /// R11 of GetTdVmCallInfo leaf 1 as KVM itself answers it, and as user space may.
    pub kernel_vmcalls: u64,
    /// As user space may.
    pub user_vmcalls: u64,
    /// Leaves of CPUID of which bits can be configured: those that are set.
    pub cpuid: Vec<kvm_cpuid_entry2>,
}

impl Capabilities {
    /// From the words that KVM has filled in.
    pub(super) fn decode(words: &[u64]) -> Capabilities {
        let count = words.get(HEADER_WORDS).map_or(0, |word| *word as u32 as usize);
        let entries = words.get(HEADER_WORDS + 1..).unwrap_or_default().as_chunks::<ENTRY_WORDS>().0;
        Capabilities {
            attributes: words[0],
            xfam: words[1],
            kernel_vmcalls: words[2],
            user_vmcalls: words[3],
            cpuid: entries.iter().take(count).map(decode_entry).collect(),
        }
    }

    /// Of these leaves what can be configured, with this width of guest-physical addresses, 48 or 52: what INIT_VM takes.
    pub fn configured(&self, supported: &CpuId, width: u32) -> Vec<kvm_cpuid_entry2> {
        let configured = |may: &kvm_cpuid_entry2| {
            let has = supported.as_slice().iter().find(|has| (has.function, has.index) == (may.function, may.index));
            let has = has.copied().unwrap_or_default();
            let mut entry = kvm_cpuid_entry2 {
                eax: has.eax & may.eax,
                ebx: has.ebx & may.ebx,
                ecx: has.ecx & may.ecx,
                edx: has.edx & may.edx,
                ..*may
            };
            if entry.function == ADDRESS_SIZES {
                entry.eax = entry.eax & !WIDTH | width << 16;
            }
            entry
        };
        self.cpuid.iter().map(configured).collect()
    }
}

/// An entry of `struct kvm_cpuid2`.
fn decode_entry(words: &[u64; ENTRY_WORDS]) -> kvm_cpuid_entry2 {
    let halves = |word: u64| [word as u32, (word >> 32) as u32];
    let ([function, index], [flags, eax]) = (halves(words[0]), halves(words[1]));
    let ([ebx, ecx], [edx, _]) = (halves(words[2]), halves(words[3]));
    kvm_cpuid_entry2 { function, index, flags, eax, ebx, ecx, edx, ..Default::default() }
}

/// The same the other way round.
pub(super) fn encode_entry(entry: &kvm_cpuid_entry2) -> [u64; ENTRY_WORDS] {
    let word = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
    [
        word(entry.function, entry.index),
        word(entry.flags, entry.eax),
        word(entry.ebx, entry.ecx),
        u64::from(entry.edx),
        0,
    ]
}

/// The list of CPUID in a buffer of `struct kvm_cpuid2`.
pub(super) fn decode_list(words: &[u64]) -> Vec<kvm_cpuid_entry2> {
    let count = words.first().map_or(0, |word| *word as u32 as usize);
    let entries = words.get(1..).unwrap_or_default().as_chunks::<ENTRY_WORDS>().0;
    entries.iter().take(count).map(decode_entry).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32, index: u32, eax: u32, ecx: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 { function, index, eax, ecx, ..Default::default() }
    }

    /// As pahole shows struct kvm_tdx_capabilities: 2048 bytes, then nent and padding, then entries of 40 bytes.
    #[test]
    fn capabilities_are_laid_out_as_the_kernel_writes_them() {
        let mut words = vec![0; HEADER_WORDS];
        words[..4].copy_from_slice(&[1 << 28, 7, 0, 2]);
        words.push(2);
        words.extend(encode_entry(&entry(1, 0, 3, 4)));
        words.extend(encode_entry(&entry(7, 1, 5, 6)));
        words.extend([0; ENTRY_WORDS]);
        let found = Capabilities::decode(&words);
        assert_eq!((found.attributes, found.xfam, found.user_vmcalls), (1 << 28, 7, 2));
        assert_eq!(found.cpuid, [entry(1, 0, 3, 4), entry(7, 1, 5, 6)]);
    }

    #[test]
    fn only_what_both_have_is_configured_and_the_width_is_ours() {
        let offered = Capabilities {
            cpuid: vec![entry(1, 0, 0, 0b110), entry(9, 0, 1, 0), entry(ADDRESS_SIZES, 0, WIDTH, 0)],
            ..Default::default()
        };
        let supported = CpuId::from_entries(&[entry(1, 0, 0, 0b011), entry(ADDRESS_SIZES, 0, 0x30, 0)]).unwrap();
        let configured = offered.configured(&supported, 48);
        let expected = [entry(1, 0, 0, 0b010), entry(9, 0, 0, 0), entry(ADDRESS_SIZES, 0, 48 << 16, 0)];
        assert_eq!(configured, expected);
    }
}
