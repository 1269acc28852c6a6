//! Memory of a guest under way: secrets of its owner, and its pages between platforms (55766, "Packet Header").

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::session::TransportKeys;
use super::{Psp, Status, Surroundings};
use crate::Rule;
use crate::encryption::Key;

/// Of LAUNCH_SECRET, SEND_UPDATE_DATA and RECEIVE_UPDATE_DATA.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct PacketParameters {
    pub(super) handle: U32,
    reserved: U32,
    pub(super) header_address: U64,
    pub(super) header_length: U32,
    reserved_2: U32,
    guest_address: U64,
    pub(super) guest_length: U32,
    reserved_3: U32,
    pub(super) transport_address: U64,
    pub(super) transport_length: U32,
}

/// The most that a packet carries, bytes.
const MAX_LENGTH: u32 = 16 << 10;

/// The C-bit of a system physical address. Linux sets it in the addresses of SEND_UPDATE_DATA and RECEIVE_UPDATE_DATA and in
/// no others (svm/sev.c), and firmware takes both (so seen in github.com/AMDESE/AMDSEV, issue 130): it knows whose memory it is.
const C_BIT: u64 = 1 << 51;

impl PacketParameters {
    /// Where the guest's memory is.
    pub(super) fn guest_address(&self) -> u64 {
        self.guest_address.get() & !C_BIT
    }

    /// Guest memory comes in blocks of the cipher.
    pub(super) fn check_guest_range(&self) -> Result<(), Status> {
        let (address, length) = (self.guest_address(), self.guest_length.get());
        if !address.is_multiple_of(16) {
            return Err(Status::InvalidAddress);
        }
        if length == 0 || !length.is_multiple_of(16) || length > MAX_LENGTH {
            return Err(Status::InvalidLength);
        }
        Ok(())
    }
}

/// What a packet is for: the first byte of what is authenticated, so that it can be taken for nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Content {
    /// Of LAUNCH_SECRET.
    Secret = 1,
    /// Of SEND_UPDATE_DATA and RECEIVE_UPDATE_DATA.
    Data = 2,
}

const COMPRESSED: u32 = 1 << 0;

/// What goes with the bytes.
#[derive(Debug, Clone, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct PacketHeader {
    flags: U32,
    iv: [u8; 16],
    mac: [u8; 32],
}

/// Bytes of it.
pub(super) const HEADER_LENGTH: u32 = size_of::<PacketHeader>() as u32;

impl PacketHeader {
    /// Encrypts `bytes`; the header that goes with them.
    pub(super) fn seal(keys: &TransportKeys, content: Content, iv: [u8; 16], bytes: &mut [u8]) -> PacketHeader {
        keys.crypt(iv, bytes);
        let mut header = PacketHeader { flags: U32::ZERO, iv, mac: [0; 32] };
        header.mac = header.expected_mac(keys, content, bytes.len() as u32, bytes, &[]);
        header
    }

    /// Decrypts `bytes`, which become `guest_length` of the guest. What is authenticated ends with `measurement`; a
    /// firmware that forgot to look at that is not `careful`.
    pub(super) fn open(
        &self,
        keys: &TransportKeys,
        content: Content,
        guest_length: u32,
        bytes: &mut [u8],
        measurement: &[u8],
        careful: bool,
    ) -> Result<(), Status> {
        if self.flags.get() & COMPRESSED != 0 {
            return Err(Status::Unsupported);
        }
        if self.flags.get() != 0 {
            return Err(Status::InvalidParameter);
        }
        if bytes.len() != guest_length as usize {
            return Err(Status::InvalidLength);
        }
        if careful && self.expected_mac(keys, content, guest_length, bytes, measurement) != self.mac {
            return Err(Status::BadMeasurement);
        }
        keys.crypt(self.iv, bytes);
        Ok(())
    }

    fn expected_mac(
        &self,
        keys: &TransportKeys,
        content: Content,
        guest_length: u32,
        bytes: &[u8],
        measurement: &[u8],
    ) -> [u8; 32] {
        keys.mac(&[
            &[content as u8],
            self.flags.as_bytes(),
            &self.iv,
            &guest_length.to_le_bytes(),
            &(bytes.len() as u32).to_le_bytes(),
            bytes,
            measurement,
        ])
    }
}

impl Psp {
    /// Opens the packet that `parameters` name and writes what was in it into memory of the guest, which has `key`.
    pub(super) fn take_packet(
        &self,
        around: &mut Surroundings<'_>,
        parameters: &PacketParameters,
        keys: &TransportKeys,
        key: Key,
        content: Content,
        measurement: &[u8],
    ) -> Result<(), Status> {
        parameters.check_guest_range()?;
        if parameters.header_length.get() != HEADER_LENGTH {
            return Err(Status::InvalidLength);
        }
        let (to, length) = (parameters.guest_address(), parameters.guest_length.get());
        self.check_output(around, to, length.into())?;
        let header: PacketHeader = around.load(parameters.header_address.get())?;
        let transport = parameters.transport_length.get();
        let mut bytes = around.bytes(Key::PLAIN, parameters.transport_address.get(), transport)?;
        let authentic = match content {
            Content::Secret => Rule::SecretMac,
            Content::Data => Rule::PacketMac,
        };
        header.open(keys, content, length, &mut bytes, measurement, self.rules.hold(authentic))?;
        around.memory.write_as(key, to, &bytes);
        Ok(())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    const KEYS: TransportKeys = TransportKeys { encryption: [1; 16], integrity: [2; 16] };

    /// A packet as a guest's owner makes it (the client crate `sev`: session::Session::secret).
    pub(in crate::psp) fn secret(keys: &TransportKeys, secret: &[u8], measurement: &[u8]) -> (PacketHeader, Vec<u8>) {
        let mut bytes = secret.to_vec();
        keys.crypt([3; 16], &mut bytes);
        let mut header = PacketHeader { flags: U32::ZERO, iv: [3; 16], mac: [0; 32] };
        header.mac = header.expected_mac(keys, Content::Secret, secret.len() as u32, &bytes, measurement);
        (header, bytes)
    }

    #[test]
    fn what_is_sealed_opens_once_it_has_arrived_whole() {
        let mut bytes = *b"sixteen bytes!!!";
        let header = PacketHeader::seal(&KEYS, Content::Data, [9; 16], &mut bytes);
        assert_ne!(&bytes, b"sixteen bytes!!!");
        let open = |header: &PacketHeader, content, mut bytes: [u8; 16]| {
            header.open(&KEYS, content, 16, &mut bytes, &[], true).map(|()| bytes)
        };
        assert_eq!(open(&header, Content::Data, bytes), Ok(*b"sixteen bytes!!!"));
        assert_eq!(open(&header, Content::Secret, bytes), Err(Status::BadMeasurement));
        assert_eq!(open(&header, Content::Data, [0; 16]), Err(Status::BadMeasurement));
        let compressed = PacketHeader { flags: U32::new(1), ..header.clone() };
        assert_eq!(open(&compressed, Content::Data, bytes), Err(Status::Unsupported));
        let unknown = PacketHeader { flags: U32::new(2), ..header.clone() };
        assert_eq!(open(&unknown, Content::Data, bytes), Err(Status::InvalidParameter));
        assert_eq!(header.open(&KEYS, Content::Data, 32, &mut bytes, &[], true), Err(Status::InvalidLength));
        assert_eq!((HEADER_LENGTH, size_of::<PacketParameters>()), (52, 52));
    }
}
