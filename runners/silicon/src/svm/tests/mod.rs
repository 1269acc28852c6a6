//! A host and a guest in a little memory, for tests of one rule each.

pub(crate) use crate::test_board as board;
mod checks;
mod encrypted;
mod events;
mod exits;
mod instructions;
mod nested;
mod random;
mod switch;

use privet_cpu::state::{cr0, cr4, efer, gpr};
use privet_cpu::{Call, CpuState, Intercept, Intercepted, Seg, Segment};

use super::intercepts::Code;
use super::vmcb::SAVE;
use super::{Features, Svm};
use crate::memory::{PhysicalMemory, read_u32, read_u64, write_u32, write_u64};
use board::TestBoard;

pub(crate) const VMCB: u64 = 0x1000;
pub(crate) const HSAVE: u64 = 0x2000;
pub(crate) const IOPM: u64 = 0x4000;
pub(crate) const MSRPM: u64 = 0x8000;
pub(crate) const HOST_RIP: u64 = 0xffff_8000_0000_1000;
pub(crate) const GUEST_RIP: u64 = 0x40_0000;
pub(crate) const ASID: u32 = 7;

/// What a test works with.
pub(crate) struct Bench {
    pub(crate) svm: Svm,
    pub(crate) state: CpuState,
    pub(crate) board: TestBoard,
}

impl Bench {
    /// A host in long mode with SVM enabled, and a VMCB of a guest in long mode that VMRUN accepts.
    pub(crate) fn new() -> Bench {
        Bench::with(Features::current())
    }

    pub(crate) fn with(features: Features) -> Bench {
        let mut bench = Bench { svm: Svm::new(features), state: host(), board: TestBoard::new() };
        bench.svm.wrmsr(0xc001_0117, HSAVE).expect("SVM's").expect("valid");
        bench.intercept(Code::VMRUN);
        bench.set(0x40, IOPM);
        bench.set(0x48, MSRPM);
        write_u32(&mut bench.board, VMCB + 0x58, ASID);
        bench.guest(0xd0, efer::SVME | efer::LME | efer::LMA);
        bench.guest(0x148, cr4::PAE);
        bench.guest(0x150, 0x9000);
        bench.guest(0x158, cr0::PE | cr0::PG | cr0::ET);
        bench.guest(0x160, 0x400);
        bench.guest(0x168, 0xffff_0ff0);
        bench.guest(0x170, 2);
        bench.guest(0x178, GUEST_RIP);
        bench.guest(0x1d8, 0x7000);
        bench.guest(0x1f8, 0xa11);
        bench.guest(0x268, 0x0007_0406_0007_0406);
        for (at, attributes) in [(0x10, 0xa9b), (0x20, 0xc93)] {
            bench.board.write(VMCB + SAVE + at + 2, &u16::to_le_bytes(attributes));
        }
        bench
    }

    /// Sets an intercept bit of the VMCB.
    pub(crate) fn intercept(&mut self, code: Code) {
        let number = code.number();
        let at = VMCB + number / 32 * 4;
        let word = read_u32(&mut self.board, at);
        write_u32(&mut self.board, at, word | 1 << (number % 32));
    }

    /// Clears an intercept bit of the VMCB.
    pub(crate) fn pass(&mut self, code: Code) {
        let number = code.number();
        let at = VMCB + number / 32 * 4;
        let word = read_u32(&mut self.board, at);
        write_u32(&mut self.board, at, word & !(1 << (number % 32)));
    }

    /// Stores a word of 8 bytes into the control area.
    pub(crate) fn set(&mut self, at: u64, value: u64) {
        write_u64(&mut self.board, VMCB + at, value);
    }

    /// A word of 8 bytes of the control area.
    pub(crate) fn get(&mut self, at: u64) -> u64 {
        read_u64(&mut self.board, VMCB + at)
    }

    /// Stores a word of 8 bytes into the state save area.
    pub(crate) fn guest(&mut self, at: u64, value: u64) {
        self.set(SAVE + at, value);
    }

    /// VMRUN of the VMCB, as the host's instruction at [`HOST_RIP`].
    pub(crate) fn vmrun(&mut self) -> Intercepted {
        self.state.gpr[gpr::RAX] = VMCB;
        self.call(Call::Vmrun, 3)
    }

    /// VMRUN that has to enter the guest.
    pub(crate) fn enter(&mut self) {
        assert_eq!(self.vmrun(), Intercepted::Switched);
        assert!(self.svm.in_guest(), "VMRUN failed with exit code {:#x}", self.exit_code());
    }

    pub(crate) fn call(&mut self, call: Call, length: u8) -> Intercepted {
        self.instruction(Intercept::Call(call), length)
    }

    pub(crate) fn instruction(&mut self, what: Intercept, length: u8) -> Intercepted {
        self.svm.intercept(&mut self.board, &mut self.state, what, length)
    }

    pub(crate) fn exit_code(&mut self) -> u64 {
        self.get(0x70)
    }

    /// Exit code, EXITINFO1, EXITINFO2, NEXT_RIP of an exit that has happened.
    pub(crate) fn exit(&mut self) -> [u64; 4] {
        assert!(!self.svm.in_guest(), "the guest still runs");
        [0x70, 0x78, 0x80, 0xc8].map(|at| self.get(at))
    }
}

fn host() -> CpuState {
    let mut state = CpuState::reset();
    state.cr0 = cr0::PE | cr0::PG | cr0::ET | cr0::WP;
    state.cr3 = 0xa000;
    state.cr4 = cr4::PAE;
    state.efer = efer::LME | efer::LMA | efer::SVME | efer::NXE;
    state.rip = HOST_RIP;
    state.segments[Seg::Cs as usize] = Segment::code64(0x10);
    state.segments[Seg::Ss as usize] = Segment::data(0x18);
    state
}
