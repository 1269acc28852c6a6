//! What the module measures of a TD: MRTD while it is built, RTMRs while it runs (TDX module base architecture,
//! "Measurement and Attestation").

use serde::{Deserialize, Serialize};
use sha2::digest::common::hazmat::SerializableState;
use sha2::{Digest, Sha384};

use super::status::{Code, Status};

/// Bytes that TDH.MR.EXTEND takes in at once.
pub(super) const CHUNK: u64 = 256;

/// SHA-384, as a register holds it.
pub(super) type Digest384 = [u8; 48];

/// A hash that is not closed yet.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(into = "Vec<u8>", try_from = "Vec<u8>")]
pub(super) struct OpenHash(Sha384);

impl PartialEq for OpenHash {
    fn eq(&self, other: &OpenHash) -> bool {
        self.0.serialize() == other.0.serialize()
    }
}

impl From<OpenHash> for Vec<u8> {
    fn from(hash: OpenHash) -> Vec<u8> {
        hash.0.serialize().to_vec()
    }
}

impl TryFrom<Vec<u8>> for OpenHash {
    type Error = &'static str;

    fn try_from(bytes: Vec<u8>) -> Result<OpenHash, &'static str> {
        let state = bytes.as_slice().try_into().map_err(|_| "not a digest's state")?;
        Sha384::deserialize(&state).map(OpenHash).map_err(|_| "not a digest's state")
    }
}

/// MRTD. It is open exactly as long as the TD is built.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) enum Mrtd {
    Open(OpenHash),
    Closed(#[serde(with = "register")] Digest384),
}

impl Mrtd {
    pub(super) fn new() -> Mrtd {
        Mrtd::Open(OpenHash(Sha384::new()))
    }

    fn open(&mut self) -> Result<&mut Sha384, Status> {
        match self {
            Mrtd::Open(hash) => Ok(&mut hash.0),
            Mrtd::Closed(_) => Err(Code::OpStateIncorrect.into()),
        }
    }

    /// TDH.MEM.PAGE.ADD of the page at this GPA.
    pub(super) fn page_added(&mut self, gpa: u64) -> Result<(), Status> {
        self.open()?.update(record(b"MEM.PAGE.ADD", gpa));
        Ok(())
    }

    /// TDH.MR.EXTEND by the [`CHUNK`] at this GPA.
    pub(super) fn extended(&mut self, gpa: u64, chunk: &[u8; CHUNK as usize]) -> Result<(), Status> {
        let hash = self.open()?;
        hash.update(record(b"MR.EXTEND", gpa));
        hash.update(chunk);
        Ok(())
    }

    /// TDH.MR.FINALIZE.
    pub(super) fn close(&mut self) -> Result<(), Status> {
        let digest = self.open()?.clone().finalize();
        *self = Mrtd::Closed(digest.into());
        Ok(())
    }

    pub(super) fn is_closed(&self) -> bool {
        matches!(self, Mrtd::Closed(_))
    }

    /// The register as a report shows it: of a TD that runs it is closed.
    pub(super) fn value(&self) -> Digest384 {
        match self {
            Mrtd::Open(_) => [0; 48],
            Mrtd::Closed(digest) => *digest,
        }
    }
}

/// 128 bytes that name what is measured and where.
fn record(what: &[u8], gpa: u64) -> [u8; 128] {
    let mut record = [0; 128];
    record[..what.len()].copy_from_slice(what);
    record[16..24].copy_from_slice(&gpa.to_le_bytes());
    record
}

/// The four registers that the TD extends itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Rtmrs(#[serde(with = "registers")] [Digest384; 4]);

impl Rtmrs {
    pub(super) fn new() -> Rtmrs {
        Rtmrs([[0; 48]; 4])
    }

    pub(super) fn values(&self) -> &[Digest384; 4] {
        &self.0
    }

    /// TDG.MR.RTMR.EXTEND; none if there is no such register.
    pub(super) fn extend(&mut self, index: usize, data: &Digest384) -> Option<()> {
        let register = self.0.get_mut(index)?;
        *register = Sha384::new().chain_update(*register).chain_update(data).finalize().into();
        Some(())
    }
}

