//! The VM's memory attributes: which pages are private.
//!
//! Sparse, by ranges; independent of slots. Source: `virt/kvm/kvm_main.c:kvm_vm_set_mem_attributes`.

use std::collections::BTreeMap;
use std::ops::Range;

/// The private ranges of guest page numbers, disjoint and not adjacent: start to end.
#[derive(Clone, Default, Debug)]
pub(crate) struct Attributes {
    private: BTreeMap<u64, u64>,
}

impl Attributes {
    /// Whether the page is private.
    pub(crate) fn is_private(&self, gfn: u64) -> bool {
        self.private.range(..=gfn).next_back().is_some_and(|(_, &end)| gfn < end)
    }

    /// Whether all pages of the range are private, or all are not.
    pub(crate) fn are_all(&self, range: &Range<u64>, private: bool) -> bool {
        match private {
            true => self.private.range(..=range.start).next_back().is_some_and(|(_, &end)| range.end <= end),
            false => !self.is_private(range.start) && self.private.range(range.clone()).next().is_none(),
        }
    }

    /// Makes the pages of the range private or shared.
    pub(crate) fn set(&mut self, range: Range<u64>, private: bool) {
        if range.is_empty() {
            return;
        }
        // Ranges that touch the new one, or are next to it when they will melt together.
        let (mut start, mut end) = (range.start, range.end);
        let touched: Vec<(u64, u64)> = self
            .private
            .range(..=range.end)
            .rev()
            .take_while(|&(_, &end)| end >= range.start)
            .map(|(&start, &end)| (start, end))
            .collect();
        for (other_start, other_end) in touched {
            self.private.remove(&other_start);
            if private {
                start = start.min(other_start);
                end = end.max(other_end);
            } else {
                if other_start < range.start {
                    self.private.insert(other_start, range.start);
                }
                if range.end < other_end {
                    self.private.insert(range.end, other_end);
                }
            }
        }
        if private {
            self.private.insert(start, end);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn agrees_with_a_naive_map(changes in proptest::collection::vec((0..64u64, 1..20u64, any::<bool>()), 1..60)) {
            let mut attributes = Attributes::default();
            let mut naive = [false; 96];
            for (start, len, private) in changes {
                attributes.set(start..start + len, private);
                naive[start as usize..(start + len) as usize].fill(private);
                for (gfn, &expected) in naive.iter().enumerate() {
                    prop_assert_eq!(attributes.is_private(gfn as u64), expected, "gfn {}", gfn);
                }
                for kind in [true, false] {
                    for start in (0..80).step_by(7) {
                        for end in [start + 1, start + 3, start + 16] {
                            let all = naive[start..end].iter().all(|&private| private == kind);
                            prop_assert_eq!(attributes.are_all(&(start as u64..end as u64), kind), all);
                        }
                    }
                }
                let mut ends = attributes.private.iter().map(|(&start, &end)| (start, end)).collect::<Vec<_>>();
                ends.sort_unstable();
                for pair in ends.windows(2) {
                    prop_assert!(pair[0].1 < pair[1].0, "{:?} are not melted", pair);
                }
            }
        }
    }

    #[test]
    fn the_whole_address_space_is_one_range() {
        let mut attributes = Attributes::default();
        attributes.set(0..u64::MAX >> 12, true);
        attributes.set(1..2, false);
        assert!(attributes.is_private(0) && !attributes.is_private(1) && attributes.is_private(2));
        attributes.set(0..u64::MAX >> 12, false);
        assert!(attributes.are_all(&(0..u64::MAX >> 12), false));
    }
}
