//! A TD as far as a row wants it launched, and what is expected of its commands.

use std::ops::Deref;
use std::sync::Arc;

use nix::errno::Errno;
use privet_harness::case::Case;
use privet_harness::guest_memfd::GuestMemfd;
use privet_harness::launch::tdx::{GPA_WIDTH, capabilities};
use privet_harness::mapping::Mapping;
use privet_harness::memslot::SlotSpec;
use privet_harness::outcome::{Outcome, Stop};
use privet_harness::sev::Memory as Source;
use privet_harness::tdx::{Capabilities, Commands, HwError, InitVm, Refused, Region};
use privet_harness::uapi::Capability;
use privet_harness::units::{Gpa, PAGE_SIZE, PageCount};
use privet_harness::vcpu::Vcpu;
use privet_harness::vm::Vm;

/// A VM of the row's type.
pub(super) struct Td {
    pub(super) vm: Vm,
    pub(super) init: InitVm,
    pub(super) offered: Capabilities,
}

/// Where rows have memory, and how much of it.
pub(super) const MEMORY: Gpa = Gpa(0x10_0000);
pub(super) const PAGES: u64 = 8;

impl Td {
    /// Fresh from `KVM_CREATE_VM`, with what `INIT_VM` can be told.
    pub(super) fn new(t: &Case) -> Outcome<Td> {
        let vm = t.vm()?;
        let offered = capabilities(Commands::new(&vm))?;
        let cpuid = offered.configured(t.host().supported_cpuid()?, GPA_WIDTH);
        let init = InitVm::new(0, offered.xfam, cpuid);
        Ok(Td { vm, init, offered })
    }

    /// The same with its local APICs in KVM, as a TD needs them.
    pub(super) fn with_apics(t: &Case) -> Outcome<Td> {
        let td = Self::new(t)?;
        let split = td.vm.enable_cap(Capability::SPLIT_IRQCHIP, [24, 0, 0, 0]);
        split.map_err(|errno| Stop::Fail(format!("KVM_ENABLE_CAP(SPLIT_IRQCHIP): {errno:?}")))?;
        Ok(td)
    }

    /// After `INIT_VM`.
    pub(super) fn initialized(t: &Case) -> Outcome<Td> {
        let td = Self::with_apics(t)?;
        expect_done("INIT_VM", td.commands().init_vm(&td.init, 0))?;
        Ok(td)
    }

    /// All commands.
    pub(super) fn commands(&self) -> Commands<'_> {
        Commands::new(&self.vm)
    }

    /// vCPU `id` with KVM's CPUID, not initialized.
    pub(super) fn created_vcpu(&self, t: &Case, id: u64) -> Outcome<Vcpu> {
        let vcpu = self.vm.create_vcpu(id)?;
        let set = vcpu.kvm()?.set_cpuid2(t.host().supported_cpuid()?);
        set.map_err(|error| Stop::Fail(format!("KVM_SET_CPUID2: {error:?}")))?;
        Ok(vcpu)
    }

    /// The same after `INIT_VCPU`.
    pub(super) fn vcpu(&self, t: &Case, id: u64) -> Outcome<Vcpu> {
        let vcpu = self.created_vcpu(t, id)?;
        expect_done("INIT_VCPU", self.commands().init_vcpu(&vcpu, 0)?)?;
        Ok(vcpu)
    }

    /// [`PAGES`] of memory at [`MEMORY`], of which the first `private` are private.
    pub(super) fn memory(&self, private: u64) -> Outcome<Memory> {
        let view = Arc::new(Mapping::anonymous(PAGES * PAGE_SIZE)?);
        let gmem = self.vm.create_guest_memfd(view.len(), 0)?;
        self.vm.add_slot(SlotSpec::shared(0, MEMORY, PageCount(PAGES), &view).with_gmem(&gmem, 0))?;
        if private > 0 {
            self.vm.set_private(MEMORY, PageCount(private))?;
        }
        Ok(Memory { view, _gmem: gmem })
    }
}

/// Memory of a TD: the host's view, and what is behind private pages.
pub(super) struct Memory {
    view: Arc<Mapping>,
    _gmem: Arc<GuestMemfd>,
}

impl Deref for Memory {
    type Target = Mapping;

    fn deref(&self) -> &Mapping {
        &self.view
    }
}

/// `INIT_MEM_REGION` of so many pages from the first of [`MEMORY`] on, measured.
pub(super) fn region(view: &Mapping, pages: u64) -> Region<'_> {
    Region { source: Source::In(view, 0), gpa: MEMORY, pages, flags: 1 }
}

/// Expects a command to succeed.
pub(super) fn expect_done<T>(what: &str, result: Result<T, Refused>) -> Outcome<T> {
    result.map_err(|refused| Stop::Fail(format!("{what}: {refused}, expected success")))
}

/// Expects a command to fail with exactly this errno and this word of the module.
pub(super) fn expect_refused<T>(what: &str, result: Result<T, Refused>, errno: Errno, error: HwError) -> Outcome {
    match result {
        Err(refused) if (refused.errno, refused.hw_error) == (errno, error) => Ok(()),
        Err(refused) => Err(Stop::Fail(format!("{what}: {refused}, expected {errno:?}, {error}"))),
        Ok(_) => Err(Stop::Fail(format!("{what}: succeeded, expected {errno:?}, {error}"))),
    }
}

/// Expects KVM to refuse a command without a word from the module.
pub(super) fn expect_refused_by_kvm<T>(what: &str, result: Result<T, Refused>, errno: Errno) -> Outcome {
    expect_refused(what, result, errno, HwError::SUCCESS)
}
