//! A machine around the module, for tests of this module: two processors, each a package of its own.

use privet_cpu::CpuidResult;

use super::status::Status;
use super::{Chip, GuestCall, HostLeaf, Registers, Surroundings, Tdx};
use crate::PhysicalMemory;
use crate::test_memory::TestMemory;

/// The TDR of the TD.
pub(super) const TDR: u64 = 0x60_0000;
/// Its HKID.
pub(super) const HKID: u64 = 33;
/// The module's.
pub(super) const GLOBAL_HKID: u64 = 32;
/// Where TD_PARAMS are.
pub(super) const PARAMS: u64 = 0x2000;
/// Where the array of TDMRs is.
pub(super) const TDMR_ARRAY: u64 = 0x1000;
/// A page of the TD.
pub(super) const GPA: u64 = 0x1000;

const SIZE: usize = 0xA0_0000;
/// Behind the PAMT.
const PAGES: u64 = 0x61_0000;

/// A page that the host may give.
pub(super) fn page(index: u64) -> u64 {
    PAGES + index * 4096
}

/// The root of a vCPU.
pub(super) fn tdvpr(vcpu: u64) -> u64 {
    page(200 + vcpu * 10)
}

/// Another page of a vCPU.
pub(super) fn vcpu_page(vcpu: u64, index: u64) -> u64 {
    page(201 + vcpu * 10 + index)
}

pub(super) fn chip() -> Chip {
    Chip {
        seed: [5; 32],
        packages: vec![0, 1],
        first_hkid: GLOBAL_HKID as u16,
        hkids: 8,
        address_bits: 46,
        convertible: std::iter::once(0x10_0000..1 << 30).collect(),
        tsc_khz: 1_000_000,
        xfam: 0x1807,
        arch_capabilities: 1 << 8,
        five_levels: false,
    }
}

/// Host CPUID of tests.
pub(super) fn cpuid(leaf: u32, subleaf: u32) -> CpuidResult {
    let result = |eax, ebx, ecx, edx| CpuidResult { eax, ebx, ecx, edx };
    match (leaf, subleaf) {
        (0, _) => result(0x20, 0x756E_6547, 0x6C65_746E, 0x4965_6E69),
        (1, _) => result(0xA_06D1, 0, !(1 << 25 | 1 << 31), 0x0783_FBFF),
        (7, 0) => result(0, 0xFFFF_FFFF, 1 << 28, 1 << 29),
        (0xD, 0) => result(7, 0x340, 0x340, 0),
        (0x8000_0000, _) => result(0x8000_0008, 0, 0, 0),
        (0x8000_0008, _) => result(0x3034, 1 << 9, 0, 0),
        _ => CpuidResult::default(),
    }
}

/// TD_PARAMS as Linux writes them.
pub(super) fn td_params() -> [u8; 1024] {
    let mut params = [0; 1024];
    let mut word = |offset: usize, value: u64, bytes: usize| {
        params[offset..][..bytes].copy_from_slice(&value.to_le_bytes()[..bytes]);
    };
    word(0, 1 << 28, 8);
    word(8, 7, 8);
    word(16, 2, 2);
    word(24, 0x1E, 8);
    word(32, 1 << 2, 8);
    word(40, 40, 2);
    params[80..128].fill(0xC1);
    params[128..176].fill(0xC2);
    params[176..224].fill(0xC3);
    params
}

pub(super) struct TestMachine {
    pub(super) tdx: Tdx,
    pub(super) memory: TestMemory,
    pub(super) processor: usize,
    /// As the last call left them.
    pub(super) registers: Registers,
}

impl TestMachine {
    pub(super) fn powered_on() -> TestMachine {
        TestMachine {
            tdx: Tdx::new(chip()),
            memory: TestMemory::new(SIZE),
            processor: 0,
            registers: Registers::default(),
        }
    }

    /// With all processors initialised.
    pub(super) fn with_processors() -> TestMachine {
        let mut machine = TestMachine::powered_on();
        machine.call(HostLeaf::SysInit, [0; 4]);
        machine.on_all_packages(HostLeaf::SysLpInit, [0; 4]);
        machine
    }

    /// One TDMR, the first GiB, with its entries behind the first MiB.
    pub(super) fn describe_memory(&mut self) {
        crate::write_u64(&mut self.memory, TDMR_ARRAY, 0x1200);
        let tdmr = [0, 1 << 30, 0x10_0000, 0x1000, 0x10_1000, 0x2000, 0x10_3000, 0x40_0000, 0, 0x50_3000, 0, 0];
        for (index, word) in tdmr.into_iter().enumerate() {
            crate::write_u64(&mut self.memory, 0x1200 + index as u64 * 8, word);
        }
    }

    /// With an initialised module.
    pub(super) fn ready() -> TestMachine {
        let mut machine = TestMachine::with_processors();
        machine.describe_memory();
        machine.succeeds(HostLeaf::SysConfig, [TDMR_ARRAY, 1, GLOBAL_HKID, 0]);
        machine.on_all_packages(HostLeaf::SysKeyConfig, [0; 4]);
        machine.succeeds(HostLeaf::SysTdmrInit, [0; 4]);
        machine
    }

    /// With a TD that has its keys and control pages.
    pub(super) fn with_keys() -> TestMachine {
        let mut machine = TestMachine::ready();
        machine.succeeds(HostLeaf::MngCreate, [TDR, HKID, 0, 0]);
        machine.on_all_packages(HostLeaf::MngKeyConfig, [TDR, 0, 0, 0]);
        for index in 0..6 {
            machine.succeeds(HostLeaf::MngAddcx, [page(index), TDR, 0, 0]);
        }
        machine
    }

