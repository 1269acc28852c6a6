//! KVM_RUN.
//!
//! Source: `arch/x86/kvm/x86.c:kvm_arch_vcpu_ioctl_run`, `vcpu_run`.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use kvm_bindings::{kvm_regs, kvm_sregs, kvm_vcpu_events};
use nix::errno::Errno;
use privet_cpu::state::gpr;
use privet_cpu::{CpuExit, CpuState, Datum, Exception, Seg};

use crate::capability::SYNC_REGS_FIELDS;
use crate::defect::Defect;
use crate::dispatch::{Argument, IoctlResult};
use crate::events;
use crate::fault::{Failure, MemoryFault};
use crate::guest_bus::{BusExit, GuestBus};
use crate::host_memory::PAGE_SIZE;
use crate::hypercall;
use crate::ioeventfd::Target;
use crate::log;
use crate::personality::Personality;
use crate::registers;
use crate::run_page::{self, EXIT, EXIT_REASON, PORT_DATA, RunPage, reason};
use crate::signals::{self, Blocked};
use crate::stats;
use crate::ticker;
use crate::vcpu::{MpState, Pending, State, VcpuFile};
use crate::vcpu_ioctls;
use crate::vm::Irqchip;

/// `KVM_INTERNAL_ERROR_EMULATION`.
const EMULATION_FAILED: u32 = 1;
/// `KVM_INTERNAL_ERROR_DELIVERY_EV`.
const DELIVERY_FAILED: u32 = 3;

/// Fields of `kvm_valid_regs` and `kvm_dirty_regs`, and where they are.
const SYNC_GENERAL: (u64, usize) = (1, run_page::SYNC_REGS);
const SYNC_SPECIAL: (u64, usize) = (2, SYNC_GENERAL.1 + size_of::<kvm_regs>());
const SYNC_EVENTS: (u64, usize) = (4, SYNC_SPECIAL.1 + size_of::<kvm_sregs>());

/// `KVM_RUN`. The caller restores the signal mask when no lock is held any more.
///
/// # Errors
/// As the ioctl.
pub(crate) fn run(file: &Arc<VcpuFile>, argument: Argument) -> IoctlResult {
    if argument.0 != 0 {
        return Err(Errno::EINVAL);
    }
    let mut state = file.vcpu.state();
    let signals = signals::block(state.signal_mask);
    let result = enter(file, &mut state, &signals);
    let run = &file.vcpu.run;
    store_registers(file, &state, run);
    let cpu = &state.cpu.state;
    let interrupts_on = cpu.rflags & privet_cpu::flags::IF != 0;
    run.set(run_page::IF_FLAG, u8::from(interrupts_on));
    run.set(run_page::APIC_BASE, cpu.apic_base);
    run.set(run_page::CR8, vcpu_ioctls::get_sregs(file, &state).cr8);
    let has_lapic = file.vcpu.mailbox().lapic.is_some();
    run.set(run_page::READY_FOR_INTERRUPT, u8::from(has_lapic || interrupts_on && state.user_interrupt.is_none()));
    result
}

fn enter(file: &VcpuFile, state: &mut State, signals: &Blocked) -> IoctlResult {
    let (run, vcpu) = (&file.vcpu.run, &file.vcpu);
    let wants_to_run = run.get::<u8>(run_page::IMMEDIATE_EXIT) == 0;
    run.set(run_page::FLAGS, 0u16);
    if vcpu.mailbox().mp_state == MpState::Uninitialized {
        return if wants_to_run { wait_for_init(file, signals) } else { Err(Errno::EINTR) };
    }
    load_registers(file, state, run)?;
    let lapic_cr8 = vcpu.mailbox().lapic.as_ref().map(|lapic| lapic.cr8());
    state.cpu.state.cr8 = match lapic_cr8 {
        Some(cr8) => cr8,
        None => Some(run.get::<u64>(run_page::CR8)).filter(|cr8| *cr8 <= 0xf).ok_or(Errno::EINVAL)?,
    };
    complete(
        state,
        run,
        file.vm.options.has(Defect::HypercallRetIgnored),
        file.vm.options.has(Defect::MmioReadReturnsOld),
    );
    state.has_run = true;
    vcpu.kick.clear_stop();
    vcpu.kick.raise_event();
    if !wants_to_run {
        // Whatever is pending is completed, and may have one more question.
        vcpu.kick.stop();
        let result = execute(file, state);
        return result.unwrap_or(Err(Errno::EINTR));
    }
    run.set(EXIT_REASON, reason::UNKNOWN);
    let _ticking = ticker::tick(&vcpu.kick);
    loop {
        if signals.is_pending() {
            return Err(interrupted(file));
        }
        if !is_runnable(file, state, signals)? {
            continue;
        }
        if let Some(result) = execute(file, state) {
            return result;
        }
        vcpu.kick.clear_stop();
    }
}

