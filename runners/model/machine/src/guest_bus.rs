//! What a vCPU's CPU is plugged into: the VM's memory, CPUID, MSRs, interrupts and intercepts.

use std::sync::atomic::Ordering;

use privet_cpu::state::gpr;
use privet_cpu::{
    Access, AccessKind, Bus, Call, Cpu, CpuState, CpuidResult, Event, Exception, HostPage, Intercept, Intercepted,
    Resolve,
};

use crate::capability::QUIRK_FIX_HYPERCALL;
use crate::cpuid::GuestCpuid;
use crate::defect::Defect;
use crate::fault::{Failure, Faults, MmioCache, Resolved};
use crate::host_memory::PAGE_SHIFT;
use crate::hypercall::{self, Answer};
use crate::lapic;
use crate::msr::{self, Msrs};
use crate::personality::Personality;
use crate::stats;
use crate::time::{self, Tsc};
use crate::vcpu::{State, Vcpu, VcpuFile};
use crate::vm::Vm;

/// Why the bus has ended a run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum BusExit {
    /// Memory.
    Failure(Failure),
    /// A hypercall for user space, which is in `kvm_run` already.
    Hypercall,
    /// An ioeventfd has taken the access, and the instruction is over.
    Rung,
}

/// The bus of one vCPU, while its state is held.
pub(crate) struct GuestBus<'a> {
    vm: &'a Vm,
    vcpu: &'a Vcpu,
    cpuid: &'a GuestCpuid,
    msrs: &'a mut Msrs,
    mmio_cache: &'a mut Option<MmioCache>,
    tsc: &'a mut Tsc,
    user_interrupt: &'a mut Option<u8>,
    nmis: &'a mut u8,
    interrupts_blocked: bool,
    /// User space waits for the guest to accept an interrupt.
    pub(crate) wants_window: bool,
    /// And now it does.
    pub(crate) window_open: bool,
    /// Why the CPU was told to exit.
    pub(crate) exit: Option<BusExit>,
    /// An access has become MMIO, and its first exit is still to come.
    pub(crate) mmio_begins: bool,
}

impl<'a> GuestBus<'a> {
    /// The CPU and the bus that it runs on.
    pub(crate) fn split(file: &'a VcpuFile, state: &'a mut State) -> (&'a mut Cpu, Self) {
        let bus = Self {
            vm: &file.vm,
            vcpu: &file.vcpu,
            cpuid: &state.cpuid,
            msrs: &mut state.msrs,
            mmio_cache: &mut state.mmio_cache,
            tsc: &mut state.tsc,
            user_interrupt: &mut state.user_interrupt,
            nmis: &mut state.nmis,
            interrupts_blocked: state.interrupts_blocked,
            wants_window: false,
            window_open: false,
            exit: None,
            mmio_begins: false,
        };
        (&mut state.cpu, bus)
    }

    fn hypercall(&mut self, state: &mut CpuState, call: Call) -> Intercepted {
        let own = if self.vm.options.personality == Personality::Intel { Call::Vmcall } else { Call::Vmmcall };
        if call != own {
            return self.fix_hypercall(state, call, own);
        }
        self.vcpu.stats.count(stats::HYPERCALLS);
        let enabled = self.vm.exit_hypercalls.load(Ordering::SeqCst);
        match hypercall::handle(state, &self.vcpu.run, enabled, self.vm.options) {
            Answer::Return(value) => {
                state.gpr[gpr::RAX] = value;
                Intercepted::Done
            }
            Answer::Exit => {
                self.exit = Some(BusExit::Hypercall);
                Intercepted::Exit
            }
        }
    }

    /// The other vendor's hypercall instruction: #UD, which KVM's emulator looks into (kernel:
    /// `emulate.c:em_hypercall`, `x86.c:emulator_fix_hypercall`). To it, VMCALL is privileged.
    fn fix_hypercall(&mut self, state: &CpuState, call: Call, own: Call) -> Intercepted {
        self.vcpu.stats.count(stats::INSN_EMULATION);
        if call == Call::Vmcall && state.cpl() != 0 {
            return Intercepted::Reflect(Exception::gp(0));
        }
        if !self.vm.has_quirk(QUIRK_FIX_HYPERCALL) && !self.vm.options.has(Defect::HypercallQuirkIgnored) {
            return Intercepted::Reflect(Exception::ud());
        }
        Intercepted::Rewrite(if own == Call::Vmcall { [0x0f, 0x01, 0xc1] } else { [0x0f, 0x01, 0xd9] })
    }