    /// With a TD that is initialised.
    pub(super) fn with_td() -> TestMachine {
        TestMachine::with_td_of(&td_params())
    }

    fn with_td_of(params: &[u8; 1024]) -> TestMachine {
        let mut machine = TestMachine::with_keys();
        machine.memory_write(PARAMS, params);
        machine.succeeds(HostLeaf::MngInit, [TDR, PARAMS, 0, 0]);
        machine
    }

    /// With one vCPU.
    pub(super) fn with_vcpu() -> TestMachine {
        let mut machine = TestMachine::with_td();
        machine.add_vcpu(0);
        machine
    }

    /// With one vCPU, and tables for the first 2 MiB.
    pub(super) fn with_tables() -> TestMachine {
        TestMachine::with_vcpu().and_tables()
    }

    fn and_tables(self) -> TestMachine {
        let mut machine = self;
        for level in [3, 2, 1] {
            machine.succeeds(HostLeaf::MemSeptAdd, [level, TDR, page(90 + level), 0]);
        }
        machine
    }

    /// With a TD of one page that runs.
    pub(super) fn runnable() -> TestMachine {
        TestMachine::runnable_with(&td_params())
    }

    /// The same of these TD_PARAMS.
    pub(super) fn runnable_with(params: &[u8; 1024]) -> TestMachine {
        let mut machine = TestMachine::with_td_of(params);
        machine.add_vcpu(0);
        let mut machine = machine.and_tables();
        machine.succeeds(HostLeaf::MemPageAdd, [GPA, TDR, page(100), 0x4000]);
        machine.finalize();
        machine
    }

    pub(super) fn finalize(&mut self) {
        self.succeeds(HostLeaf::MrFinalize, [TDR, 0, 0, 0]);
    }

    /// A vCPU with all its pages, not initialised.
    pub(super) fn build_vcpu(&mut self, vcpu: u64) {
        self.succeeds(HostLeaf::VpCreate, [tdvpr(vcpu), TDR, 0, 0]);
        for index in 0..5 {
            self.succeeds(HostLeaf::VpAddcx, [vcpu_page(vcpu, index), tdvpr(vcpu), 0, 0]);
        }
    }

    pub(super) fn add_vcpu(&mut self, vcpu: u64) {
        self.build_vcpu(vcpu);
        assert_eq!(self.call_version_1(HostLeaf::VpInit, [tdvpr(vcpu), 0x77, vcpu, 0]), 0);
    }

    /// The TD loses its HKID.
    pub(super) fn tear_down(&mut self) {
        self.succeeds(HostLeaf::VpFlush, [tdvpr(0), 0, 0, 0]);
        self.succeeds(HostLeaf::MngVpflushdone, [TDR, 0, 0, 0]);
        self.on_all_packages(HostLeaf::PhymemCacheWb, [0; 4]);
        self.succeeds(HostLeaf::MngKeyFreeid, [TDR, 0, 0, 0]);
    }

    fn on_all_packages(&mut self, leaf: HostLeaf, operands: [u64; 4]) {
        for processor in [1, 0] {
            self.processor = processor;
            self.succeeds(leaf, operands);
        }
    }

    pub(super) fn memory_write(&mut self, pa: u64, bytes: &[u8]) {
        self.memory.write(pa, bytes);
    }

    /// SEAMCALL with this RAX, and RCX, RDX, R8 and R9. RAX afterwards.
    pub(super) fn call_rax(&mut self, rax: u64, [rcx, rdx, r8, r9]: [u64; 4]) -> u64 {
        self.registers = Registers { rcx, rdx, r8, r9, ..Registers::default() };
        let mut around = Surroundings { memory: &mut self.memory, processor: self.processor, tsc: 1000, cpuid: &cpuid };
        self.tdx.seamcall(&mut around, rax, &mut self.registers)
    }

    /// TDCALL in the first vCPU with this RAX, and RCX, RDX, R8 and R9.
    pub(super) fn tdcall(&mut self, rax: u64, [rcx, rdx, r8, r9]: [u64; 4]) -> GuestCall {
        self.registers = Registers { rcx, rdx, r8, r9, ..Registers::default() };
        let mut around = Surroundings { memory: &mut self.memory, processor: self.processor, tsc: 1000, cpuid: &cpuid };
        self.tdx.tdcall(&mut around, tdvpr(0), rax, &mut self.registers)
    }

    pub(super) fn call(&mut self, leaf: HostLeaf, operands: [u64; 4]) -> u64 {
        self.call_rax(leaf as u64, operands)
    }

    pub(super) fn call_version_1(&mut self, leaf: HostLeaf, operands: [u64; 4]) -> u64 {
        self.call_rax(leaf as u64 | 1 << 16, operands)
    }

    fn succeeds(&mut self, leaf: HostLeaf, operands: [u64; 4]) {
        assert_eq!(self.call(leaf, operands), 0, "{}", leaf.name());
    }

    pub(super) fn refuses(&mut self, leaf: HostLeaf, operands: [u64; 4], status: impl Into<Status>) {
        assert_eq!(self.call(leaf, operands), status.into().bits(), "{}", leaf.name());
    }

    pub(super) fn refuses_version_1(&mut self, leaf: HostLeaf, operands: [u64; 4], status: impl Into<Status>) {
        assert_eq!(self.call_version_1(leaf, operands), status.into().bits(), "{}", leaf.name());
    }
}