/// A signal ends the run.
fn interrupted(file: &VcpuFile) -> Errno {
    file.vcpu.run.set(EXIT_REASON, reason::INTR);
    file.vcpu.stats.count(stats::SIGNAL_EXITS);
    Errno::EINTR
}

/// An application processor waits for its INIT.
///
/// # Errors
/// EAGAIN when it has come, EINTR.
fn wait_for_init(file: &VcpuFile, signals: &Blocked) -> IoctlResult {
    let mut mailbox = file.vcpu.mailbox();
    while mailbox.mp_state == MpState::Uninitialized {
        if signals.is_pending() {
            return Err(interrupted(file));
        }
        mailbox = file.vcpu.wait(mailbox);
    }
    Err(Errno::EAGAIN)
}

/// Whether the vCPU has something to execute; waits a tick if not.
///
/// # Errors
/// None; for the caller's `?`.
fn is_runnable(file: &VcpuFile, state: &mut State, _: &Blocked) -> Result<bool, Errno> {
    let mut mailbox = file.vcpu.mailbox();
    match mailbox.mp_state {
        MpState::Runnable => Ok(true),
        MpState::SipiReceived => {
            mailbox.mp_state = MpState::Runnable;
            let vector = mailbox.lapic.as_ref().map_or(0, |lapic| lapic.startup_vector);
            drop(mailbox);
            reset(state);
            let cs = &mut state.cpu.state.segments[Seg::Cs as usize];
            (cs.selector, cs.base) = (u16::from(vector) << 8, u64::from(vector) << 12);
            state.cpu.state.rip = 0;
            Ok(true)
        }
        MpState::Halted => {
            let due = state.nmis > 0
                || state.user_interrupt.is_some()
                || mailbox.lapic.as_mut().is_some_and(|lapic| lapic.has_interrupt());
            if due {
                mailbox.mp_state = MpState::Runnable;
                file.vcpu.stats.count(stats::HALT_WAKEUP);
                file.vcpu.kick.raise_event();
                return Ok(true);
            }
            file.vcpu.stats.set(stats::BLOCKING, 1);
            drop(file.vcpu.wait(mailbox));
            file.vcpu.stats.set(stats::BLOCKING, 0);
            Ok(false)
        }
        MpState::Uninitialized | MpState::InitReceived => {
            drop(file.vcpu.wait(mailbox));
            Ok(false)
        }
    }
}

/// INIT: registers as after reset, but for what INIT leaves alone.
fn reset(state: &mut State) {
    let old = &state.cpu.state;
    let kept = (old.apic_base, old.xcr0, old.fpu.clone());
    state.cpu.state = CpuState::reset();
    (state.cpu.state.apic_base, state.cpu.state.xcr0, state.cpu.state.fpu) = kept;
    state.cpu.abandon_completion();
    state.cpu.flush_tlb();
}

/// Takes the registers that the program has put into `kvm_run`.
///
/// # Errors
/// EINVAL.
fn load_registers(file: &VcpuFile, state: &mut State, run: &RunPage) -> Result<(), Errno> {
    let known = if file.vm.kind.has_protected_state() { 0 } else { SYNC_REGS_FIELDS };
    let (valid, dirty): (u64, u64) = (run.get(run_page::VALID_REGS), run.get(run_page::DIRTY_REGS));
    if (valid | dirty) & !known != 0 {
        return Err(Errno::EINVAL);
    }
    // Each bit is cleared once its registers are in, so that the kernel's answer to bad ones is the same.
    let taken = |bit: u64| run.set(run_page::DIRTY_REGS, run.get::<u64>(run_page::DIRTY_REGS) & !bit);
    if dirty & SYNC_GENERAL.0 != 0 {
        registers::set_regs(&mut state.cpu.state, run.get(SYNC_GENERAL.1));
        taken(SYNC_GENERAL.0);
    }
    if dirty & SYNC_SPECIAL.0 != 0 {
        vcpu_ioctls::set_sregs(file, state, &run.get(SYNC_SPECIAL.1))?;
        taken(SYNC_SPECIAL.0);
    }
    if dirty & SYNC_EVENTS.0 != 0 {
        events::set(state, &file.vm, run.get::<kvm_vcpu_events>(SYNC_EVENTS.1))?;
        taken(SYNC_EVENTS.0);
    }
    Ok(())
}

