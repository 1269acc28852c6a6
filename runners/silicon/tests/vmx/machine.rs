//! A processor with VMX and 4 MiB of memory: the test is the hypervisor, its code is VMLAUNCH, VMRESUME and HLT.
//!
//! The guest's memory is 2 MiB behind an EPT of 4 KiB pages: guest-physical address 0 is [`GUEST_MEMORY`].
#![expect(unsafe_code, reason = "memory is named to the CPU here")]

use std::cell::UnsafeCell;
use std::sync::Arc;

use privet_cpu::state::{cr0, cr4, efer, gpr};
use privet_cpu::{
    Access, Bus, Cpu, CpuExit, CpuState, CpuidResult, Event, Exception, HostPage, Intercept, Intercepted, Kick,
    Reaction, Resolve, Seg, Segment, VmxAnswer, VmxCall, flags,
};
use privet_silicon::encryption::Key;
use privet_silicon::rmp::Rmp;
use privet_silicon::vmx::{Features, Vmx};
use privet_silicon::{
    Board, Flush, KeyedMemory, Pending, PhysicalMemory, Taken, Translation, read_u64, write_u32, write_u64,
};

const MEMORY_BYTES: u64 = 0x40_0000;
const HOST_TABLES: u64 = 0x1000;
const VMXON_REGION: u64 = 0x3000;
const VMCS: u64 = 0x4000;
const REVISION: u32 = 0x12;
pub(crate) const VIRTUAL_APIC: u64 = 0x5000;
/// Where accesses to the guest's APIC lead, and the guest-physical page that leads there.
const APIC_ACCESS: u64 = 0x6000;
pub(crate) const APIC: u64 = 0x1f_f000;
const LAUNCH: u64 = 0xa000;
const RESUME: u64 = 0xa010;
const EXIT: u64 = 0xa020;
const EPT: u64 = 0x1_0000;
/// Where the guest's memory is.
const GUEST_MEMORY: u64 = 0x20_0000;

const GUEST_TABLES: u64 = 0x1000;
const GUEST_IDT: u64 = 0x3000;
const GUEST_GDT: u64 = 0x4000;
/// The guest's stack grows down from here.
pub(crate) const STACK: u64 = 0x8000;
/// The guest's program.
pub(crate) const CODE: u64 = 0x1_0000;
/// Where the guest's handler of each vector is, this far apart from the next.
pub(crate) const HANDLERS: u64 = 0x2_0000;
pub(crate) const HANDLER_BYTES: u64 = 0x10;
const VMCALL: [u8; 3] = [0x0f, 0x01, 0xc1];

/// Encodings of fields.
pub(crate) mod field {
    pub(crate) const VPID: u64 = 0x0000;
    pub(crate) const INTERRUPT_STATUS: u64 = 0x0810;
    pub(crate) const PIN: u64 = 0x4000;
    pub(crate) const PROC: u64 = 0x4002;
    pub(crate) const EXCEPTIONS: u64 = 0x4004;
    pub(crate) const ENTRY_EVENT: u64 = 0x4016;
    pub(crate) const ENTRY_LENGTH: u64 = 0x401a;
    pub(crate) const PROC2: u64 = 0x401e;
    pub(crate) const REASON: u64 = 0x4402;
    pub(crate) const EVENT: u64 = 0x4404;
    pub(crate) const VECTORING: u64 = 0x4408;
    pub(crate) const LENGTH: u64 = 0x440c;
    pub(crate) const INTERRUPTIBILITY: u64 = 0x4824;
    pub(crate) const TIMER: u64 = 0x482e;
    pub(crate) const CR0_MASK: u64 = 0x6000;
    pub(crate) const CR0_SHADOW: u64 = 0x6004;
    pub(crate) const QUALIFICATION: u64 = 0x6400;
    pub(crate) const GPA: u64 = 0x2400;
    pub(crate) const LINEAR: u64 = 0x640a;
    pub(crate) const RSP: u64 = 0x681c;
    pub(crate) const RIP: u64 = 0x681e;
    pub(crate) const RFLAGS: u64 = 0x6820;
}

#[repr(C, align(4096))]
struct Page(UnsafeCell<[u8; 4096]>);

/// Memory and what the silicon asks of a board.
pub(crate) struct Surroundings {
    pages: Vec<Page>,
    kick: Arc<Kick>,
    tsc: u64,
}

impl Surroundings {
    fn page(&self, pa: u64) -> Option<*mut u8> {
        self.pages.get((pa >> 12) as usize).map(|page| page.0.get().cast())
    }
}

impl PhysicalMemory for Surroundings {
    fn read(&mut self, pa: u64, bytes: &mut [u8]) {
        for (at, byte) in (pa..).zip(bytes) {
            // SAFETY: the offset is inside the page, and no reference to it is alive.
            *byte = self.page(at).map_or(0xff, |page| unsafe { page.add((at & 0xfff) as usize).read() });
        }
    }

