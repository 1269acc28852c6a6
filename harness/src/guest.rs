//! A VM with a payload in it: booted, and ready to execute operations.

use std::sync::Arc;
use std::time::Duration;

use privet_protocol::{AliasBits, HypercallInstruction, MAX_VCPUS, Start};

use crate::cpuid_page::{CpuidFunction, cpuid_page};
use crate::guest_memfd::GuestMemfd;
use crate::guest_vcpu::{GuestVcpu, Mailbox};
use crate::host::Host;
use crate::launch::{CPUID, Entry, Launch, Launched, MAILBOXES, OWN_BASE, OwnMemory, Part, Plan, RESET_PAGE, TABLES};
use crate::long_mode;
use crate::mapping::Mapping;
use crate::measure::{SevFeatures, VcpuState};
use crate::outcome::{Lack, LackOf, Outcome, Stop};
use crate::page_tables::{LARGE_PAGE_SIZE, PageTables};
use crate::payload::Payload;
use crate::platform::Platform;
use crate::sev::Device;
use crate::tdx::SEPT_VE_DISABLE;
use crate::test_range::{RangeSpec, SHARED_ALIAS, TEST_SLOT, TestRange};
use crate::uapi::Capability;
use crate::units::{Gpa, Gva, PAGE_SIZE, PageCount};
use crate::vcpu::Vcpu;
use crate::vm::Vm;

/// GPA (and GVA) of a window without memslots, identity-mapped with 2 MiB pages, for MMIO.
pub const MMIO_BASE: Gpa = Gpa(0x8000_0000);
/// Pages of 2 MiB in that window.
const MMIO_LARGE_PAGES: u64 = 8;

/// What a guest shall have.
pub struct GuestBuilder<'a> {
    host: &'a Host,
    platform: Platform,
    payload: Outcome<&'a Payload>,
    limit: Duration,
    vcpus: usize,
    ranges: Vec<RangeSpec>,
    private: &'static [Part],
    hypercall: Option<HypercallInstruction>,
    map_gpa_range_exit: bool,
    dirty_rings: Option<u64>,
    irqchip: bool,
    firmware_pages: Option<Vec<CpuidFunction>>,
    td_attributes: u64,
    certificates_exit: bool,
    own_memory_in_a_file: bool,
}

