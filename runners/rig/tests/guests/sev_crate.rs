//! The client crate `sev` (virtee) as its users call it: it asks the platform, and launches guests that halt, as its own
//! tests do (its tests/snp_launch.rs and tests/sev_launch.rs).
#![expect(unsafe_code, reason = "memslots hand memory of this process to a guest")]

use std::error::Error;
use std::os::fd::RawFd;

use kvm_bindings::{KVM_MEM_GUEST_MEMFD, kvm_create_guest_memfd, kvm_userspace_memory_region2};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use privet_harness::mapping::Mapping;
use sev::firmware::guest::GuestPolicy;
use sev::firmware::host::Firmware;
use sev::launch::{PageType, snp};

const SNP_VM: u64 = 4;
const PAGE: usize = 0x1000;
/// Where the guest has its only page, which is full of HLT.
const CODE: u64 = 0x1000;
const HLT: u8 = 0xf4;

/// A page where the kernel takes one from.
#[repr(align(4096))]
struct Page([u8; PAGE]);

/// What is printed when a guest has run.
pub(crate) const HALTED: &str = "the guest has halted";

/// Does one of these things.
///
/// # Errors
/// What that says.
pub(crate) fn run(what: &str) -> Result<(), Box<dyn Error>> {
    match what {
        "platform" => platform(),
        "snp" => snp_guest(),
        #[cfg(feature = "openssl")]
        "sev" => sev_guest(),
        other => Err(format!("the crate is not asked for {other}").into()),
    }
}

/// Asks the platform.
///
/// # Errors
/// What the crate or the firmware say.
fn platform() -> Result<(), Box<dyn Error>> {
    let mut firmware = Firmware::open()?;
    println!("{:?}\n{:?}", firmware.platform_status()?, firmware.snp_platform_status()?);
    println!("identifier {:?}", firmware.get_identifier()?);
    Ok(())
}

/// Launches an SEV-SNP guest.
///
/// # Errors
/// What the crate, KVM or the firmware say, and if it does not halt.
fn snp_guest() -> Result<(), Box<dyn Error>> {
    let vm = Kvm::new()?.create_vm_with_type(SNP_VM)?;
    let code = Box::new(Page([HLT; PAGE]));
    let gmem: RawFd =
        vm.create_guest_memfd(kvm_create_guest_memfd { size: PAGE as u64, flags: 0, reserved: [0; 6] })?;
    let shared = Mapping::anonymous(PAGE as u64)?;
    let region = kvm_userspace_memory_region2 {
        slot: 0,
        flags: KVM_MEM_GUEST_MEMFD,
        guest_phys_addr: CODE,
        memory_size: PAGE as u64,
        userspace_addr: shared.addr(),
        guest_memfd_offset: 0,
        guest_memfd: gmem as u32,
        pad1: 0,
        pad2: [0; 14],
    };
    // SAFETY: `shared` stays mapped until after the VM is gone.
    unsafe { vm.set_user_memory_region2(region)? };
    let launcher = snp::Launcher::new(vm, Firmware::open()?)?;
    let mut policy = GuestPolicy(0);
    policy.set_smt_allowed(true);
    let mut launcher = launcher.start(snp::Start::new(policy, [0; 16]))?;
    launcher.update_data(snp::Update::new(CODE >> 12, &code.0, PageType::Normal), CODE, PAGE as u64)?;
    let vcpu = vcpu_at(launcher.as_mut(), CODE)?;
    let (vm, _firmware) = launcher.finish(snp::Finish::new(None, None, [0; 32]))?;
    halts(vcpu)?;
    drop((vm, shared));
    Ok(())
}

/// A vCPU in real mode, at this address.
fn vcpu_at(vm: &VmFd, address: u64) -> Result<VcpuFd, Box<dyn Error>> {
    let vcpu = vm.create_vcpu(0)?;
    let mut registers = vcpu.get_regs()?;
    (registers.rip, registers.rflags) = (address, 2);
    vcpu.set_regs(&registers)?;
    let mut special = vcpu.get_sregs()?;
    (special.cs.base, special.cs.selector) = (0, 0);
    vcpu.set_sregs(&special)?;
    Ok(vcpu)
}

fn halts(mut vcpu: VcpuFd) -> Result<(), Box<dyn Error>> {
    match vcpu.run()? {
        VcpuExit::Hlt => println!("{HALTED}"),
        exit => return Err(format!("the guest has not halted: {exit:?}").into()),
    }
    Ok(())
}

/// Becomes the platform's owner, and launches an SEV guest whose code is a secret: the crate agrees on a session with the
/// firmware, verifies what the firmware has measured, and only then sends the code.
///
/// # Errors
/// What the crate, KVM or the firmware say, and if the guest does not halt.
#[cfg(feature = "openssl")]
fn sev_guest() -> Result<(), Box<dyn Error>> {
    use std::os::fd::AsRawFd;

    use kvm_bindings::kvm_userspace_memory_region;
    use sev::certs::sev::sev::{Certificate, Usage};
    use sev::certs::sev::{Signer, Verifiable};
    use sev::launch::sev::{HeaderFlags, Launcher, Policy};
    use sev::session::Session;

    const SEV_VM: u64 = 2;
    let mut firmware = Firmware::open()?;
    let build = firmware.platform_status()?.build;
    let (mut owner, key) = Certificate::generate(Usage::OCA)?;
    key.sign(&mut owner)?;
    let mut platform = firmware.pek_csr()?;
    key.sign(&mut platform)?;
    firmware.pek_cert_import(&platform, &owner)?;
    let chain = firmware.pdh_cert_export()?;
    chain.verify()?;

    let session = Session::try_from(Policy::default())?;
    let start = session.start_pdh(chain.pdh).map_err(|error| format!("{error:?}"))?;
    let vm = Kvm::new()?.create_vm_with_type(SEV_VM)?;
    let memory = Mapping::anonymous(PAGE as u64)?;
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: PAGE as u64,
        userspace_addr: memory.addr(),
    };
    // SAFETY: `memory` stays mapped until after the VM is gone.
    unsafe { vm.set_user_memory_region(region)? };
    // SAFETY: it is mapped, and nobody writes to it while this is borrowed.
    let bytes = unsafe { std::slice::from_raw_parts(memory.addr() as *const u8, PAGE) };
    let mut session = session.measure()?;
    session.update_data(bytes)?;
    let mut launcher = Launcher::new(vm.as_raw_fd(), firmware.as_raw_fd())?.start(start)?;
    launcher.update_data(bytes)?;
    let mut launcher = launcher.measure()?;
    let session = session.verify(build, launcher.measurement())?;
    let secret = session.secret(HeaderFlags::default(), &[HLT; 16]).map_err(|error| format!("{error:?}"))?;
    launcher.inject(&secret, memory.addr() as usize)?;
    launcher.finish()?;
    halts(vcpu_at(&vm, 0)?)?;
    drop((vm, memory));
    Ok(firmware.platform_reset()?)
}
