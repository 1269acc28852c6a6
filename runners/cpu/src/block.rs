//! Decoded basic blocks and their cache.
//!
//! A block is a function of its address, the width of the code segment and the bytes it was decoded
//! from, and of nothing else. Before it runs, it is made sure that the guest would fetch the same bytes now: by
//! comparing them, whoever may have written to code or mapped another page there; or, if all writers tell
//! ([`CodePages`]), by the version of the page that it came from.
//!
//! [`CodePages`]: crate::CodePages

use std::sync::Arc;

use iced_x86::{Code, Decoder, DecoderError, DecoderOptions, FlowControl, Instruction, Mnemonic};

use crate::MAX_BLOCK_OPS;
use crate::code::{CodePage, News};
use crate::core::{Abort, Core};
use crate::decode;
use crate::exception::Exception;
use crate::exit::MAX_INSTRUCTION_BYTES;
use crate::op::Op;
use crate::segment::Seg;

/// A block is at most so long, bytes.
const MAX_BYTES: usize = 256;

/// Instructions that execute one after the other. Each is in one line of the processor's cache: to find one that is not
/// there takes longer than to execute it.
#[derive(Debug)]
#[repr(align(64))]
pub(crate) struct Block {
    rip: u64,
    /// 0 for no block.
    bits: u8,
    /// The last op may change what following code means: mode, privilege, mapping, pending events.
    pub(crate) changes_mode: bool,
    source: Source,
    pub(crate) ops: Box<[Op]>,
}

/// What a block was decoded from.
#[derive(Debug)]
enum Source {
    /// These bytes.
    Bytes(Box<[u8]>),
    /// These bytes, the only instruction; it continues on the next page.
    TwoPages(Box<[u8]>),
    /// What was at this address of the host in this version of the page.
    Page { address: usize, page: Arc<CodePage>, version: u32 },
}

/// The blocks decoded so far, two slots for each address.
#[derive(Debug)]
pub(crate) struct BlockCache {
    /// A power of two of them.
    slots: Box<[Block]>,
}

impl BlockCache {
    /// What a guest of one CPU executes: little but itself.
    pub(crate) const OF_GUEST: u32 = 14;
    /// What all CPUs of a machine execute, a whole operating system among it.
    pub(crate) const OF_MACHINE: u32 = 16;

    /// No blocks, and room for 2^`bits`.
    pub(crate) fn new(bits: u32) -> BlockCache {
        let none = || Block {
            rip: 0,
            bits: 0,
            changes_mode: false,
            source: Source::Bytes(Box::default()),
            ops: Box::default(),
        };
        BlockCache { slots: std::iter::repeat_with(none).take(1 << bits).collect() }
    }

    /// The block at RIP.
    #[inline(always)]
    pub(crate) fn find(&mut self, core: &mut Core<'_>) -> Result<&Block, Abort> {
        let first = first_of_pair(core.s.rip, self.slots.len());
        if !self.slots[first].is_at_rip(core)? {
            self.make_first(first, core)?;
        }
        Ok(&self.slots[first])
    }

    /// Finds the block at RIP in the other slot of its pair, or decodes it, and makes it the first one.
    #[inline(never)]
    fn make_first(&mut self, first: usize, core: &mut Core<'_>) -> Result<(), Abort> {
        // Whatever becomes of the second one, the first one was used later.
        self.slots.swap(first, first + 1);
        if !self.slots[first].is_at_rip(core)? {
            self.slots[first] = decode_block(core)?;
        }
        Ok(())
    }
}

/// The first of the two slots for an address, of so many slots.
#[inline(always)]
fn first_of_pair(rip: u64, slots: usize) -> usize {
    // The golden ratio: addresses that differ in few bits come to lie far apart.
    (rip.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize & (slots - 2)
}

impl Block {
    /// How many bytes its instructions have.
    pub(crate) fn bytes(&self) -> u64 {
        self.ops.iter().map(|op| u64::from(op.len)).sum()
    }

    #[inline(always)]
    fn is_at_rip(&self, core: &mut Core<'_>) -> Result<bool, Abort> {
        Ok(self.rip == core.s.rip && self.bits == core.bits && self.is_current(core)?)
    }

    #[inline(always)]
    fn is_current(&self, core: &mut Core<'_>) -> Result<bool, Abort> {
        let linear = if self.bits == 64 { self.rip } else { core.s.linear_rip() };
        match &self.source {
            Source::Page { address, page, version } => {
                Ok(core.code_address(linear)?.addr() == *address && page.version() == *version)
            }
            Source::Bytes(code) => core.code_equals(linear, code),
            Source::TwoPages(code) => {
                let mut now = [0; MAX_INSTRUCTION_BYTES];
                let now = &mut now[..code.len()];
                let first = core.fetch_code(linear, now)?;
                core.fetch_code(linear.wrapping_add(first as u64), &mut now[first..])?;
                Ok(*now == **code)
            }
        }
    }
}

#[cold]
fn decode_block(core: &mut Core<'_>) -> Result<Block, Abort> {
    let rip = core.s.rip;
    let linear = core.s.linear_rip();
    if core.bits != 64 && rip > u64::from(core.s.segment(Seg::Cs).limit) {
        return core.raise(Exception::gp(0));
    }
    let mut code = [0; MAX_BYTES];
    let mut available = core.fetch_code(linear, &mut code)?;
    let (mut ops, mut used, mut changes_mode) = decode_away(core, &code[..available], rip);
    let crosses_page = ops.is_empty();
    if crosses_page {
        let next_page = linear.wrapping_add(available as u64);
        available += core.fetch_code(next_page, &mut code[available..MAX_INSTRUCTION_BYTES])?;
        (ops, used, _) = decode_away(core, &code[..available], rip);
        ops.truncate(1);
        // A sequence that is no instruction in 15 bytes has none of them: its op raises the fault.
        used = ops.first().map_or(used, |op| usize::from(op.len));
        changes_mode = true;
    }
    let code = &code[..used];
    let source = if crosses_page && linear >> 12 != linear.wrapping_add(used as u64 - 1) >> 12 {
        Source::TwoPages(code.into())
    } else {
        core.code_source(linear, code)?
    };
    Ok(Block { rip, bits: core.bits, changes_mode, source, ops: ops.into() })
}

impl Core<'_> {
    /// How it will be known that the code at `linear` still is `code`, which was just fetched.
    fn code_source(&mut self, linear: u64, code: &[u8]) -> Result<Source, Abort> {
        let Some(pages) = self.code else { return Ok(Source::Bytes(code.into())) };
        let address = self.code_address(linear)?;
        let page = pages.mark(address, code.len());
        self.hear_of_code();
        Ok(Source::Page { address: address.addr(), version: page.version(), page })
    }

    /// Does not write any more, without asking first, to what has become code.
    pub(crate) fn hear_of_code(&mut self) {
        match self.code.map(|code| code.news(self.seen_code)) {
            Some(News::Pages(pages)) => pages.into_iter().for_each(|page| self.tlbs.forbid_writes(page)),
            Some(News::Lost) => self.tlbs.flush(),
            None => {}
        }
    }
}

