//! The launch digest of SNP (56860, 8.17.2).

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha384};
use zerocopy::little_endian::{U16, U64};
use zerocopy::{Immutable, IntoBytes};

/// Type of a page at launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PageType {
    Normal = 1,
    Vmsa = 2,
    Zero = 3,
    Unmeasured = 4,
    Secrets = 5,
    Cpuid = 6,
}

impl PageType {
    pub(super) fn numbered(number: u32) -> Option<PageType> {
        use PageType::*;
        [Normal, Vmsa, Zero, Unmeasured, Secrets, Cpuid].into_iter().find(|&kind| kind as u32 == number)
    }
}

/// What is hashed for each page. AMD's table has VMPL 3 first.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct PageInfo {
    current: [u8; 48],
    contents: [u8; 48],
    length: U16,
    page_type: u8,
    imi_page: u8,
    vmpl3_permissions: u8,
    vmpl2_permissions: u8,
    vmpl1_permissions: u8,
    reserved: u8,
    gpa: U64,
}

/// The digest so far: of all pages, their order, types and places.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "Vec<u8>", try_from = "Vec<u8>")]
pub(super) struct SnpDigest([u8; 48]);

impl From<SnpDigest> for Vec<u8> {
    fn from(digest: SnpDigest) -> Vec<u8> {
        digest.0.to_vec()
    }
}

impl TryFrom<Vec<u8>> for SnpDigest {
    type Error = &'static str;

    fn try_from(bytes: Vec<u8>) -> Result<SnpDigest, &'static str> {
        bytes.try_into().map(SnpDigest).map_err(|_| "not a digest of 48 bytes")
    }
}

impl SnpDigest {
    /// Before any page.
    pub(super) const EMPTY: SnpDigest = SnpDigest([0; 48]);

    pub(super) fn bytes(&self) -> &[u8; 48] {
        &self.0
    }

    /// Takes in one page of 4 KiB. `lower_rights` are those of VMPL 1, 2 and 3.
    pub(super) fn update(&mut self, kind: PageType, page: &[u8], gpa: u64, imi: bool, lower_rights: [u8; 3]) {
        let contents = match kind {
            PageType::Normal | PageType::Vmsa => Sha384::digest(page).into(),
            PageType::Zero | PageType::Unmeasured | PageType::Secrets | PageType::Cpuid => [0; 48],
        };
        let [vmpl1_permissions, vmpl2_permissions, vmpl3_permissions] = lower_rights;
        let info = PageInfo {
            current: self.0,
            contents,
            length: U16::new(size_of::<PageInfo>() as u16),
            page_type: kind as u8,
            imi_page: imi.into(),
            vmpl3_permissions,
            vmpl2_permissions,
            vmpl1_permissions,
            reserved: 0,
            gpa: U64::new(gpa),
        };
        self.0 = Sha384::digest(info.as_bytes()).into();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(pages: &[(PageType, u64)]) -> String {
        let mut digest = SnpDigest::EMPTY;
        for &(kind, gpa) in pages {
            let page = if kind == PageType::Normal { [0xF4; 4096] } else { [0; 4096] };
            digest.update(kind, &page, gpa, false, [0; 3]);
        }
        digest.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Known answers of sev-snp-measure 0.0.13 (GCTX).
    #[test]
    fn digests_are_those_of_sev_snp_measure() {
        use PageType::*;
        assert_eq!(
            digest(&[(Normal, 0x1000)]),
            "e4f6f9472e1f93dac0bc2b3442644cff31785ea819565c7006b25210edb63ec4fa556db6cd811756e3cb147e94d99b5f"
        );
        assert_eq!(
            digest(&[(Zero, 0x1000)]),
            "4bd4147976a1e7554c1c778a781affc1c672f1965a727ba16084989b7e356044a28bbe585a2f75dac9356fa5ab78f061"
        );
        let plan = [
            (Normal, 0x1000),
            (Normal, 0x2000),
            (Zero, 0x3000),
            (Zero, 0x4000),
            (Unmeasured, 0x5000),
            (Secrets, 0x6000),
            (Cpuid, 0x7000),
        ];
        assert_eq!(
            digest(&plan),
            "af1766e4b16c3f662492da92235b68e206d2c139fdeb599318f8116609ffa9c273367e95085887afd9e658b51c0872d5"
        );
    }

    #[test]
    fn there_are_six_types() {
        let known: Vec<u32> = (0..8).filter(|&number| PageType::numbered(number).is_some()).collect();
        assert_eq!(known, [1, 2, 3, 4, 5, 6]);
    }
}