    fn write(&mut self, pa: u64, bytes: &[u8]) {
        for (at, byte) in (pa..).zip(bytes) {
            if let Some(page) = self.page(at) {
                // SAFETY: as above.
                unsafe { page.add((at & 0xfff) as usize).write(*byte) };
            }
        }
    }
}

impl KeyedMemory for Surroundings {
    fn size(&self) -> u64 {
        MEMORY_BYTES
    }

    fn read_as(&mut self, _: Key, pa: u64, bytes: &mut [u8]) {
        self.read(pa, bytes);
    }

    fn write_as(&mut self, _: Key, pa: u64, bytes: &[u8]) {
        self.write(pa, bytes);
    }

    fn flush_page(&mut self, _: u64) {
        self.kick.request_flush();
    }

    fn flush_large_page(&mut self, _: u64) {
        self.kick.request_flush();
    }

    fn flush_asid(&mut self, _: u16) {
        self.kick.request_flush();
    }
}

impl Board for Surroundings {
    fn flush(&mut self, what: Flush) {
        match what {
            Flush::World(world) => self.kick.request(privet_cpu::Flush::World(world)),
            Flush::All | Flush::Page(..) => self.kick.request_flush(),
        }
    }

    fn raise_event(&mut self) {
        self.kick.raise_event();
    }

    fn guest_key(&self, _: u16) -> Option<Key> {
        None
    }

    fn rmp(&self) -> Option<Rmp> {
        None
    }

    fn tsc(&self) -> u64 {
        self.tsc
    }

    fn unsimulated(&mut self, what: &'static str) {
        panic!("not simulated: {what}");
    }
}

/// The processor's way to all of it.
pub(crate) struct TestBus {
    vmx: Vmx,
    board: Surroundings,
    /// What waits in the local APIC.
    pub(crate) interrupt: Option<u8>,
}

impl Bus for TestBus {
    fn resolve(&mut self, state: &mut CpuState, gpa: u64, access: Access) -> Resolve {
        match self.vmx.translate(&mut self.board, state, gpa, access) {
            Translation::Switched => Resolve::Switched,
            Translation::Reflect(exception) => Resolve::Reflect(exception),
            Translation::Device(page) => Resolve::Device(page),
            Translation::Page { page, .. } => match self.board.page(page) {
                // SAFETY: the pages are mapped as long as the machine lives, and nobody has a reference to them.
                Some(start) => Resolve::Page(unsafe { HostPage::new(start, true) }),
                None => Resolve::Mmio,
            },
        }
    }

    fn device_read(&mut self, _: &mut CpuState, address: u64, data: &mut [u8]) {
        assert!(self.vmx.device_read(&mut self.board, address, data), "{address:#x}");
    }

    fn device_write(&mut self, _: &mut CpuState, address: u64, data: &[u8]) {
        assert!(self.vmx.device_write(&mut self.board, address, data), "{address:#x}");
    }

    fn cpuid(&mut self, _: &CpuState, _: u32, _: u32) -> CpuidResult {
        CpuidResult::default()
    }

    fn rdmsr(&mut self, _: &CpuState, index: u32) -> Result<u64, Exception> {
        self.vmx.rdmsr(index).ok_or(Exception::gp(0))
    }

    fn wrmsr(&mut self, _: &mut CpuState, index: u32, value: u64) -> Result<(), Exception> {
        self.vmx.wrmsr(index, value).unwrap_or(Err(Exception::gp(0)))
    }

    fn tsc(&mut self, _: &CpuState) -> u64 {
        self.vmx.tsc(self.board.tsc)
    }

    fn intercept(&mut self, state: &mut CpuState, what: Intercept, length: u8) -> Intercepted {
        self.vmx.intercept(&mut self.board, state, what, length)
    }

    fn vmx(&mut self, state: &mut CpuState, call: VmxCall) -> VmxAnswer {
        self.vmx.vmx(&mut self.board, state, call)
    }

    fn exception(&mut self, state: &mut CpuState, exception: Exception) -> Reaction {
        self.vmx.exception(&mut self.board, state, exception)
    }

    fn shutdown(&mut self, state: &mut CpuState) -> Reaction {
        self.vmx.shutdown(&mut self.board, state)
    }

    fn take_event(&mut self, state: &mut CpuState, _: bool, _: bool) -> Option<Event> {
        let pending = Pending { interrupt: self.interrupt, ..Pending::default() };
        match self.vmx.take_event(&mut self.board, state, pending) {
            Taken::Interrupt => self.interrupt.take().map(Event::Interrupt),
            Taken::Virtual(vector) => Some(Event::Interrupt(vector)),
            Taken::Switched => Some(Event::Switched),
            Taken::SwitchedByInterrupt => {
                self.interrupt = None;
                Some(Event::Switched)
            }
            Taken::Halted => Some(Event::Halted),
            _ => None,
        }
    }
}

