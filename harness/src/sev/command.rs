//! One command: its number, how KVM is given it, and why it was refused.
#![expect(unsafe_code, reason = "ioctl(2) with a structure that holds addresses")]

use std::fmt;
use std::os::fd::{AsRawFd, RawFd};

use kvm_bindings::kvm_sev_cmd;
use nix::errno::Errno;
use vmm_sys_util::ioctl::{ioctl_with_mut_ptr, ioctl_with_mut_ref};

use super::firmware::Firmware;
use crate::mapping::{Access, Mapping};
use crate::outcome::{Outcome, Stop};
use crate::uapi::KVM_MEMORY_ENCRYPT_OP;
use crate::units::PAGE_SIZE;
use crate::vm::Vm;

/// A command's number (`enum sev_cmd_id`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Command(pub u32);

macro_rules! commands {
    ($($name:ident = $number:literal;)*) => {
        #[expect(missing_docs, reason = "the names are those of `linux/kvm.h` without the prefix")]
        impl Command {
            $(pub const $name: Command = Command($number);)*

            /// Every command that KVM has a name for, by number.
            pub const ALL: &'static [Command] = &[$(Command::$name),*];
        }

        impl fmt::Display for Command {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self.0 {
                    $($number => f.write_str(concat!("KVM_SEV_", stringify!($name))),)*
                    number => write!(f, "KVM_MEMORY_ENCRYPT_OP command {number}"),
                }
            }
        }
    };
}

commands! {
    INIT = 0;
    ES_INIT = 1;
    LAUNCH_START = 2;
    LAUNCH_UPDATE_DATA = 3;
    LAUNCH_UPDATE_VMSA = 4;
    LAUNCH_SECRET = 5;
    LAUNCH_MEASURE = 6;
    LAUNCH_FINISH = 7;
    SEND_START = 8;
    SEND_UPDATE_DATA = 9;
    SEND_UPDATE_VMSA = 10;
    SEND_FINISH = 11;
    RECEIVE_START = 12;
    RECEIVE_UPDATE_DATA = 13;
    RECEIVE_UPDATE_VMSA = 14;
    RECEIVE_FINISH = 15;
    GUEST_STATUS = 16;
    DBG_DECRYPT = 17;
    DBG_ENCRYPT = 18;
    CERT_EXPORT = 19;
    GET_ATTESTATION_REPORT = 20;
    SEND_CANCEL = 21;
    INIT2 = 22;
    SNP_LAUNCH_START = 100;
    SNP_LAUNCH_UPDATE = 101;
    SNP_LAUNCH_FINISH = 102;
    SNP_ENABLE_REQ_CERTS = 103;
}

/// Why a command did not succeed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Refused {
    /// Which.
    pub command: Command,
    /// What the ioctl returned.
    pub errno: Errno,
    /// What the secure processor said, [`Firmware::NOT_ASKED`] if KVM did not get that far.
    pub firmware: Firmware,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {:?}, {}", self.command, self.errno, self.firmware)
    }
}

impl From<Refused> for Stop {
    /// Nothing of the kind was expected.
    fn from(refused: Refused) -> Stop {
        Stop::Fail(refused.to_string())
    }
}

/// `KVM_MEMORY_ENCRYPT_OP` with a structure of `command`'s.
///
/// # Safety
/// `argument` is of the command's type, and every address in it is one of memory that KVM may read and write as the
/// command does, or of no memory at all; [`Memory`](super::Memory) makes such ones.
pub(super) unsafe fn issue<T>(vm: &Vm, firmware: RawFd, command: Command, argument: &mut T) -> Result<(), Refused> {
    let data = std::ptr::from_mut(argument).expose_provenance() as u64;
    // SAFETY: `data` is the argument, of which the caller vouches for the rest.
    unsafe { issue_at(vm, firmware, command, data) }
}

/// The same with an argument that cannot be accessed, or none.
pub(super) fn issue_without(vm: &Vm, firmware: RawFd, command: Command, data: u16) -> Result<(), Refused> {
    // SAFETY: nothing is mapped below 64 KiB (vm.mmap_min_addr), so KVM finds no argument there.
    unsafe { issue_at(vm, firmware, command, data.into()) }
}

/// The same without an argument, in an envelope that KVM can read and not write: what the firmware says is lost.
pub(super) fn issue_sealed(vm: &Vm, firmware: RawFd, command: Command) -> Outcome<Result<(), Errno>> {
    let envelope = kvm_sev_cmd { id: command.0, sev_fd: firmware as u32, ..Default::default() };
    let copy = copy_for_kvm(envelope, Access::Reading)?;
    let place = std::ptr::with_exposed_provenance_mut::<kvm_sev_cmd>(copy.addr() as usize);
    // SAFETY: KVM reads the envelope, which leads nowhere, and cannot write it.
    Ok(Errno::result(unsafe { ioctl_with_mut_ptr(&vm.kvm().as_raw_fd(), KVM_MEMORY_ENCRYPT_OP, place) }).map(drop))
}

/// A page that begins with this structure, of a command or of its envelope, and that KVM can access so.
pub(super) fn copy_for_kvm<T: Copy>(structure: T, access: Access) -> Outcome<Mapping> {
    const { assert!(size_of::<T>() as u64 <= PAGE_SIZE) };
    let copy = Mapping::anonymous(PAGE_SIZE)?;
    let place = std::ptr::with_exposed_provenance_mut::<T>(copy.addr() as usize);
    // SAFETY: the mapping is new, writable, aligned to a page and large enough, and nobody else uses it.
    unsafe { place.write(structure) };
    copy.set_access(0, PAGE_SIZE, access)?;
    Ok(copy)
}

/// # Safety
/// See [`issue`].
pub(super) unsafe fn issue_at(vm: &Vm, firmware: RawFd, command: Command, data: u64) -> Result<(), Refused> {
    let mut envelope = kvm_sev_cmd {
        id: command.0,
        data,
        error: Firmware::NOT_ASKED.0,
        sev_fd: firmware as u32,
        ..Default::default()
    };
    // SAFETY: KVM reads and writes the 24 bytes of the envelope, although the request's number says 8
    // (sev.c: sev_mem_enc_ioctl); the caller vouches for what it leads to. A number that is no command is refused.
    let result =
        Errno::result(unsafe { ioctl_with_mut_ref(&vm.kvm().as_raw_fd(), KVM_MEMORY_ENCRYPT_OP, &mut envelope) });
    result.map(drop).map_err(|errno| Refused { command, errno, firmware: Firmware(envelope.error) })
}
