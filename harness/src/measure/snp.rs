//! The launch digest of SNP guests (SEV-SNP firmware ABI, 8.17.2).

use sha2::{Digest, Sha384};

use crate::sev::PageType;
use crate::units::{Gpa, PAGE_SIZE};

/// Where KVM says that the state of every vCPU lies (`INITIAL_VMSA_GPA` in arch/x86/kvm/svm/sev.c).
const VMSA_GPA: Gpa = Gpa(0xffff_ffff_f000);

/// Length of PAGE_INFO.
const PAGE_INFO: usize = 0x70;

/// A hash over all pages, their order, types and places.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SnpDigest([u8; 48]);

impl Default for SnpDigest {
    fn default() -> Self {
        SnpDigest::EMPTY
    }
}

impl SnpDigest {
    /// Before any page.
    pub const EMPTY: SnpDigest = SnpDigest([0; 48]);

    /// Takes in whole pages of one type from `gpa` on. The content counts for those types that are measured.
    ///
    /// # Panics
    /// If they are no whole pages.
    pub fn update(&mut self, page_type: PageType, gpa: Gpa, content: &[u8]) {
        let (pages, rest) = content.as_chunks::<{ PAGE_SIZE as usize }>();
        assert!(rest.is_empty(), "{:#x} bytes are no whole pages", content.len());
        for (index, page) in pages.iter().enumerate() {
            self.page(page_type, gpa + index as u64 * PAGE_SIZE, page);
        }
    }

    /// Takes in the state of a vCPU.
    pub fn vmsa(&mut self, vmsa: &[u8; PAGE_SIZE as usize]) {
        self.page(PageType::Vmsa, VMSA_GPA, vmsa);
    }

    /// The digest of all so far.
    pub fn bytes(&self) -> [u8; 48] {
        self.0
    }

    /// One that is wrong: the same with a bit flipped, of 384.
    pub fn with_bit_flipped(mut self, bit: usize) -> SnpDigest {
        self.0[bit / 8] ^= 1 << (bit % 8);
        self
    }

    fn page(&mut self, page_type: PageType, gpa: Gpa, page: &[u8; PAGE_SIZE as usize]) {
        let mut info = [0; PAGE_INFO];
        info[..0x30].copy_from_slice(&self.0);
        if page_type.is_measured() {
            info[0x30..0x60].copy_from_slice(&Sha384::digest(page));
        }
        info[0x60..0x62].copy_from_slice(&(PAGE_INFO as u16).to_le_bytes());
        info[0x62] = page_type.number();
        // IMI and the rights of VMPL 1 to 3 are zero: KVM asks for nothing else.
        info[0x68..].copy_from_slice(&gpa.0.to_le_bytes());
        self.0 = Sha384::digest(info).into();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HLT: [u8; PAGE_SIZE as usize] = [0xf4; PAGE_SIZE as usize];

    fn digest(pages: &[(PageType, u64)]) -> String {
        let mut digest = SnpDigest::EMPTY;
        pages.iter().for_each(|(page_type, gpa)| digest.update(*page_type, Gpa(*gpa), &HLT));
        digest.bytes().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The values of `GCTX` of sev-snp-measure 0.0.13.
    #[test]
    fn known_answers() {
        use PageType::{Cpuid, Normal, Secrets, Unmeasured, Zero};
        assert_eq!(
            digest(&[(Normal, 0x1000)]),
            "e4f6f9472e1f93dac0bc2b3442644cff31785ea819565c7006b25210edb63ec4fa556db6cd811756e3cb147e94d99b5f"
        );
        assert_eq!(
            digest(&[(Zero, 0x1000)]),
            "4bd4147976a1e7554c1c778a781affc1c672f1965a727ba16084989b7e356044a28bbe585a2f75dac9356fa5ab78f061"
        );
        let all = [
            (Normal, 0x1000),
            (Normal, 0x2000),
            (Zero, 0x3000),
            (Zero, 0x4000),
            (Unmeasured, 0x5000),
            (Secrets, 0x6000),
            (Cpuid, 0x7000),
        ];
        assert_eq!(
            digest(&all),
            "af1766e4b16c3f662492da92235b68e206d2c139fdeb599318f8116609ffa9c273367e95085887afd9e658b51c0872d5"
        );
    }

    #[test]
    fn order_type_and_place_count_and_cuts_do_not() {
        use PageType::{Normal, Unmeasured};
        let two = digest(&[(Normal, 0x1000), (Normal, 0x2000)]);
        let mut at_once = SnpDigest::EMPTY;
        at_once.update(Normal, Gpa(0x1000), &[0xf4; 2 * PAGE_SIZE as usize]);
        assert_eq!(at_once.bytes().map(|byte| format!("{byte:02x}")).concat(), two);
        assert_ne!(digest(&[(Normal, 0x2000), (Normal, 0x1000)]), two);
        assert_ne!(digest(&[(Normal, 0x1000), (Unmeasured, 0x2000)]), two);
        assert_ne!(digest(&[(Normal, 0x1000), (Normal, 0x3000)]), two);
    }
}
