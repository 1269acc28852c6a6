//! The host: what its `/dev/kvm` offers, asked once, and why it does not offer the rest.

use std::collections::BTreeMap;
use std::fs;
use std::sync::{Arc, OnceLock};

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES};
use kvm_ioctls::{Kvm, VmFd};
use nix::errno::Errno;
use privet_protocol::HypercallInstruction;

use crate::cpu_flags;
use crate::errno;
use crate::found::{Found, Proven};
use crate::guest_memfd::GuestMemfd;
use crate::missing;
use crate::module::Modules;
use crate::outcome::{Lack, LackOf, Outcome, Stop};
use crate::sev::Device;
use crate::trace::Trace;
use crate::uapi::{API_VERSION, Capability};
use crate::units::PAGE_SIZE;
use crate::vendor::cpu_is_amd;
use crate::vm_type::VmType;

/// How many of the last exits are kept for printing.
const TRACE_DEPTH: usize = 64;

/// The leaf of CPUID about encrypted memory (APM volume 3, E.4.17).
const ENCRYPTED_MEMORY: u32 = 0x8000_001f;

/// Why `/dev/kvm` cannot be used at all.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum HostError {
    /// It does not exist.
    #[error(
        "/dev/kvm does not exist: enable virtualization in the firmware and load its module (modprobe kvm_amd, or kvm_intel)"
    )]
    Absent,
    /// It may not be opened.
    #[error("no permission to open /dev/kvm: join its group (usermod -aG kvm $USER, then log in again) or run as root")]
    Permission,
    /// It cannot be opened for another reason.
    #[error("cannot open /dev/kvm: {0:?}")]
    Open(Errno),
    /// It is not the KVM that we know.
    #[error("/dev/kvm has API version {0}, not {API_VERSION}: this is not a KVM that privet can drive")]
    ApiVersion(i32),
}

/// What a VM of some type says of itself.
#[derive(Debug)]
struct Answers {
    capabilities: BTreeMap<u32, i32>,
    /// What became of `KVM_CREATE_GUEST_MEMFD` for one page.
    guest_memfd: Result<(), Errno>,
}

impl Answers {
    fn of(vm: &VmFd) -> Answers {
        let capabilities =
            Capability::ALL.iter().map(|asked| (asked.number, vm.check_extension_raw(asked.number.into())));
        Answers { capabilities: capabilities.collect(), guest_memfd: GuestMemfd::create(vm, PAGE_SIZE, 0).map(drop) }
    }
}

/// An open `/dev/kvm`, the facts about it, and the trace of the exits of everything that runs on it.
#[derive(Debug)]
pub struct Host {
    kvm: Kvm,
    vm_types: u32,
    kernel: String,
    trace: Arc<Trace>,
    modules: OnceLock<Modules>,
    cpuid: OnceLock<Result<CpuId, Errno>>,
    asked: [OnceLock<Result<Answers, Errno>>; VmType::ALL.len()],
    found: Found,
}

impl Host {
    /// Opens `/dev/kvm`.
    ///
    /// # Errors
    /// Why it cannot be used, and what to do.
    pub fn open() -> Result<Host, HostError> {
        let kvm = Kvm::new().map_err(|error| match errno::of_kvm(error) {
            Errno::ENOENT | Errno::ENODEV | Errno::ENXIO => HostError::Absent,
            Errno::EACCES | Errno::EPERM => HostError::Permission,
            errno => HostError::Open(errno),
        })?;
        match kvm.get_api_version() {
            API_VERSION => {}
            version => return Err(HostError::ApiVersion(version)),
        }
        let vm_types = kvm.check_extension_raw(Capability::VM_TYPES.number.into()).max(0) as u32;
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim_end().to_owned();
        Ok(Host {
            kvm,
            vm_types,
            kernel,
            trace: Arc::new(Trace::new(TRACE_DEPTH)),
            modules: OnceLock::new(),
            cpuid: OnceLock::new(),
            asked: Default::default(),
            found: Found::default(),
        })
    }

    /// The descriptor, for what has no function of its own here.
    pub fn kvm(&self) -> &Kvm {
        &self.kvm
    }

    /// `KVM_CAP_VM_TYPES`: bit n says that `KVM_CREATE_VM` takes n. 0 before Linux 6.8.
    pub fn vm_types(&self) -> u32 {
        self.vm_types
    }

    /// The release of the kernel, as `uname -r` prints it.
    pub fn kernel(&self) -> &str {
        &self.kernel
    }

    /// The exits of all VMs that are made on this host.
    pub fn trace(&self) -> &Arc<Trace> {
        &self.trace
    }

    /// The kvm modules and their parameters.
    pub fn modules(&self) -> &Modules {
        self.modules.get_or_init(Modules::read)
    }

