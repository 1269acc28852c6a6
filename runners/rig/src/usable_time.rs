//! The time that an emulator could use: what passed, without what its threads waited for a core. A limit on that is
//! a limit on the machine, however busy the system is.

use std::fs;
use std::time::{Duration, Instant};

/// The usable time of a process.
#[derive(Debug)]
pub(crate) struct UsableTime {
    process: u32,
    began: Instant,
    /// The most that was seen.
    waited: Duration,
}

impl UsableTime {
    /// From now on, of the process with this number.
    pub(crate) fn of(process: u32) -> Self {
        Self { process, began: Instant::now(), waited: Duration::ZERO }
    }

    /// How much there was so far.
    pub(crate) fn so_far(&mut self) -> Duration {
        // The threads of an emulator wait side by side: the guest waits as long as the one that waits longest.
        let tasks = fs::read_dir(format!("/proc/{}/task", self.process)).into_iter().flatten().flatten();
        let waits = tasks.filter_map(|task| waited(&fs::read_to_string(task.path().join("schedstat")).ok()?));
        self.waited = self.waited.max(waits.max().unwrap_or_default());
        self.began.elapsed().saturating_sub(self.waited)
    }
}

/// The second number of /proc/<pid>/task/<tid>/schedstat: the nanoseconds on a run queue
/// (Documentation/scheduler/sched-stats.rst).
fn waited(schedstat: &str) -> Option<Duration> {
    schedstat.split_whitespace().nth(1)?.parse().ok().map(Duration::from_nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_is_the_second_number() {
        assert_eq!(waited("233655189 876165882 562\n"), Some(Duration::from_nanos(876_165_882)));
        assert_eq!(waited("0 0 0\n"), Some(Duration::ZERO));
        assert_eq!(waited(""), None);
    }

    #[test]
    fn a_process_cannot_use_more_than_passes() {
        let began = Instant::now();
        let mut usable = UsableTime::of(std::process::id());
        usable.waited = Duration::ZERO;
        assert!(usable.so_far() <= began.elapsed());
        usable.waited = Duration::from_secs(3600);
        assert_eq!(usable.so_far(), Duration::ZERO);
    }
}
