//! `KVM_X86_SEV_VM`: the guest's pages are encrypted where its page tables say so.

use privet_protocol::{AliasBits, Conversion, Doorbell};

use super::Facts;
use crate::launch::{Launch, Launched, Part, sev};
use crate::outcome::Outcome;
use crate::sev::{Device, SevPolicy};
use crate::test_range::Backing;
use crate::vm_type::VmType;

pub(super) const FACTS: Facts = Facts {
    vm_type: VmType::Sev,
    doorbell: |_| Doorbell::Port,
    conversion: Conversion::Hypercall,
    has_private_memory: false,
    has_firmware_pages: false,
    begins_at_the_reset_vector: false,
    backing: Backing::HostOnly,
    aliases: |host| Ok(AliasBits { private: host.c_bit()?, shared: 0 }),
    // Instruction fetches and page walks are always private.
    private_parts: &Part::ALL,
    launch,
};

fn launch(launch: &Launch<'_>) -> Outcome<Launched> {
    let device = Device::open()?;
    let mut steps = sev::Launch::create(launch.vm, &device, Default::default())?.start(SevPolicy::NONE)?;
    let own = launch.host_memory()?;
    for piece in launch.plan.private() {
        steps.encrypt(&own.host, piece)?;
    }
    let vcpus = (launch.make_vcpus)()?;
    steps.measure()?.finish()?;
    Ok(Launched { own, vcpus, firmware: Some(device) })
}
