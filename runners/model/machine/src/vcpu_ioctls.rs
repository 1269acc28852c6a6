//! Ioctls of vCPUs, but for KVM_RUN.
//!
//! Source: `virt/kvm/kvm_main.c:kvm_vcpu_ioctl`, `arch/x86/kvm/x86.c:kvm_arch_vcpu_ioctl`.

use std::sync::Arc;

use kvm_bindings::*;
use nix::errno::Errno;
use privet_cpu::{DebugControl, Exception, vector};

use crate::capability::{GUEST_DEBUG_FLAGS, XSAVE_BYTES};
use crate::cpuid::{ENTRIES_MAX, GuestCpuid};
use crate::defect::Defect;
use crate::descriptors::{Object, hand_out};
use crate::dispatch::{Argument, IoctlResult, Row};
use crate::extended_state;
use crate::fault::Faults;
use crate::guest_bus::GuestBus;
use crate::host_memory::PAGE_SIZE;
use crate::msr;
use crate::registers;
use crate::run;
use crate::time;
use crate::user::{self, ListHeader, zeroed};
use crate::vcpu::{MpState, State, VcpuFile};

/// The ioctls.
pub(crate) const IOCTLS: &[Row<Arc<VcpuFile>>] = &[
    (0xae80, "RUN", run::run),
    (0x8090_ae81, "GET_REGS", |file, argument| argument.write(&registers::get_regs(&file.vcpu.state().cpu.state))),
    (0x4090_ae82, "SET_REGS", set_regs),
    (0x8138_ae83, "GET_SREGS", |file, argument| argument.write(&get_sregs(file, &file.vcpu.state()))),
    (0x4138_ae84, "SET_SREGS", |file, argument| set_sregs(file, &mut file.vcpu.state(), &argument.read()?).map(|()| 0)),
    (0x8140_aecc, "GET_SREGS2", |file, argument| {
        argument.write(&registers::to_sregs2(&get_sregs(file, &file.vcpu.state())))
    }),
    (0x4140_aecd, "SET_SREGS2", set_sregs2),
    (0xc018_ae85, "TRANSLATE", translate),
    (0x4004_ae86, "INTERRUPT", interrupt),
    (0xae9a, "NMI", nmi),
    (0xc008_ae88, "GET_MSRS", get_msrs),
    (0x4008_ae89, "SET_MSRS", set_msrs),
    (0x4004_ae8b, "SET_SIGNAL_MASK", set_signal_mask),
    (0x81a0_ae8c, "GET_FPU", |file, argument| {
        argument.write(&extended_state::get_fpu(&file.vcpu.state().cpu.state.fpu))
    }),
    (0x41a0_ae8d, "SET_FPU", set_fpu),
    (0x8400_ae8e, "GET_LAPIC", get_lapic),
    (0x4400_ae8f, "SET_LAPIC", set_lapic),
    (0x4008_ae90, "SET_CPUID2", set_cpuid2),
    (0xc008_ae91, "GET_CPUID2", get_cpuid2),
    (0x8004_ae98, "GET_MP_STATE", |file, argument| {
        argument.write(&kvm_mp_state { mp_state: file.vcpu.mailbox().mp_state as u32 })
    }),
    (0x4004_ae99, "SET_MP_STATE", set_mp_state),
    (0x4048_ae9b, "SET_GUEST_DEBUG", set_guest_debug),
    (0x8040_ae9f, "GET_VCPU_EVENTS", |file, argument| {
        argument.write(&crate::events::get(&file.vcpu.state(), &file.vm))
    }),
    (0x4040_aea0, "SET_VCPU_EVENTS", |file, argument| {
        crate::events::set(&mut file.vcpu.state(), &file.vm, argument.read()?).map(|()| 0)
    }),
    (0x8080_aea1, "GET_DEBUGREGS", get_debugregs),
    (0x4080_aea2, "SET_DEBUGREGS", set_debugregs),
    (0xaea2, "SET_TSC_KHZ", set_tsc_khz),
    (0xaea3, "GET_TSC_KHZ", |file, _| Ok(file.vcpu.state().tsc.khz() as i32)),
    (0x4068_aea3, "ENABLE_CAP", |_, argument| argument.read::<kvm_enable_cap>().and(Err(Errno::EINVAL))),
    (0x9000_aea4, "GET_XSAVE", get_xsave),
    (0x9000_aecf, "GET_XSAVE2", get_xsave),
    (0x5000_aea5, "SET_XSAVE", set_xsave),
    (0x8188_aea6, "GET_XCRS", |file, argument| {
        argument.write(&extended_state::get_xcrs(file.vcpu.state().cpu.state.xcr0))
    }),
    (0x4188_aea7, "SET_XCRS", set_xcrs),
    (0x4010_aeab, "GET_ONE_REG", get_one_reg),
    (0x4010_aeac, "SET_ONE_REG", set_one_reg),
    (0x4008_ae9c, "X86_SETUP_MCE", |_, argument| argument.read::<u64>().map(|_| 0)),
    (0xaead, "KVMCLOCK_CTRL", |_, _| Err(Errno::EINVAL)),
    (0x4018_aee1, "SET_DEVICE_ATTR", |_, argument| argument.read::<kvm_device_attr>().and(Err(Errno::ENXIO))),
    (0x4018_aee2, "GET_DEVICE_ATTR", |_, argument| argument.read::<kvm_device_attr>().and(Err(Errno::ENXIO))),
    (0x4018_aee3, "HAS_DEVICE_ATTR", |_, argument| argument.read::<kvm_device_attr>().and(Err(Errno::ENXIO))),
    (0xaece, "GET_STATS_FD", |file, _| {
        hand_out(c"anon_inode:kvm-vcpu-stats", 0, libc::MFD_CLOEXEC, Object::VcpuStats(Arc::clone(file)))
    }),
    (0xc040_aed5, "PRE_FAULT_MEMORY", pre_fault_memory),
    (0xc008_aeba, "MEMORY_ENCRYPT_OP", |_, _| Err(Errno::ENOTTY)),
];

