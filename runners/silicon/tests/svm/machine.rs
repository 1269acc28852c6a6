//! A processor with SVM and 4 MiB of memory: the test is the hypervisor, its code is VMRUN and HLT.
//!
//! The guest's memory is 2 MiB behind nested tables of 4 KiB pages: guest-physical address 0 is [`GUEST_MEMORY`].
#![expect(unsafe_code, reason = "memory is named to the CPU here")]

use std::cell::UnsafeCell;
use std::sync::Arc;

use privet_cpu::state::{cr0, cr4, efer, gpr};
use privet_cpu::{
    Access, Bus, Call, Cpu, CpuExit, CpuState, CpuidResult, Event, Exception, HostPage, Intercept, Intercepted, Kick,
    Reaction, Resolve, Seg, Segment, World,
};
use privet_silicon::encryption::Key;
use privet_silicon::rmp::{Code, Rmp, RmpState, rmpupdate};
use privet_silicon::svm::{Features, Svm};
use privet_silicon::{Board, Flush, KeyedMemory, PhysicalMemory, read_u32, read_u64, write_u32, write_u64};
use privet_silicon::{Pending, Taken, Translation};

const MEMORY_BYTES: u64 = 0x40_0000;
const HOST_TABLES: u64 = 0x1000;
pub(crate) const VMCB: u64 = 0x3000;
const SAVE: u64 = VMCB + 0x400;
const HSAVE: u64 = 0x4000;
pub(crate) const IOPM: u64 = 0x5000;
pub(crate) const MSRPM: u64 = 0x8000;
const HOST_CODE: u64 = 0xa000;
const NESTED_TABLES: u64 = 0x1_0000;
const RMP: (u64, u64) = (0x10_0000, 0x10_7fff);
/// Where the guest's memory is.
pub(crate) const GUEST_MEMORY: u64 = 0x20_0000;

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
const VMMCALL: [u8; 3] = [0x0f, 0x01, 0xd9];

#[repr(C, align(4096))]
struct Page(UnsafeCell<[u8; 4096]>);

/// Memory and what the silicon asks of a board.
pub(crate) struct Surroundings {
    pages: Vec<Page>,
    kick: Arc<Kick>,
    /// None where there is no SNP.
    rmp: Option<Rmp>,
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

    fn read_as(&mut self, key: Key, pa: u64, bytes: &mut [u8]) {
        assert_eq!(key, Key::PLAIN, "nothing is encrypted here");
        self.read(pa, bytes);
    }

    fn write_as(&mut self, key: Key, pa: u64, bytes: &[u8]) {
        assert_eq!(key, Key::PLAIN, "nothing is encrypted here");
        self.write(pa, bytes);
    }

    fn flush_page(&mut self, pa: u64) {
        if let Some(page) = self.page(pa) {
            self.kick.request(privet_cpu::Flush::Backing(page.addr()));
        }
    }

    fn flush_large_page(&mut self, pa: u64) {
        let first = pa & !0x1f_ffff;
        (first..first + 0x20_0000).step_by(0x1000).for_each(|page| self.flush_page(page));
    }

    fn flush_asid(&mut self, asid: u16) {
        self.kick.request(privet_cpu::Flush::World(World(asid.into())));
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
        self.rmp
    }

    fn tsc(&self) -> u64 {
        0
    }

    fn unsimulated(&mut self, what: &'static str) {
        panic!("not simulated: {what}");
    }
}

/// The processor's way to all of it.
pub(crate) struct TestBus {
    pub(crate) svm: Svm,
    pub(crate) board: Surroundings,
    pub(crate) interrupt: Option<u8>,
    pub(crate) nmi: bool,
}

impl Bus for TestBus {
    fn resolve(&mut self, state: &mut CpuState, gpa: u64, access: Access) -> Resolve {
        match self.svm.translate(&mut self.board, state, gpa, access) {
            Translation::Switched => Resolve::Switched,
            Translation::Device(page) => Resolve::Device(page),
            Translation::Reflect(exception) => Resolve::Reflect(exception),
            Translation::Page { page, .. } => match self.board.page(page) {
                // SAFETY: the page lives as long as the machine, and is accessed by raw pointers only.
                Some(page) => Resolve::Page(unsafe { HostPage::new(page, true) }),
                None => Resolve::Mmio,
            },
        }
    }

    fn cpuid(&mut self, _: &CpuState, _: u32, _: u32) -> CpuidResult {
        CpuidResult::default()
    }

    fn rdmsr(&mut self, _: &CpuState, index: u32) -> Result<u64, Exception> {
        self.svm.rdmsr(index).ok_or(Exception::gp(0))
    }

