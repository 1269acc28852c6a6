//! Every instruction form against the processor underneath: same registers, defined flags and memory; and as its
//! handler does it against as it is translated: all of them, undefined flags among them.

use iced_x86::{Code, Encoder, Instruction, OpAccess};
use privet_cpu::fpu::{self, FpuState};
use privet_cpu::state::cr4;
use privet_cpu::{
    Access, Bus, Config, Cpu, CpuExit, CpuState, CpuidResult, Exception, HostPage, Intercept, Intercepted, Resolve,
};
use proptest::prelude::*;
use proptest::test_runner::{Config as RunnerConfig, RngAlgorithm, TestCaseError, TestRng, TestRunner};

use crate::forms::forms;
use crate::generate::{
    COMPARED_FLAGS, Case, Choices, MEMORY_BASE, MEMORY_INDEX, Numbers, build, case, fits_a_sequence, prepare,
    result_is_undefined, undefined_flags,
};
use crate::machine::{Ram, long_mode};
use crate::native::{CODE, DATA, DATA_SIZE, Native, Registers};

/// Bit 17 of MXCSR_MASK, in its byte: AMD's processors may have it, and the interpreter's have not.
const MISALIGNED: u8 = 1 << 1;

/// Where in [`DATA`] an instruction that saves the FPU's state puts that byte.
fn misaligned_mask(instruction: &Instruction, registers: &Registers) -> Option<usize> {
    const OFFSET: usize = 30;
    let saves = ["Fxsave", "Xsave"].iter().any(|name| format!("{:?}", instruction.mnemonic()).starts_with(name));
    let address = instruction.virtual_address(0, 0, |register, _, _| {
        Some(if register.is_gpr() { registers.gpr[register.full_register().number()] } else { 0 })
    });
    address.filter(|_| saves).map(|address| (address - DATA) as usize + OFFSET)
}

/// Memory at the addresses where the processor sees it.
struct DirectBus<'a> {
    tables: &'a Ram,
}

impl Bus for DirectBus<'_> {
    #[expect(unsafe_code, reason = "guest-physical addresses are host addresses here")]
    fn resolve(&mut self, _: &mut CpuState, gpa: u64, _: Access) -> Resolve {
        if let Some(page) = self.tables.page(gpa) {
            return Resolve::Page(page);
        }
        if (CODE..DATA + DATA_SIZE as u64).contains(&gpa) {
            // SAFETY: inside the mapping of `Native`, which outlives the CPU and is accessed with
            // volatile accesses and generated code only.
            return Resolve::Page(unsafe { HostPage::new(gpa as *mut u8, true) });
        }
        Resolve::Mmio
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

    fn intercept(&mut self, _: &mut CpuState, what: Intercept, _: u8) -> Intercepted {
        if matches!(what, Intercept::Call(_)) { Intercepted::Exit } else { Intercepted::Native }
    }
}

/// VMCALL: ends the interpreter's run.
const END: [u8; 3] = [0x0f, 0x01, 0xc1];

struct Comparison {
    native: Native,
    tables: Ram,
}

/// How the interpreter ended.
#[derive(Debug, PartialEq)]
enum Interpreted {
    Completed(Box<Registers>),
    /// It raised an exception, which the processor would too.
    Raised,
    Other(CpuExit),
}

impl Comparison {
    fn new() -> Comparison {
        Comparison { native: Native::new(), tables: Ram::new(0x10000) }
    }

    fn interpret(&mut self, code: &[u8], registers: &Registers, translate_after: u32) -> Interpreted {
        let mut cpu = Cpu::new(Config { translate_after, ..Config::default() });
        long_mode(&mut cpu, &self.tables, 3);
        cpu.state.gpr = registers.gpr;
        cpu.state.rflags = registers.rflags;
        cpu.state.fpu = registers.fpu.clone();
        cpu.state.cr4 |= cr4::OSXSAVE;
        cpu.state.xcr0 = fpu::XCR0_X87 | fpu::XCR0_SSE | fpu::XCR0_AVX;
        cpu.state.rip = CODE;
        self.native.write(CODE, &[code, &END].concat());
        match cpu.run(&mut DirectBus { tables: &self.tables }) {
            CpuExit::Bus => Interpreted::Completed(Box::new(Registers {
                fpu: cpu.state.fpu,
                gpr: cpu.state.gpr,
                rflags: cpu.state.rflags,
            })),
            CpuExit::Shutdown => Interpreted::Raised,
            other => Interpreted::Other(other),
        }
    }

