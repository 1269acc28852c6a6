//! A VM with a payload in it: booted, and ready to execute operations.

use std::sync::Arc;
use std::time::Duration;

use privet_protocol::{HypercallInstruction, MAX_VCPUS, Op, PAYLOAD_BASE};

use crate::case::Case;
use crate::guest_vcpu::GuestVcpu;
use crate::long_mode;
use crate::mapping::Mapping;
use crate::memslot::SlotSpec;
use crate::outcome::{Outcome, Stop};
use crate::page_tables::{LARGE_PAGE_SIZE, PageTables};
use crate::payload::LoadPlan;
use crate::test_range::{RangeSpec, SHARED_ALIAS, TEST_SLOT, TestRange};
use crate::units::{Gpa, Gva, PageCount};
use crate::vm::Vm;

/// GPA of the mailbox of vCPU 0; the others follow page by page.
const MAILBOXES: Gpa = Gpa(0x20_0000);
/// GPA of the root page table; the other tables follow page by page.
const TABLES: Gpa = Gpa(0x40_0000);
/// Bytes of the slot that holds payload, mailboxes and page tables, from [`PAYLOAD_BASE`] on.
const LOW_BYTES: u64 = 0x60_0000 - PAYLOAD_BASE;
/// Slot id of that memory.
const LOW_SLOT: u32 = 0;

/// GPA (and GVA) of a window without memslots, identity-mapped with 2 MiB pages, for MMIO.
pub const MMIO_BASE: Gpa = Gpa(0x8000_0000);
/// Pages of 2 MiB in that window.
const MMIO_LARGE_PAGES: u64 = 8;

/// What a guest shall have.
pub struct GuestBuilder<'a> {
    case: &'a Case,
    vcpus: usize,
    ranges: Vec<RangeSpec>,
    hypercall: Option<HypercallInstruction>,
    map_gpa_range_exit: bool,
}

impl<'a> GuestBuilder<'a> {
    /// One vCPU, no test range, conversion hypercalls lead to userspace.
    pub fn new(case: &'a Case) -> Self {
        Self { case, vcpus: 1, ranges: Vec::new(), hypercall: None, map_gpa_range_exit: true }
    }

    /// So many vCPUs, at most [`MAX_VCPUS`].
    pub fn vcpus(self, vcpus: usize) -> Self {
        Self { vcpus, ..self }
    }

    /// One more test range, mapped twice in the guest.
    pub fn range(mut self, range: RangeSpec) -> Self {
        self.ranges.push(range);
        self
    }

    /// Makes hypercalls with this instruction instead of the one of the host's vendor.
    pub fn hypercall(self, instruction: HypercallInstruction) -> Self {
        Self { hypercall: Some(instruction), ..self }
    }

    /// Leaves KVM_CAP_EXIT_HYPERCALL as it is after KVM_CREATE_VM: off.
    pub fn without_map_gpa_range_exit(self) -> Self {
        Self { map_gpa_range_exit: false, ..self }
    }

    /// Creates the VM, loads the payload and waits until every vCPU has rung its doorbell.
    ///
    /// # Errors
    /// [`Stop::Fail`] if KVM refuses something, [`Stop::Error`] if the payload does not come up.
    pub fn boot(self) -> Outcome<Guest> {
        if self.vcpus == 0 || self.vcpus > MAX_VCPUS {
            return Err(Stop::Error(format!("a guest has 1 to {MAX_VCPUS} vCPUs, not {}", self.vcpus)));
        }
        let case = self.case;
        let vm = Arc::new(case.vm()?);
        if self.map_gpa_range_exit {
            vm.enable_map_gpa_range_exit()?;
        }

        let tables = self.page_tables();
        let low = Arc::new(Mapping::anonymous(LOW_BYTES)?);
        let plan = case.payload()?;
        load(&low, plan, &tables)?;
        vm.add_slot(SlotSpec::shared(LOW_SLOT, Gpa(PAYLOAD_BASE), PageCount::of_bytes(LOW_BYTES), &low))?;

        let mut ranges = Vec::new();
        let mut slot = TEST_SLOT;
        for spec in &self.ranges {
            ranges.push(TestRange::install(&vm, *spec, slot)?);
            slot += spec.slots;
        }

        let instruction = self.hypercall.unwrap_or_else(|| case.host().hypercall_instruction());
        let mut vcpus = Vec::new();
        for index in 0..self.vcpus {
            let vcpu = vm.create_vcpu(index as u64)?;
            let mailbox = MAILBOXES + PageCount(index as u64);
            let registers = long_mode::registers(plan.entry, mailbox.0, index as u64);
            long_mode::enter(&vcpu, case.host().supported_cpuid()?, tables.root(), &registers)?;
            let vcpu = GuestVcpu::new(index, vcpu, low.clone(), mailbox.0 - PAYLOAD_BASE, case, instruction)?;
            vcpu.boot()?;
            vcpus.push(vcpu);
        }
        Ok(Guest { vcpus, ranges, tables, low, vm })
    }

