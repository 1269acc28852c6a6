//! The probe: what it says agrees with what happens.

use nix::errno::Errno;
use privet_harness::outcome::{Lack, LackOf, Stop};
use privet_harness::probe;
use privet_harness::uapi::Capability;
use privet_harness::vm::Vm;
use privet_harness::vm_type::VmType;

use crate::host;

#[test]
fn the_types_that_are_offered_can_be_made_and_the_others_say_why_not() {
    let Some(host) = host() else { return };
    for vm_type in VmType::ALL {
        match host.why_not(vm_type) {
            None => drop(Vm::create(&host, vm_type).unwrap()),
            Some(reason) => {
                assert!(reason.starts_with(&format!("VM type {vm_type} is not offered: ")), "{reason}");
                let lack = Lack { of: LackOf::VmType, reason };
                assert_eq!(Vm::create(&host, vm_type).map(drop), Err(Stop::Skip(lack.clone())));
                assert_eq!(host.capability(vm_type, Capability::GUEST_MEMFD), Err(Stop::Skip(lack)));
            }
        }
    }
    assert_eq!(Vm::try_create(&host, 63).map(drop), Err(Errno::EINVAL));
}

#[test]
fn capabilities_are_those_of_a_vm() {
    let Some(host) = host() else { return };
    let vm = Vm::create(&host, VmType::Plain).unwrap();
    for &capability in Capability::ALL {
        assert_eq!(host.capability(VmType::Plain, capability), Ok(vm.check_extension(capability)), "{capability:?}");
    }
}

#[test]
fn a_host_that_emulates_ring_0_is_recognised() {
    let Some(host) = host() else { return };
    let poor = host.modules().vendor.as_deref() == Some("kvm_pvm");
    match (probe::ring0(&host), poor) {
        (Ok(()), false) => {}
        (Err(why), true) => {
            assert!(why.contains("INTERNAL_ERROR 1 (emulation)") && why.contains("xorps"), "{why}");
        }
        (found, _) => panic!("poor host: {poor}, but: {found:?}"),
    }
    match (probe::hypercall(&host), poor) {
        (Ok(()), false) => {}
        (Err(why), true) => assert!(why.contains("still running after 2s"), "{why}"),
        (found, _) => panic!("poor host: {poor}, but: {found:?}"),
    }
}