/// serde has no arrays of 48.
pub(super) mod register {
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    pub(in super::super) fn serialize<S: Serializer>(value: &[u8; 48], serializer: S) -> Result<S::Ok, S::Error> {
        value.as_slice().serialize(serializer)
    }

    pub(in super::super) fn deserialize<'a, D: Deserializer<'a>>(deserializer: D) -> Result<[u8; 48], D::Error> {
        let bytes: Vec<u8> = Vec::deserialize(deserializer)?;
        bytes.try_into().map_err(|_| D::Error::custom("not a register of 48 bytes"))
    }
}

mod registers {
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(values: &[[u8; 48]; 4], serializer: S) -> Result<S::Ok, S::Error> {
        values.as_flattened().serialize(serializer)
    }

    pub(super) fn deserialize<'a, D: Deserializer<'a>>(deserializer: D) -> Result<[[u8; 48]; 4], D::Error> {
        let bytes: Vec<u8> = Vec::deserialize(deserializer)?;
        let (registers, rest) = bytes.as_chunks::<48>();
        match (registers.try_into(), rest) {
            (Ok(registers), []) => Ok(registers),
            _ => Err(D::Error::custom("not four registers of 48 bytes")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(mrtd: &mut Mrtd) -> String {
        mrtd.close().unwrap();
        mrtd.value().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn page(measured: bool) -> Mrtd {
        let mut mrtd = Mrtd::new();
        mrtd.page_added(0xFFFF_F000).unwrap();
        for chunk in (0..4096).step_by(CHUNK as usize).take_while(|_| measured) {
            mrtd.extended(0xFFFF_F000 + chunk, &[0xF4; 256]).unwrap();
        }
        mrtd
    }

    /// Known answers of a program of another's, which gives td-shim's digest of its own image, too.
    #[test]
    fn digests_are_those_of_others() {
        assert_eq!(
            hex(&mut Mrtd::new()),
            "38b060a751ac96384cd9327eb1b1e36a21fdb71114be07434c0cc7bf63f6e1da274edebfe76f65fbd51ad2f14898b95b"
        );
        assert_eq!(
            hex(&mut page(true)),
            "0db2a3c722f676b17eaba490ec23f36c45d53e30361c2c82ada07940e7f7d435d4f59a4d54402c3a60b54905a9d84c38"
        );
        assert_eq!(
            hex(&mut page(false)),
            "8d411e4377a0da03b249acbe9a7939b44b4483b5a6c81341f00d60c1f417257f9a5c1c03f2f223c59f010f4933f238b8"
        );
    }

    #[test]
    fn a_closed_register_takes_nothing_in() {
        let mut mrtd = page(true);
        mrtd.close().unwrap();
        let before = mrtd.value();
        assert_eq!(mrtd.page_added(0), Err(Code::OpStateIncorrect.into()));
        assert_eq!(mrtd.extended(0, &[0; 256]), Err(Code::OpStateIncorrect.into()));
        assert_eq!(mrtd.close(), Err(Code::OpStateIncorrect.into()));
        assert_eq!(mrtd.value(), before);
    }

    #[test]
    fn a_saved_register_goes_on_where_it_was() {
        let Mrtd::Open(open) = page(true) else { panic!("it is open") };
        let restored = OpenHash::try_from(Vec::from(open)).unwrap();
        assert_eq!(hex(&mut Mrtd::Open(restored)), hex(&mut page(true)));
    }

    #[test]
    fn an_rtmr_depends_on_all_it_was_extended_by() {
        let mut rtmrs = Rtmrs::new();
        rtmrs.extend(2, &[1; 48]).unwrap();
        let once = rtmrs.values()[2];
        assert_eq!(once, <[u8; 48]>::from(Sha384::new().chain_update([0; 48]).chain_update([1; 48]).finalize()));
        rtmrs.extend(2, &[1; 48]).unwrap();
        assert_ne!(rtmrs.values()[2], once);
        assert_eq!(rtmrs.values()[3], [0; 48]);
        assert_eq!(rtmrs.extend(4, &[0; 48]), None);
    }
}
