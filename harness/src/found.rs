//! What has been tried out on a host, so that it is tried once.

use std::sync::OnceLock;

/// Something that a probe guest has shown, so that workers of the same run need not try it again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Proven {
    /// Compiled code runs in ring 0.
    Ring0,
    /// Hypercalls come back.
    Hypercall,
}

/// What was found out so far.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) ring0: OnceLock<Result<(), String>>,
    pub(crate) hypercall: OnceLock<Result<(), String>>,
}

impl Found {
    /// What has been tried and works.
    pub(crate) fn proven(&self) -> Vec<Proven> {
        [(Proven::Ring0, &self.ring0), (Proven::Hypercall, &self.hypercall)]
            .into_iter()
            .filter(|(_, found)| matches!(found.get(), Some(Ok(()))))
            .map(|(proven, _)| proven)
            .collect()
    }

    /// Believes that somebody else has tried it and that it works.
    pub(crate) fn trust(&self, proven: Proven) {
        let cell = match proven {
            Proven::Ring0 => &self.ring0,
            Proven::Hypercall => &self.hypercall,
        };
        cell.get_or_init(|| Ok(()));
    }
}
