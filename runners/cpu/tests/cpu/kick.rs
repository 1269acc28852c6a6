//! Requests from other threads: no access through an old translation after it was flushed, and locked
//! instructions that are atomic between CPUs.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, RwLock};

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use privet_cpu::state::gpr;
use privet_cpu::{
    Access, Bus, Config, Cpu, CpuExit, CpuState, CpuidResult, Exception, HostPage, Intercept, Intercepted, Kick,
    Resolve,
};

use crate::machine::{Ram, TestBus, long_mode};

/// A VM whose page at `PAGE` is either of two, chosen under a lock.
struct Vm {
    ram: Ram,
    /// Which backing `PAGE` has; the lock that `Kick` speaks of.
    backing: RwLock<u64>,
}

const PAGE: u64 = 0x10000;
/// The two backings of `PAGE`.
const BACKINGS: [u64; 2] = [0x11000, 0x12000];

/// A bus of which a test says where pages are.
struct Pages<F>(F);

impl<F: FnMut(u64) -> Option<HostPage>> Bus for Pages<F> {
    fn resolve(&mut self, _: &mut CpuState, gpa: u64, _: Access) -> Resolve {
        self.0(gpa).map_or(Resolve::Mmio, Resolve::Page)
    }

    fn cpuid(&mut self, _: &CpuState, _: u32, _: u32) -> CpuidResult {
        CpuidResult::default()
    }

    fn rdmsr(&mut self, _: &CpuState, _: u32) -> Result<u64, Exception> {
        Err(Exception::gp(0))
    }

    fn wrmsr(&mut self, _: &mut CpuState, _: u32, _: u64) -> Result<(), Exception> {
        Err(Exception::gp(0))
    }

    fn tsc(&mut self, _: &CpuState) -> u64 {
        0
    }

    fn intercept(&mut self, _: &mut CpuState, _: Intercept, _: u8) -> Intercepted {
        Intercepted::Native
    }
}

impl Vm {
    fn page(&self, gpa: u64) -> Option<HostPage> {
        let backing = self.backing.read().expect("not poisoned");
        self.ram.page(if gpa == PAGE { *backing } else { gpa })
    }
}

/// A guest that counts up in the page for ever, with plain, locked and repeated instructions.
fn hammer() -> Vec<u8> {
    let mut a = CodeAssembler::new(64).expect("64-bit");
    let mut top = a.create_label();
    a.set_label(&mut top).unwrap();
    a.inc(qword_ptr(rbx)).unwrap();
    a.lock().inc(qword_ptr(rbx + 8)).unwrap();
    a.lea(rdi, ptr(rbx + 16)).unwrap();
    a.mov(ecx, 400).unwrap();
    a.rep().stosb().unwrap();
    a.inc(qword_ptr(rbx + 0xffc)).unwrap();
    a.jmp(top).unwrap();
    a.assemble(0x8000).expect("the guest assembles")
}

#[test]
fn nothing_is_written_to_a_page_that_was_taken_away() {
    let vm = Vm { ram: Ram::new(1 << 20), backing: RwLock::new(BACKINGS[0]) };
    vm.ram.write(0x8000, &hammer());
    let mut cpus: Vec<Cpu> = (0..3).map(|_| Cpu::new(Config::default())).collect();
    for cpu in &mut cpus {
        long_mode(cpu, &vm.ram, 0);
        cpu.state.rip = 0x8000;
        cpu.state.gpr[gpr::RBX] = PAGE;
        cpu.state.gpr[gpr::RAX] = 0x77;
    }
    let kicks: Vec<Arc<Kick>> = cpus.iter().map(|cpu| Arc::clone(cpu.kick())).collect();
    let mut progress = 0;
    std::thread::scope(|scope| {
        for cpu in &mut cpus {
            let vm = &vm;
            scope.spawn(move || assert_eq!(cpu.run(&mut Pages(|gpa| vm.page(gpa))), CpuExit::Stopped));
        }
        for round in 1..=100 {
            let retired = BACKINGS[(round + 1) % 2];
            let mut backing = vm.backing.write().expect("not poisoned");
            kicks.iter().for_each(|kick| kick.request_flush());
            kicks.iter().for_each(|kick| kick.flush_and_wait());
            *backing = BACKINGS[round % 2];
            drop(backing);
            let before = vm.ram.read(retired, 4096);
            for _ in 0..20 {
                std::thread::yield_now();
            }
            assert!(before == vm.ram.read(retired, 4096), "round {round}: a CPU wrote through an old translation");
            progress = vm.ram.read_u64(BACKINGS[round % 2]);
        }
        kicks.iter().for_each(|kick| kick.stop());
    });
    assert!(progress > 0, "the guests ran");
}