/// Decodes while nobody has to wait for this CPU: the first instruction of a kind may map memory for its code, and the
/// owner of such mappings may want every CPU's translations dropped for it.
fn decode_away(core: &mut Core<'_>, code: &[u8], rip: u64) -> (Vec<Op>, usize, bool) {
    core.with_bus(|core| decode_ops(code, rip, core.bits))
}

/// Decodes up to the end of a block; returns the ops, the bytes they take, and whether the last
/// changes what follows. Nothing, if not even the first instruction is complete.
fn decode_ops(code: &[u8], rip: u64, bits: u8) -> (Vec<Op>, usize, bool) {
    let mut decoder = Decoder::with_ip(u32::from(bits), code, rip, DecoderOptions::NONE);
    let mut instruction = Instruction::default();
    let mut ops = Vec::new();
    let mut used = 0;
    while ops.len() < MAX_BLOCK_OPS && decoder.can_decode() {
        decoder.decode_out(&mut instruction);
        if decoder.last_error() == DecoderError::NoMoreBytes && code.len() - used < MAX_INSTRUCTION_BYTES {
            break;
        }
        if let Some(op) = decode::rmpread(&instruction, &code[used..], bits) {
            used += usize::from(op.len);
            ops.push(op);
            return (ops, used, true);
        }
        ops.push(decode::op(&instruction, bits));
        used = decoder.position();
        if !is_near_branch(&instruction) && ends_block(&instruction) {
            return (ops, used, true);
        }
        if is_near_branch(&instruction) {
            break;
        }
    }
    (ops, used, false)
}

fn is_near_branch(instruction: &Instruction) -> bool {
    instruction.is_jcc_short_or_near()
        || instruction.is_jmp_short_or_near()
        || instruction.is_call_near()
        || instruction.is_jmp_near_indirect()
        || instruction.is_call_near_indirect()
        || instruction.is_jcx_short()
        || instruction.is_loop()
        || instruction.is_loopcc()
        || matches!(instruction.code(), Code::Retnq | Code::Retnq_imm16 | Code::Retnd | Code::Retnw)
}

/// Whether the loop has to look around after the instruction: it may change what comes next, or the bus may do it.
fn ends_block(instruction: &Instruction) -> bool {
    use Mnemonic as M;
    instruction.flow_control() != FlowControl::Next
        || instruction.is_string_instruction() && (instruction.has_rep_prefix() || instruction.has_repne_prefix())
        || instruction.is_privileged()
        || matches!(
            instruction.mnemonic(),
            M::Pushf
                | M::Pushfd
                | M::Pushfq
                | M::Sgdt
                | M::Sidt
                | M::Sldt
                | M::Str
                | M::Smsw
                | M::Rdpmc
                | M::Invpcid
                | M::Pvalidate
                | M::Rmpadjust
                | M::Rmpquery
                | M::Rmpupdate
                | M::Psmash
                | M::Tdcall
                | M::Popf
                | M::Popfd
                | M::Popfq
                | M::Sti
                | M::Cli
                | M::Stac
                | M::Clac
                | M::In
                | M::Out
                | M::Cpuid
                | M::Insb
                | M::Insw
                | M::Insd
                | M::Outsb
                | M::Outsw
                | M::Outsd
                | M::Lss
                | M::Xsetbv
                | M::Rdtsc
                | M::Rdrand
                | M::Rdseed
                | M::Rdtscp
                | M::Vmcall
                | M::Vmmcall
                | M::Vmgexit
                | M::Pause
                | M::Wrpkru
        )
        || instruction.op0_register().is_segment_register()
        || instruction.op0_register().is_cr()
        || instruction.op0_register().is_dr()
}