    /// The local APIC's register behind an x2APIC MSR.
    fn x2apic_register(&self, state: &CpuState, index: u32) -> Option<usize> {
        let x2apic_enabled = 0b11 << 10;
        let has_lapic = self.vcpu.mailbox().lapic.is_some();
        (has_lapic && (0x800..0x900).contains(&index) && state.apic_base & x2apic_enabled == x2apic_enabled)
            .then(|| ((index - 0x800) << 4) as usize)
    }

    /// The reserved bit of an MMIO entry is enough for an ioeventfd of any length, where the CPU tells how long the
    /// instruction is; its generation does not matter (kernel: `svm.c:npf_interception`, `vmx.c:handle_ept_misconfig`).
    fn rings_undecoded(&self, gpa: u64) -> bool {
        self.vm.options.knows_next_rip()
            && self.vm.ioeventfds.are_any()
            && self.vm.memory.is_mmio_entry(gpa >> PAGE_SHIFT)
            && self.vm.ioeventfds.take_undecoded(gpa)
    }

    fn send(&self, message: Option<lapic::Message>) {
        if let Some(message) = message {
            let vcpus = self.vm.config().vcpus.clone();
            lapic::send(message, self.vcpu, &vcpus);
        }
        self.vcpu.kick.raise_event();
    }

    /// An access to the page of the local APIC; none if it is elsewhere or not there.
    pub(crate) fn lapic_load(&self, apic_base: u64, gpa: u64) -> Option<u32> {
        let offset = lapic_offset(apic_base, gpa)?;
        Some(self.vcpu.mailbox().lapic.as_mut()?.read(offset))
    }

    /// Likewise a store; false if the local APIC is elsewhere or not there.
    pub(crate) fn lapic_store(&self, state: &mut CpuState, gpa: u64, value: u32) -> bool {
        let Some(offset) = lapic_offset(state.apic_base, gpa) else { return false };
        let message = match self.vcpu.mailbox().lapic.as_mut() {
            Some(lapic) => {
                let message = lapic.write(offset, value);
                state.cr8 = lapic.cr8();
                message
            }
            None => return false,
        };
        self.send(message);
        true
    }
}

/// Whether KVM has the instruction end in an exit. Reading the time is left to the hardware, for one.
fn is_intercepted(what: Intercept) -> bool {
    !matches!(
        what,
        Intercept::Rdtsc
            | Intercept::Rdtscp
            | Intercept::Pause
            | Intercept::Iret
            | Intercept::Pushf
            | Intercept::Popf
            | Intercept::SoftwareInterrupt(_)
            | Intercept::Icebp
            | Intercept::ReadCr { .. }
            | Intercept::WriteCr { .. }
            | Intercept::Xsetbv
            | Intercept::Invlpg { .. }
            | Intercept::Invpcid { .. }
            | Intercept::Table { .. }
    )
}

/// The offset in the local APIC's page, in xAPIC mode.
fn lapic_offset(apic_base: u64, gpa: u64) -> Option<usize> {
    let (x2apic, enabled, page) = (1 << 10, 1 << 11, apic_base & 0xf_ffff_ffff_f000);
    (apic_base & enabled != 0 && apic_base & x2apic == 0 && gpa & !0xfff == page).then_some((gpa & 0xfff) as usize)
}

