//! One command: its number, how KVM is given it, and why it was refused.
#![expect(unsafe_code, reason = "ioctl(2) with a structure that holds addresses")]

use std::fmt;
use std::os::fd::RawFd;

use nix::errno::Errno;
use vmm_sys_util::ioctl::ioctl_with_mut_ref;

use super::hw_error::HwError;
use crate::outcome::Stop;
use crate::uapi::KVM_MEMORY_ENCRYPT_OP;

/// A command's number (`enum kvm_tdx_cmd_id`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Command(pub u32);

macro_rules! commands {
    ($($name:ident = $number:literal;)*) => {
        #[expect(missing_docs, reason = "the names are those of `asm/kvm.h` without the prefix")]
        impl Command {
            $(pub const $name: Command = Command($number);)*

            /// Every command that KVM has a name for, by number.
            pub const ALL: &'static [Command] = &[$(Command::$name),*];
        }

        impl fmt::Display for Command {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self.0 {
                    $($number => f.write_str(concat!("KVM_TDX_", stringify!($name))),)*
                    number => write!(f, "KVM_MEMORY_ENCRYPT_OP command {number}"),
                }
            }
        }
    };
}

commands! {
    CAPABILITIES = 0;
    INIT_VM = 1;
    INIT_VCPU = 2;
    INIT_MEM_REGION = 3;
    FINALIZE_VM = 4;
    GET_CPUID = 5;
}

/// What KVM is told of a command (`struct kvm_tdx_cmd`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub(super) struct Envelope {
    pub(super) id: u32,
    pub(super) flags: u32,
    pub(super) data: u64,
    /// 0; what the module answered where KVM says so, which is of INIT_VM and FINALIZE_VM only.
    pub(super) hw_error: u64,
}

/// Why a command did not succeed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Refused {
    /// Which.
    pub command: Command,
    /// What the ioctl returned.
    pub errno: Errno,
    /// What the module said: [`HwError::SUCCESS`] if KVM did not get that far, or does not tell.
    pub hw_error: HwError,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {:?}", self.command, self.errno)?;
        match self.hw_error {
            HwError::SUCCESS => Ok(()),
            error => write!(f, ", {error}"),
        }
    }
}

impl From<Refused> for Stop {
    /// Nothing of the kind was expected.
    fn from(refused: Refused) -> Stop {
        Stop::Fail(refused.to_string())
    }
}

/// `KVM_MEMORY_ENCRYPT_OP` of a VM or a vCPU.
///
/// # Safety
/// `envelope.data` is a number where the command takes one, or the address of memory that KVM may read and write as the
/// command does, or one at which no process has memory.
pub(super) unsafe fn issue(fd: RawFd, mut envelope: Envelope) -> Result<(), Refused> {
    // SAFETY: KVM reads and writes the 24 bytes of the envelope, although the request's number says 8 (vmx/tdx.c:
    // tdx_get_cmd); the caller vouches for what it leads to. A number that is no command is refused.
    let result = Errno::result(unsafe { ioctl_with_mut_ref(&fd, KVM_MEMORY_ENCRYPT_OP, &mut envelope) });
    let (command, hw_error) = (Command(envelope.id), HwError(envelope.hw_error));
    result.map(drop).map_err(|errno| Refused { command, errno, hw_error })
}