fn set_regs(file: &Arc<VcpuFile>, argument: Argument) -> IoctlResult {
    let regs = argument.read()?;
    registers::set_regs(&mut file.vcpu.state().cpu.state, regs);
    Ok(0)
}

/// The registers, with CR8 from wherever it is kept.
pub(crate) fn get_sregs(file: &VcpuFile, state: &State) -> kvm_sregs {
    let cr8 = file.vcpu.mailbox().lapic.as_ref().map_or(state.cpu.state.cr8, |lapic| lapic.cr8());
    registers::get_sregs(state, cr8)
}

/// Sets them, with the interrupt that the bitmap names.
///
/// # Errors
/// EINVAL.
pub(crate) fn set_sregs(file: &VcpuFile, state: &mut State, sregs: &kvm_sregs) -> Result<(), Errno> {
    registers::set_sregs(state, sregs)?;
    set_task_priority(file, sregs.cr8);
    let vector = sregs.interrupt_bitmap.iter().enumerate().find(|(_, word)| **word != 0);
    if let Some((index, word)) = vector {
        state.user_interrupt = Some((index * 64) as u8 + word.trailing_zeros() as u8);
    }
    Ok(())
}

fn set_task_priority(file: &VcpuFile, cr8: u64) {
    if let Some(lapic) = file.vcpu.mailbox().lapic.as_mut() {
        lapic.set_cr8(cr8);
    }
}

fn set_sregs2(file: &Arc<VcpuFile>, argument: Argument) -> IoctlResult {
    let sregs: kvm_sregs2 = argument.read()?;
    let pae = sregs.cr0 & 1 << 31 != 0 && sregs.cr4 & 1 << 5 != 0 && sregs.efer & 1 << 10 == 0;
    let pdptrs_valid = u64::from(KVM_SREGS2_FLAGS_PDPTRS_VALID);
    if sregs.flags & !pdptrs_valid != 0 || sregs.flags & pdptrs_valid != 0 && !pae {
        return Err(Errno::EINVAL);
    }
    let mut state = file.vcpu.state();
    registers::set_sregs(&mut state, &registers::from_sregs2(&sregs))?;
    set_task_priority(file, sregs.cr8);
    Ok(0)
}