    fn wrmsr(&mut self, _: &mut CpuState, index: u32, value: u64) -> Result<(), Exception> {
        self.svm.wrmsr(index, value).unwrap_or(Err(Exception::gp(0)))
    }

    fn tsc(&mut self, state: &CpuState) -> u64 {
        self.svm.tsc(state.instructions)
    }

    fn intercept(&mut self, state: &mut CpuState, what: Intercept, length: u8) -> Intercepted {
        self.svm.intercept(&mut self.board, state, what, length)
    }

    fn exception(&mut self, state: &mut CpuState, exception: Exception) -> Reaction {
        self.svm.exception(&mut self.board, state, exception)
    }

    fn shutdown(&mut self, state: &mut CpuState) -> Reaction {
        self.svm.shutdown(&mut self.board, state)
    }

    fn take_event(&mut self, state: &mut CpuState, _: bool, _: bool) -> Option<Event> {
        let pending = Pending { nmi: self.nmi, interrupt: self.interrupt, ..Pending::default() };
        match self.svm.take_event(&mut self.board, state, pending) {
            Taken::Nmi => {
                self.nmi = false;
                Some(Event::Nmi)
            }
            Taken::Interrupt => self.interrupt.take().map(Event::Interrupt),
            Taken::Virtual(vector) => Some(Event::Interrupt(vector)),
            Taken::Switched => Some(Event::Switched),
            // The rest is Intel's.
            _ => None,
        }
    }

    fn set_task_priority(&mut self, _: &mut CpuState, _: u64) {
        self.svm.task_priority_written(&mut self.board);
    }
}

/// The machine with its guest.
pub(crate) struct Machine {
    cpu: Cpu,
    pub(crate) bus: TestBus,
}

impl Machine {
    /// A guest in 64-bit mode at CPL 0 whose program is `code`, intercepting VMRUN and VMMCALL only; each of its
    /// interrupt handlers is a VMMCALL.
    pub(crate) fn new(code: &[u8]) -> Machine {
        let mut cpu = Cpu::new(privet_cpu::Config {
            efer_allowed: efer::SCE | efer::LME | efer::LMA | efer::NXE | efer::SVME,
            vendor: privet_cpu::Vendor::Amd,
            ..privet_cpu::Config::default()
        });
        let pages = (0..MEMORY_BYTES >> 12).map(|_| Page(UnsafeCell::new([0; 4096]))).collect();
        let board = Surroundings { pages, kick: Arc::clone(cpu.kick()), rmp: None };
        let svm = Svm::new(Features::current());
        let mut bus = TestBus { svm, board, interrupt: None, nmi: false };
        bus.svm.wrmsr(0xc001_0117, HSAVE).expect("SVM's").expect("valid");
        host(&mut cpu.state, &mut bus.board);
        guest(&mut bus.board, code);
        vmcb(&mut bus.board);
        Machine { cpu, bus }
    }

    /// Runs the guest until it exits; the exit code.
    pub(crate) fn run(&mut self) -> u64 {
        let state = &mut self.cpu.state;
        state.rip = HOST_CODE;
        state.gpr[gpr::RAX] = VMCB;
        let clgi = Intercept::Call(Call::Clgi);
        assert_eq!(self.bus.svm.intercept(&mut self.bus.board, state, clgi, 3), Intercepted::Done);
        let exit = self.cpu.run(&mut self.bus);
        assert_eq!(exit, CpuExit::Halt, "the host halts after an exit: {:x?}", self.cpu.state);
        assert_eq!(self.cpu.state.rip, HOST_CODE + 4, "behind its HLT");
        assert!(!self.bus.svm.in_guest());
        self.control(0x70)
    }

    /// Intercepts what has this exit code.
    pub(crate) fn intercept(&mut self, code: u64) -> &mut Machine {
        let at = VMCB + code / 32 * 4;
        let word = read_u32(&mut self.bus.board, at);
        write_u32(&mut self.bus.board, at, word | 1 << (code % 32));
        self
    }

    /// A word of the VMCB's control area.
    pub(crate) fn control(&mut self, at: u64) -> u64 {
        read_u64(&mut self.bus.board, VMCB + at)
    }

    /// Stores a word of the VMCB's control area.
    pub(crate) fn set_control(&mut self, at: u64, value: u64) {
        write_u64(&mut self.bus.board, VMCB + at, value);
    }

    /// A word of the VMCB's state save area.
    pub(crate) fn saved(&mut self, at: u64) -> u64 {
        read_u64(&mut self.bus.board, SAVE + at)
    }

    /// Stores a word of the VMCB's state save area.
    pub(crate) fn set_saved(&mut self, at: u64, value: u64) {
        write_u64(&mut self.bus.board, SAVE + at, value);
    }