/// The machine with its guest.
pub(crate) struct Machine {
    cpu: Cpu,
    pub(crate) bus: TestBus,
    launched: bool,
}

impl Machine {
    /// A guest in 64-bit mode at CPL 0 with EPT and a VPID whose program is `code`, without any control that has it exit; each
    /// of its interrupt handlers is a VMCALL.
    pub(crate) fn new(code: &[u8]) -> Machine {
        let features = Features::current();
        let mut cpu = Cpu::new(privet_cpu::Config {
            physical_bits: features.physical_bits,
            cr4_allowed: features.cr4,
            efer_allowed: features.efer,
            ..privet_cpu::Config::default()
        });
        let pages = (0..MEMORY_BYTES >> 12).map(|_| Page(UnsafeCell::new([0; 4096]))).collect();
        let board = Surroundings { pages, kick: Arc::clone(cpu.kick()), tsc: 0 };
        let mut bus = TestBus { vmx: Vmx::new(features), board, interrupt: None };
        host(&mut cpu.state, &mut bus.board);
        guest(&mut bus.board, code);
        let mut machine = Machine { cpu, bus, launched: false };
        for call in [VmxCall::Vmxon(VMXON_REGION), VmxCall::Vmclear(VMCS), VmxCall::Vmptrld(VMCS)] {
            machine.call(call);
        }
        machine.vmcs();
        machine
    }

    fn call(&mut self, call: VmxCall) -> VmxAnswer {
        let answer = self.bus.vmx.vmx(&mut self.bus.board, &mut self.cpu.state, call);
        assert_eq!(self.cpu.state.rflags & (flags::CF | flags::ZF), 0, "{call:x?}");
        answer
    }

    /// Runs the guest until it exits; the exit reason.
    pub(crate) fn run(&mut self) -> u64 {
        let exit = self.enter();
        assert_eq!(exit, CpuExit::Halt, "the host halts after an exit: {:x?}", self.cpu.state);
        assert!(!self.bus.vmx.in_guest());
        assert_eq!(self.cpu.state.rip, EXIT + 1, "not behind its HLT: the entry has failed");
        self.get(field::REASON)
    }

    /// Runs the guest until the processor stops, in the guest or in the host.
    pub(crate) fn enter(&mut self) -> CpuExit {
        self.cpu.state.rip = if self.launched { RESUME } else { LAUNCH };
        self.launched = true;
        self.cpu.run(&mut self.bus)
    }

    /// Goes on with a guest that has stopped.
    pub(crate) fn go_on(&mut self) -> CpuExit {
        self.bus.vmx.halted();
        self.cpu.run(&mut self.bus)
    }

    /// A field of the VMCS.
    pub(crate) fn get(&mut self, field: u64) -> u64 {
        match self.call(VmxCall::Vmread { field }) {
            VmxAnswer::Value(value) => value,
            other => panic!("{other:?}"),
        }
    }

    /// Sets a field of the VMCS.
    pub(crate) fn set(&mut self, field: u64, value: u64) -> &mut Machine {
        self.call(VmxCall::Vmwrite { field, value });
        self
    }

    /// Sets bits of a field of the VMCS.
    pub(crate) fn add(&mut self, field: u64, bits: u64) -> &mut Machine {
        let value = self.get(field);
        self.set(field, value | bits)
    }

    /// A word of the guest's memory.
    pub(crate) fn peek(&mut self, gpa: u64) -> u64 {
        read_u64(&mut self.bus.board, GUEST_MEMORY + gpa)
    }

    /// Stores a word of the guest's memory.
    pub(crate) fn poke(&mut self, gpa: u64, value: u64) {
        write_u64(&mut self.bus.board, GUEST_MEMORY + gpa, value);
    }

    /// A word of the virtual-APIC page.
    pub(crate) fn set_apic(&mut self, offset: u64, value: u32) {
        write_u32(&mut self.bus.board, VIRTUAL_APIC + offset, value);
    }

    /// A general register of the guest, but for RSP.
    pub(crate) fn register(&mut self, index: usize) -> &mut u64 {
        &mut self.cpu.state.gpr[index]
    }

    pub(crate) fn state(&mut self) -> &mut CpuState {
        &mut self.cpu.state
    }

    pub(crate) fn at(&mut self, tsc: u64) {
        self.bus.board.tsc = tsc;
        self.bus.board.raise_event();
    }

