//! What a row needs of the place where it runs, as an expression with reasons.

use std::fmt;

use crate::cpu_flags;
use crate::host::Host;
use crate::outcome::{Lack, LackOf};
use crate::probe;
use crate::uapi::Capability;
use crate::vendor::Vendor;
use crate::vm_type::VmType;

/// A requirement. That the VM type of the row is offered goes without saying.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Need {
    /// Compiled code runs in the guest's ring 0. Every row with a payload needs it.
    GuestCode,
    /// A hypercall comes back. Advertised is not usable: some hosts hang in it.
    Hypercall,
    /// VMs of the row's type can have a guest_memfd. Advertised is not usable here either.
    GuestMemfd,
    /// A capability, asked of a VM of the row's type, has all of these bits.
    Capability(Capability, i32),
    /// A capability, asked of `/dev/kvm` itself, has all of these bits: the kernel can do it at all, whether a
    /// VM of the row's type can or not.
    SystemCapability(Capability, i32),
    /// `/dev/kvm` itself does not have a capability at all: the kernel is too old, or built without it.
    NoSystemCapability(Capability),
    /// KVM tells guests of this feature, a bit of CPUID 0x40000001 EAX: its name, and the bit.
    KvmFeature(&'static str, u32),
    /// A module parameter has this value: `("kvm.mmio_caching", "Y")`.
    Parameter(&'static str, &'static str),
    /// This vendor's half of KVM, for this reason: in the other half there is no such thing.
    Vendor(Vendor, &'static str),
    /// KVM fetches the instructions that it emulates from the guest's memory: the CPU does not hand them over.
    NoDecodeAssists,
    /// A kernel of this release or newer, for this reason: in older ones the row is more than a failure.
    KernelSince((u32, u32), &'static str),
    /// All of these.
    All(Vec<Need>),
    /// At least one of these.
    Any(Vec<Need>),
}

impl Need {
    /// Why `host` does not meet this requirement for VMs of type `vm`, if it does not.
    pub fn unmet(&self, host: &Host, vm: VmType) -> Option<Lack> {
        match self {
            Need::All(needs) => needs.iter().find_map(|need| need.unmet(host, vm)),
            Need::Any(needs) => {
                let lacks: Vec<Lack> = needs.iter().map(|need| need.unmet(host, vm)).collect::<Option<_>>()?;
                let of =
                    |lacks: &[Lack]| Some(lacks.iter().find(|lack| lack.of.is_the_other_half()).or(lacks.first())?.of);
                let reasons: Vec<&str> = lacks.iter().map(|lack| lack.reason.as_str()).collect();
                Some(Lack { of: of(&lacks)?, reason: reasons.join("; or ") })
            }
            one => one.reason_against(host, vm).map(|reason| Lack { of: one.about(host), reason }),
        }
    }

    /// What a place lacks that does not meet it.
    fn about(&self, host: &Host) -> LackOf {
        match self {
            // What has no such parameter cannot be loaded with another value.
            Need::Parameter(name, _) if host.modules().has_no(name) => LackOf::Feature,
            Need::Parameter(..) => LackOf::Setting,
            Need::Vendor(..) => LackOf::Vendor,
            Need::NoDecodeAssists => LackOf::Cpu,
            Need::KernelSince(..) | Need::NoSystemCapability(_) => LackOf::Kernel,
            _ => LackOf::Feature,
        }
    }

    fn reason_against(&self, host: &Host, vm: VmType) -> Option<String> {
        match self {
            Need::GuestCode => {
                probe::ring0(host).err().map(|why| format!("guest code in ring 0 is not usable here: {why}"))
            }
            Need::Hypercall => probe::hypercall(host).err().map(|why| format!("hypercalls are not usable here: {why}")),
            Need::GuestMemfd => Need::Capability(Capability::GUEST_MEMFD, 1).reason_against(host, vm).or_else(|| {
                let Ok(Err(errno)) = host.guest_memfd(vm) else { return None };
                Some(format!(
                    "KVM_CREATE_GUEST_MEMFD is refused ({errno:?}) although KVM_CAP_GUEST_MEMFD is there: look for a \
                     security module, a seccomp filter or a limit in the way"
                ))
            }),
            Need::Capability(capability, bits) => match host.capability(vm, *capability) {
                Ok(value) if value & bits == *bits => None,
                Ok(value) => Some(format!(
                    "needs KVM_CAP_{} with {bits:#x}, a {vm} VM here has {value:#x}; run a kernel that has it",
                    capability.name
                )),
                Err(why) => Some(format!("needs KVM_CAP_{}: {why}", capability.name)),
            },
            Need::SystemCapability(capability, bits) => match host.check_extension(*capability) {
                value if value & bits == *bits => None,
                value => Some(format!(
                    "needs KVM_CAP_{} with {bits:#x}, KVM here has {value:#x}; run a kernel that has it",
                    capability.name
                )),
            },
            Need::NoSystemCapability(capability) => match host.check_extension(*capability) {
                0 => None,
                value => Some(format!("needs a kernel without KVM_CAP_{}, KVM here has {value:#x}", capability.name)),
            },
            Need::KvmFeature(name, bit) => (!has_kvm_feature(host, *bit)).then(|| {
                format!("KVM offers its guests no {name} (CPUID 0x40000001 EAX bit {bit}); run a kernel that is built with it")
            }),
            Need::Parameter(name, wanted) => match host.modules().parameter(name) {
                Some(value) if value == *wanted => None,
                Some(value) => Some(format!(
                    "needs {name}={wanted}, is {value}; reload with `modprobe {}={wanted}`",
                    name.replacen('.', " ", 1)
                )),
                None => Some(format!("needs {name}={wanted}, but there is no such parameter here")),
            },
            Need::Vendor(vendor, reason) => match host.modules().vendor.as_deref() {
                Some(module) if module == vendor.module() => None,
                Some(module) => Some(format!("only with {}, this is {module}: {reason}", vendor.module())),
                None => Some(format!("only with {}, which is not loaded: {reason}", vendor.module())),
            },
            Need::NoDecodeAssists => cpu_flags::kernel_lists("decodeassists").then(|| {
                "needs a CPU without decode assists: with them KVM does not fetch what it emulates".to_owned()
            }),
            Need::KernelSince((major, minor), reason) => (release(host.kernel()) < Some((*major, *minor)))
                .then(|| format!("needs Linux {major}.{minor} or newer, this is {}: {reason}", host.kernel())),
            Need::All(_) | Need::Any(_) => None,
        }
    }
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |f: &mut fmt::Formatter<'_>, needs: &[Need], word: &str| {
            for (i, need) in needs.iter().enumerate() {
                if i > 0 {
                    f.write_str(word)?;
                }
                write!(f, "{need}")?;
            }
            Ok(())
        };
        match self {
            Need::GuestCode => f.write_str("guest code in ring 0"),
            Need::Hypercall => f.write_str("hypercalls"),
            Need::GuestMemfd => f.write_str("guest_memfd"),
            Need::Capability(capability, 1) => write!(f, "KVM_CAP_{}", capability.name),
            Need::Capability(capability, bits) => write!(f, "KVM_CAP_{} with {bits:#x}", capability.name),
            Need::SystemCapability(capability, 1) => write!(f, "KVM_CAP_{} of the kernel", capability.name),
            Need::SystemCapability(capability, bits) => {
                write!(f, "KVM_CAP_{} of the kernel with {bits:#x}", capability.name)
            }
            Need::NoSystemCapability(capability) => write!(f, "a kernel without KVM_CAP_{}", capability.name),
            Need::KvmFeature(name, _) => write!(f, "KVM's {name}"),
            Need::Parameter(name, value) => write!(f, "{name}={value}"),
            Need::Vendor(vendor, reason) => write!(f, "{} ({reason})", vendor.module()),
            Need::NoDecodeAssists => f.write_str("a CPU without decode assists"),
            Need::KernelSince((major, minor), _) => write!(f, "Linux {major}.{minor}"),
            Need::All(needs) => list(f, needs, " and "),
            Need::Any(needs) => list(f, needs, " or "),
        }
    }
}

/// Whether `KVM_GET_SUPPORTED_CPUID` has a feature of KVM's own (Documentation/virt/kvm/x86/cpuid.rst).
fn has_kvm_feature(host: &Host, bit: u32) -> bool {
    const FEATURES: u32 = 0x4000_0001;
    let leaves = host.supported_cpuid().map(|cpuid| cpuid.as_slice()).unwrap_or_default();
    leaves.iter().any(|leaf| leaf.function == FEATURES && leaf.eax & 1 << bit != 0)
}

/// Major and minor number of a release such as `7.3.4`.
fn release(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(['.', '-']).map_while(|number| number.parse::<u32>().ok());
    Some((numbers.next()?, numbers.next()?))
}
