//! Work for a fleet: arrays of jobs, each with what it needs of a node.

use privet_results::fleet_plan::{Array, FleetPlan, PlannedShard, VERSION, Work};

/// Work for a fleet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fleet {
    /// The program that jobs run, as nodes find it.
    pub program: String,
    /// How key ids are counted.
    pub key_ids: KeyIds,
    /// The arrays. Those that are [`JobArray::alone`] run after all others.
    pub arrays: Vec<JobArray>,
}

/// How Slurm counts key ids.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum KeyIds {
    /// As licences of the whole cluster.
    Licences,
    /// As generic resources of each node.
    Gres,
    /// Not at all.
    Uncounted,
}

/// Jobs that differ in their share of the work only.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct JobArray {
    /// Its name: that of its script, and a part of the names of its results.
    pub name: String,
    /// The features that a node must have.
    pub features: Vec<String>,
    /// The key ids that a job takes.
    pub claims: Vec<Claim>,
    /// Minutes after which Slurm ends a job.
    pub minutes: u64,
    /// Whether a job has its node for itself, and no other of its array runs beside it: what it does may take the node
    /// down.
    pub alone: bool,
    /// The rows; empty for mutants.
    pub rows: Vec<String>,
    /// How many jobs.
    pub shards: usize,
    /// How the work is spread over them.
    pub spread: Spread,
    /// What every job is told besides: options of the command, and filters for mutants.
    pub options: Vec<String>,
}

/// Key ids of one kind.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Claim {
    /// The kind, by its name in the misc cgroup.
    pub name: String,
    /// How many.
    pub count: usize,
}

/// How work is spread over jobs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Spread {
    /// Each runs a slice of the rows.
    Rows,
    /// Each runs all rows under so many schedules, which it makes of this seed and its number.
    Schedules {
        /// Schedules in each job.
        each: usize,
        /// The seed.
        seed: u64,
    },
    /// Each tries a slice of the mutants of the kernel.
    KernelMutants,
}

impl Fleet {
    /// What is to come back.
    pub fn plan(&self) -> FleetPlan {
        let is_mutants = |array: &JobArray| array.spread == Spread::KernelMutants;
        let work = if self.arrays.iter().any(is_mutants) { Work::KernelMutants } else { Work::Rows };
        FleetPlan { version: VERSION, work, arrays: self.arrays.iter().map(JobArray::plan).collect() }
    }
}

impl JobArray {
    fn plan(&self) -> Array {
        let shard = |number: usize| PlannedShard { file: self.result(&number.to_string()), rows: self.rows_of(number) };
        Array {
            name: self.name.clone(),
            features: self.features.clone(),
            shards: (1..=self.shards).map(shard).collect(),
        }
    }

    /// The file that a job writes, by its number or what stands for it in a script.
    pub(crate) fn result(&self, number: &str) -> String {
        match self.spread {
            Spread::KernelMutants => format!("results/{}-{number}/trials.jsonl", self.name),
            Spread::Rows | Spread::Schedules { .. } => format!("results/{}-{number}.json", self.name),
        }
    }

    /// The rows of a job: those that `privet run --partition` gives it.
    fn rows_of(&self, number: usize) -> Vec<String> {
        match self.spread {
            Spread::Rows => self.rows.iter().skip(number - 1).step_by(self.shards).cloned().collect(),
            Spread::Schedules { .. } | Spread::KernelMutants => self.rows.clone(),
        }
    }
}