    fn fill(&mut self, memory: &[u64]) {
        let bytes: Vec<u8> = memory.iter().copied().flat_map(u64::to_le_bytes).collect();
        self.native.write(DATA, &bytes);
    }

    /// Runs instructions both ways; `Ok(false)` if they raise an exception, or leave things undefined
    /// that matter.
    fn compare(&mut self, instructions: &[Instruction], case: &Case) -> Result<bool, TestCaseError> {
        let mut numbers = Numbers(case.seed);
        let mut registers = numbers.registers();
        let memory: Vec<u64> = (0..DATA_SIZE / 8).map(|_| numbers.half()).collect();
        let mut encoder = Encoder::new(64);
        let mut length = 0;
        for instruction in instructions {
            prepare(instruction, &mut registers);
            length += encoder
                .encode(instruction, CODE + length as u64)
                .map_err(|error| TestCaseError::fail(format!("{:?} does not encode: {error}", instruction.code())))?;
        }
        let code = encoder.take_buffer();
        let codes: Vec<Code> = instructions.iter().map(Instruction::code).collect();
        let what = format!("{codes:?} {code:02x?}");
        let Some(undefined) = undefined_flags(instructions, &registers) else { return Ok(false) };
        if instructions.iter().any(|instruction| result_is_undefined(instruction, &registers)) {
            return Ok(false);
        }
        self.fill(&memory);
        let interpreted = self.interpret(&code, &registers, u32::MAX);
        let interpreted_memory = self.native.read(DATA, DATA_SIZE);
        self.fill(&memory);
        prop_assert_eq!(&self.interpret(&code, &registers, 0), &interpreted, "translated, {}", &what);
        let first = self.native.read(DATA, DATA_SIZE).iter().zip(&interpreted_memory).position(|(a, b)| a != b);
        prop_assert_eq!(first, None, "first byte of memory that differs, translated, after {}", &what);
        let interpreted = match interpreted {
            Interpreted::Completed(interpreted) => interpreted,
            Interpreted::Raised => return Ok(false),
            Interpreted::Other(exit) => {
                return Err(TestCaseError::fail(format!("{what}: {exit:?}")));
            }
        };
        self.fill(&memory);
        let native = self.native.run(&code, &registers);
        let native_memory = self.native.read(DATA, DATA_SIZE);
        let first = (0..16).find(|&index| interpreted.gpr[index] != native.gpr[index]).map(|index| {
            let [was, interpreted, native] = [&registers, &interpreted, &native].map(|state| state.gpr[index]);
            format!("register {index}: was {was:#x}, interpreted {interpreted:#x}, native {native:#x}")
        });
        prop_assert_eq!(first, None, "after {}", &what);
        let [was, interpreted_fpu, native_fpu] = [&registers, &interpreted, &native].map(|state| vectors(&state.fpu));
        for (index, (name, interpreted)) in interpreted_fpu.iter().enumerate() {
            let native = &native_fpu[index].1;
            prop_assert_eq!(interpreted, native, "{} after {}, was {}", name, &what, was[index].1);
        }
        let compared = COMPARED_FLAGS & !undefined;
        prop_assert_eq!(
            format!("{:x}", interpreted.rflags & compared),
            format!("{:x}", native.rflags & compared),
            "flags after {}",
            &what
        );
        let mask = instructions.iter().find_map(|instruction| misaligned_mask(instruction, &registers));
        let differs =
            interpreted_memory.iter().zip(&native_memory).enumerate().position(|(at, (interpreted, native))| {
                interpreted != native && !(mask == Some(at) && interpreted ^ native == MISALIGNED)
            });
        prop_assert_eq!(differs, None, "first byte of memory that differs after {}", &what);
        Ok(true)
    }
}