fn store_registers(file: &VcpuFile, state: &State, run: &RunPage) {
    let valid: u64 = run.get(run_page::VALID_REGS);
    if file.vm.kind.has_protected_state() {
        return;
    }
    if valid & SYNC_GENERAL.0 != 0 {
        run.set(SYNC_GENERAL.1, registers::get_regs(&state.cpu.state));
    }
    if valid & SYNC_SPECIAL.0 != 0 {
        run.set(SYNC_SPECIAL.1, vcpu_ioctls::get_sregs(file, state));
    }
    if valid & SYNC_EVENTS.0 != 0 {
        run.set(SYNC_EVENTS.1, events::get(state, &file.vm));
    }
}

/// Gives the CPU what user space has answered.
fn complete(state: &mut State, run: &RunPage, ignore_ret: bool, old_mmio: bool) {
    match std::mem::take(&mut state.pending) {
        Pending::None => {}
        Pending::PortIn(bytes) => {
            let mut data = vec![0; bytes];
            run.read(PORT_DATA, &mut data);
            state.cpu.complete_port_in(&data);
        }
        Pending::MmioRead(bytes) => {
            let mut data: u64 = run.get(EXIT + 8);
            if old_mmio {
                std::mem::swap(&mut data, &mut state.last_mmio);
            }
            state.cpu.complete_mmio_read(&data.to_le_bytes()[..bytes]);
        }
        Pending::Hypercall => {
            let ret = if ignore_ret { 0 } else { run.get(hypercall::RET) };
            let long = hypercall::is_64_bit(&state.cpu.state);
            state.cpu.state.gpr[gpr::RAX] = if long { ret } else { ret & 0xffff_ffff };
            state.cpu.skip_instruction();
        }
    }
}