fn translate(file: &Arc<VcpuFile>, argument: Argument) -> IoctlResult {
    let mut translation: kvm_translation = argument.read()?;
    let mut guard = file.vcpu.state();
    let (cpu, mut bus) = GuestBus::split(file, &mut guard);
    let found = cpu.translate(&mut bus, translation.linear_address);
    translation.physical_address = found.unwrap_or(u64::MAX);
    translation.valid = found.is_some().into();
    translation.writeable = 1;
    translation.usermode = 0;
    argument.write(&translation)
}

fn interrupt(file: &Arc<VcpuFile>, argument: Argument) -> IoctlResult {
    let irq: kvm_interrupt = argument.read()?;
    let vector = u8::try_from(irq.irq).map_err(|_| Errno::EINVAL)?;
    let has_lapic = file.vcpu.mailbox().lapic.is_some();
    let mut state = file.vcpu.state();
    // With the interrupt controllers in user space the vCPU has one place for an interrupt; with only the
    // local APIC in the kernel there is one for the PIC's, which the model has not.
    if has_lapic {
        return Err(Errno::ENXIO);
    }
    if state.user_interrupt.is_some() {
        return Err(Errno::EEXIST);
    }
    state.user_interrupt = Some(vector);
    Ok(0)
}

fn nmi(file: &Arc<VcpuFile>, _: Argument) -> IoctlResult {
    let mut state = file.vcpu.state();
    state.nmis = (state.nmis + 1).min(2);
    Ok(0)
}

/// An MSR, wherever it is kept.
fn get_msr(file: &VcpuFile, state: &mut State, index: u32) -> Option<u64> {
    match index {
        msr::TSC => Some(state.tsc.get()),
        _ => state.msrs.get(&mut state.cpu.state, index, file.vm.options),
    }
}

fn set_msr(file: &VcpuFile, state: &mut State, index: u32, value: u64) -> bool {
    match index {
        msr::TSC => {
            state.tsc.set(value);
            true
        }
        _ => state.msrs.set(&mut state.cpu.state, index, value, file.vm.options),
    }
}

fn get_msrs(file: &Arc<VcpuFile>, argument: Argument) -> IoctlResult {
    let mut state = file.vcpu.state();
    msr::get_list(argument, |index| get_msr(file, &mut state, index))
}

fn set_msrs(file: &Arc<VcpuFile>, argument: Argument) -> IoctlResult {
    let mut state = file.vcpu.state();
    msr::set_list(argument, |entry| set_msr(file, &mut state, entry.index, entry.data))
}

/// `KVM_X86_REG_ID`: size U64, x86, type 2 (MSR), and its index.
const ONE_REG_MSR: u64 = 0x2030_0002_0000_0000;

fn one_reg(argument: Argument) -> Result<(u32, u64), Errno> {
    let reg: kvm_one_reg = argument.read()?;
    if reg.id & !0xffff_ffff != ONE_REG_MSR {
        return Err(Errno::EINVAL);
    }
    Ok((reg.id as u32, reg.addr))
}

fn get_one_reg(file: &Arc<VcpuFile>, argument: Argument) -> IoctlResult {
    let (index, address) = one_reg(argument)?;
    let value = get_msr(file, &mut file.vcpu.state(), index).ok_or(Errno::EINVAL)?;
    user::write(address, &value).map(|()| 0)
}

fn set_one_reg(file: &Arc<VcpuFile>, argument: Argument) -> IoctlResult {
    let (index, address) = one_reg(argument)?;
    let value = user::read(address)?;
    if set_msr(file, &mut file.vcpu.state(), index, value) { Ok(0) } else { Err(Errno::EINVAL) }
}

fn set_signal_mask(file: &Arc<VcpuFile>, argument: Argument) -> IoctlResult {
    let mask = if argument.0 == 0 {
        None
    } else {
        let bytes: u32 = argument.read()?;
        if bytes as usize != size_of::<u64>() {
            return Err(Errno::EINVAL);
        }
        Some(user::read(argument.after(size_of::<u32>()))?)
    };
    file.vcpu.state().signal_mask = mask;
    Ok(0)
}

