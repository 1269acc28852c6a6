//! Operations on bytes and pages.

use privet_protocol::{Fault, GuestMailbox, Length, Op, Pattern, Refusal, Reply, Width};
use privet_runtime::paging::PAGE_SIZE;
use privet_runtime::probe::{self, Probed};

/// Vector of #PF.
pub(crate) const PAGE_FAULT: u64 = 14;

/// Words of 8 bytes in a page.
const PAGE_WORDS: u64 = PAGE_SIZE / 8;

pub(crate) fn read_bytes(mailbox: GuestMailbox<'_>, gva: u64, len: Length) -> Probed {
    for index in 0..len.0 {
        let byte = probe::read(gva.wrapping_add(index), Width::B1)?;
        mailbox.set_byte(index as usize, byte as u8);
    }
    mailbox.set_text_len(len.0 as usize);
    Ok(())
}

pub(crate) fn write_bytes(mailbox: GuestMailbox<'_>, gva: u64, len: Length) -> Probed {
    (0..len.0)
        .try_for_each(|index| probe::write(gva.wrapping_add(index), Width::B1, mailbox.byte(index as usize).into()))
}

pub(crate) fn fill(gva: u64, pages: u64, pattern: Pattern, first: u64) -> Reply {
    if !gva.is_multiple_of(PAGE_SIZE) {
        return Reply::Refused(Refusal::Unaligned, gva);
    }
    for page in 0..pages {
        let word = pattern.word(first.wrapping_add(page));
        if let Err(fault) = probe::fill(page_address(gva, page), PAGE_WORDS, word) {
            return Reply::Fault(fault);
        }
    }
    Reply::done([])
}

pub(crate) fn check(gva: u64, pages: u64, pattern: Pattern, first: u64) -> Reply {
    if !gva.is_multiple_of(PAGE_SIZE) {
        return Reply::Refused(Refusal::Unaligned, gva);
    }
    let mut mismatches = Mismatches::default();
    for page in 0..pages {
        let word = pattern.word(first.wrapping_add(page));
        if let Err(fault) = mismatches.check_page(page_address(gva, page), word) {
            return Reply::Fault(fault);
        }
    }
    let Mismatches { count, first: [address, expected, found] } = mismatches;
    Reply::done([count, address, expected, found])
}

/// Words that are not what they should be: how many, and of the first its address, what was expected and what
/// was found.
#[derive(Default)]
struct Mismatches {
    count: u64,
    first: [u64; 3],
}

impl Mismatches {
    fn check_page(&mut self, gva: u64, expected: u64) -> Probed {
        let mut checked = 0;
        while let Some(equal) = probe::first_other_than(gva + checked * 8, PAGE_WORDS - checked, expected)? {
            checked += equal;
            let (address, left) = (gva + checked * 8, PAGE_WORDS - checked);
            if self.count == 0 {
                self.first = [address, expected, probe::read(address, Width::B8)?];
            }
            // Where a page is to hold something else, that is all of it.
            let others = probe::first_equal_to(address, left, expected)?.unwrap_or(left);
            self.count += others;
            checked += others;
        }
        Ok(())
    }
}

fn page_address(gva: u64, page: u64) -> u64 {
    gva.wrapping_add(page.wrapping_mul(PAGE_SIZE))
}

/// What `load_unaligned_zeropad()` gives: the value, and the fault that was padded.
pub(crate) struct Zeropad {
    pub(crate) value: u64,
    pub(crate) fault: Option<Fault>,
}

/// An 8-byte load that reads zeros where the second page is not present. Any fault but a #PF there is an
/// error: that is what the conversion protocol must prevent.
pub(crate) fn zeropad(gva: u64) -> Probed<Zeropad> {
    let fault = match probe::read(gva, Width::B8) {
        Ok(value) => return Ok(Zeropad { value, fault: None }),
        Err(fault) => fault,
    };
    let second_page = (gva | (PAGE_SIZE - 1)).wrapping_add(1);
    if fault.vector != PAGE_FAULT || fault.cr2 != second_page {
        return Err(fault);
    }
    // As in Linux: the aligned word lies in the first page whole; its tail moves down, zeros follow.
    let word = probe::read(gva & !7, Width::B8)?;
    Ok(Zeropad { value: word >> (gva % 8 * 8), fault: Some(fault) })
}

pub(crate) fn load_zeropad(gva: u64) -> Reply {
    let (value, fault) = match zeropad(gva) {
        Ok(Zeropad { value, fault: None }) => return Reply::done([value, Op::NO_FAULT]),
        Ok(Zeropad { value, fault: Some(fault) }) => (value, fault),
        Err(fault) => (0, fault),
    };
    Reply::done([value, fault.vector, fault.error_code, fault.cr2])
}

/// Accesses that do not fault need no guest: here they go to the test's own memory.
#[cfg(test)]
mod tests {
    use core::sync::atomic::AtomicU64;
    use core::sync::atomic::Ordering::Relaxed;

    use super::*;

    const PAGE_WORDS: usize = super::PAGE_WORDS as usize;

    #[repr(align(4096))]
    struct Pages([AtomicU64; 3 * PAGE_WORDS]);

    impl Pages {
        fn new() -> Self {
            Self([const { AtomicU64::new(0) }; 3 * PAGE_WORDS])
        }

        fn gva(&self) -> u64 {
            self.0.as_ptr() as u64
        }
    }

    #[test]
    fn a_fill_fills_its_pages_and_no_others() {
        let (pages, pattern) = (Pages::new(), Pattern(0x33));
        assert_eq!(fill(pages.gva() + PAGE_SIZE, 1, pattern, 7), Reply::done([]));
        for (index, word) in pages.0.iter().enumerate() {
            let expected = if index / PAGE_WORDS == 1 { pattern.word(7) } else { 0 };
            assert_eq!(word.load(Relaxed), expected, "word {index}");
        }
    }

    #[test]
    fn a_check_counts_every_difference_and_shows_the_first() {
        let (pages, pattern) = (Pages::new(), Pattern(0x44));
        fill(pages.gva(), 3, pattern, 0);
        assert_eq!(check(pages.gva(), 3, pattern, 0), Reply::done([0]));
        let first = PAGE_WORDS + 5;
        for index in [first, PAGE_WORDS + 6, 3 * PAGE_WORDS - 1] {
            pages.0[index].store(9, Relaxed);
        }
        let address = pages.gva() + first as u64 * 8;
        assert_eq!(check(pages.gva(), 3, pattern, 0), Reply::done([3, address, pattern.word(1), 9]));
        assert_eq!(check(pages.gva(), 1, pattern, 0), Reply::done([0]), "the first page has no difference");
    }

    #[test]
    fn whole_pages_begin_at_pages() {
        for reply in [fill(8, 1, Pattern(1), 0), check(8, 1, Pattern(1), 0)] {
            assert_eq!(reply, Reply::Refused(Refusal::Unaligned, 8));
        }
    }

    #[test]
    fn a_load_that_does_not_fault_is_not_padded() {
        let pages = Pages::new();
        pages.0[PAGE_WORDS - 1].store(0x8877_6655_4433_2211, Relaxed);
        pages.0[PAGE_WORDS].store(0xbb_aa99, Relaxed);
        let reply = load_zeropad(pages.gva() + PAGE_SIZE - 5);
        assert_eq!(reply, Reply::done([0xbbaa_9988_7766_5544, Op::NO_FAULT]));
    }
}
