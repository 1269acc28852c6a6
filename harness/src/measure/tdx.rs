//! MRTD, the digest of a TD's launch (TDX module base architecture, "TD Measurement").

use sha2::{Digest, Sha384};

use crate::units::{Gpa, PAGE_SIZE};

/// Bytes that the module takes in at once.
const CHUNK: usize = 256;

/// A hash over all pages, their order and places, and the content of those that are measured.
#[derive(Clone, Debug, Default)]
pub struct Mrtd(Sha384);

impl Mrtd {
    /// Before any page.
    pub fn new() -> Mrtd {
        Mrtd::default()
    }

    /// Takes in whole pages from `gpa` on as KVM adds them: each is extended right after it is added.
    ///
    /// # Panics
    /// If they are no whole pages.
    pub fn update(&mut self, gpa: Gpa, content: &[u8], measured: bool) {
        let (pages, rest) = content.as_chunks::<{ PAGE_SIZE as usize }>();
        assert!(rest.is_empty(), "{:#x} bytes are no whole pages", content.len());
        for (index, page) in pages.iter().enumerate() {
            let gpa = gpa + index as u64 * PAGE_SIZE;
            self.0.update(record(b"MEM.PAGE.ADD", gpa));
            for (chunk, bytes) in page.chunks(CHUNK).enumerate().take_while(|_| measured) {
                self.0.update(record(b"MR.EXTEND", gpa + (chunk * CHUNK) as u64));
                self.0.update(bytes);
            }
        }
    }

    /// The digest of all so far.
    pub fn bytes(&self) -> [u8; 48] {
        self.0.clone().finalize().into()
    }
}

/// 128 bytes: what happened, and where.
fn record(what: &[u8], gpa: Gpa) -> [u8; 128] {
    let mut record = [0; 128];
    record[..what.len()].copy_from_slice(what);
    record[16..24].copy_from_slice(&gpa.0.to_le_bytes());
    record
}

#[cfg(test)]
mod tests {
    use super::*;

    const HLT: [u8; PAGE_SIZE as usize] = [0xf4; PAGE_SIZE as usize];
    const RESET: Gpa = Gpa(0xffff_f000);

    fn digest(pages: &[(u64, bool)]) -> String {
        let mut mrtd = Mrtd::new();
        pages.iter().for_each(|(gpa, measured)| mrtd.update(Gpa(*gpa), &HLT, *measured));
        mrtd.bytes().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Of a program that also gives the digest that td-shim's tool gives of the same image.
    #[test]
    fn known_answers() {
        assert_eq!(
            digest(&[]),
            "38b060a751ac96384cd9327eb1b1e36a21fdb71114be07434c0cc7bf63f6e1da274edebfe76f65fbd51ad2f14898b95b"
        );
        assert_eq!(
            digest(&[(RESET.0, true)]),
            "0db2a3c722f676b17eaba490ec23f36c45d53e30361c2c82ada07940e7f7d435d4f59a4d54402c3a60b54905a9d84c38"
        );
        assert_eq!(
            digest(&[(RESET.0, false)]),
            "8d411e4377a0da03b249acbe9a7939b44b4483b5a6c81341f00d60c1f417257f9a5c1c03f2f223c59f010f4933f238b8"
        );
    }

    #[test]
    fn order_place_and_measuring_count_and_cuts_do_not() {
        let two = digest(&[(0x1000, true), (0x2000, true)]);
        let mut at_once = Mrtd::new();
        at_once.update(Gpa(0x1000), &[0xf4; 2 * PAGE_SIZE as usize], true);
        assert_eq!(at_once.bytes().map(|byte| format!("{byte:02x}")).concat(), two);
        assert_ne!(digest(&[(0x2000, true), (0x1000, true)]), two);
        assert_ne!(digest(&[(0x1000, true), (0x2000, false)]), two);
        assert_ne!(digest(&[(0x1000, true), (0x3000, true)]), two);
    }
}