fn set_fpu(file: &Arc<VcpuFile>, argument: Argument) -> IoctlResult {
    let fpu = argument.read()?;
    extended_state::set_fpu(&mut file.vcpu.state().cpu.state.fpu, &fpu);
    Ok(0)
}

fn get_xsave(file: &Arc<VcpuFile>, argument: Argument) -> IoctlResult {
    let image = extended_state::get_xsave(&file.vcpu.state().cpu.state.fpu);
    user::copy_out(argument.0, &image[..]).map(|()| 0)
}

fn set_xsave(file: &Arc<VcpuFile>, argument: Argument) -> IoctlResult {
    let mut image = [0; XSAVE_BYTES];
    user::copy_in(argument.0, &mut image)?;
    extended_state::set_xsave(&mut file.vcpu.state().cpu.state.fpu, &image).map(|()| 0)
}

fn set_xcrs(file: &Arc<VcpuFile>, argument: Argument) -> IoctlResult {
    if let Some(xcr0) = extended_state::new_xcr0(&argument.read()?)? {
        file.vcpu.state().cpu.state.xcr0 = xcr0;
    }
    Ok(0)
}

fn get_lapic(file: &Arc<VcpuFile>, argument: Argument) -> IoctlResult {
    let mailbox = file.vcpu.mailbox();
    let registers = *mailbox.lapic.as_ref().ok_or(Errno::EINVAL)?.registers();
    argument.write(&registers)
}

fn set_lapic(file: &Arc<VcpuFile>, argument: Argument) -> IoctlResult {
    let mut mailbox = file.vcpu.mailbox();
    let lapic = mailbox.lapic.as_mut().ok_or(Errno::EINVAL)?;
    lapic.set_registers(&argument.read()?);
    Ok(0)
}

fn set_cpuid2(file: &Arc<VcpuFile>, argument: Argument) -> IoctlResult {
    let [count, _]: ListHeader = argument.read()?;
    if count > ENTRIES_MAX {
        return Err(Errno::E2BIG);
    }
    let entries = user::read_slice(argument.after(size_of::<ListHeader>()), count as usize)?;
    let cpuid = GuestCpuid::new(entries)?;
    let mut state = file.vcpu.state();
    if state.has_run {
        return if state.cpuid.same_as(&cpuid, &state.cpu.state) { Ok(0) } else { Err(Errno::EINVAL) };
    }
    state.cpu.config = cpuid.config();
    state.cpu.flush_tlb();
    state.cpuid = cpuid;
    Ok(0)
}

fn get_cpuid2(file: &Arc<VcpuFile>, argument: Argument) -> IoctlResult {
    let [room, padding]: ListHeader = argument.read()?;
    let state = file.vcpu.state();
    let entries = state.cpuid.entries(&state.cpu.state);
    if (room as usize) < entries.len() {
        return Err(Errno::E2BIG);
    }
    user::write_slice(argument.after(size_of::<ListHeader>()), &entries)?;
    argument.write(&[entries.len() as u32, padding])
}

fn set_mp_state(file: &Arc<VcpuFile>, argument: Argument) -> IoctlResult {
    let wanted: kvm_mp_state = argument.read()?;
    let mut mailbox = file.vcpu.mailbox();
    let state = match wanted.mp_state {
        0 => MpState::Runnable,
        // The others come from a local APIC in the kernel.
        1..=4 if mailbox.lapic.is_none() => return Err(Errno::EINVAL),
        1 => MpState::Uninitialized,
        2 => MpState::InitReceived,
        3 => MpState::Halted,
        4 => MpState::SipiReceived,
        _ => return Err(Errno::EINVAL),
    };
    mailbox.mp_state = state;
    drop(mailbox);
    file.vcpu.wake();
    Ok(0)
}

