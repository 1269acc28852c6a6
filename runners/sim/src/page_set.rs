//! A set of pages, one bit each.

use serde::{Deserialize, Serialize};

/// Numbers of pages, below a number that is given when it is made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PageSet(Vec<u64>);

impl PageSet {
    /// None of so many pages.
    pub(crate) fn new(pages: u64) -> PageSet {
        PageSet(vec![0; pages.div_ceil(64) as usize])
    }

    pub(crate) fn insert(&mut self, page: u64) {
        self.0[(page / 64) as usize] |= 1 << (page % 64);
    }

    pub(crate) fn has(&self, page: u64) -> bool {
        self.0[(page / 64) as usize] >> (page % 64) & 1 != 0
    }

    /// Everything that is in another set of as many pages.
    pub(crate) fn add(&mut self, other: &PageSet) {
        self.0.iter_mut().zip(&other.0).for_each(|(own, more)| *own |= more);
    }

    /// How many there are.
    pub(crate) fn len(&self) -> u32 {
        self.0.iter().map(|word| word.count_ones()).sum()
    }

    /// Upwards.
    pub(crate) fn iter(&self) -> impl Iterator<Item = u64> {
        let pages = |(word, bits): (usize, &u64)| {
            let mut left = *bits;
            std::iter::from_fn(move || {
                let bit = (left != 0).then(|| left.trailing_zeros())?;
                left &= left - 1;
                Some(word as u64 * 64 + u64::from(bit))
            })
        };
        self.0.iter().enumerate().flat_map(pages)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_put_in_comes_out_in_order() {
        let (mut set, mut more) = (PageSet::new(200), PageSet::new(200));
        [199, 0, 64, 63, 64].into_iter().for_each(|page| set.insert(page));
        assert_eq!((set.len(), set.iter().collect::<Vec<_>>()), (4, vec![0, 63, 64, 199]));
        assert!(set.has(63) && !set.has(62));
        more.insert(1);
        set.add(&more);
        assert_eq!(set.iter().collect::<Vec<_>>(), [0, 1, 63, 64, 199]);
    }
}
