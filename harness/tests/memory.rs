//! Host memory: checked offsets, and faults that are results.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use nix::sys::signal::Signal;
use privet_harness::mapping::{AccessError, MapOptions, Mapping};
use privet_harness::outcome::Stop;
use privet_harness::units::PAGE_SIZE;
use proptest::prelude::*;

#[test]
fn what_is_written_is_read_and_nothing_else_changes() {
    let mapping = Mapping::anonymous(3 * PAGE_SIZE).unwrap();
    mapping.write(PAGE_SIZE - 3, &[1, 2, 3, 4, 5, 6, 7]).unwrap();
    let mut bytes = [0xFF; 9];
    mapping.read(PAGE_SIZE - 4, &mut bytes).unwrap();
    assert_eq!(bytes, [0, 1, 2, 3, 4, 5, 6, 7, 0]);
    assert_eq!(mapping.first_other_than(0, 3 * PAGE_SIZE, 0).unwrap(), Some((PAGE_SIZE - 3, 1)));
    assert_eq!(mapping.first_other_than(PAGE_SIZE + 4, 2 * PAGE_SIZE - 4, 0).unwrap(), None);
}

#[test]
fn a_byte_that_differs_is_found_in_the_last_place() {
    let mapping = Mapping::anonymous(2 * PAGE_SIZE).unwrap();
    mapping.fill(1, 2 * PAGE_SIZE - 2, 0x5A).unwrap();
    assert_eq!(mapping.first_other_than(1, 2 * PAGE_SIZE - 2, 0x5A).unwrap(), None);
    assert_eq!(mapping.first_other_than(1, 2 * PAGE_SIZE - 1, 0x5A).unwrap(), Some((2 * PAGE_SIZE - 1, 0)));
}

#[test]
fn the_first_word_that_is_sought_is_found_wherever_it_is() {
    const WORD: u64 = 0x0123_4567_89ab_cdef;
    let mapping = Mapping::anonymous(2 * PAGE_SIZE).unwrap();
    mapping.fill_words(8, PAGE_SIZE, WORD).unwrap();
    assert_eq!((mapping.read_u64(0).unwrap(), mapping.read_u64(PAGE_SIZE + 8).unwrap()), (0, 0));
    assert_eq!(mapping.first_word_other_than(8, PAGE_SIZE, WORD).unwrap(), None);
    assert_eq!(mapping.first_word_other_than(8, PAGE_SIZE + 8, WORD).unwrap(), Some((PAGE_SIZE + 8, 0)));
    assert_eq!(mapping.first_word_other_than(0, PAGE_SIZE, WORD).unwrap(), Some((0, 0)));
    assert_eq!(mapping.first_word_equal_to(0, 2 * PAGE_SIZE, WORD).unwrap(), Some(8));
    assert_eq!(mapping.first_word_equal_to(PAGE_SIZE, 16, WORD).unwrap(), Some(PAGE_SIZE));
    assert_eq!(mapping.first_word_equal_to(PAGE_SIZE + 8, PAGE_SIZE - 8, WORD).unwrap(), None);
    mapping.write_u64(PAGE_SIZE, 7).unwrap();
    assert_eq!(mapping.first_word_other_than(8, PAGE_SIZE, WORD).unwrap(), Some((PAGE_SIZE, 7)));
    assert_eq!(mapping.first_word_equal_to(8, 0, WORD).unwrap(), None);
    for (offset, bytes) in [(4, 8), (0, 12), (2 * PAGE_SIZE, 8)] {
        assert!(mapping.fill_words(offset, bytes, 0).is_err());
        assert!(mapping.first_word_equal_to(offset, bytes, 0).is_err());
    }
}

#[test]
fn words_are_shared_with_other_views() {
    let mapping = Mapping::memfd(2 * PAGE_SIZE).unwrap();
    mapping.write_u64(PAGE_SIZE + 8, 0x0102_0304_0506_0708).unwrap();
    let words = mapping.words(PAGE_SIZE).unwrap();
    assert_eq!(words[1].load(Ordering::Acquire), 0x0102_0304_0506_0708);
    words[511].store(7, Ordering::Release);
    assert_eq!(mapping.read_u64(2 * PAGE_SIZE - 8).unwrap(), 7);
    let mut low = [0];
    mapping.read(PAGE_SIZE + 8, &mut low).unwrap();
    assert_eq!(low, [8], "words are little-endian");
}

#[test]
fn nothing_outside_of_the_mapping_is_accessed() {
    let mapping = Mapping::anonymous(PAGE_SIZE).unwrap();
    let mut byte = [0];
    let outside = AccessError::Range { offset: PAGE_SIZE, bytes: 1, len: PAGE_SIZE };
    assert_eq!(mapping.try_read(PAGE_SIZE, &mut byte), Err(outside));
    assert_eq!(mapping.try_write(PAGE_SIZE, &byte), Err(outside));
    assert!(matches!(mapping.try_read(u64::MAX, &mut byte), Err(AccessError::Range { .. })));
    assert!(matches!(mapping.read_u64(4), Err(Stop::Error(_))), "not aligned");
    assert!(matches!(mapping.fill(1, PAGE_SIZE, 0), Err(Stop::Error(_))));
    assert!(matches!(mapping.first_other_than(1, PAGE_SIZE, 0), Err(Stop::Error(_))));
    assert!(matches!(mapping.words(8), Err(Stop::Error(_))));
    assert!(matches!(Mapping::anonymous(0), Err(Stop::Error(_))));
    assert!(matches!(Mapping::anonymous(u64::MAX), Err(Stop::Error(_))));
}

