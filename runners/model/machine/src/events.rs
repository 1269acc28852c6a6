//! Exceptions, interrupts and NMIs on their way into a vCPU: `kvm_vcpu_events`.
//!
//! Source: `arch/x86/kvm/x86.c:kvm_vcpu_ioctl_x86_set_vcpu_events`.

use std::sync::atomic::Ordering;

use kvm_bindings::*;
use nix::errno::Errno;
use privet_cpu::state::{Injection, Shadow};
use privet_cpu::{Exception, vector};

use crate::user::zeroed;
use crate::vcpu::State;
use crate::vm::Vm;

/// Vectors that instructions raise on purpose; their length is not told, so they are not reported.
fn is_soft(vector: u8) -> bool {
    matches!(vector, vector::BP | vector::OF)
}

/// `KVM_GET_VCPU_EVENTS`.
pub(crate) fn get(state: &State, vm: &Vm) -> kvm_vcpu_events {
    let cpu = &state.cpu.state;
    let payload = vm.exception_payload.load(Ordering::SeqCst);
    let mut events: kvm_vcpu_events = zeroed();
    match cpu.injection {
        Some(Injection::Exception(exception)) => {
            events.exception.injected = (!is_soft(exception.vector)).into();
            events.exception.nr = exception.vector;
            events.exception.has_error_code = exception.error_code.is_some().into();
            events.exception.error_code = exception.error_code.unwrap_or(0);
        }
        Some(Injection::Interrupt(vector)) => {
            events.interrupt.injected = 1;
            events.interrupt.nr = vector;
        }
        Some(Injection::Nmi) => events.nmi.injected = 1,
        Some(Injection::SoftInterrupt(_) | Injection::SoftException(_)) | None => {}
    }
    events.interrupt.shadow = match cpu.shadow {
        Shadow::None => 0,
        Shadow::Sti => KVM_X86_SHADOW_INT_STI as u8,
        Shadow::MovSs => KVM_X86_SHADOW_INT_MOV_SS as u8,
    };
    events.nmi.pending = state.nmis;
    events.nmi.masked = cpu.nmi_blocked.into();
    events.flags = KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW | KVM_VCPUEVENT_VALID_SMM;
    if payload {
        events.flags |= KVM_VCPUEVENT_VALID_PAYLOAD;
    }
    if vm.triple_fault_event.load(Ordering::SeqCst) {
        events.triple_fault.pending = state.triple_fault.into();
        events.flags |= KVM_VCPUEVENT_VALID_TRIPLE_FAULT;
    }
    events
}

/// `KVM_SET_VCPU_EVENTS`.
///
/// # Errors
/// EINVAL.
pub(crate) fn set(state: &mut State, vm: &Vm, mut events: kvm_vcpu_events) -> Result<(), Errno> {
    let known = KVM_VCPUEVENT_VALID_NMI_PENDING
        | KVM_VCPUEVENT_VALID_SIPI_VECTOR
        | KVM_VCPUEVENT_VALID_SHADOW
        | KVM_VCPUEVENT_VALID_SMM
        | KVM_VCPUEVENT_VALID_PAYLOAD
        | KVM_VCPUEVENT_VALID_TRIPLE_FAULT;
    if events.flags & !known != 0 {
        return Err(Errno::EINVAL);
    }
    if events.flags & KVM_VCPUEVENT_VALID_PAYLOAD != 0 {
        if !vm.exception_payload.load(Ordering::SeqCst) {
            return Err(Errno::EINVAL);
        }
        if events.exception.pending != 0 {
            events.exception.injected = 0;
        }
    } else {
        events.exception.pending = 0;
    }
    let excepting = events.exception.injected != 0 || events.exception.pending != 0;
    if excepting && (events.exception.nr > 31 || events.exception.nr == vector::NMI) {
        return Err(Errno::EINVAL);
    }
    // There is no system management mode.
    let smi = &events.smi;
    if events.flags & KVM_VCPUEVENT_VALID_SMM != 0 && (smi.smm != 0 || smi.pending != 0 || smi.smm_inside_nmi != 0) {
        return Err(Errno::EINVAL);
    }
    if events.flags & KVM_VCPUEVENT_VALID_TRIPLE_FAULT != 0 {
        if !vm.triple_fault_event.load(Ordering::SeqCst) {
            return Err(Errno::EINVAL);
        }
        state.triple_fault = events.triple_fault.pending != 0;
    }
    if events.flags & KVM_VCPUEVENT_VALID_NMI_PENDING != 0 {
        state.nmis = events.nmi.pending.min(2);
    }
    let cpu = &mut state.cpu.state;
    cpu.injection = if excepting {
        let error_code = (events.exception.has_error_code != 0).then_some(events.exception.error_code);
        Some(Injection::Exception(Exception { vector: events.exception.nr, error_code, payload: 0 }))
    } else if events.interrupt.injected != 0 {
        Some(if events.interrupt.soft != 0 {
            Injection::SoftInterrupt(events.interrupt.nr)
        } else {
            Injection::Interrupt(events.interrupt.nr)
        })
    } else if events.nmi.injected != 0 {
        Some(Injection::Nmi)
    } else {
        None
    };
    // A #PF that user space injects has its address in CR2 already.
    if let Some(Injection::Exception(exception)) = &mut cpu.injection
        && exception.vector == vector::PF
    {
        exception.payload = cpu.cr2;
    }
    if events.flags & KVM_VCPUEVENT_VALID_SHADOW != 0 {
        cpu.shadow = match u32::from(events.interrupt.shadow) {
            0 => Shadow::None,
            shadow if shadow & KVM_X86_SHADOW_INT_MOV_SS != 0 => Shadow::MovSs,
            _ => Shadow::Sti,
        };
    }
    cpu.nmi_blocked = events.nmi.masked != 0;
    Ok(())
}
