//! A VMCS in memory (SDM volume 3, 25.2). The layout behind its first 8 bytes is this processor's own.
//!
//! It is kept in its page, always: processors may, and software that forgets VMCLEAR would only be noticed by one that
//! does not.

use super::field::{ALL, Field, Part};
use crate::memory::{PhysicalMemory, read_array, read_u32, read_u64, write_u32, write_u64};

/// The revision identifier, which VMXON and VMPTRLD look for.
pub(crate) const REVISION: u32 = 0x12;
/// Bytes of the region that software sets aside.
pub(crate) const REGION_BYTES: u32 = 4096;

const LAUNCH_STATE: u64 = 8;
const FIELDS: usize = 16;
const USED_BYTES: usize = FIELDS + 8 * ALL.len();
const CLEAR: u32 = 0;
const LAUNCHED: u32 = 1;

/// The first word of a VMCS or VMXON region: the revision identifier, and bit 31 of a shadow VMCS.
pub(crate) fn revision(memory: &mut (impl PhysicalMemory + ?Sized), pa: u64) -> u32 {
    read_u32(memory, pa)
}

/// Whether VMLAUNCH has entered it since VMCLEAR.
pub(crate) fn is_launched(memory: &mut (impl PhysicalMemory + ?Sized), pa: u64) -> bool {
    read_u32(memory, pa + LAUNCH_STATE) != CLEAR
}

pub(crate) fn set_launched(memory: &mut (impl PhysicalMemory + ?Sized), pa: u64, launched: bool) {
    write_u32(memory, pa + LAUNCH_STATE, if launched { LAUNCHED } else { CLEAR });
}

/// One field.
pub(crate) fn get(memory: &mut (impl PhysicalMemory + ?Sized), pa: u64, field: Field) -> u64 {
    read_u64(memory, at(pa, field))
}

/// Stores one field; of the value, the bits that it has.
pub(crate) fn set(memory: &mut (impl PhysicalMemory + ?Sized), pa: u64, field: Field, value: u64) {
    write_u64(memory, at(pa, field), value & field.mask());
}

/// VMREAD.
pub(crate) fn get_part(memory: &mut (impl PhysicalMemory + ?Sized), pa: u64, (field, part): (Field, Part)) -> u64 {
    match part {
        Part::Full => get(memory, pa, field),
        Part::High => get(memory, pa, field) >> 32,
    }
}

/// VMWRITE.
pub(crate) fn set_part(memory: &mut (impl PhysicalMemory + ?Sized), pa: u64, (field, part): (Field, Part), value: u64) {
    let value = match part {
        Part::Full => value,
        Part::High => get(memory, pa, field) & 0xffff_ffff | value << 32,
    };
    set(memory, pa, field, value);
}

fn at(pa: u64, field: Field) -> u64 {
    pa + (FIELDS + 8 * field.index()) as u64
}

/// All fields at once, for VM entries and exits.
pub(crate) struct Vmcs {
    image: [u8; USED_BYTES],
}

impl Vmcs {
    pub(crate) fn read(memory: &mut (impl PhysicalMemory + ?Sized), pa: u64) -> Vmcs {
        Vmcs { image: read_array(memory, pa) }
    }

    /// Stores all of it where it was read.
    pub(crate) fn write(&self, memory: &mut (impl PhysicalMemory + ?Sized), pa: u64) {
        memory.write(pa + FIELDS as u64, &self.image[FIELDS..]);
    }

    pub(crate) fn get(&self, field: Field) -> u64 {
        let at = FIELDS + 8 * field.index();
        u64::from_le_bytes(self.image[at..at + 8].try_into().expect("8 bytes"))
    }

    pub(crate) fn get32(&self, field: Field) -> u32 {
        self.get(field) as u32
    }

    pub(crate) fn set(&mut self, field: Field, value: u64) {
        let at = FIELDS + 8 * field.index();
        self.image[at..at + 8].copy_from_slice(&(value & field.mask()).to_le_bytes());
    }
}