impl<'a> GuestBuilder<'a> {
    /// One vCPU, no test range, as much of the guest's own memory shared as can be, conversion requests lead to userspace.
    /// An operation may take as long as `limit` at most.
    pub(crate) fn new(host: &'a Host, platform: Platform, payload: Outcome<&'a Payload>, limit: Duration) -> Self {
        let (vcpus, ranges, private) = (1, Vec::new(), platform.private_parts());
        let (hypercall, map_gpa_range_exit, dirty_rings, irqchip) = (None, true, None, false);
        Self {
            host,
            platform,
            payload,
            limit,
            vcpus,
            ranges,
            private,
            hypercall,
            map_gpa_range_exit,
            dirty_rings,
            irqchip,
            firmware_pages: None,
            td_attributes: 0,
            certificates_exit: false,
            own_memory_in_a_file: false,
        }
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

    /// These parts of the guest's own memory are private.
    pub fn private(self, private: &'static [Part]) -> Self {
        Self { private, ..self }
    }

    /// Makes hypercalls with this instruction instead of the one of the host's vendor.
    pub fn hypercall(self, instruction: HypercallInstruction) -> Self {
        Self { hypercall: Some(instruction), ..self }
    }

    /// Leaves KVM_CAP_EXIT_HYPERCALL as it is after KVM_CREATE_VM: off.
    pub fn without_map_gpa_range_exit(self) -> Self {
        Self { map_gpa_range_exit: false, ..self }
    }

    /// Its vCPUs tell dirty pages in rings of so many bytes each, and there is no dirty log.
    pub fn dirty_rings(self, bytes: u64) -> Self {
        Self { dirty_rings: Some(bytes), ..self }
    }

    /// KVM has its interrupt controllers (`KVM_CREATE_IRQCHIP`): vCPUs can be sent INIT and SIPI. All of them run without.
    pub fn irqchip(self) -> Self {
        Self { irqchip: true, ..self }
    }

    /// An SNP guest has a page of secrets and one with these functions of CPUID, as far as the firmware agrees; it looks for
    /// CPUID nowhere else.
    pub fn firmware_pages(self, cpuid: Vec<CpuidFunction>) -> Self {
        Self { firmware_pages: Some(cpuid), ..self }
    }

    /// A TD leaves, and dies, where it touches a page that it has not accepted, instead of taking #VE.
    pub fn sept_ve_disable(self) -> Self {
        Self { td_attributes: SEPT_VE_DISABLE, ..self }
    }

    /// An SNP guest's requests for a report with certificates lead to userspace (`SNP_ENABLE_REQ_CERTS`).
    pub fn certificates_exit(self) -> Self {
        Self { certificates_exit: true, ..self }
    }

    /// The guest's own memory is one guest_memfd that the host maps, too, where all memory is the host's.
    pub fn own_memory_in_a_file(self) -> Self {
        Self { own_memory_in_a_file: true, ..self }
    }

    /// Creates the VM, loads the payload and waits until every vCPU has rung its doorbell.
    ///
    /// # Errors
    /// [`Stop::Fail`] if KVM refuses something, [`Stop::Error`] if the payload does not come up.
    pub fn boot(self) -> Outcome<Guest> {
        if self.vcpus == 0 || self.vcpus > MAX_VCPUS {
            return Err(Stop::Error(format!("a guest has 1 to {MAX_VCPUS} vCPUs, not {}", self.vcpus)));
        }
        let vm = Arc::new(Vm::create(self.host, self.platform.vm_type())?);
        let most = vm.check_extension(Capability::MAX_VCPUS);
        if self.vcpus > usize::try_from(most).unwrap_or(0) {
            let reason = format!(
                "needs {} vCPUs, a {} VM here has at most {most}: run it where there are more processors",
                self.vcpus,
                self.platform.vm_type()
            );
            return Err(Stop::Skip(Lack { of: LackOf::Feature, reason }));
        }
        if self.map_gpa_range_exit {
            vm.enable_map_gpa_range_exit()?;
        }
        if let Some(bytes) = self.dirty_rings {
            vm.enable_cap(Capability::DIRTY_LOG_RING_ACQ_REL, [bytes, 0, 0, 0]).map_err(|errno| {
                Stop::Fail(format!("KVM_ENABLE_CAP(DIRTY_LOG_RING_ACQ_REL) with {bytes:#x} bytes: {errno:?}"))
            })?;
        }
        if self.irqchip {
            vm.create_irqchip()?;
        }
        let aliases = self.platform.aliases(self.host)?;
        let tables = self.page_tables(aliases);
        let payload = self.payload?;
        let mut plan = Plan::new(payload, &tables, self.private)?;
        if let Some(functions) = &self.firmware_pages {
            if !self.platform.has_firmware_pages() {
                return Err(Stop::Error(format!("a {} guest has no pages of the firmware's", self.platform.vm_type())));
            }
            plan = plan.with_firmware_pages(cpuid_page(functions)?)?;
        }
        if self.certificates_exit && !self.platform.has_firmware_pages() {
            return Err(Stop::Error(format!("a {} guest asks for no certificates", self.platform.vm_type())));
        }
        if self.own_memory_in_a_file && self.platform.has_private_memory() {
            return Err(Stop::Error(format!("a {} guest's memory is not the host's", self.platform.vm_type())));
        }
        let make_vcpu = |index: u64| {
            let vcpu = vm.create_vcpu(index)?;
            let registers = long_mode::registers(payload.entry, (MAILBOXES + PageCount(index)).0, index);
            long_mode::enter(&vcpu, self.host.supported_cpuid()?, tables.root(), &registers)?;
            if self.irqchip {
                vcpu.set_runnable()?;
            }
            Ok(vcpu)
        };
        let make_vcpus = || (0..self.vcpus as u64).map(make_vcpu).collect();
        let entry = Entry { vcpus: self.vcpus as u64, code: payload.entry, root: tables.root() };
        let (td_attributes, certificates_exit) = (self.td_attributes, self.certificates_exit);
        let launch = Launch {
            host: self.host,
            vm: &vm,
            plan: &plan,
            make_vcpus: &make_vcpus,
            entry,
            td_attributes,
            certificates_exit,
            in_a_file: self.own_memory_in_a_file,
        };
        let Launched { own, vcpus, firmware } = self.platform.launch(&launch)?;

        let mut ranges = Vec::new();
        let mut slot = TEST_SLOT;
        for spec in &self.ranges {
            ranges.push(TestRange::install(&vm, *spec, slot)?);
            slot += spec.slots;
        }

        let into_guest = |(index, vcpu): (usize, Vcpu)| {
            let offset = (MAILBOXES + PageCount(index as u64)).0 - OWN_BASE.0;
            let mailbox = Mailbox { memory: own.host.clone(), offset };
            let vcpu = GuestVcpu::new(index, vcpu, mailbox, payload.symbols.clone(), self.limit);
            vcpu.boot(Start {
                hypercall: self.hypercall.unwrap_or_else(|| self.host.hypercall_instruction()),
                doorbell: self.platform.doorbell(index),
                aliases,
                conversion: self.platform.conversion(),
                cpuid: self.firmware_pages.as_ref().map_or(0, |_| CPUID.0),
            })?;
            Ok(vcpu)
        };
        let vcpus = vcpus.into_iter().enumerate().map(into_guest).collect::<Outcome<_>>()?;
        Ok(Guest { platform: self.platform, vcpus, ranges, tables, plan, own, firmware, vm })
    }

    fn page_tables(&self, AliasBits { private, shared }: AliasBits) -> PageTables {
        let mut tables = PageTables::new(TABLES).with_bits(private);
        let mut identity = |from: Gpa, to: Gpa, bits: u64| {
            tables.map_large(Gva(from.0), Gpa(from.0 | bits), (to.0 - from.0).div_ceil(LARGE_PAGE_SIZE));
        };
        identity(Gpa(0), MAILBOXES, private);
        identity(MAILBOXES, TABLES, shared);
        identity(TABLES, OWN_BASE + Plan::length(), private);
        identity(MMIO_BASE, MMIO_BASE + MMIO_LARGE_PAGES * LARGE_PAGE_SIZE, shared);
        if self.platform.begins_at_the_reset_vector() {
            let large = Gpa(RESET_PAGE.0 & !(LARGE_PAGE_SIZE - 1));
            identity(large, large + LARGE_PAGE_SIZE, private);
        }
        for range in &self.ranges {
            for (alias, bits) in [(0, private), (SHARED_ALIAS, shared)] {
                tables.map(Gva(range.gpa.0 | alias), Gpa(range.gpa.0 | bits), range.pages);
            }
        }
        tables
    }
}

/// A VM with a payload whose vCPUs wait for operations.
pub struct Guest {
    platform: Platform,
    vcpus: Vec<GuestVcpu>,
    ranges: Vec<TestRange>,
    tables: PageTables,
    plan: Plan,
    own: OwnMemory,
    firmware: Option<Device>,
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

