//! Where images are linked: as many copies of a build as there are workers, made when they are needed.

use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use privet_kernel::{BuildTree, ImageRoom, KernelError};

/// The copies.
#[derive(Debug)]
pub struct Rooms<'a> {
    tree: &'a BuildTree,
    interrupt: BorrowedFd<'a>,
    free: Mutex<Vec<ImageRoom>>,
}

impl<'a> Rooms<'a> {
    /// None yet. What becomes readable with `interrupt` ends what is being linked.
    #[must_use]
    pub const fn of(tree: &'a BuildTree, interrupt: BorrowedFd<'a>) -> Self {
        Self { tree, interrupt, free: Mutex::new(Vec::new()) }
    }

    /// Links the image with what is in the file `object` in place of the object `name`, and puts it at `image`.
    pub(crate) fn link(&self, name: &str, object: &Path, image: &Path) -> Result<(), KernelError> {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut room = match free {
            Some(room) => room,
            None => ImageRoom::of(self.tree, self.interrupt)?,
        };
        let linked = room.link(name, object, self.interrupt).and_then(|linked| {
            let what = format!("copy {}", linked.display());
            std::fs::copy(&linked, image).map_err(|source| KernelError::Io { what, source })
        });
        self.free.lock().unwrap_or_else(PoisonError::into_inner).push(room);
        linked.map(|_| ())
    }
}