    /// Changes the entry of the guest's page in the EPT, and has the processor forget what it knew.
    pub(crate) fn map(&mut self, gpa: u64, change: impl FnOnce(u64) -> u64) {
        let at = EPT + 0x3000 + (gpa >> 12) * 8;
        let entry = read_u64(&mut self.bus.board, at);
        write_u64(&mut self.bus.board, at, change(entry));
        self.call(VmxCall::Invept { kind: 2, descriptor: 0 });
    }

    fn vmcs(&mut self) {
        let host = self.cpu.state.clone();
        for (field, value) in [
            (field::VPID, 1),
            (field::PIN, 0x16 | 1 | 1 << 3),
            (field::PROC, 0x0400_6172 | 1 << 31),
            (field::PROC2, 1 << 1 | 1 << 5),
            (0x400c, 0x3_6dfb | 1 << 9 | 1 << 15 | 1 << 21),
            (0x4012, 0x11fb | 1 << 9 | 1 << 15),
            (0x2012, VIRTUAL_APIC),
            (0x2014, APIC_ACCESS),
            (0x201a, EPT | 0x1e),
            (0x2800, u64::MAX),
            (0x2806, efer::LME | efer::LMA),
            (0x2c02, host.efer),
            (0x6c00, host.cr0),
            (0x6c02, host.cr3),
            (0x6c04, host.cr4),
            (0x6c16, EXIT),
            (0x0c02, 8),
            (0x0c04, 0x10),
            (0x0c0c, 0x40),
            (0x6800, cr0::PE | cr0::PG | cr0::ET | cr0::NE),
            (0x6802, GUEST_TABLES),
            (0x6804, cr4::PAE | cr4::VMXE),
            (0x0802, 8),
            (0x4822, 0x8b),
            (0x480e, 0x67),
            (0x4820, 1 << 16),
            (0x6816, GUEST_GDT),
            (0x4810, 0xf),
            (0x6818, GUEST_IDT),
            (0x4812, 0xfff),
            (field::RIP, CODE),
            (field::RSP, STACK),
            (field::RFLAGS, 2),
        ] {
            self.set(field, value);
        }
        for segment in 0..6 {
            self.set(0x4800 + segment * 2, 0xffff_ffff);
            self.set(0x4814 + segment * 2, if segment == 1 { 0xa09b } else { 0xc093 });
        }
    }
}

fn host(state: &mut CpuState, board: &mut Surroundings) {
    write_u64(board, HOST_TABLES, (HOST_TABLES + 0x1000) | 7);
    write_u64(board, HOST_TABLES + 0x1000, 0x87);
    for region in [VMXON_REGION, VMCS] {
        write_u32(board, region, REVISION);
    }
    // vmlaunch; hlt, vmresume; hlt, and where the host goes on: hlt
    board.write(LAUNCH, &[0x0f, 0x01, 0xc2, 0xf4]);
    board.write(RESUME, &[0x0f, 0x01, 0xc3, 0xf4]);
    board.write(EXIT, &[0xf4]);
    state.cr0 = cr0::PE | cr0::PG | cr0::WP | cr0::ET | cr0::NE;
    state.cr3 = HOST_TABLES;
    state.cr4 = cr4::PAE | cr4::VMXE;
    state.efer = efer::LME | efer::LMA | efer::NXE;
    state.rflags = 2;
    state.gpr[gpr::RDX] = 0;
    state.segments[Seg::Cs as usize] = Segment::code64(8);
    state.segments[Seg::Ss as usize] = Segment::data(0x10);
}

fn guest(board: &mut Surroundings, code: &[u8]) {
    write_u64(board, GUEST_MEMORY + GUEST_TABLES, (GUEST_TABLES + 0x1000) | 7);
    write_u64(board, GUEST_MEMORY + GUEST_TABLES + 0x1000, 0x87);
    write_u64(board, GUEST_MEMORY + GUEST_GDT + 8, 0x00af_9b00_0000_ffff);
    for vector in 0..256 {
        let handler = HANDLERS + vector * HANDLER_BYTES;
        let gate = handler & 0xffff | 8 << 16 | 0x8e00 << 32 | (handler >> 16) << 48;
        write_u64(board, GUEST_MEMORY + GUEST_IDT + vector * 16, gate);
        board.write(GUEST_MEMORY + handler, &VMCALL);
    }
    board.write(GUEST_MEMORY + CODE, code);
    let [level4, level3, level2, level1] = [0, 1, 2, 3].map(|level| EPT + level * 0x1000);
    for (table, next) in [(level4, level3), (level3, level2), (level2, level1)] {
        write_u64(board, table, next | 7);
    }
    for page in 0..512 {
        let to = if page << 12 == APIC { APIC_ACCESS } else { GUEST_MEMORY + (page << 12) };
        write_u64(board, level1 + page * 8, to | 7);
    }
}
