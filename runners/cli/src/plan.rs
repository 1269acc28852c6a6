//! What a run consists of: which row, with which seed, in which order.

use std::time::Duration;

use privet_harness::vendor::Vendor;

/// One run of one row.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Job {
    /// The id of the row.
    pub id: String,
    /// The name in reports and artifacts: the id, and the iteration where a row runs more than once.
    pub label: String,
    /// The seed of everything random in the row.
    pub seed: u64,
    /// The time limit of the row itself.
    pub limit: Duration,
    /// Whether its exits are told if it passes, too.
    pub keep: bool,
    /// Whose processors it gets if it runs in the rig.
    pub vendor: Vendor,
    /// The seeds of the schedules under which it runs on the sim, one after the other; the usual one if empty.
    pub schedules: Vec<u64>,
}

impl Job {
    /// The VM type: the first segment of the id.
    pub fn vm(&self) -> &str {
        self.id.split('.').next().unwrap_or_default()
    }

    /// The group: the second segment of the id.
    pub fn group(&self) -> &str {
        self.id.split('.').nth(1).unwrap_or_default()
    }

    /// What follows VM type and group in the label.
    pub fn leaf(&self) -> &str {
        self.label.splitn(3, '.').nth(2).unwrap_or(&self.label)
    }
}

/// Each of these jobs once for each of these vendors, which the labels tell apart if there are several.
pub fn on_each(vendors: &[Vendor], jobs: &[Job]) -> Vec<Job> {
    let on = |job: &Job, vendor: Vendor| Job {
        label: if vendors.len() > 1 { format!("{}.{vendor}", job.label) } else { job.label.clone() },
        vendor,
        ..job.clone()
    };
    jobs.iter().flat_map(|job| vendors.iter().map(move |vendor| on(job, *vendor))).collect()
}

/// The jobs of a run over `ids`, each row `repeat` times in a row. Rows are brought together by VM type
/// and then by group, and otherwise keep their order.
pub fn jobs(ids: &[String], repeat: u32, seed: u64, limit: Duration) -> Vec<Job> {
    grouped(ids)
        .into_iter()
        .flat_map(|id| {
            (0..repeat).map(move |iteration| Job {
                id: id.clone(),
                label: if repeat == 1 { id.clone() } else { format!("{id}.iteration-{}", iteration + 1) },
                seed: iteration_seed(seed, iteration),
                limit,
                keep: false,
                vendor: Vendor::Amd,
                schedules: Vec::new(),
            })
        })
        .collect()
}

/// So many schedules for a job with this seed.
pub fn schedules(seed: u64, count: u32) -> Vec<u64> {
    (1..=count).map(|number| iteration_seed(seed, number)).collect()
}

fn grouped(ids: &[String]) -> Vec<&String> {
    let head = |id: &str, segments: usize| id.splitn(3, '.').take(segments).collect::<Vec<_>>().join(".");
    let first_with = |id: &str, segments: usize| {
        let wanted = head(id, segments);
        ids.iter().position(|other| head(other, segments) == wanted)
    };
    let mut ordered: Vec<_> = ids.iter().map(|id| ((first_with(id, 1), first_with(id, 2)), id)).collect();
    ordered.sort_by_key(|(key, _)| *key);
    ordered.into_iter().map(|(_, id)| id).collect()
}

/// The seed of one iteration. The first has the seed of the run, so that `--seed` with the seed of any
/// report repeats that very run of the row; the others are mixed from it (splitmix64) and kept short
/// enough to be exact in JSON readers that only know doubles.
fn iteration_seed(seed: u64, iteration: u32) -> u64 {
    if iteration == 0 {
        return seed;
    }
    let mut mixed = seed.wrapping_add(u64::from(iteration).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (mixed ^ (mixed >> 31)) >> 32
}

/// A seed for a run that was given none.
pub fn fresh_seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    // The standard library seeds its hashers from the system's random numbers.
    RandomState::new().hash_one("privet") >> 32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(ids: &[&str]) -> Vec<String> {
        ids.iter().map(|id| id.to_string()).collect()
    }

    #[test]
    fn rows_of_a_group_come_together_and_keep_their_order() {
        let given = ids(&["upm.slots.b", "plain.mmio.a", "upm.exits.a", "upm.slots.a", "plain.mmio.b"]);
        let jobs = jobs(&given, 1, 7, Duration::from_secs(1));
        let order: Vec<_> = jobs.iter().map(|job| job.label.as_str()).collect();
        assert_eq!(order, ["upm.slots.b", "upm.slots.a", "upm.exits.a", "plain.mmio.a", "plain.mmio.b"]);
    }

    #[test]
    fn a_job_for_each_vendor_says_so_and_has_the_same_seed() {
        let given = jobs(&ids(&["upm.slots.a", "upm.slots.b"]), 1, 7, Duration::from_secs(1));
        let on_both = on_each(&[Vendor::Amd, Vendor::Intel], &given);
        let labels: Vec<_> = on_both.iter().map(|job| (job.label.as_str(), job.vendor, job.seed)).collect();
        let (amd, intel) = (Vendor::Amd, Vendor::Intel);
        assert_eq!(
            labels,
            [
                ("upm.slots.a.amd", amd, 7),
                ("upm.slots.a.intel", intel, 7),
                ("upm.slots.b.amd", amd, 7),
                ("upm.slots.b.intel", intel, 7)
            ]
        );
        let on_one = on_each(&[Vendor::Intel], &given);
        assert_eq!((on_one[1].label.as_str(), on_one[1].vendor), ("upm.slots.b", intel));
    }

    #[test]
    fn iterations_have_labels_and_seeds_of_their_own() {
        let jobs = jobs(&ids(&["upm.slots.a.x"]), 3, 7, Duration::from_secs(1));
        assert_eq!(jobs[0].seed, 7);
        assert_eq!(jobs[2].leaf(), "a.x.iteration-3");
        assert!(jobs[1].seed != jobs[0].seed && jobs[2].seed != jobs[1].seed && jobs[2].seed != jobs[0].seed);
    }
}
