//! The host's half of an explicit conversion: the hypercall arrives, userspace decides, the guest goes on.

use std::ops::Range;

use privet_protocol::{Conversion, Convert, Op, Order, Sharing};

use crate::exit::Exit;
use crate::guest::Guest;
use crate::guest_vcpu::Running;
use crate::outcome::{Outcome, Stop};
use crate::platform::Platform;
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

/// Entries that a page state change has room for: what an SNP guest asks for at once, and KVM makes one exit of.
const PAGES_AT_ONCE: u64 = 253;

/// Pages that KVM makes one exit of when a TD asks for more at once (vmx/tdx.c: TDX_MAP_GPA_MAX_LEN).
const PAGES_OF_MAP_GPA: u64 = 512;

/// The exit of a conversion hypercall of `pages` of `range`, or of one request for a page state change.
fn request_exit(range: &TestRange, pages: Range<u64>, to: Sharing, flags: u64) -> Exit {
    let attributes = match to {
        Sharing::Private => MAP_GPA_RANGE_ENCRYPTED,
        Sharing::Shared => 0,
    };
    let args = [range.gpa(pages.start).0, pages.end - pages.start, attributes];
    Exit::Hypercall { nr: HC_MAP_GPA_RANGE, args, flags }
}

/// The exit of a conversion hypercall of `pages` of `range`.
pub fn hypercall_exit(range: &TestRange, pages: Range<u64>, to: Sharing) -> Exit {
    request_exit(range, pages, to, HYPERCALL_LONG_MODE)
}

/// The exits of a guest of `platform` that asks for the conversion of `pages` of `range`, with the pages of each. KVM does
/// not write the flags of one that comes from a page state change.
pub fn conversion_exits(
    platform: Platform,
    range: &TestRange,
    pages: Range<u64>,
    to: Sharing,
) -> Vec<(Range<u64>, Exit)> {
    match platform.conversion() {
        Conversion::Hypercall => vec![(pages.clone(), hypercall_exit(range, pages, to))],
        Conversion::PageStateChange => {
            in_parts(pages, PAGES_AT_ONCE).map(|part| (part.clone(), request_exit(range, part, to, 0))).collect()
        }
        Conversion::MapGpa => in_parts(pages, PAGES_OF_MAP_GPA)
            .map(|part| (part.clone(), request_exit(range, part, to, HYPERCALL_LONG_MODE)))
            .collect(),
    }
}

/// `pages` in parts of so many, counted from the first.
fn in_parts(pages: Range<u64>, size: u64) -> impl Iterator<Item = Range<u64>> {
    let end = pages.end;
    pages.step_by(size as usize).map(move |start| start..end.min(start + size))
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

/// Expects that a conversion of which the guest was told `answer` ended with exactly that, with every page-table entry of
/// the range present again, and, in an SNP guest, with every page validated, or rescinded, that was not before.
pub fn expect_answer(running: Running<'_>, answer: u64, pages: u64) -> Outcome {
    let [seen, present, unchanged, pvalidate, ..] = running.done()?;
    if seen != answer {
        return Err(Stop::Fail(format!("the guest is told {seen:#x} about its request, expected {answer:#x}")));
    }
    if present != pages {
        return Err(Stop::Error(format!("{present} of {pages} page-table entries are present after the conversion")));
    }
    if (unchanged, pvalidate) != (0, 0) {
        return Err(Stop::Fail(format!(
            "PVALIDATE: EAX {pvalidate:#x}, {unchanged} pages were in the wanted state before"
        )));
    }
    Ok(())
}

impl Guest {
    /// Makes pages of test range 0 private without being asked: sets the attribute where there is one, and has an SNP
    /// guest validate them on vCPU `vcpu`.
    pub fn make_private(&self, vcpu: usize, pages: Range<u64>) -> Outcome {
        if self.platform().has_private_memory() {
            self.range(0).set_private(self.vm(), pages.clone())?;
        }
        self.validate(vcpu, pages, true)
    }

    /// Makes pages of test range 0 shared again, likewise.
    pub fn make_shared(&self, vcpu: usize, pages: Range<u64>) -> Outcome {
        self.validate(vcpu, pages.clone(), false)?;
        if self.platform().has_private_memory() {
            self.range(0).set_shared(self.vm(), pages)?;
        }
        Ok(())
    }

    /// An SNP guest changes the validation of each of these pages, a TD accepts those that become private; others have
    /// nothing to say.
    fn validate(&self, vcpu: usize, pages: Range<u64>, validated: bool) -> Outcome {
        match self.platform().conversion() {
            Conversion::PageStateChange => {}
            Conversion::MapGpa if validated => {}
            Conversion::Hypercall | Conversion::MapGpa => return Ok(()),
        }
        let (gva, count) = (self.range(0).private_gva(pages.start).0, pages.end - pages.start);
        match self.vcpu(vcpu).call(Op::Validate { gva, pages: count, validated })? {
            [0, done, 0, ..] if done == count => Ok(()),
            [eax, done, unchanged, ..] => Err(Stop::Fail(format!(
                "PVALIDATE ({validated}) of {count} pages: EAX {eax:#x} after {done}, {unchanged} unchanged"
            ))),
        }
    }

    /// The guest converts `pages` of test range 0 on vCPU `vcpu` and the host grants it: exactly the exits of its type,
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
        for (part, exit) in conversion_exits(self.platform(), range, pages, to) {
            running.expect_exit(&exit)?;
            if self.platform().has_private_memory() {
                grant(self.vm(), range, part, to, backed)?;
            }
            self.vcpu(vcpu).kvm().set_hypercall_ret(0)?;
            running.resume()?;
        }
        expect_answer(running, 0, count)
    }
}
