//! Guests with AMD's memory encryption: their vCPUs begin where the VMM says, and KVM has a PC's interrupt controllers for them.

use kvm_bindings::{CpuId, KVM_MP_STATE_AP_RESET_HOLD, KVM_PIT_SPEAKER_DUMMY, kvm_mp_state, kvm_pit_config};
use privet_harness::host::Host;
use privet_harness::long_mode;
use privet_harness::outcome::{Outcome, Stop};
use privet_harness::page_tables::PageTables;
use privet_harness::units::{Gpa, Gva, PAGE_SIZE};
use privet_harness::vm::Vm;

use super::boot::{self, Boot, Piece};
use super::launch::{self, Launched};
use super::{LARGE_PAGE, broken, cpuid, loader, rest_of};

const LOADER: u64 = 0x3_0000;
const PAGE_TABLES: u64 = 0x3_1000;

/// Launches the guest, with SEV-SNP or SEV-ES, with so many processors.
///
/// # Errors
/// What KVM and the firmware refuse.
pub(crate) fn start(host: &Host, vm: &Vm, boot: Boot, processors: u8, is_snp: bool) -> Outcome<Launched> {
    let c_bit = host.c_bit()?;
    let mut tables = PageTables::new(Gpa(PAGE_TABLES)).with_bits(c_bit);
    tables.map_large(Gva(0), Gpa(c_bit), boot::MEMORY / LARGE_PAGE);
    let mut pieces = boot.pieces;
    pieces.push(Piece::new(PAGE_TABLES, tables.bytes()));
    let firmware = boot::CPUID_PAGE..boot::SECRETS_PAGE + PAGE_SIZE;
    let filled = pieces.iter().map(Piece::range).chain([firmware, LOADER..LOADER + PAGE_SIZE]);
    let unvalidated = if is_snp { rest_of(0..boot::MEMORY, filled.collect()) } else { Vec::new() };
    let loader = loader::loader(LOADER, &unvalidated, boot::BOOT_PARAMS, boot.entry).map_err(|error| broken(&error))?;
    pieces.push(Piece::new(LOADER, loader));

    let refused = |what: &str, error: kvm_ioctls::Error| Stop::Fail(format!("{what}: {error}"));
    vm.kvm().create_irq_chip().map_err(|error| refused("KVM_CREATE_IRQCHIP", error))?;
    let timer = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
    vm.kvm().create_pit2(timer).map_err(|error| refused("KVM_CREATE_PIT2", error))?;

    let supported = host.supported_cpuid()?;
    let entries = |id| cpuid::of_processor(id, supported.as_slice().to_vec());
    let make_vcpu = |id: u8| {
        let vcpu = vm.create_vcpu(id.into())?;
        let cpuid = CpuId::from_entries(&entries(id)).map_err(|error| Stop::Error(format!("{error:?}")))?;
        long_mode::enter(&vcpu, &cpuid, tables.root(), &long_mode::registers(LOADER, 0, 0))?;
        if id > 0 {
            // Firmware would have sent it INIT. Without, KVM takes no processor that a guest creates for one to be run.
            let held = kvm_mp_state { mp_state: KVM_MP_STATE_AP_RESET_HOLD };
            vcpu.kvm()?.set_mp_state(held).map_err(|error| refused("KVM_SET_MP_STATE", error))?;
        }
        Ok(vcpu)
    };
    let make_vcpus = || (0..processors).map(make_vcpu).collect::<Outcome<Vec<_>>>();
    match is_snp {
        true => launch::snp(vm, &pieces, &cpuid::page(&entries(0)), make_vcpus),
        false => launch::sev_es(vm, &pieces, make_vcpus),
    }
}
