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
use crate::bus::PAGE_SIZE;
use crate::code::{CodePage, News};
use crate::core::{Abort, Core};
use crate::decode;
use crate::exception::Exception;
use crate::exit::MAX_INSTRUCTION_BYTES;
use crate::host;
use crate::op::Op;
use crate::segment::Seg;
use crate::translate::{self, CodeBuffer, CodeVersion, Translated, Way};

/// A block is at most so long, bytes.
const MAX_BYTES: usize = 256;

/// Room for translations, of each block that there is room for.
const CODE_OF_BLOCK: usize = 512;

/// Instructions that execute one after the other.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Block<'a> {
    /// The last op may change what following code means: mode, privilege, mapping, pending events.
    pub(crate) changes_mode: bool,
    pub(crate) ops: &'a [Op],
    /// What it was translated to, and where that is.
    pub(crate) code: Option<(&'a CodeBuffer, Translated)>,
}

impl Block<'_> {
    /// How many bytes its instructions have.
    pub(crate) fn bytes(&self) -> u64 {
        self.ops.iter().map(|op| u64::from(op.len)).sum()
    }
}

/// A block without its ops.
#[derive(Debug)]
struct Known {
    rip: u64,
    source: Source,
    /// Where its ops begin in [`BlockCache::ops`], and how many there are.
    first: u32,
    count: u8,
    bits: u8,
    changes_mode: bool,
    translation: Translation,
    /// The two blocks that came behind it last.
    next: [Link; 2],
}

/// A block by its number, with the lower half of its address and where its ops begin.
#[derive(Debug, Clone, Copy)]
struct Link {
    rip: u32,
    number: u32,
    first: u32,
}

impl Link {
    const NONE: Link = Link { rip: 0, number: NONE, first: NONE };
}

/// What has become of a block.
#[derive(Debug, Clone, Copy)]
enum Translation {
    /// It is translated when it has executed so often again.
    After(u32),
    /// Where the code is.
    At(Translated),
    /// There is none: it is not 64-bit code, or the host executes nothing that was written.
    Never,
}

/// No block has this number: the cache is full before that.
const NONE: u32 = u32::MAX;

/// What a block was decoded from.
#[derive(Debug)]
enum Source {
    /// So many bytes from here in [`BlockCache::bytes`] on.
    Bytes { first: u32, count: u16 },
    /// Likewise, the only instruction; it continues on the next page.
    TwoPages { first: u32, count: u16 },
    /// What was at this offset in this version of the page.
    Page { page: Arc<CodePage>, version: u32, offset: u16 },
}

/// The blocks decoded so far, and their ops. Both lie one behind the other as they were met: what executes together is
/// together in memory, too. To find what is not in the processor's cache takes longer than to execute it.
#[derive(Debug)]
pub(crate) struct BlockCache {
    known: Vec<Known>,
    /// When they are full, all blocks are forgotten.
    ops: Vec<Op>,
    bytes: Vec<u8>,
    /// The numbers of two blocks for each address, the one that was used last first. A power of two of them.
    pairs: Box<[[u32; 2]]>,
    /// The block that was found last.
    last: u32,
    code: Option<CodeBuffer>,
    /// How often all of it was forgotten.
    emptied: u32,
}

impl BlockCache {
    /// What a guest of one CPU executes: little but itself.
    pub(crate) const OF_GUEST: u32 = 13;
    /// What all CPUs of a machine execute, a whole operating system among it.
    pub(crate) const OF_MACHINE: u32 = 17;

    /// No blocks, and room for about 2^`bits`.
    pub(crate) fn new(bits: u32) -> BlockCache {
        let pairs = vec![[NONE; 2]; 1 << bits].into();
        BlockCache {
            known: Vec::new(),
            ops: Vec::with_capacity(8 << bits),
            bytes: Vec::new(),
            pairs,
            last: NONE,
            code: CodeBuffer::new(CODE_OF_BLOCK << bits),
            emptied: 0,
        }
    }

