//! Ioctls: a table a kind of descriptor, a row a request.

use nix::errno::Errno;

use crate::defect::Defect;
use crate::options::Options;
use crate::user::{self, Plain};

/// What an ioctl returns, or the error that becomes its errno.
pub(crate) type IoctlResult = Result<i32, Errno>;

/// The argument of an ioctl: a number or an address in the program.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Argument(pub(crate) u64);

impl Argument {
    /// The structure that it points to.
    ///
    /// # Errors
    /// EFAULT.
    pub(crate) fn read<T: Plain>(self) -> Result<T, Errno> {
        let invalid = || Options::of_process().is_ok_and(|options| options.has(Defect::BadPointerIsInvalid));
        user::read(self.0).map_err(|errno| if invalid() { Errno::EINVAL } else { errno })
    }

    /// Stores a structure where it points to.
    ///
    /// # Errors
    /// EFAULT.
    pub(crate) fn write<T: Plain>(self, value: &T) -> IoctlResult {
        user::write(self.0, value).map(|()| 0)
    }

    /// The address so many bytes on.
    pub(crate) fn after(self, bytes: usize) -> u64 {
        self.0.wrapping_add(bytes as u64)
    }
}

/// One row: the request, its name without `KVM_`, and what it does.
pub(crate) type Row<T> = (u32, &'static str, fn(&T, Argument) -> IoctlResult);

/// The row of a request. The kernel looks at the low 32 bits only.
pub(crate) fn find<T>(rows: &'static [Row<T>], request: u64) -> Option<&'static Row<T>> {
    rows.iter().find(|(number, ..)| *number == request as u32)
}
