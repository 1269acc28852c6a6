//! Which mutants are tried, of too many.

use std::collections::BTreeMap;

use crate::point::Point;

/// `count` of the points, by a seed. Every operator has the same share as far as it has points: sizes and frame numbers are
/// in so many places that else there would be little but those.
#[must_use]
pub fn sample(points: Vec<Point>, count: usize, seed: u64) -> Vec<Point> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut by_operator: BTreeMap<_, Vec<Point>> = BTreeMap::new();
    for point in points {
        by_operator.entry(point.operator).or_default().push(point);
    }
    let mut piles: Vec<Vec<Point>> = by_operator.into_values().collect();
    piles.iter_mut().for_each(|pile| random.shuffle(pile));
    let mut chosen = Vec::new();
    while chosen.len() < count && piles.iter().any(|pile| !pile.is_empty()) {
        for pile in &mut piles {
            chosen.extend(pile.pop().filter(|_| chosen.len() < count));
        }
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::points::points;
    use crate::source::Source;

    fn all() -> Vec<Point> {
        let body = "{ a(start, end); b(start, end); c(start, end); if (x) d(); return A | B; }";
        let source = Source::parse("a.c", format!("int f(gfn_t start, gfn_t end)\n{body}"));
        let points = points(&source.functions().next().unwrap());
        points.into_iter().filter(|point| point.unbiased).collect()
    }

    #[test]
    fn a_seed_gives_the_same_sample_and_every_operator_its_share() {
        let names = |seed| sample(all(), 7, seed).iter().map(Point::name).collect::<Vec<_>>();
        assert_eq!(names(1), names(1));
        assert_ne!(names(1), names(2));
        let operators =
            sample(all(), 7, 1).iter().map(|point| point.operator).collect::<std::collections::BTreeSet<_>>();
        assert_eq!(operators.len(), 6);
        assert_eq!(sample(all(), 1000, 1).len(), all().len());
    }
}