impl Bus for GuestBus<'_> {
    #[expect(unsafe_code, reason = "pages of slots are handed to the CPU")]
    fn resolve(&mut self, _: &mut CpuState, gpa: u64, access: Access) -> Resolve {
        let write = access.kind == AccessKind::Write;
        if !access.emulated
            && !access.walk
            && access.kind != AccessKind::Fetch
            && self.rings_undecoded(gpa | u64::from(access.offset))
        {
            self.exit = Some(BusExit::Rung);
            return Resolve::Skip;
        }
        let mut faults = Faults { memory: &self.vm.memory, stats: &self.vcpu.stats, mmio_cache: self.mmio_cache };
        let resolved = if access.emulated { Ok(faults.emulated(gpa, write)) } else { faults.resolve(gpa, write) };
        match resolved {
            // SAFETY: a page of a slot that is present. `Memory` has all vCPUs flush, and waits for that, before
            // the mapping goes: when the slot or the file goes, and when the program changes its mappings
            // through the C library. Nobody in this process has a Rust reference to guest memory.
            Ok(Resolved::Page(host, writable)) => Resolve::Page(unsafe { HostPage::new(host, writable) }),
            Ok(Resolved::Mmio) => {
                self.mmio_begins |= !access.emulated;
                Resolve::Mmio
            }
            Err(failure) => {
                self.exit = Some(BusExit::Failure(failure));
                Resolve::Exit
            }
        }
    }

    fn cpuid(&mut self, state: &CpuState, leaf: u32, subleaf: u32) -> CpuidResult {
        self.cpuid.query(state, self.vm.options, leaf, subleaf)
    }

    fn rdmsr(&mut self, state: &CpuState, index: u32) -> Result<u64, Exception> {
        if index == msr::TSC {
            return Ok(self.tsc.get());
        }
        if index == msr::PLATFORM_INFO && self.vm.hides_platform_info.load(Ordering::SeqCst) {
            return Err(Exception::gp(0));
        }
        if let Some(register) = self.x2apic_register(state, index) {
            let mut mailbox = self.vcpu.mailbox();
            return Ok(mailbox.lapic.as_mut().map_or(0, |lapic| lapic.read(register).into()));
        }
        self.msrs.get(&mut state.clone(), index, self.vm.options).ok_or(Exception::gp(0))
    }

    fn wrmsr(&mut self, state: &mut CpuState, index: u32, value: u64) -> Result<(), Exception> {
        if index == msr::TSC || index == msr::TSC_ADJUST {
            // Either goes along with the other when the guest writes it; user space sets each on its own.
            let other = if index == msr::TSC { msr::TSC_ADJUST } else { msr::TSC };
            let [before, was] = [index, other].map(|index| self.rdmsr(state, index));
            let moved = was?.wrapping_add(value.wrapping_sub(before?));
            let (counter, adjust) = if index == msr::TSC { (value, moved) } else { (moved, value) };
            self.tsc.set(counter);
            self.msrs.set(state, msr::TSC_ADJUST, adjust, self.vm.options);
            return Ok(());
        }
        if let Some(register) = self.x2apic_register(state, index) {
            let command = 0x300;
            let message = match self.vcpu.mailbox().lapic.as_mut() {
                Some(lapic) if register == command => Some(lapic.write_x2apic_command(value)),
                Some(lapic) => {
                    let message = lapic.write(register, value as u32);
                    state.cr8 = lapic.cr8();
                    message
                }
                None => None,
            };
            self.send(message);
            return Ok(());
        }
        if msr::WALL_CLOCKS.contains(&index) {
            // As in the kernel, an address without memory is nobody's mistake.
            let _ = time::write_wall_clock(&self.vm.memory, value);
        }
        if msr::SYSTEM_TIMES.contains(&index) && value & 1 != 0 {
            let _ = time::write_system_time(&self.vm.memory, value & !1, self.tsc.get());
        }
        if index == msr::APIC_BASE {
            let reserved = !0 << self.cpuid.physical_bits() | 0x2ff;
            if value & reserved != 0 {
                return Err(Exception::gp(0));
            }
        }
        if self.msrs.set(state, index, value, self.vm.options) { Ok(()) } else { Err(Exception::gp(0)) }
    }

    fn tsc(&mut self, _: &CpuState) -> u64 {
        self.tsc.get()
    }

    fn intercept(&mut self, state: &mut CpuState, what: Intercept, _length: u8) -> Intercepted {
        if !is_intercepted(what) {
            return Intercepted::Native;
        }
        self.vcpu.stats.count(stats::EXITS);
        match what {
            Intercept::Call(call @ (Call::Vmcall | Call::Vmmcall)) => self.hypercall(state, call),
            Intercept::Call(_) => Intercepted::Reflect(Exception::ud()),
            Intercept::PortIo { .. } => {
                self.vcpu.stats.count(stats::IO_EXITS);
                Intercepted::Native
            }
            // There are no performance counters.
            Intercept::Rdpmc => Intercepted::Reflect(Exception::gp(0)),
            // KVM treats both as no-ops.
            Intercept::Monitor | Intercept::Mwait => Intercepted::Done,
            _ => Intercepted::Native,
        }
    }

    fn take_event(&mut self, _: &mut CpuState, interrupts_open: bool, nmis_open: bool) -> Option<Event> {
        if nmis_open && *self.nmis > 0 {
            *self.nmis -= 1;
            self.vcpu.stats.count(stats::NMI_INJECTIONS);
            return Some(Event::Nmi);
        }
        if !interrupts_open || self.interrupts_blocked {
            return None;
        }
        let vector = self.user_interrupt.take().or_else(|| self.vcpu.mailbox().lapic.as_mut()?.take_interrupt());
        if let Some(vector) = vector {
            self.vcpu.stats.count(stats::IRQ_INJECTIONS);
            return Some(Event::Interrupt(vector));
        }
        if self.wants_window {
            self.window_open = true;
            self.vcpu.kick.stop();
        }
        None
    }

    fn set_task_priority(&mut self, _: &mut CpuState, cr8: u64) {
        if let Some(lapic) = self.vcpu.mailbox().lapic.as_mut() {
            lapic.set_cr8(cr8);
        }
        self.vcpu.kick.raise_event();
    }
}
