//! The bitmap of the pages of a slot that were written since it was last asked for.

use std::sync::atomic::{AtomicU64, Ordering};

/// One bit a page.
pub(crate) struct DirtyLog {
    words: Vec<AtomicU64>,
    pages: u64,
}

impl DirtyLog {
    /// A log of so many pages, all of them dirty or all clean.
    pub(crate) fn new(pages: u64, dirty: bool) -> Self {
        let words = (0..pages.div_ceil(64)).map(|index| {
            let used = (pages - index * 64).min(64);
            AtomicU64::new(if dirty { u64::MAX >> (64 - used) } else { 0 })
        });
        Self { words: words.collect(), pages }
    }

    /// Marks a page.
    pub(crate) fn mark(&self, page: u64) {
        self.words[(page / 64) as usize].fetch_or(1 << (page % 64), Ordering::SeqCst);
    }

    /// The bitmap.
    pub(crate) fn read(&self) -> Vec<u64> {
        self.words.iter().map(|word| word.load(Ordering::SeqCst)).collect()
    }

    /// The bitmap, which is empty afterwards.
    pub(crate) fn take(&self) -> Vec<u64> {
        self.words.iter().map(|word| word.swap(0, Ordering::SeqCst)).collect()
    }

    /// Clears the bits that are set in `mask`, whose first bit is that of page `first`, a multiple of 64.
    pub(crate) fn clear(&self, first: u64, mask: &[u64]) {
        for (word, mask) in self.words[(first / 64) as usize..].iter().zip(mask) {
            word.fetch_and(!mask, Ordering::SeqCst);
        }
    }

    /// Pages.
    pub(crate) fn pages(&self) -> u64 {
        self.pages
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_taken_once_and_cleared_by_mask() {
        let log = DirtyLog::new(130, false);
        for page in [0, 63, 64, 129] {
            log.mark(page);
        }
        log.clear(64, &[1]);
        assert_eq!(log.read(), [1 | 1 << 63, 0, 2]);
        assert_eq!(log.take(), [1 | 1 << 63, 0, 2]);
        assert_eq!(log.take(), [0; 3]);
        assert_eq!(DirtyLog::new(65, true).read(), [u64::MAX, 1]);
    }
}
