//! What the host does to a VM's memory between exits, as the trace has it: numbers, which become words when somebody asks.

use std::fmt;

use crate::guest_memfd::FALLOC_PUNCH_HOLE;
use crate::uapi::MEMORY_ATTRIBUTE_PRIVATE;

/// A system call by which memory of a VM is changed; addresses and sizes in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum HostAction {
    /// `KVM_SET_USER_MEMORY_REGION`, also its second form; without bytes it deletes the slot.
    SetMemoryRegion { slot: u32, gpa: u64, bytes: u64 },
    /// `KVM_SET_MEMORY_ATTRIBUTES`.
    SetMemoryAttributes { attributes: u64, gpa: u64, bytes: u64 },
    /// fallocate(2) of a guest_memfd.
    Fallocate { mode: i32, offset: u64, bytes: u64 },
}

impl fmt::Display for HostAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            HostAction::SetMemoryRegion { slot, bytes: 0, .. } => {
                write!(f, "SET_USER_MEMORY_REGION deletes slot {slot}")
            }
            HostAction::SetMemoryRegion { slot, gpa, bytes } => {
                write!(f, "SET_USER_MEMORY_REGION slot {slot}, gpa {gpa:#x}, {bytes:#x} bytes")
            }
            HostAction::SetMemoryAttributes { attributes, gpa, bytes } => {
                f.write_str("SET_MEMORY_ATTRIBUTES ")?;
                match attributes {
                    0 => f.write_str("shared")?,
                    MEMORY_ATTRIBUTE_PRIVATE => f.write_str("private")?,
                    other => write!(f, "attributes {other:#x}")?,
                }
                write!(f, ", gpa {gpa:#x}, {bytes:#x} bytes")
            }
            HostAction::Fallocate { mode, offset, bytes } => {
                let what = if mode & FALLOC_PUNCH_HOLE != 0 { "PUNCH_HOLE" } else { "fallocate" };
                write!(f, "{what} offset {offset:#x}, {bytes:#x} bytes")
            }
        }
    }
}
