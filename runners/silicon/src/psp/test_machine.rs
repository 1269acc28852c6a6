//! A machine around the firmware, for tests of this module.

use privet_cpu::CpuidResult;
use zerocopy::little_endian::U64;

use super::{AsidRange, Chip, Command, HostSetup, Psp, Status, Surroundings, TcbLayout};
use crate::PhysicalMemory;
use crate::rmp::{Entry, PageState, Rmp};
use crate::test_memory::TestMemory;

/// Where tests put a command's buffer.
pub(super) const BUFFER: u64 = 0x1000;
/// Memory for INIT.
pub(super) const TMR: u64 = 0x20_0000;
const RMP_BASE: u64 = 0x60_0000;
const SIZE: u64 = 0x70_0000;

pub(super) struct TestMachine {
    pub(super) psp: Psp,
    pub(super) memory: TestMemory,
    pub(super) setup: HostSetup,
}

/// Host CPUID of tests: no leaf has more than these bits.
fn cpuid(leaf: u32, subleaf: u32) -> CpuidResult {
    match (leaf, subleaf) {
        (0x0, _) => CpuidResult { eax: 0x10, ..CpuidResult::default() },
        (0x1, _) => CpuidResult { eax: 0xA1_0F11, ebx: 0, ecx: 0x8000_0FFF & !(1 << 31), edx: 0xFFFF },
        _ => CpuidResult::default(),
    }
}

/// Parameters {handle, address, length} of several commands.
pub(super) fn region(handle: u8, address: u64, length: u32) -> [u8; 20] {
    let mut parameters = [0; 20];
    parameters[0] = handle;
    parameters[8..16].copy_from_slice(&address.to_le_bytes());
    parameters[16..].copy_from_slice(&length.to_le_bytes());
    parameters
}

impl TestMachine {
    pub(super) fn new() -> TestMachine {
        let asids = AsidRange { min_sev: 16, max: 31 };
        let chip = Chip { seed: [3; 32], asids, processors: 1, snp: true, tcb: TcbLayout::Milan };
        let setup = HostSetup {
            memory_encryption: true,
            snp_enabled: false,
            rmp: Rmp::new(RMP_BASE, SIZE - 1),
            smt: false,
            iommu: true,
            iommu_pages: vec![0x9000],
        };
        TestMachine { psp: Psp::new(&chip), memory: TestMemory::new(SIZE as usize), setup }
    }

    /// With SNP initialised, all ASIDs clean and the buffer the firmware's.
    pub(super) fn with_snp() -> TestMachine {
        let mut machine = TestMachine::new();
        machine.setup.snp_enabled = true;
        assert_eq!(machine.execute(Command::SnpInit, &[]), Status::Success);
        machine.psp.written_back(0);
        assert_eq!(machine.execute(Command::SnpDfFlush, &[]), Status::Success);
        machine.set_state(BUFFER, PageState::Firmware);
        machine
    }

    pub(super) fn parts(&mut self) -> (&mut Psp, Surroundings<'_>) {
        (&mut self.psp, Surroundings { memory: &mut self.memory, setup: &self.setup, cpuid: &cpuid })
    }

    /// Executes a command with these parameters at [`BUFFER`].
    pub(super) fn execute(&mut self, command: Command, parameters: &[u8]) -> Status {
        self.memory.write(BUFFER, parameters);
        let (psp, mut around) = self.parts();
        psp.execute(&mut around, command as u16, BUFFER)
    }

    /// Executes a command of SNP, whose parameters are words of 8 bytes.
    pub(super) fn execute_words(&mut self, command: Command, parameters: &[u64]) -> Status {
        use zerocopy::IntoBytes;
        let words: Vec<U64> = parameters.iter().map(|&word| U64::new(word)).collect();
        self.execute(command, words.as_bytes())
    }

    pub(super) fn output<const N: usize>(&mut self, pa: u64) -> [u8; N] {
        crate::read_array(&mut self.memory, pa)
    }

    pub(super) fn set_state(&mut self, pa: u64, state: PageState) {
        self.parts().1.set_state(pa, state);
    }

    pub(super) fn entry(&mut self, pa: u64) -> Option<Entry> {
        self.parts().1.entry(pa)
    }

    /// INIT with SEV-ES.
    pub(super) fn init_sev(&mut self) -> Status {
        let mut parameters = [0; 20];
        parameters[0] = 1;
        parameters[8..16].copy_from_slice(&TMR.to_le_bytes());
        parameters[16..].copy_from_slice(&0x20_0000_u32.to_le_bytes());
        self.execute(Command::Init, &parameters)
    }

    /// LAUNCH_START without a session. The handle.
    pub(super) fn launch_start(&mut self, policy: u32) -> u32 {
        let mut parameters = [0; 36];
        parameters[4..8].copy_from_slice(&policy.to_le_bytes());
        assert_eq!(self.execute(Command::LaunchStart, &parameters), Status::Success);
        u32::from_le_bytes(self.output(BUFFER))
    }

    /// SNP_LAUNCH_START.
    pub(super) fn snp_launch_start(&mut self, context: u64, policy: u64) {
        let parameters = [context, policy, 0, 0, 0, 0];
        assert_eq!(self.execute_words(Command::SnpLaunchStart, &parameters), Status::Success);
    }

    /// LAUNCH_MEASURE. What it gave.
    pub(super) fn measure(&mut self, handle: u8) -> [u8; 48] {
        assert_eq!(self.execute(Command::LaunchMeasure, &region(handle, 0x8000, 48)), Status::Success);
        self.output(0x8000)
    }
}
