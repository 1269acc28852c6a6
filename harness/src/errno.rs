//! Error numbers, as one type everywhere: [`Errno`], whose `Debug` is the bare name (`EINVAL`).

pub(crate) use nix::errno::Errno;

/// The error number that kvm-ioctls reports, as an [`Errno`].
pub(crate) fn of_kvm(error: vmm_sys_util::errno::Error) -> Errno {
    Errno::from_raw(error.errno())
}