    /// The block at RIP, to which translated code came by this way.
    #[inline(always)]
    pub(crate) fn find(&mut self, core: &mut Core<'_>, way: Way) -> Result<Block<'_>, Abort> {
        let emptied = self.emptied;
        let number = match self.linked(core)? {
            Some(number) => number,
            None => self.look_up(core)?,
        };
        self.last = number;
        if let Translation::After(left) = self.known[number as usize].translation {
            self.warm_up(number, left, core);
        }
        let known = &self.known[number as usize];
        host::prefetch(self.known.get(known.next[0].number as usize));
        host::prefetch(self.ops.get(known.next[0].first as usize));
        let ops = &self.ops[known.first as usize..known.first as usize + usize::from(known.count)];
        let code = match (known.translation, &mut self.code) {
            (Translation::At(translated), Some(code)) => {
                if self.emptied == emptied {
                    code.shorten(way, known.rip, translated);
                }
                Some((&*code, translated))
            }
            _ => None,
        };
        Ok(Block { changes_mode: known.changes_mode, ops, code })
    }

    /// Counts an execution of a block that is not translated, and translates it when it is time.
    fn warm_up(&mut self, number: u32, left: u32, core: &mut Core<'_>) {
        let known = &mut self.known[number as usize];
        if left > 0 {
            known.translation = Translation::After(left - 1);
            return;
        }
        known.translation = Translation::Never;
        let Some(buffer) = &mut self.code else { return };
        let ops = &self.ops[known.first as usize..known.first as usize + usize::from(known.count)];
        let mut code = [0; MAX_BYTES];
        let code = &mut code[..ops.iter().map(|op| usize::from(op.len)).sum()];
        let origin = match &known.source {
            Source::Page { page, version, .. } => Some(CodeVersion { page, version: *version }),
            Source::Bytes { .. } => None,
            // Not worth it.
            Source::TwoPages { .. } => return,
        };
        if core.fetch_code(known.rip, code) != Ok(code.len()) {
            return;
        }
        let source = translate::Source { code, rip: known.rip, ops, origin, changes_mode: known.changes_mode };
        if let Some(translated) = translate::translate(buffer, source) {
            known.translation = Translation::At(translated);
        }
    }

    /// The block at RIP, if it came behind the last one before.
    #[inline(always)]
    fn linked(&self, core: &mut Core<'_>) -> Result<Option<u32>, Abort> {
        let Some(last) = self.known.get(self.last as usize) else { return Ok(None) };
        let [one, other] = last.next;
        let link = if one.rip == core.s.rip as u32 { one } else { other };
        let found = link.rip == core.s.rip as u32 && self.is_at_rip(link.number, core)?;
        Ok(found.then_some(link.number))
    }

    /// Finds the block at RIP by its address, or decodes it. It comes behind the last one from here on.
    #[inline(never)]
    fn look_up(&mut self, core: &mut Core<'_>) -> Result<u32, Abort> {
        let pair = pair_of(core.s.rip, self.pairs.len());
        let [first, second] = self.pairs[pair];
        let number = if self.is_at_rip(first, core)? {
            first
        } else if self.is_at_rip(second, core)? {
            self.pairs[pair] = [second, first];
            second
        } else {
            let decoded = decode_block(core)?;
            let number = self.keep(decoded, core.config.translate_after);
            let [first, _] = self.pairs[pair];
            self.pairs[pair] = [number, first];
            number
        };
        let first = self.known[number as usize].first;
        if let Some(last) = self.known.get_mut(self.last as usize) {
            last.next = [Link { rip: core.s.rip as u32, number, first }, last.next[0]];
        }
        Ok(number)
    }

    /// Puts what was decoded where it stays.
    fn keep(&mut self, decoded: Decoded, translate_after: u32) -> u32 {
        let Decoded { rip, bits, changes_mode, origin, ops } = decoded;
        if self.ops.len() + ops.len() > self.ops.capacity() {
            self.pairs.fill([NONE; 2]);
            self.known.clear();
            self.ops.clear();
            self.bytes.clear();
            self.last = NONE;
            self.code.iter_mut().for_each(CodeBuffer::clear);
            self.emptied += 1;
        }
        let first = self.bytes.len() as u32;
        let source = match origin {
            Origin::Bytes(code) => {
                self.bytes.extend(&*code);
                Source::Bytes { first, count: code.len() as u16 }
            }
            Origin::TwoPages(code) => {
                self.bytes.extend(&*code);
                Source::TwoPages { first, count: code.len() as u16 }
            }
            Origin::Page { page, version, offset } => Source::Page { page, version, offset },
        };
        let (first, count) = (self.ops.len() as u32, ops.len() as u8);
        self.ops.extend(ops);
        let is_translated = bits == 64 && translate_after != u32::MAX;
        let translation = if is_translated { Translation::After(translate_after) } else { Translation::Never };
        self.known.push(Known { rip, source, first, count, bits, changes_mode, translation, next: [Link::NONE; 2] });
        self.known.len() as u32 - 1
    }

    #[inline(always)]
    fn is_at_rip(&self, number: u32, core: &mut Core<'_>) -> Result<bool, Abort> {
        let Some(known) = self.known.get(number as usize) else { return Ok(false) };
        Ok(known.rip == core.s.rip && known.bits == core.bits && self.is_current(known, core)?)
    }

    #[inline(always)]
    fn is_current(&self, known: &Known, core: &mut Core<'_>) -> Result<bool, Abort> {
        let linear = if known.bits == 64 { known.rip } else { core.s.linear_rip() };
        match &known.source {
            Source::Page { page, version, offset } => {
                let at = page.address() + usize::from(*offset);
                Ok(core.code_address(linear)?.addr() == at && page.version() == *version)
            }
            Source::Bytes { first, count } => core.code_equals(linear, self.code(*first, *count)),
            Source::TwoPages { first, count } => {
                let code = self.code(*first, *count);
                let mut now = [0; MAX_INSTRUCTION_BYTES];
                let now = &mut now[..code.len()];
                let first = core.fetch_code(linear, now)?;
                core.fetch_code(linear.wrapping_add(first as u64), &mut now[first..])?;
                Ok(*now == *code)
            }
        }
    }

    fn code(&self, first: u32, count: u16) -> &[u8] {
        &self.bytes[first as usize..first as usize + usize::from(count)]
    }
}

/// The pair for an address, of so many.
#[inline(always)]
fn pair_of(rip: u64, pairs: usize) -> usize {
    // The golden ratio: addresses that differ in few bits come to lie far apart.
    (rip.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize & (pairs - 1)
}

/// A block that was just decoded.
struct Decoded {
    rip: u64,
    bits: u8,
    changes_mode: bool,
    origin: Origin,
    ops: Vec<Op>,
}

/// As [`Source`].
enum Origin {
    Bytes(Box<[u8]>),
    TwoPages(Box<[u8]>),
    Page { page: Arc<CodePage>, version: u32, offset: u16 },
}

#[cold]
fn decode_block(core: &mut Core<'_>) -> Result<Decoded, Abort> {
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
    let origin = if crosses_page && linear >> 12 != linear.wrapping_add(used as u64 - 1) >> 12 {
        Origin::TwoPages(code.into())
    } else {
        core.code_source(linear, code)?
    };
    Ok(Decoded { rip, bits: core.bits, changes_mode, origin, ops })
}

impl Core<'_> {
    /// How it will be known that the code at `linear` still is `code`, which was just fetched.
    fn code_source(&mut self, linear: u64, code: &[u8]) -> Result<Origin, Abort> {
        let Some(pages) = self.code else { return Ok(Origin::Bytes(code.into())) };
        let address = self.code_address(linear)?;
        let page = pages.mark(address, code.len());
        self.hear_of_code();
        Ok(Origin::Page { version: page.version(), page, offset: (address.addr() % PAGE_SIZE as usize) as u16 })
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
                | M::Rdpid
                | M::Vmread
                | M::Vmwrite
                | M::Seamcall
                | M::Xsaves
                | M::Xsaves64
                | M::Xrstors
                | M::Xrstors64
        )
        || instruction.op0_register().is_segment_register()
        || instruction.op0_register().is_cr()
        || instruction.op0_register().is_dr()
}