    /// A word of the guest's memory.
    pub(crate) fn peek(&mut self, gpa: u64) -> u64 {
        read_u64(&mut self.bus.board, GUEST_MEMORY + gpa)
    }

    /// Stores a word of the guest's memory.
    pub(crate) fn poke(&mut self, gpa: u64, value: u64) {
        write_u64(&mut self.bus.board, GUEST_MEMORY + gpa, value);
    }

    /// A general register of the guest, but for RAX and RSP.
    pub(crate) fn register(&mut self, index: usize) -> &mut u64 {
        &mut self.cpu.state.gpr[index]
    }

    pub(crate) fn host(&mut self) -> &mut CpuState {
        &mut self.cpu.state
    }

    /// Changes the nested entry of the guest's page, and has the next VMRUN flush the guest.
    pub(crate) fn map(&mut self, gpa: u64, change: impl FnOnce(u64) -> u64) {
        let at = NESTED_TABLES + 0x3000 + (gpa >> 12) * 8;
        let entry = read_u64(&mut self.bus.board, at);
        write_u64(&mut self.bus.board, at, change(entry));
        self.bus.board.write(VMCB + 0x5c, &[3]);
    }
}

impl Machine {
    /// A machine with SNP, whose guest is not encrypted and has its memory by one nested page of 2 MiB.
    pub(crate) fn with_snp(code: &[u8]) -> Machine {
        let mut machine = Machine::new(code);
        machine.bus.board.rmp = Rmp::new(RMP.0, RMP.1);
        write_u64(&mut machine.bus.board, NESTED_TABLES + 0x2000, GUEST_MEMORY | 0x87);
        machine
    }

    /// Has the hypervisor change who owns a page behind the guest's.
    pub(crate) fn rmpupdate(&mut self, gpa: u64, state: RmpState) {
        let board = &mut self.bus.board;
        let rmp = board.rmp.expect("SNP is on");
        assert_eq!(rmpupdate(&rmp, board, GUEST_MEMORY + gpa, Some(state)), Code::Success);
    }
}

fn host(state: &mut CpuState, board: &mut Surroundings) {
    write_u64(board, HOST_TABLES, (HOST_TABLES + 0x1000) | 7);
    write_u64(board, HOST_TABLES + 0x1000, 0x87);
    // vmrun; hlt
    board.write(HOST_CODE, &[0x0f, 0x01, 0xd8, 0xf4]);
    state.cr0 = cr0::PE | cr0::PG | cr0::WP | cr0::ET | cr0::NE;
    state.cr3 = HOST_TABLES;
    state.cr4 = cr4::PAE;
    state.efer = efer::LME | efer::LMA | efer::NXE | efer::SVME;
    state.rflags = 2;
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
        board.write(GUEST_MEMORY + handler, &VMMCALL);
    }
    board.write(GUEST_MEMORY + CODE, code);
    let [level4, level3, level2, level1] = [0, 1, 2, 3].map(|level| NESTED_TABLES + level * 0x1000);
    for (table, next) in [(level4, level3), (level3, level2), (level2, level1)] {
        write_u64(board, table, next | 7);
    }
    for page in 0..512 {
        write_u64(board, level1 + page * 8, (GUEST_MEMORY + (page << 12)) | 7);
    }
}

fn vmcb(board: &mut Surroundings) {
    // VMRUN, VMMCALL and SHUTDOWN.
    write_u32(board, VMCB + 0x10, 3);
    write_u32(board, VMCB + 0x0c, 1 << 31);
    for (at, value) in [(0x40, IOPM), (0x48, MSRPM), (0x58, 1), (0x90, 1), (0xb0, NESTED_TABLES)] {
        write_u64(board, VMCB + at, value);
    }
    for (at, attributes, selector) in [(0x10, 0xa9b_u16, 8_u16), (0x20, 0xc93, 0)] {
        board.write(SAVE + at, &selector.to_le_bytes());
        board.write(SAVE + at + 2, &attributes.to_le_bytes());
    }
    for (at, value) in [
        (0x64, 0xf),
        (0x68, GUEST_GDT),
        (0x84, 0xfff),
        (0x88, GUEST_IDT),
        (0xd0, efer::LME | efer::LMA | efer::SVME),
        (0x148, cr4::PAE),
        (0x150, GUEST_TABLES),
        (0x158, cr0::PE | cr0::PG | cr0::ET | cr0::NE),
        (0x160, 0x400),
        (0x168, 0xffff_0ff0),
        (0x170, 2),
        (0x178, CODE),
        (0x1d8, STACK),
        (0x268, 0x0007_0406_0007_0406),
    ] {
        write_u64(board, SAVE + at, value);
    }
}
