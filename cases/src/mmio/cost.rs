//! What an access costs, in the statistics of its vCPU.

use privet_harness::guest::Guest;
use privet_harness::guest_vcpu::GuestVcpu;
use privet_harness::outcome::{Outcome, Stop};
use privet_harness::stats::{Snapshot, Stats};
use privet_harness::units::{Gpa, Gva, PAGE_SIZE};
use privet_protocol::{Op, Width};

use crate::expect::expect_eq;
use crate::types::Types;

/// How much the counters grew.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Cost {
    /// Faults that were looked into.
    pub(super) pf_taken: i64,
    /// Faults that were mended by mapping memory.
    pub(super) pf_fixed: i64,
    /// Faults that ended in emulation.
    pub(super) pf_emulate: i64,
    /// MMIO SPTEs that were installed.
    pub(super) pf_mmio_spte_created: i64,
    /// Instructions that were decoded.
    pub(super) insn_emulation: i64,
    /// Instructions that userspace had to complete.
    pub(super) mmio_exits: i64,
}

impl Cost {
    /// Nothing.
    pub(super) const NONE: Cost =
        Cost { pf_taken: 0, pf_fixed: 0, pf_emulate: 0, pf_mmio_spte_created: 0, insn_emulation: 0, mmio_exits: 0 };
    /// An MMIO access that hits a cached SPTE: no fault is looked into.
    pub(super) const CACHED: Cost = Cost { insn_emulation: 1, mmio_exits: 1, ..Cost::NONE };
    /// An MMIO access that leaves no SPTE.
    pub(super) const UNCACHED: Cost = Cost { pf_taken: 1, pf_emulate: 1, ..Cost::CACHED };
    /// The first MMIO access to a page since the memslots changed.
    pub(super) const FIRST: Cost = Cost { pf_mmio_spte_created: 1, ..Cost::UNCACHED };
    /// The first access to memory.
    pub(super) const MAPPED: Cost = Cost { pf_taken: 1, pf_fixed: 1, ..Cost::NONE };

    fn since(now: &Snapshot<'_>, before: &Snapshot<'_>) -> Outcome<Cost> {
        let growth = |name: &str| {
            now.since(before, name).ok_or_else(|| Stop::Error(format!("this kernel has no statistic {name}")))
        };
        Ok(Cost {
            pf_taken: growth("pf_taken")?,
            pf_fixed: growth("pf_fixed")?,
            pf_emulate: growth("pf_emulate")?,
            pf_mmio_spte_created: growth("pf_mmio_spte_created")?,
            insn_emulation: growth("insn_emulation")?,
            mmio_exits: growth("mmio_exits")?,
        })
    }

    fn minus(self, other: Cost) -> Cost {
        Cost {
            pf_taken: self.pf_taken - other.pf_taken,
            pf_fixed: self.pf_fixed - other.pf_fixed,
            pf_emulate: self.pf_emulate - other.pf_emulate,
            pf_mmio_spte_created: self.pf_mmio_spte_created - other.pf_mmio_spte_created,
            insn_emulation: self.insn_emulation - other.insn_emulation,
            mmio_exits: self.mmio_exits - other.mmio_exits,
        }
    }
}

/// Measures operations of one vCPU.
pub(super) struct Meter<'a> {
    v: &'a GuestVcpu,
    /// Whether KVM emulates the guest's MMIO; a guest with encrypted registers asks for it by a request.
    emulates: bool,
    stats: Stats,
    ram: Gva,
}

impl<'a> Meter<'a> {
    /// A meter of vCPU `index`. Page `index` of test range 0 is memory for it.
    pub(super) fn new(g: &'a Guest, index: usize) -> Outcome<Self> {
        let (v, emulates) = (g.vcpu(index), Types::VISIBLE_REGISTERS.contain(g.platform()));
        Ok(Self { v, emulates, stats: v.kvm().stats()?, ram: g.range(0).shared_gva(0) + index as u64 * PAGE_SIZE })
    }

    /// What `access`, one operation, costs beyond an operation that accesses nothing.
    ///
    /// That one has a cost too: without decode assists and next-RIP saving, KVM emulates the doorbell's `out` to
    /// step over it. Before, the payload's own pages are touched: zapping a VM takes their mappings too.
    pub(super) fn cost(&self, access: impl FnOnce() -> Outcome) -> Outcome<Cost> {
        for width in Width::ALL {
            self.v.write(self.ram, width, 0)?;
            self.v.read(self.ram, width)?;
        }
        let start = self.stats.snapshot()?;
        self.v.call(Op::Nop)?;
        let before = self.stats.snapshot()?;
        access()?;
        let after = self.stats.snapshot()?;
        Ok(Cost::since(&after, &before)?.minus(Cost::since(&before, &start)?))
    }

    /// Expects `access`, one operation, to cost exactly this.
    pub(super) fn expect(&self, what: &str, expected: Cost, access: impl FnOnce() -> Outcome) -> Outcome {
        expect_eq(&format!("the cost of {what}"), &self.cost(access)?, &expected)
    }

    /// What an MMIO access costs where it would cost `emulated` if KVM emulated it.
    fn of_mmio(&self, emulated: Cost) -> Cost {
        if self.emulates { emulated } else { Cost { insn_emulation: 0, mmio_exits: 0, ..emulated } }
    }

    /// Expects an MMIO load from `gpa` to cost exactly this, less the emulation where there is none.
    pub(super) fn expect_read(&self, what: &str, gpa: Gpa, expected: Cost) -> Outcome {
        self.expect(what, self.of_mmio(expected), || super::read(self.v, gpa, Width::B4, 0x1234_5678).map(drop))
    }

    /// Expects an MMIO store to `gpa` to cost exactly this, likewise.
    pub(super) fn expect_write(&self, what: &str, gpa: Gpa, expected: Cost) -> Outcome {
        self.expect(what, self.of_mmio(expected), || super::write(self.v, gpa, Width::B8, 0x0123_4567_89ab_cdef))
    }
}
