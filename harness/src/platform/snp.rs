//! `KVM_X86_SNP_VM`: private memory is encrypted and belongs to the guest alone.

use privet_protocol::{AliasBits, Conversion, Doorbell};

use super::Facts;
use crate::launch::{Kind, Launch, Launched, OwnMemory, Part, Plan, ghcb, snp};
use crate::measure::VcpuState;
use crate::outcome::Outcome;
use crate::sev::{Device, Finish, PageType, SnpPolicy};
use crate::test_range::Backing;
use crate::vm_type::VmType;

pub(super) const FACTS: Facts = Facts {
    vm_type: VmType::Snp,
    doorbell: |vcpu| Doorbell::Ghcb { gpa: ghcb(vcpu).0 },
    conversion: Conversion::PageStateChange,
    has_private_memory: true,
    has_firmware_pages: true,
    begins_at_the_reset_vector: false,
    backing: Backing::HostAndGuestMemfd,
    aliases: |host| Ok(AliasBits { private: host.c_bit()?, shared: 0 }),
    private_parts: &Part::ALL,
    launch,
};

fn launch(launch: &Launch<'_>) -> Outcome<Launched> {
    let vm = launch.vm;
    let device = Device::open()?;
    let mut steps = snp::Launch::create(vm, &device, Default::default())?.start(SnpPolicy::DEFAULT)?;
    if launch.certificates_exit {
        steps.commands().snp_enable_req_certs()?;
    }
    let (host, slot) = launch.content()?;
    let gmem = vm.create_guest_memfd(Plan::length().bytes(), 0)?;
    vm.add_slot(slot.with_gmem(&gmem, 0))?;
    for piece in launch.plan.pieces() {
        let page_type = match piece.kind {
            Kind::Shared => continue,
            Kind::Private => PageType::Normal,
            Kind::Secrets => PageType::Secrets,
            Kind::Cpuid => PageType::Cpuid,
        };
        vm.set_private(piece.gpa, piece.pages())?;
        steps.update_part(page_type, piece.gpa, &host, piece.in_own_memory(), piece.part)?;
    }
    let vcpus = (launch.make_vcpus)()?;
    let states = vcpus.iter().map(VcpuState::of).collect::<Outcome<Vec<_>>>()?;
    steps.finish(Finish::PLAIN, &states)?;
    Ok(Launched { own: OwnMemory { host, gmem: Some(gmem) }, vcpus, firmware: Some(device) })
}