    fn page_tables(&self) -> PageTables {
        let mut tables = PageTables::new(TABLES);
        tables.map_large(Gva(0), Gpa(0), (PAYLOAD_BASE + LOW_BYTES).div_ceil(LARGE_PAGE_SIZE));
        tables.map_large(Gva(MMIO_BASE.0), MMIO_BASE, MMIO_LARGE_PAGES);
        for range in &self.ranges {
            for alias in [0, SHARED_ALIAS] {
                tables.map(Gva(range.gpa.0 | alias), range.gpa, range.pages);
            }
        }
        tables
    }
}

/// A VM with a payload whose vCPUs wait for operations.
pub struct Guest {
    vcpus: Vec<GuestVcpu>,
    ranges: Vec<TestRange>,
    tables: PageTables,
    low: Arc<Mapping>,
    vm: Arc<Vm>,
}

impl Guest {
    /// vCPU `index`.
    ///
    /// # Panics
    /// If the guest was booted with fewer: an error of the row, reported as such by the worker.
    pub fn vcpu(&self, index: usize) -> &GuestVcpu {
        &self.vcpus[index]
    }

    /// All vCPUs.
    pub fn vcpus(&self) -> &[GuestVcpu] {
        &self.vcpus
    }

    /// The VM.
    pub fn vm(&self) -> &Arc<Vm> {
        &self.vm
    }

    /// Test range `index`, in the order of the builder.
    pub fn range(&self, index: usize) -> &TestRange {
        &self.ranges[index]
    }

    /// Test range `index`, to be changed.
    pub fn range_mut(&mut self, index: usize) -> &mut TestRange {
        &mut self.ranges[index]
    }

    /// The guest's page-table entry (4 KiB) that maps `gva`, as it is now.
    ///
    /// # Errors
    /// [`Stop::Error`] if no 4 KiB entry maps it.
    pub fn page_table_entry(&self, gva: Gva) -> Outcome<u64> {
        self.low.read_u64(self.page_table_offset(gva)?)
    }

    /// Changes the guest's page-table entry (4 KiB) that maps `gva`, behind the back of its CPU.
    ///
    /// # Errors
    /// [`Stop::Error`] if no 4 KiB entry maps it.
    pub fn set_page_table_entry(&self, gva: Gva, entry: u64) -> Outcome {
        self.low.write_u64(self.page_table_offset(gva)?, entry)
    }

    /// Where in the low memory the 4 KiB entry is that maps `gva`.
    fn page_table_offset(&self, gva: Gva) -> Outcome<u64> {
        let entry = self
            .tables
            .entry_gpa(gva)
            .ok_or_else(|| Stop::Error(format!("no 4 KiB page-table entry maps gva {gva}")))?;
        Ok(entry.0 - PAYLOAD_BASE)
    }
}

fn load(low: &Mapping, plan: &LoadPlan, tables: &PageTables) -> Outcome {
    for segment in &plan.segments {
        low.write(segment.gpa - PAYLOAD_BASE, &segment.bytes)?;
    }
    let bytes = tables.bytes();
    let offset = TABLES.0 - PAYLOAD_BASE;
    if offset + bytes.len() as u64 > LOW_BYTES {
        return Err(Stop::Error(format!(
            "{} pages of page tables do not fit below gpa {:#x}; use smaller test ranges",
            tables.pages().0,
            PAYLOAD_BASE + LOW_BYTES
        )));
    }
    low.write(offset, &bytes)
}

/// How long an operation that the guest does alone may take before the row is a timeout.
pub(crate) const OPERATION_LIMIT: Duration = Duration::from_secs(20);

/// The operation that every vCPU answers first.
pub(crate) const HELLO: Op = Op::Nop;
