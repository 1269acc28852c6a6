//! Which pages of host memory blocks were decoded from, so that who writes there can say so.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::block::BlockCache;

const PAGE: usize = 4096;
/// Writes are told apart by lines of so many bytes: 64 make a page.
const LINE: usize = 64;
/// So many pages are told to the CPUs one by one; of more, they drop all translations.
const TOLD: usize = 1024;

/// The code that the CPUs of one machine have decoded.
///
/// CPUs that share one ([`crate::Cpu::sharing`]) take code for unchanged until a write to it is known here. Their own
/// writes are. Whoever else writes to guest memory (a device, a loader, encryption) has to call [`CodePages::wrote`].
/// The CPUs have to run in turns, not at the same time.
#[derive(Debug)]
pub struct CodePages {
    inner: Mutex<Inner>,
    /// What all of them execute was decoded once.
    blocks: Mutex<BlockCache>,
}

#[derive(Debug, Default)]
struct Inner {
    pages: HashMap<usize, Arc<CodePage>>,
    /// Pages that have become code, in order, since `era` began.
    marked: Vec<usize>,
    era: u64,
}

/// One page of host memory with code in it.
#[derive(Debug)]
pub(crate) struct CodePage {
    /// Where it begins.
    address: usize,
    /// Counts the times that its code was overwritten. Translated code looks at it, too.
    pub(crate) version: AtomicU32,
    /// The lines that blocks were decoded from since then.
    lines: AtomicU64,
}

impl CodePage {
    fn new(address: usize) -> CodePage {
        CodePage { address, version: AtomicU32::new(0), lines: AtomicU64::new(0) }
    }

    #[inline(always)]
    pub(crate) fn address(&self) -> usize {
        self.address
    }

    #[inline(always)]
    pub(crate) fn version(&self) -> u32 {
        self.version.load(Ordering::Relaxed)
    }
}

/// How much of what has become code a CPU knows.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seen {
    era: u64,
    count: usize,
}

/// What has become code since a CPU looked last.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum News {
    Pages(Vec<usize>),
    /// Too many to say.
    Lost,
}

impl Default for CodePages {
    fn default() -> CodePages {
        CodePages::new()
    }
}

impl CodePages {
    /// No code.
    #[must_use]
    pub fn new() -> CodePages {
        CodePages { inner: Mutex::default(), blocks: Mutex::new(BlockCache::new(BlockCache::OF_MACHINE)) }
    }

    /// The blocks, for the CPU whose turn it is.
    pub(crate) fn blocks(&self) -> MutexGuard<'_, BlockCache> {
        self.blocks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `size` bytes of host memory from `address` on were written by somebody who is no CPU.
    pub fn wrote(&self, address: *const u8, size: usize) {
        let (mut at, end) = (address.addr(), address.addr() + size);
        let inner = self.lock();
        while at < end {
            let piece = (PAGE - at % PAGE).min(end - at);
            if let Some(page) = inner.pages.get(&(at / PAGE)) {
                page.overwrite(at % PAGE, piece);
            }
            at += piece;
        }
    }

    /// Notes that `size` bytes at `address`, in one page, are code, and where its version is.
    pub(crate) fn mark(&self, address: *const u8, size: usize) -> Arc<CodePage> {
        let mut inner = self.lock();
        let number = address.addr() / PAGE;
        let page = Arc::clone(inner.pages.entry(number).or_insert_with(|| Arc::new(CodePage::new(number * PAGE))));
        let before = page.lines.fetch_or(lines(address.addr() % PAGE, size), Ordering::Relaxed);
        if before == 0 {
            if inner.marked.len() == TOLD {
                inner.marked.clear();
                inner.era += 1;
            }
            inner.marked.push(number * PAGE);
        }
        page
    }

    /// Whether writes to this page have to be told.
    #[must_use]
    pub fn is_code(&self, address: *const u8) -> bool {
        self.lock().pages.get(&(address.addr() / PAGE)).is_some_and(|page| page.lines.load(Ordering::Relaxed) != 0)
    }

    /// The pages that have become code since `seen`, which is brought up to date.
    pub(crate) fn news(&self, seen: &mut Seen) -> News {
        let inner = self.lock();
        let news = if seen.era == inner.era { News::Pages(inner.marked[seen.count..].to_vec()) } else { News::Lost };
        *seen = Seen { era: inner.era, count: inner.marked.len() };
        news
    }
}

impl CodePage {
    fn overwrite(&self, offset: usize, size: usize) {
        if self.lines.load(Ordering::Relaxed) & lines(offset, size) != 0 {
            self.version.fetch_add(1, Ordering::Relaxed);
            self.lines.store(0, Ordering::Relaxed);
        }
    }
}

/// The lines of a page that some bytes of it touch.
fn lines(offset: usize, size: usize) -> u64 {
    let (first, last) = (offset / LINE, (offset + size.max(1) - 1) / LINE);
    (u64::MAX >> (63 - last)) & u64::MAX << first
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(address: usize) -> *const u8 {
        std::ptr::without_provenance(address)
    }

    #[test]
    fn only_a_write_to_the_code_itself_counts() {
        let code = CodePages::new();
        let page = code.mark(at(0x5100), 20);
        let version = page.version();
        assert!(code.is_code(at(0x5abc)) && !code.is_code(at(0x6000)));
        for (address, size) in [(0x50c0, 64), (0x5140, 1), (0x4000, 0x1100), (0x6000, 8)] {
            code.wrote(at(address), size);
            assert_eq!(page.version(), version, "{address:#x}");
        }
        for (address, size) in [(0x5100, 1), (0x513f, 1), (0x4000, 0x1101), (0x50c0, 65), (0x4000, 0x4000)] {
            let version = code.mark(at(0x5100), 20).version();
            code.wrote(at(address), size);
            assert_ne!(page.version(), version, "{address:#x}");
            assert!(!code.is_code(at(0x5000)), "until something is decoded there again");
        }
    }

    #[test]
    fn every_cpu_hears_of_every_page() {
        let code = CodePages::new();
        let (mut one, mut other) = (Seen::default(), Seen::default());
        code.mark(at(0x5000), 1);
        code.mark(at(0x5800), 1);
        assert_eq!(code.news(&mut one), News::Pages(vec![0x5000]));
        code.wrote(at(0x5000), 4096);
        code.mark(at(0x5000), 1);
        assert_eq!(code.news(&mut one), News::Pages(vec![0x5000]));
        assert_eq!(code.news(&mut one), News::Pages(vec![]));
        assert_eq!(code.news(&mut other), News::Pages(vec![0x5000, 0x5000]));
        (0..=TOLD).for_each(|page| drop(code.mark(at(0x10000 + page * PAGE), 1)));
        assert_eq!(code.news(&mut other), News::Lost);
        assert_eq!(code.news(&mut other), News::Pages(vec![]));
    }
}
