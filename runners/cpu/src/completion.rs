//! What an exit left to be completed.
//!
//! An instruction that needs data from outside runs twice (or more often): it leaves `run` where the
//! data is missing, and when it runs again it finds it here. Writes to MMIO are queued and leave one
//! by one after their instruction. Both is how KVM's emulator does it, so that registers at an exit
//! are what a VMM is used to.

use std::collections::VecDeque;

use crate::core::{Abort, Core};
use crate::exit::{CpuExit, Datum};

#[derive(Debug, Default)]
pub(crate) struct Completion {
    /// Linear address of the instruction that waits.
    linear_rip: u64,
    /// Answers to the instruction's reads so far, in order; the last may be missing.
    reads: Vec<Datum>,
    /// How many of them this execution has used.
    used: usize,
    /// Length of the read that is to be answered.
    awaiting_read: Option<u8>,
    /// Bytes that are to be answered to a port read.
    awaiting_port: Option<usize>,
    /// Bytes read from a port and not yet stored by the instruction.
    pub(crate) port_in: VecDeque<u8>,
    /// The OUT at RIP has left already.
    pub(crate) port_out_done: bool,
    /// Writes of the instruction that just completed.
    writes: VecDeque<(u64, Datum)>,
    /// Length of the instruction whose interception ended `run`.
    pub(crate) intercepted: u8,
    active: bool,
}

impl Completion {
    /// Whether the instruction at `linear_rip` has something to complete. If the owner moved RIP,
    /// what was pending is forgotten.
    pub(crate) fn resume(&mut self, linear_rip: u64) -> bool {
        if self.active && self.linear_rip != linear_rip {
            self.forget();
        }
        self.complete_read(&[]);
        self.complete_port(&[]);
        self.used = 0;
        self.active
    }

    /// Drops everything except writes that have yet to leave.
    pub(crate) fn forget(&mut self) {
        let writes = std::mem::take(&mut self.writes);
        *self = Completion { writes, intercepted: self.intercepted, ..Completion::default() };
    }

    pub(crate) fn wait_at(&mut self, linear_rip: u64) {
        self.linear_rip = linear_rip;
        self.active = true;
    }

    pub(crate) fn complete_read(&mut self, data: &[u8]) {
        if let Some(len) = self.awaiting_read.take() {
            let mut datum = Datum::from_slice(&data[..data.len().min(usize::from(len))]);
            datum.len = len;
            self.reads.push(datum);
        }
    }

    pub(crate) fn complete_port(&mut self, data: &[u8]) {
        if let Some(len) = self.awaiting_port.take() {
            self.port_in = data.iter().copied().chain(std::iter::repeat(0)).take(len).collect();
        }
    }

    /// The next write that has to leave.
    pub(crate) fn next_write(&mut self) -> Option<CpuExit> {
        self.writes.pop_front().map(|(gpa, data)| CpuExit::MmioWrite { gpa, data })
    }

    /// Drops the writes of an instruction that faulted after all.
    pub(crate) fn drop_writes(&mut self) {
        self.writes.clear();
    }

    /// One element read from a port, if one is there.
    pub(crate) fn take_port_in(&mut self, size: usize) -> Option<u64> {
        if self.port_in.len() < size {
            return None;
        }
        let mut bytes = [0; 8];
        for byte in &mut bytes[..size] {
            *byte = self.port_in.pop_front()?;
        }
        Some(u64::from_le_bytes(bytes))
    }
}

impl Core<'_> {
    /// One fragment of an MMIO read: the answer if it is there, else an exit that asks for it.
    pub(crate) fn mmio_read(&mut self, gpa: u64, size: usize) -> Result<Datum, Abort> {
        let completion = &mut *self.completion;
        if let Some(&datum) = completion.reads.get(completion.used) {
            completion.used += 1;
            // The tables may have changed meanwhile, and with them the fragments.
            return Ok(Datum { len: size as u8, ..datum });
        }
        completion.awaiting_read = Some(size as u8);
        self.completion.wait_at(self.s.linear_rip());
        self.exit(CpuExit::MmioRead { gpa, len: size as u8 })
    }

    /// One fragment of an MMIO write: leaves after the instruction.
    pub(crate) fn mmio_write(&mut self, gpa: u64, data: Datum) {
        self.completion.writes.push_back((gpa, data));
        self.attention = true;
    }

    /// Leaves `run` to read `count` elements of `size` bytes from a port.
    pub(crate) fn ask_port(&mut self, port: u16, size: u8, count: u32) -> Result<(), Abort> {
        self.completion.awaiting_port = Some(usize::from(size) * count as usize);
        self.completion.wait_at(self.s.linear_rip());
        self.exit(CpuExit::PortIn { port, size, count })
    }
}