    /// The hypercall instruction that needs no rewriting here: that of the vendor whose module drives KVM, and of
    /// the CPU if it is neither's.
    pub fn hypercall_instruction(&self) -> HypercallInstruction {
        match self.modules().vendor.as_deref() {
            Some("kvm_amd") => HypercallInstruction::Vmmcall,
            Some("kvm_intel") => HypercallInstruction::Vmcall,
            _ if cpu_is_amd() => HypercallInstruction::Vmmcall,
            _ => HypercallInstruction::Vmcall,
        }
    }

    /// `KVM_CHECK_EXTENSION` of `/dev/kvm` itself; what VMs have is in [`capability`](Self::capability).
    pub fn check_extension(&self, capability: Capability) -> i32 {
        self.kvm.check_extension_raw(capability.number.into())
    }

    /// `KVM_CHECK_EXTENSION` of a VM of this type; 0 for what it does not have. The first question for a
    /// type creates a VM and asks for all of [`Capability::ALL`]; it also asks for a guest_memfd.
    ///
    /// # Errors
    /// `Stop::Skip` with the reason if there are no VMs of this type, `Stop::Fail` if one cannot be made.
    pub fn capability(&self, vm_type: VmType, capability: Capability) -> Outcome<i32> {
        Ok(self.answers(vm_type)?.capabilities.get(&capability.number).copied().unwrap_or(0))
    }

    /// Whether a VM of this type is given a guest_memfd. What it says of the capability need not be true: a security
    /// module or a filter of system calls may refuse the ioctl.
    ///
    /// # Errors
    /// Outside as [`capability`](Self::capability); inside the error number of `KVM_CREATE_GUEST_MEMFD`.
    pub fn guest_memfd(&self, vm_type: VmType) -> Outcome<Result<(), Errno>> {
        Ok(self.answers(vm_type)?.guest_memfd)
    }

    fn answers(&self, vm_type: VmType) -> Outcome<&Answers> {
        let ask = || {
            let vm = self.kvm.create_vm_with_type(vm_type.kvm_type()).map_err(errno::of_kvm)?;
            Ok(Answers::of(&vm))
        };
        let answers = self.asked[vm_type.kvm_type() as usize].get_or_init(ask);
        answers.as_ref().map_err(|errno| self.refused(vm_type, *errno))
    }

    /// `KVM_GET_SUPPORTED_CPUID`, asked once: it takes the kernel over half a millisecond.
    ///
    /// # Errors
    /// `Stop::Fail` with the error number.
    pub fn supported_cpuid(&self) -> Outcome<&CpuId> {
        self.cpuid
            .get_or_init(|| self.kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(errno::of_kvm))
            .as_ref()
            .map_err(|errno| Stop::Fail(format!("KVM_GET_SUPPORTED_CPUID: {errno:?}")))
    }

    /// The C-bit of page-table entries, as guests see it (CPUID leaf 0x8000001f, EBX bits 5:0).
    ///
    /// # Errors
    /// `Stop::Fail` if KVM does not tell.
    pub fn c_bit(&self) -> Outcome<u64> {
        let leaf = self.supported_cpuid()?.as_slice().iter().find(|entry| entry.function == ENCRYPTED_MEMORY);
        match leaf.map(|leaf| leaf.ebx & 0x3f) {
            Some(bit @ 12..) => Ok(1 << bit),
            other => Err(Stop::Fail(format!("KVM_GET_SUPPORTED_CPUID has {other:?} as the number of the C-bit"))),
        }
    }

    /// Why there are no VMs of this type here and what to do about it; None if there are.
    pub fn why_not(&self, vm_type: VmType) -> Option<String> {
        if vm_type == VmType::Plain || self.vm_types & (1 << vm_type.kvm_type()) != 0 {
            let device = if vm_type.needs_secure_processor() { Device::missing() } else { None };
            return device.map(|cause| format!("VMs of type {vm_type} cannot be launched: {cause}"));
        }
        let cause = if self.vm_types == 0 {
            format!("kernel {} has no VM types, Linux 6.8 and newer have", self.kernel)
        } else {
            {
                let modules = self.modules();
                missing::cause(
                    vm_type,
                    modules.vendor.as_deref(),
                    &|name| modules.is_off(name),
                    &cpu_flags::kernel_lists,
                )
            }
        };
        Some(format!("VM type {vm_type} is not offered: {cause}"))
    }

    /// What a refusal to create a VM of this type means.
    pub(crate) fn refused(&self, vm_type: VmType, errno: Errno) -> Stop {
        match self.why_not(vm_type) {
            Some(reason) => Stop::Skip(Lack { of: LackOf::VmType, reason }),
            None => Stop::Fail(format!("KVM_CREATE_VM of type {vm_type}: {errno:?}")),
        }
    }

    /// What probe guests have shown to work here so far.
    pub fn proven(&self) -> Vec<Proven> {
        self.found.proven()
    }

    /// Believes the runner of this worker, which has tried it out in the same place.
    pub fn trust(&self, proven: &[Proven]) {
        proven.iter().for_each(|proven| self.found.trust(*proven));
    }

    /// What has been tried out here.
    pub(crate) fn found(&self) -> &Found {
        &self.found
    }
}
