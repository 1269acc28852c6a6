//! Group `mmio`: what reaches userspace of accesses to guest physical addresses without memory, and what KVM
//! remembers of them.

mod access;
mod addresses;
mod cached;
mod coalesced;
mod cost;
mod ioeventfd;
mod memory;
mod private;
mod request;
mod shadow;
mod wide;

use privet_harness::exit::Exit;
use privet_harness::guest_vcpu::{GuestVcpu, Running};
use privet_harness::need::Need;
use privet_harness::outcome::Outcome;
use privet_harness::test_range::{TEST_BASE, shared_alias};
use privet_harness::units::{Gpa, Gva};
use privet_protocol::{Op, Width};

use crate::row::Row;

/// The rows of this group.
pub(crate) fn rows() -> Vec<Row> {
    let rows = [
        access::rows(),
        addresses::rows(),
        wide::rows(),
        cached::rows(),
        ioeventfd::rows(),
        coalesced::rows(),
        memory::rows(),
        private::rows(),
        request::rows(),
        shadow::rows(),
    ];
    rows.into_iter().flatten().map(|row| row.needs(Need::GuestCode)).collect()
}

/// What a row needs that is about KVM with, or without, cached MMIO.
fn caching(on: bool) -> Need {
    Need::Parameter("kvm.mmio_caching", if on { "Y" } else { "N" })
}

/// Where the guest maps a GPA as shared memory: those of the MMIO window at themselves.
fn gva(gpa: Gpa) -> Gva {
    if gpa < TEST_BASE { Gva(gpa.0) } else { shared_alias(gpa) }
}

fn read_op(gpa: Gpa, width: Width) -> Op {
    Op::Read { gva: gva(gpa).0, width }
}

fn write_op(gpa: Gpa, width: Width, value: u64) -> Op {
    Op::Write { gva: gva(gpa).0, width, value }
}

fn read_exit(gpa: Gpa, len: u64) -> Exit {
    Exit::Mmio { gpa, len: len as u32, write: None }
}

fn write_exit(gpa: Gpa, len: u64, value: u64) -> Exit {
    Exit::Mmio { gpa, len: len as u32, write: Some(value) }
}

/// Expects an MMIO load, answers it with the low bytes of `data`, and enters the guest again.
fn answer_read(running: &Running<'_>, v: &GuestVcpu, gpa: Gpa, len: u64, data: u64) -> Outcome {
    running.expect_exit(&read_exit(gpa, len))?;
    v.kvm().set_mmio_data(data)?;
    running.resume()
}

/// Expects an MMIO store of exactly this, and enters the guest again.
fn take_write(running: &Running<'_>, gpa: Gpa, len: u64, value: u64) -> Outcome {
    running.expect_exit(&write_exit(gpa, len, value))?;
    running.resume()
}

/// The guest loads from MMIO and userspace answers with `data`: one exit. What the guest got.
fn read(v: &GuestVcpu, gpa: Gpa, width: Width, data: u64) -> Outcome<u64> {
    let running = v.start(read_op(gpa, width))?;
    answer_read(&running, v, gpa, width.bytes(), data)?;
    Ok(running.done()?[0])
}

/// The guest stores to MMIO: one exit, with the value cut to its width.
fn write(v: &GuestVcpu, gpa: Gpa, width: Width, value: u64) -> Outcome {
    let running = v.start(write_op(gpa, width, value))?;
    take_write(&running, gpa, width.bytes(), width.truncate(value))?;
    running.done().map(drop)
}
