//! The instruction bytes that #VMEXIT stores for nested and intercepted page faults (APM volume 2, 15.8.4).

use privet_cpu::paging::{self, Tables, View, Walk, WalkRegisters};
use privet_cpu::state::cr0;
use privet_cpu::{AccessKind, Config, CpuState, MAX_INSTRUCTION_BYTES, PAGE_SIZE};

use super::nested_paging::NestedTables;
use super::vmcb::at;
use super::{Features, Svm};
use crate::KeyedMemory;
use crate::encryption::Key;

impl Svm {
    /// Stores as many bytes from RIP on as can be fetched, up to 15; none if the exit is not `with_bytes`.
    pub(super) fn store_instruction_bytes(&self, memory: &mut impl KeyedMemory, state: &CpuState, with_bytes: bool) {
        let Some(guest) = &self.guest else { return };
        if !with_bytes {
            memory.write(guest.vmcb + at::INSTRUCTION_LENGTH, &[0]);
            return;
        }
        let mut record = [0; 1 + MAX_INSTRUCTION_BYTES];
        // Fetches and page walks of an encrypted guest use its key.
        let key = guest.protection.map_or(Key::PLAIN, |protection| protection.key);
        let rip = state.linear_rip();
        let before_page_end = (PAGE_SIZE - rip % PAGE_SIZE) as usize;
        let (first, second) = record[1..].split_at_mut(before_page_end.min(MAX_INSTRUCTION_BYTES));
        let mut fetched = 0;
        for (linear, bytes) in [(rip, first), (rip.wrapping_add(before_page_end as u64), second)] {
            match page(memory, state, (guest.nested.as_ref(), key), &self.features, linear) {
                Some(page) if !bytes.is_empty() => {
                    memory.read_as(key, page + linear % PAGE_SIZE, bytes);
                    fetched += bytes.len();
                }
                _ => break,
            }
        }
        record[0] = fetched as u8;
        memory.write(guest.vmcb + at::INSTRUCTION_LENGTH, &record);
    }
}

/// The system-physical page that the guest fetches from at `linear`, looked up without a trace; `None` if the fetch
/// would fault.
fn page(
    memory: &mut impl KeyedMemory,
    state: &CpuState,
    (nested, key): (Option<&NestedTables>, Key),
    features: &Features,
    linear: u64,
) -> Option<u64> {
    let mut guest = GuestTables { memory, nested, key };
    let gpa = if state.cr0 & cr0::PG == 0 {
        linear & !(PAGE_SIZE - 1)
    } else {
        let config = Config { physical_bits: features.physical_bits, ..Config::default() };
        let registers = WalkRegisters::of(state, &config);
        let view = if state.cpl() == 3 { View::User } else { View::Supervisor };
        match paging::walk(&mut guest, &registers, linear, AccessKind::Fetch, view, false).ok()? {
            Walk::Page { gpa, .. } => gpa,
            Walk::Fault(_) => return None,
        }
    };
    guest.place(gpa)
}

/// The guest's page tables, looked at through the nested ones.
struct GuestTables<'a, M> {
    memory: &'a mut M,
    nested: Option<&'a NestedTables>,
    key: Key,
}

/// A nested page fault would come.
struct Unreachable;

impl<M: KeyedMemory> GuestTables<'_, M> {
    fn place(&mut self, gpa: u64) -> Option<u64> {
        match self.nested {
            Some(nested) => nested.peek(self.memory, gpa),
            None => Some(gpa),
        }
    }
}

impl<M: KeyedMemory> Tables for GuestTables<'_, M> {
    type Error = Unreachable;

    fn read(&mut self, gpa: u64) -> Result<u64, Unreachable> {
        let page = self.place(gpa & !(PAGE_SIZE - 1)).ok_or(Unreachable)?;
        let mut entry = [0; 8];
        self.memory.read_as(self.key, page + gpa % PAGE_SIZE, &mut entry);
        Ok(u64::from_le_bytes(entry))
    }

    fn update(&mut self, _: u64, _: u64, _: u64) -> Result<bool, Unreachable> {
        Err(Unreachable)
    }
}
