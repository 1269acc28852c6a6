//! From an empty VM to vCPUs that can run, for guests with AMD's memory encryption, and what a TD shares with that.

use std::sync::Arc;

use privet_harness::guest_memfd::GuestMemfd;
use privet_harness::launch::{sev, snp};
use privet_harness::mapping::Mapping;
use privet_harness::measure::VcpuState;
use privet_harness::memslot::SlotSpec;
use privet_harness::outcome::{Outcome, Stop};
use privet_harness::sev::{Device, Finish, Memory, PageType, SevPolicy, SnpPolicy};
use privet_harness::units::{Gpa, PAGE_SIZE, PageCount};
use privet_harness::vcpu::Vcpu;
use privet_harness::vm::Vm;

use super::boot::{self, Piece};

/// A guest that can run.
pub(crate) struct Launched {
    pub(crate) vcpus: Vec<Vcpu>,
    /// Its private memory, if that is in a file: a slot does not keep it open.
    pub(crate) _gmem: Option<Arc<GuestMemfd>>,
}

/// The slot of all memory.
const SLOT: u32 = 0;

/// Host memory with all pieces.
pub(crate) fn content(pieces: &[Piece]) -> Outcome<Arc<Mapping>> {
    let memory = Arc::new(Mapping::anonymous(boot::MEMORY)?);
    pieces.iter().try_for_each(|piece| memory.write(piece.gpa, &piece.bytes))?;
    Ok(memory)
}

pub(crate) fn slot(memory: &Arc<Mapping>) -> SlotSpec {
    SlotSpec::shared(SLOT, Gpa(0), PageCount::of_bytes(boot::MEMORY), memory)
}

/// An SNP guest: all of its memory is private, and what no piece fills is not validated.
///
/// # Errors
/// What KVM and the firmware refuse.
pub(crate) fn snp(
    vm: &Vm,
    pieces: &[Piece],
    cpuid: &[u8],
    make_vcpus: impl FnOnce() -> Outcome<Vec<Vcpu>>,
) -> Outcome<Launched> {
    let device = Device::open()?;
    let mut launch = snp::Launch::create(vm, &device, Default::default())?.start(SnpPolicy::DEFAULT)?;
    let memory = content(pieces)?;
    memory.write(boot::CPUID_PAGE, cpuid)?;
    let gmem = vm.create_guest_memfd(boot::MEMORY, 0)?;
    vm.add_slot(slot(&memory).with_gmem(&gmem, 0))?;
    vm.set_private(Gpa(0), PageCount::of_bytes(boot::MEMORY))?;
    for piece in pieces {
        launch.update(PageType::Normal, Gpa(piece.gpa), &memory, piece.range())?;
    }
    for (kind, gpa) in [(PageType::Cpuid, boot::CPUID_PAGE), (PageType::Secrets, boot::SECRETS_PAGE)] {
        launch.update(kind, Gpa(gpa), &memory, gpa..gpa + PAGE_SIZE)?;
    }
    let vcpus = make_vcpus()?;
    launch.finish(Finish::PLAIN, &vcpus.iter().map(VcpuState::of).collect::<Outcome<Vec<_>>>()?)?;
    Ok(Launched { vcpus, _gmem: Some(gmem) })
}

/// An SEV-ES guest: the pieces are encrypted where they are.
///
/// # Errors
/// What KVM and the firmware refuse.
pub(crate) fn sev_es(vm: &Vm, pieces: &[Piece], make_vcpus: impl FnOnce() -> Outcome<Vec<Vcpu>>) -> Outcome<Launched> {
    let device = Device::open()?;
    let mut launch = sev::Launch::create(vm, &device, Default::default())?.start(SevPolicy::ES)?;
    let memory = content(pieces)?;
    vm.add_slot(slot(&memory))?;
    for Piece { gpa, bytes } in pieces {
        let (place, length) = (Memory::In(&memory, *gpa), bytes.len() as u32);
        let registered = launch.commands().register_region(place, length.into());
        registered.map_err(|errno| Stop::Fail(format!("KVM_MEMORY_ENCRYPT_REG_REGION at gpa {gpa:#x}: {errno:?}")))?;
        launch.commands().launch_update_data(place, length)?;
    }
    let vcpus = make_vcpus()?;
    launch.encrypt_vcpus(&vcpus)?;
    launch.measure()?.finish()?;
    Ok(Launched { vcpus, _gmem: None })
}