    /// The type of its VM.
    pub fn platform(&self) -> Platform {
        self.platform
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

    /// What lies where in the guest's own memory.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The host's view of the guest's own memory, from [`OWN_BASE`] on. Of private pieces it holds what was loaded.
    pub fn own_memory(&self) -> &Arc<Mapping> {
        &self.own.host
    }

    /// The guest_memfd behind the guest's own memory, from [`OWN_BASE`] on.
    ///
    /// # Errors
    /// [`Stop::Error`] if nothing of it is private: an error of the row.
    pub fn own_gmem(&self) -> Outcome<&Arc<GuestMemfd>> {
        self.own.gmem.as_ref().ok_or_else(|| Stop::Error("nothing of this guest's own memory is private".into()))
    }

    /// Closes the descriptor by which it was launched. What the guest asks of the firmware from then on does not get there.
    pub fn close_firmware(&mut self) {
        self.firmware = None;
    }

    /// Changes the guest's page-table entry (4 KiB) that maps `gva` behind the back of its CPU and of KVM: the host
    /// writes it. What a guest does itself is [`Op::WriteEntry`](privet_protocol::Op::WriteEntry).
    ///
    /// # Errors
    /// [`Stop::Error`] if no 4 KiB entry maps it.
    pub fn set_entry_behind_the_guest(&self, gva: Gva, entry: u64) -> Outcome {
        let at = self
            .tables
            .entry_gpa(gva)
            .ok_or_else(|| Stop::Error(format!("no 4 KiB page-table entry maps gva {gva}")))?;
        self.own.host.write_u64(at.0 - OWN_BASE.0, entry)
    }

    /// The save area of a vCPU of an SNP guest that begins at `rip` with this in RDI, in the mode and under the page tables of
    /// the others.
    pub fn save_area(&self, rip: Gva, rdi: u64, features: SevFeatures) -> [u8; PAGE_SIZE as usize] {
        let registers = long_mode::registers(rip.0, rdi, 0);
        VcpuState::with_fresh_fpu(registers, long_mode::after_reset(self.tables.root())).vmsa(features)
    }

    /// Where the page-directory entry for `gva` is, whatever it holds; None if there is no page directory.
    pub fn directory_entry(&self, gva: Gva) -> Option<Gpa> {
        self.tables.directory_entry_gpa(gva)
    }
}
