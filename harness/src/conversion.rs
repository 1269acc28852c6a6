//! The host's half of an explicit conversion: the hypercall arrives, userspace decides, the guest goes on.

use std::ops::Range;

use privet_protocol::{Convert, Op, Order, Sharing};

use crate::exit::Exit;
use crate::guest::Guest;
use crate::guest_vcpu::Running;
use crate::outcome::{Outcome, Stop};
use crate::test_range::TestRange;
use crate::uapi::{HC_MAP_GPA_RANGE, MAP_GPA_RANGE_ENCRYPTED};
use crate::vm::Vm;

/// Bit 0 of the flags of a hypercall exit: the guest was in 64-bit mode (`KVM_EXIT_HYPERCALL_LONG_MODE`).
pub const HYPERCALL_LONG_MODE: u64 = 1 << 0;

/// What the VMM does with the guest_memfd beside changing attributes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Backed {
    /// Allocates pages that become private, punches out pages that become shared.
    Fallocate,
    /// Leaves the guest_memfd alone.
    Leave,
}

/// The exit of a conversion hypercall of `pages` of `range`.
pub fn hypercall_exit(range: &TestRange, pages: Range<u64>, to: Sharing) -> Exit {
    let attributes = match to {
        Sharing::Private => MAP_GPA_RANGE_ENCRYPTED,
        Sharing::Shared => 0,
    };
    Exit::Hypercall {
        nr: HC_MAP_GPA_RANGE,
        args: [range.gpa(pages.start).0, pages.end - pages.start, attributes],
        flags: HYPERCALL_LONG_MODE,
    }
}

/// The operation by which the guest converts `pages` of `range`.
pub fn convert_op(range: &TestRange, pages: Range<u64>, to: Sharing, order: Order) -> Op {
    let request = Convert {
        gva: range.private_gva(pages.start).0,
        gpa: range.gpa(pages.start).0,
        pages: pages.end - pages.start,
        to,
        order,
    };
    Op::Convert { request }
}

/// Does what a VMM does when it grants a conversion.
pub fn grant(vm: &Vm, range: &TestRange, pages: Range<u64>, to: Sharing, backed: Backed) -> Outcome {
    match to {
        Sharing::Private => range.set_private(vm, pages.clone())?,
        Sharing::Shared => range.set_shared(vm, pages.clone())?,
    }
    match (backed, to) {
        (Backed::Leave, _) => Ok(()),
        (Backed::Fallocate, Sharing::Private) => range.allocate(pages),
        (Backed::Fallocate, Sharing::Shared) => range.punch(pages),
    }
}

/// Expects that a conversion that the host answered with `ret` ended with exactly that in the guest's RAX and
/// with every page-table entry of the range present again.
pub fn expect_answer(running: Running<'_>, ret: u64, pages: u64) -> Outcome {
    let [rax, present, ..] = running.done()?;
    if rax != ret {
        return Err(Stop::Fail(format!("the guest's RAX is {rax:#x} after the hypercall, expected {ret:#x}")));
    }
    if present != pages {
        return Err(Stop::Error(format!("{present} of {pages} page-table entries are present after the conversion")));
    }
    Ok(())
}

impl Guest {
    /// The guest converts `pages` of test range 0 on vCPU `vcpu` and the host grants it: exactly one exit,
    /// with exactly these arguments.
    pub fn convert(&self, vcpu: usize, pages: Range<u64>, to: Sharing, backed: Backed) -> Outcome {
        self.convert_in_order(vcpu, pages, to, backed, Order::NotPresentFirst)
    }

    /// [`Self::convert`] with a choice of the conversion protocol.
    pub fn convert_in_order(
        &self,
        vcpu: usize,
        pages: Range<u64>,
        to: Sharing,
        backed: Backed,
        order: Order,
    ) -> Outcome {
        let range = self.range(0);
        let count = pages.end - pages.start;
        let running = self.vcpu(vcpu).start(convert_op(range, pages.clone(), to, order))?;
        running.expect_exit(&hypercall_exit(range, pages.clone(), to))?;
        grant(self.vm(), range, pages, to, backed)?;
        self.vcpu(vcpu).kvm().set_hypercall_ret(0)?;
        running.resume()?;
        expect_answer(running, 0, count)
    }
}