/// Executes until there is something for user space, or the CPU was stopped: None.
fn execute(file: &VcpuFile, state: &mut State) -> Option<IoctlResult> {
    let vcpu = &file.vcpu;
    let run = &vcpu.run;
    if std::mem::take(&mut state.triple_fault) {
        return Some(shutdown(file, state));
    }
    loop {
        let (cpu, mut bus) = GuestBus::split(file, state);
        bus.wants_window = run.get::<u8>(run_page::REQUEST_INTERRUPT_WINDOW) != 0 && vcpu.mailbox().lapic.is_none();
        let exit = cpu.run(&mut bus);
        let starts_mmio = bus.mmio_begins;
        match exit {
            CpuExit::Stopped if bus.window_open => {
                run.set(EXIT_REASON, reason::IRQ_WINDOW_OPEN);
                vcpu.stats.count(stats::REQUEST_IRQ_EXITS);
                return Some(Ok(0));
            }
            // There are no turns here: each vCPU has a thread.
            CpuExit::Stopped | CpuExit::Turn => return None,
            CpuExit::MmioRead { gpa, .. } | CpuExit::MmioWrite { gpa, .. } | CpuExit::NoMemory { gpa }
                if cpu.state.injection.is_some() =>
            {
                cpu.abandon_completion();
                return Some(Ok(delivery_failed(run, gpa)));
            }
            CpuExit::MmioRead { gpa, len } => {
                count_mmio(file, starts_mmio);
                if let Some(value) = bus.lapic_load(cpu.state.apic_base, gpa) {
                    cpu.complete_mmio_read(&value.to_le_bytes());
                    continue;
                }
                vcpu.stats.add(stats::MMIO_EXITS, starts_mmio.into());
                mmio_exit(run, gpa, Datum::from_slice(&[0; 8][..len.into()]), false);
                state.pending = Pending::MmioRead(len.into());
                return Some(Ok(0));
            }
            CpuExit::MmioWrite { gpa, mut data } => {
                count_mmio(file, starts_mmio);
                if !starts_mmio && file.vm.options.has(Defect::MmioSecondPartLost) {
                    continue;
                }
                if file.vm.options.has(Defect::MmioWriteTruncated) {
                    data.bytes[2..].fill(0);
                }
                let value = u32::from_le_bytes([data.bytes[0], data.bytes[1], data.bytes[2], data.bytes[3]]);
                if bus.lapic_store(&mut cpu.state, gpa, value)
                    || file.vm.ioeventfds.take(Target::Mmio(gpa), data.as_slice(), file.vm.options)
                {
                    continue;
                }
                vcpu.stats.add(stats::MMIO_EXITS, starts_mmio.into());
                mmio_exit(run, gpa, data, true);
                return Some(Ok(0));
            }
            CpuExit::PortIn { port, size, count } => {
                let bytes = usize::from(size) * count as usize;
                if is_kernel_port(file, port) {
                    cpu.complete_port_in(&vec![0; bytes]);
                    continue;
                }
                run.write(PORT_DATA, &vec![0; bytes]);
                port_exit(run, false, size, port, count);
                state.pending = Pending::PortIn(bytes);
                return Some(Ok(0));
            }
            CpuExit::PortOut { port, data } => {
                let target = Target::Port(port.into());
                if is_kernel_port(file, port) || file.vm.ioeventfds.take(target, data.as_slice(), file.vm.options) {
                    continue;
                }
                run.write(PORT_DATA, data.as_slice());
                port_exit(run, true, data.len, port, 1);
                return Some(Ok(0));
            }
            CpuExit::Halt => {
                vcpu.stats.count(stats::HALT_EXITS);
                let mut mailbox = vcpu.mailbox();
                if mailbox.lapic.is_some() {
                    mailbox.mp_state = MpState::Halted;
                    return None;
                }
                run.set(EXIT_REASON, reason::HLT);
                return Some(Ok(0));
            }
            CpuExit::Shutdown => return Some(shutdown(file, state)),
            CpuExit::Bus => match bus.exit {
                Some(BusExit::Hypercall) => {
                    state.pending = Pending::Hypercall;
                    return Some(Ok(0));
                }
                Some(BusExit::Rung) => {
                    vcpu.stats.count(stats::EXITS);
                    continue;
                }
                Some(BusExit::Failure(failure)) => return Some(fail(file, failure)),
                None => return Some(Err(Errno::EIO)),
            },
            CpuExit::NoMemory { gpa } => {
                // KVM's emulator gives up (`handle_emulation_failure`): the guest gets #UD, and user space is
                // told where it is the guest's kernel, or wants to know in any case.
                count_mmio(file, true);
                vcpu.stats.count(stats::INSN_EMULATION_FAIL);
                let always = file.vm.exit_on_emulation_failure.load(Ordering::SeqCst);
                let supervisor = cpu.state.cpl() == 0;
                if !always {
                    cpu.inject(Exception::ud());
                }
                if always || supervisor {
                    internal_error(run, EMULATION_FAILED, &emulation_failure(&[], gpa));
                    return Some(Ok(0));
                }
            }
            CpuExit::UnknownInstruction { rip, bytes, len } => {
                let bytes = &bytes[..usize::from(len).min(bytes.len())];
                log::once(|| format!("the CPU has no instruction {bytes:02x?} (rip {rip:#x})"));
                internal_error(run, EMULATION_FAILED, &emulation_failure(bytes, 0));
                vcpu.stats.count(stats::INSN_EMULATION_FAIL);
                return Some(Ok(0));
            }
            CpuExit::Debug { exception, pc, dr6, dr7 } => {
                run.set(EXIT_REASON, reason::DEBUG);
                run.set(EXIT, u64::from(exception.vector));
                for (index, value) in [pc, dr6, dr7].into_iter().enumerate() {
                    run.set(EXIT + 8 + index * 8, value);
                }
                return Some(Ok(0));
            }
        }
    }
}

/// The emulator decodes an instruction whose access is MMIO; further parts of the same are not counted.
fn count_mmio(file: &VcpuFile, first: bool) {
    file.vcpu.stats.add(stats::INSN_EMULATION, first.into());
}

