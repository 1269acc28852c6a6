//! What a payload says about itself in the `.privet` section of its ELF file.

use crate::{MAGIC, VERSION};

/// Bytes of the `.privet` section: magic (8), version (4), length of the name (4), name (48, padded with 0);
/// numbers are little endian.
pub const DESCRIPTOR_BYTES: usize = 64;

const NAME: usize = 16;

/// The descriptor of a payload.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Descriptor<'a> {
    /// The protocol version that the payload was built for.
    pub version: u32,
    /// The name of the payload.
    pub name: &'a str,
}

/// The field of a descriptor that made no sense.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(missing_docs, reason = "the names are the fields'")]
pub enum DescriptorField {
    Size,
    Magic,
    Name,
}

impl<'a> Descriptor<'a> {
    /// The `.privet` section of a payload of this version called `name`.
    ///
    /// # Panics
    /// If the name is longer than 48 bytes; used in constants, so the build fails.
    pub const fn encode(name: &str) -> [u8; DESCRIPTOR_BYTES] {
        let mut bytes = [0; DESCRIPTOR_BYTES];
        bytes.split_at_mut(8).0.copy_from_slice(&MAGIC.to_le_bytes());
        bytes.split_at_mut(8).1.split_at_mut(4).0.copy_from_slice(&VERSION.to_le_bytes());
        bytes.split_at_mut(12).1.split_at_mut(4).0.copy_from_slice(&(name.len() as u32).to_le_bytes());
        bytes.split_at_mut(NAME).1.split_at_mut(name.len()).0.copy_from_slice(name.as_bytes());
        bytes
    }

    /// Reads a `.privet` section, of whatever version.
    ///
    /// # Errors
    /// The field that makes no sense.
    pub fn decode(section: &'a [u8]) -> Result<Self, DescriptorField> {
        let section: &[u8; DESCRIPTOR_BYTES] = section.try_into().map_err(|_| DescriptorField::Size)?;
        if !section.starts_with(&MAGIC.to_le_bytes()) {
            return Err(DescriptorField::Magic);
        }
        let number = |at: usize| u32::from_le_bytes([section[at], section[at + 1], section[at + 2], section[at + 3]]);
        let name = section[NAME..].get(..number(12) as usize).ok_or(DescriptorField::Name)?;
        let name = core::str::from_utf8(name).map_err(|_| DescriptorField::Name)?;
        Ok(Self { version: number(8), name })
    }
}