fn set_guest_debug(file: &Arc<VcpuFile>, argument: Argument) -> IoctlResult {
    let debug: kvm_guest_debug = argument.read()?;
    let has = |flag| debug.control & flag != 0;
    if debug.control & !GUEST_DEBUG_FLAGS != 0 {
        return Err(Errno::EINVAL);
    }
    let mut state = file.vcpu.state();
    if has(KVM_GUESTDBG_INJECT_DB | KVM_GUESTDBG_INJECT_BP) {
        if state.cpu.state.injection.is_some() {
            return Err(Errno::EBUSY);
        }
        state.cpu.inject(if has(KVM_GUESTDBG_INJECT_DB) { Exception::db(0) } else { Exception::plain(vector::BP) });
    }
    let enabled = has(KVM_GUESTDBG_ENABLE);
    state.interrupts_blocked = enabled && has(KVM_GUESTDBG_BLOCKIRQ);
    let [dr0, dr1, dr2, dr3, .., dr7] = debug.arch.debugreg;
    state.cpu.debug = DebugControl {
        single_step: enabled && has(KVM_GUESTDBG_SINGLESTEP),
        software_breakpoints: enabled && has(KVM_GUESTDBG_USE_SW_BP),
        hardware_breakpoints: (enabled && has(KVM_GUESTDBG_USE_HW_BP)).then_some(([dr0, dr1, dr2, dr3], dr7)),
        records: false,
        tells_locked: false,
    };
    Ok(0)
}

fn get_debugregs(file: &Arc<VcpuFile>, argument: Argument) -> IoctlResult {
    let state = file.vcpu.state();
    let cpu = &state.cpu.state;
    argument.write(&kvm_debugregs { db: cpu.dr, dr6: cpu.dr6, dr7: cpu.dr7, flags: 0, ..zeroed() })
}

fn set_debugregs(file: &Arc<VcpuFile>, argument: Argument) -> IoctlResult {
    let registers: kvm_debugregs = argument.read()?;
    if registers.flags != 0 || registers.dr6 >> 32 != 0 || registers.dr7 >> 32 != 0 {
        return Err(Errno::EINVAL);
    }
    let mut state = file.vcpu.state();
    let cpu = &mut state.cpu.state;
    (cpu.dr, cpu.dr6, cpu.dr7) = (registers.db, registers.dr6, registers.dr7);
    Ok(0)
}

fn set_tsc_khz(file: &Arc<VcpuFile>, Argument(khz): Argument) -> IoctlResult {
    let khz = khz as u32;
    file.vcpu.state().tsc.set_khz(if khz == 0 { time::TSC_KHZ } else { khz });
    Ok(0)
}

fn pre_fault_memory(file: &Arc<VcpuFile>, argument: Argument) -> IoctlResult {
    let mut range: kvm_pre_fault_memory = argument.read()?;
    let result = pre_fault(file, &mut range);
    if !file.vm.options.has(Defect::PrefaultRemainderLost) {
        argument.write(&range)?;
    }
    result.map(|()| 0)
}

/// Faults pages in until one cannot be; `range` becomes what is left.
///
/// # Errors
/// Those of the first page.
fn pre_fault(file: &VcpuFile, range: &mut kvm_pre_fault_memory) -> Result<(), Errno> {
    if range.flags != 0
        || !range.gpa.is_multiple_of(PAGE_SIZE)
        || !range.size.is_multiple_of(PAGE_SIZE)
        || range.gpa.wrapping_add(range.size) <= range.gpa
    {
        return Err(Errno::EINVAL);
    }
    let mut state = file.vcpu.state();
    let whole = range.size;
    while range.size != 0 {
        let mut faults = Faults { memory: &file.vm.memory, stats: &file.vcpu.stats, mmio_cache: &mut state.mmio_cache };
        if let Err(failure) = faults.prefault(range.gpa) {
            if let Some(fault) = failure.memory_fault {
                run::report_memory_fault(file, fault);
            }
            return if range.size == whole { Err(failure.errno) } else { Ok(()) };
        }
        range.gpa += PAGE_SIZE;
        range.size -= PAGE_SIZE;
    }
    Ok(())
}
