//! What ends the rows of one mutant: the first that is red, or what ends the whole run.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};

use crate::interrupt::{Cause, Interrupt};

/// Becomes readable when either comes.
pub(super) struct Stop {
    epoll: Epoll,
    own: Interrupt,
}

impl Stop {
    /// One that `whole` sets off, too.
    ///
    /// # Errors
    /// If there are no descriptors left.
    pub(super) fn beside(whole: &Interrupt) -> io::Result<Self> {
        let own = Interrupt::new()?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        for interrupt in [whole, &own] {
            epoll.add(interrupt, EpollEvent::new(EpollFlags::EPOLLIN, 0))?;
        }
        Ok(Self { epoll, own })
    }

    /// Sets it off.
    pub(super) fn now(&self) {
        self.own.end(Cause::MaxFail(1));
    }
}

impl AsFd for Stop {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.0.as_fd()
    }
}