#[test]
fn a_page_without_access_is_sigsegv_with_its_offset_and_comes_back() {
    let mapping = Mapping::anonymous(2 * PAGE_SIZE).unwrap();
    mapping.write_u64(PAGE_SIZE, 9).unwrap();
    mapping.protect(false).unwrap();
    let mut bytes = [0; 16];
    for error in [mapping.try_read(PAGE_SIZE, &mut bytes), mapping.try_write(PAGE_SIZE, &bytes)] {
        let Err(AccessError::Fault { offset, fault }) = error else { panic!("{error:?}") };
        assert_eq!((offset, fault.signal), (PAGE_SIZE, Signal::SIGSEGV));
        assert_eq!(fault.address as u64, mapping.addr() + PAGE_SIZE);
    }
    let Err(Stop::Error(line)) = mapping.read_u64(PAGE_SIZE) else { panic!("the page is not accessible") };
    assert!(line.contains("0x1000") && line.contains("SIGSEGV"), "{line}");
    assert!(mapping.fill(0, 8, 1).is_err());
    for met in [mapping.first_word_equal_to(0, 8, 0).map(drop), mapping.first_word_other_than(0, 8, 0).map(drop)] {
        assert!(matches!(met, Err(Stop::Error(line)) if line.contains("SIGSEGV")));
    }
    mapping.protect(true).unwrap();
    assert_eq!(mapping.read_u64(PAGE_SIZE).unwrap(), 9);
}

#[test]
fn past_the_end_of_a_file_is_sigbus_at_the_first_byte_beyond() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(PAGE_SIZE).unwrap();
    let mapping =
        Mapping::of_file(std::os::fd::AsFd::as_fd(&file), 0, 2 * PAGE_SIZE, MapOptions::new().shared()).unwrap();
    let mut bytes = [0; 32];
    let fault = mapping.try_read(PAGE_SIZE - 16, &mut bytes).unwrap_err().fault().unwrap();
    assert_eq!((fault.signal, fault.address as u64), (Signal::SIGBUS, mapping.addr() + PAGE_SIZE));
    mapping.try_read(PAGE_SIZE - 32, &mut bytes).unwrap();
}

#[test]
fn faults_in_many_threads_are_their_own() {
    let mapping = Arc::new(Mapping::anonymous(8 * PAGE_SIZE).unwrap());
    mapping.protect(false).unwrap();
    std::thread::scope(|scope| {
        for page in 0..8 {
            let mapping = &mapping;
            scope.spawn(move || {
                for _ in 0..200 {
                    let fault = mapping.try_write(page * PAGE_SIZE, &[1]).unwrap_err().fault().unwrap();
                    assert_eq!(fault.address as u64, mapping.addr() + page * PAGE_SIZE);
                }
            });
        }
    });
}

#[test]
fn discarded_memory_reads_as_zero_and_its_neighbours_do_not() {
    let mapping = Mapping::anonymous(3 * PAGE_SIZE).unwrap();
    mapping.fill(0, 3 * PAGE_SIZE, 1).unwrap();
    mapping.discard(PAGE_SIZE, PAGE_SIZE).unwrap();
    assert_eq!(mapping.first_other_than(0, PAGE_SIZE, 1).unwrap(), None);
    assert_eq!(mapping.first_other_than(PAGE_SIZE, PAGE_SIZE, 0).unwrap(), None);
    assert_eq!(mapping.first_other_than(2 * PAGE_SIZE, PAGE_SIZE, 1).unwrap(), None);
    assert!(matches!(mapping.discard(2 * PAGE_SIZE, 2 * PAGE_SIZE), Err(Stop::Error(_))));
}

#[test]
fn an_alignment_is_kept_and_the_whole_length_usable() {
    let two_megabytes = 2 << 20;
    let options = MapOptions::new().aligned(two_megabytes).huge_pages(true).populate();
    let mapping = Mapping::anonymous_with(two_megabytes, options).unwrap();
    assert!(mapping.addr().is_multiple_of(two_megabytes));
    mapping.write_u64(two_megabytes - 8, 3).unwrap();
    assert_eq!(mapping.read_u64(two_megabytes - 8).unwrap(), 3);
    assert!(mapping.contains(mapping.addr(), two_megabytes));
    assert!(!mapping.contains(mapping.addr() + 1, two_megabytes));
    assert!(!mapping.contains(mapping.addr() - 1, 1));
}

proptest! {
    #[test]
    fn any_range_copies_exactly_or_is_refused(offset in 0..2 * PAGE_SIZE + 64, bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let mapping = Mapping::anonymous(2 * PAGE_SIZE).unwrap();
        let fits = offset + bytes.len() as u64 <= mapping.len();
        prop_assert_eq!(mapping.try_write(offset, &bytes).is_ok(), fits);
        let mut all = vec![0; mapping.len() as usize];
        mapping.read(0, &mut all).unwrap();
        let mut expected = vec![0; all.len()];
        if fits {
            expected[offset as usize..][..bytes.len()].copy_from_slice(&bytes);
        }
        prop_assert_eq!(all, expected);
    }
}