/// The registers of x87, SSE and AVX by name, but for the pointers to the last x87 instruction: when
/// these are stored differs from processor to processor.
fn vectors(fpu: &FpuState) -> Vec<(String, String)> {
    let control =
        [("MXCSR", fpu.mxcsr), ("FCW", u32::from(fpu.fcw)), ("FSW", u32::from(fpu.fsw)), ("FTW", u32::from(fpu.ftw))];
    let control = control.map(|(name, value)| (name.to_string(), format!("{value:x}")));
    let st = fpu.st.iter().enumerate().map(|(index, value)| (format!("ST({index})"), format!("{value:020x}")));
    let ymm = fpu.xmm.iter().zip(&fpu.ymm_high).enumerate();
    let ymm = ymm.map(|(index, (low, high))| (format!("YMM{index}"), format!("{high:032x} {low:032x}")));
    control.into_iter().chain(st).chain(ymm).collect()
}

/// A runner whose cases are the same every time.
fn runner(cases: u32) -> TestRunner {
    TestRunner::new_with_rng(
        RunnerConfig { cases, failure_persistence: None, max_shrink_iters: 200, ..RunnerConfig::default() },
        TestRng::deterministic_rng(RngAlgorithm::ChaCha),
    )
}

#[test]
fn every_form_does_what_the_processor_does() {
    let mut comparison = Comparison::new();
    let mut failures = Vec::new();
    let mut never = Vec::new();
    for code in forms() {
        let mut runner = runner(96);
        let completed = std::cell::Cell::new(0);
        let shared = std::cell::RefCell::new(&mut comparison);
        let result = runner.run(&case(), |case| {
            let mut choices = Choices { left: case.choices.iter() };
            if let Some(instruction) = build(code, &mut choices)
                && shared.borrow_mut().compare(&[instruction], &case)?
            {
                completed.set(completed.get() + 1);
            }
            Ok(())
        });
        if let Err(error) = result {
            failures.push(error.to_string().lines().take(8).collect::<Vec<_>>().join(" | "));
        } else if completed.get() == 0 {
            never.push(code);
        }
    }
    assert!(failures.is_empty(), "{} forms differ:\n{}", failures.len(), failures.join("\n"));
    assert!(never.is_empty(), "forms that raised an exception in every case: {never:?}");
}

#[test]
fn sequences_do_what_the_processor_does() {
    let comparison = std::cell::RefCell::new(Comparison::new());
    let forms = forms();
    let completed = std::cell::Cell::new(0);
    let sequence = prop::collection::vec(case(), 2..12);
    let result = runner(3000).run(&sequence, |cases| {
        let instructions: Vec<Instruction> = cases
            .iter()
            .filter_map(|case| {
                let mut choices = Choices { left: case.choices.iter() };
                let code = forms[choices.next() as usize % forms.len()];
                build(code, &mut choices)
            })
            .filter(fits_a_sequence)
            .collect();
        if comparison.borrow_mut().compare(&instructions, &cases[0])? {
            completed.set(completed.get() + 1);
        }
        Ok(())
    });
    result.expect("the same on both");
    assert!(completed.get() > 1000, "only {} of the sequences said anything", completed.get());
}

/// Operands that the comparison itself relies on are not written by anything but stack instructions.
#[test]
fn reserved_registers_are_not_operands() {
    let mut factory = iced_x86::InstructionInfoFactory::new();
    let choices: Vec<u64> = (0..12).map(|index| index * 7919).collect();
    for code in forms() {
        let Some(instruction) = build(code, &mut Choices { left: choices.iter() }) else { continue };
        for used in factory.info(&instruction).used_registers() {
            let written = !matches!(used.access(), OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess);
            let reserved = [MEMORY_BASE, MEMORY_INDEX].contains(&used.register().full_register());
            assert!(!(written && reserved), "{code:?} writes {:?}", used.register());
        }
    }
}