#[test]
fn a_value_is_replaced_where_it_was_read_even_if_its_page_moves_all_the_time() {
    type Assemble = fn(&mut CodeAssembler) -> Result<(), IcedError>;
    let programs: [(Assemble, u64); 5] = [
        (|a| a.inc(qword_ptr(rbx)), 1),
        (|a| a.lock().inc(qword_ptr(rbx)), 1),
        (|a| a.lock().xadd(qword_ptr(rbx), rcx), 5),
        (|a| a.lock().bts(qword_ptr(rbx), 40), 1 << 40),
        // It holds something else, and so nothing changes.
        (|a| a.lock().cmpxchg16b(xmmword_ptr(rbx)), 0),
    ];
    const PLACES: [u64; 3] = [0x11000, 0x12000, 0x13000];
    for (index, (program, more)) in programs.into_iter().enumerate() {
        let ram = Ram::new(1 << 20);
        let mut cpu = Cpu::new(Config::default());
        long_mode(&mut cpu, &ram, 0);
        for (place, value) in PLACES.into_iter().zip([0x10, 0x2000, 0x30_0000]) {
            ram.write_u64(place, value);
        }
        let mut a = CodeAssembler::new(64).expect("64-bit");
        program(&mut a).and_then(|()| a.hlt()).expect("the guest assembles");
        ram.write(0x8000, &a.assemble(0x8000).expect("the guest assembles"));
        cpu.state.rip = 0x8000;
        cpu.state.gpr[gpr::RBX] = PAGE;
        cpu.state.gpr[gpr::RCX] = 5;
        let kick = Arc::clone(cpu.kick());
        let mut asked = 0;
        // The page moves, and its CPU has to flush, whenever it is asked for; where it is then, it says when it is asked
        // again: a VM whose other threads are always quicker.
        let moving = |gpa| {
            if gpa != PAGE {
                return ram.page(gpa);
            }
            let place = PLACES[asked / 2 % 3];
            if asked % 2 == 0 {
                kick.request_flush();
            }
            asked += 1;
            ram.page(place)
        };
        assert_eq!(cpu.run(&mut Pages(moving)), CpuExit::Halt);
        let sum: u64 = PLACES.map(|place| ram.read_u64(place)).iter().sum();
        assert_eq!(sum, 0x30_2010 + more, "program {index}");
    }
}

#[test]
fn locked_instructions_are_atomic_between_cpus() {
    const CPUS: u64 = 3;
    const ROUNDS: u64 = 20_000;
    let ram = Ram::new(1 << 20);
    let mut a = CodeAssembler::new(64).expect("64-bit");
    let mut top = a.create_label();
    a.set_label(&mut top).unwrap();
    a.lock().inc(qword_ptr(rbx)).unwrap();
    // Across a cache line, and across a page.
    a.mov(eax, 1).unwrap();
    a.lock().xadd(qword_ptr(rbx + 60), rax).unwrap();
    a.lock().add(dword_ptr(rbx + 0xffe), 1).unwrap();
    a.dec(ecx).unwrap();
    a.jne(top).unwrap();
    a.hlt().unwrap();
    ram.write(0x8000, &a.assemble(0x8000).expect("the guest assembles"));
    std::thread::scope(|scope| {
        for _ in 0..CPUS {
            scope.spawn(|| {
                let mut cpu = Cpu::new(Config::default());
                let mut bus = TestBus::new(&ram);
                long_mode(&mut cpu, &ram, 0);
                cpu.state.rip = 0x8000;
                cpu.state.gpr[gpr::RBX] = 0x10000;
                cpu.state.gpr[gpr::RCX] = ROUNDS;
                assert_eq!(cpu.run(&mut bus), CpuExit::Halt);
            });
        }
    });
    assert_eq!(ram.read_u64(0x10000), CPUS * ROUNDS);
    assert_eq!(ram.read_u64(0x10000 + 60), CPUS * ROUNDS);
    assert_eq!(ram.read_u64(0x10000 + 0xffe) & 0xffff_ffff, CPUS * ROUNDS);
}

#[test]
fn stop_is_heard_in_an_endless_loop_and_in_an_endless_string_instruction() {
    let programs: [&[u8]; 2] = [&[0xeb, 0xfe], &[0xf3, 0xa6]];
    for program in programs {
        let ram = Ram::new(1 << 20);
        let mut cpu = Cpu::new(Config::default());
        long_mode(&mut cpu, &ram, 0);
        ram.write(0x8000, program);
        cpu.state.rip = 0x8000;
        cpu.state.gpr[gpr::RCX] = 1 << 40;
        // Both ends of the comparison are the same byte for ever: the direction goes nowhere.
        cpu.state.gpr[gpr::RSI] = 0x10000;
        cpu.state.gpr[gpr::RDI] = 0x10000;
        let kick = Arc::clone(cpu.kick());
        let started = AtomicBool::new(false);
        let stops = AtomicU64::new(0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !started.load(Ordering::SeqCst) {
                    std::thread::yield_now();
                }
                kick.stop();
                stops.fetch_add(1, Ordering::SeqCst);
            });
            started.store(true, Ordering::SeqCst);
            let mut bus = TestBus::new(&ram);
            let exit = cpu.run(&mut bus);
            // REPE CMPSB may run off the end of RAM before the other thread is scheduled.
            assert!(matches!(exit, CpuExit::Stopped | CpuExit::MmioRead { .. }), "{exit:?}");
        });
        assert_eq!(stops.load(Ordering::SeqCst), 1);
        assert_eq!(cpu.state.rip, 0x8000);
    }
}