/// Ports of the interrupt controllers and the timer, where they are the kernel's.
fn is_kernel_port(file: &VcpuFile, port: u16) -> bool {
    let config = file.vm.config();
    config.irqchip == Irqchip::Full && matches!(port, 0x20 | 0x21 | 0xa0 | 0xa1 | 0x4d0 | 0x4d1)
        || config.has_pit && matches!(port, 0x40..=0x43 | 0x61)
}

fn mmio_exit(run: &RunPage, gpa: u64, data: Datum, write: bool) {
    run.set(EXIT_REASON, reason::MMIO);
    run.set(EXIT, gpa);
    run.set(EXIT + 8, data.bytes);
    run.set(EXIT + 16, u32::from(data.len));
    run.set(EXIT + 20, u8::from(write));
}

fn port_exit(run: &RunPage, out: bool, size: u8, port: u16, count: u32) {
    run.set(EXIT_REASON, reason::IO);
    run.set(EXIT, [u8::from(out), size]);
    run.write(EXIT + 2, &port.to_le_bytes());
    run.set(EXIT + 4, count);
    run.set(EXIT + 8, PORT_DATA as u64);
}

/// A triple fault. AMD CPUs leave no state behind, so KVM gives the vCPU that of an INIT.
fn shutdown(file: &VcpuFile, state: &mut State) -> IoctlResult {
    file.vcpu.stats.count(stats::EXITS);
    file.vcpu.run.set(EXIT_REASON, reason::SHUTDOWN);
    if file.vm.options.personality != Personality::Intel {
        reset(state);
    }
    Ok(0)
}

/// Memory that cannot be had.
fn fail(file: &VcpuFile, failure: Failure) -> IoctlResult {
    let Some(fault) = failure.memory_fault else { return Err(failure.errno) };
    if !file.vm.options.has(Defect::FaultReasonMissing) {
        report_memory_fault(file, fault);
    }
    if file.vm.options.has(Defect::FaultReturnsZero) { Ok(0) } else { Err(failure.errno) }
}

/// Fills in `KVM_EXIT_MEMORY_FAULT`.
pub(crate) fn report_memory_fault(file: &VcpuFile, fault: MemoryFault) {
    let (run, options) = (&file.vcpu.run, file.vm.options);
    let private = fault.private && !options.has(Defect::FaultFlagMissing);
    let offset = if options.has(Defect::FaultGpaNotAligned) { 8 } else { 0 };
    run.set(EXIT_REASON, reason::MEMORY_FAULT);
    run.set(EXIT, if private { 1u64 << 3 } else { 0 });
    run.set(EXIT + 8, fault.gpa + offset);
    run.set(EXIT + 16, if options.has(Defect::FaultSizeZero) { 0 } else { PAGE_SIZE });
}

fn internal_error(run: &RunPage, suberror: u32, data: &[u64]) {
    run.set(EXIT_REASON, reason::INTERNAL_ERROR);
    run.set(EXIT, suberror);
    run.set(EXIT + 4, data.len() as u32);
    for (index, value) in data.iter().enumerate() {
        run.set(EXIT + 8 + index * 8, *value);
    }
}

/// `emulation_failure`: flags, the bytes of the instruction if there are any, and what the hardware said of the
/// exit, an NPF on a reserved bit (kernel: `prepare_emulation_failure_exit`).
fn emulation_failure(bytes: &[u8], gpa: u64) -> Vec<u64> {
    const HAS_BYTES: u64 = 1;
    const NOP: u8 = 0x90;
    let mut data = vec![0];
    if !bytes.is_empty() {
        let mut field = [NOP; 16];
        field[0] = bytes.len() as u8;
        field[1..=bytes.len()].copy_from_slice(bytes);
        data[0] = HAS_BYTES;
        data.extend([0, 8].map(|at| u64::from_le_bytes(std::array::from_fn(|index| field[at + index]))));
    }
    let (npf, reserved_bit) = (0x400, 1 << 3);
    data.extend([npf, reserved_bit, gpa, 0, 0]);
    data
}

/// A descriptor or a stack that an event needs is MMIO (kernel: `kvm_prepare_event_vectoring_exit`, with the
/// exit of an AMD CPU: an NPF).
fn delivery_failed(run: &RunPage, gpa: u64) -> i32 {
    let (npf, reserved_bit, cpu) = (0x400, 1 << 3, 0);
    internal_error(run, DELIVERY_FAILED, &[gpa, npf, reserved_bit, gpa, cpu]);
    0
}
