//! The input of a program in a machine of ours: it gets some when it can take some, so that the same input gives the
//! same run, as far as it is there in time.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::plan::{Input, to_text};

/// How much of it the program gets at a time, bytes: what its pipe certainly takes.
const PIECE: usize = 4096;

/// Standard input of the machine's process, for the guest's program.
#[derive(Debug, Default)]
pub(crate) struct HostInput {
    is_wanted: bool,
}

impl HostInput {
    /// The program can take some.
    pub(crate) fn wanted(&mut self) {
        self.is_wanted = true;
    }

    /// Whether it can.
    pub(crate) fn is_wanted(&self) -> bool {
        self.is_wanted
    }

    /// What there is, if it is wanted; waits so long at most, for ever without a limit.
    ///
    /// # Errors
    /// Of `poll(2)` and `read(2)`.
    pub(crate) fn take(&mut self, patience: Option<Duration>) -> io::Result<Option<Input>> {
        if !self.is_wanted {
            if let Some(patience) = patience {
                std::thread::sleep(patience);
            }
            return Ok(None);
        }
        let timeout = match patience {
            Some(patience) => PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX),
            None => PollTimeout::NONE,
        };
        let stdin = io::stdin();
        match poll(&mut [PollFd::new(stdin.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(0) | Err(Errno::EINTR) => return Ok(None),
            Ok(_) => {}
            Err(errno) => return Err(errno.into()),
        }
        let mut piece = [0; PIECE];
        // No buffer of ours may keep what poll would have to know about.
        let length = nix::unistd::read(stdin.as_fd(), &mut piece)?;
        self.is_wanted = false;
        Ok(Some(Input(to_text(&piece[..length]))))
    }
}
