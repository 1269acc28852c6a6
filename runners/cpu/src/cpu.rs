//! The CPU as its owner sees it.

use std::sync::Arc;

use crate::block::BlockCache;
use crate::bus::Bus;
use crate::code::{CodePages, Seen};
use crate::completion::Completion;
use crate::config::{Config, DebugControl};
use crate::core::{Core, Why};
use crate::exception::Exception;
use crate::exit::CpuExit;
use crate::kick::{Kick, Patience};
use crate::paging::View;
use crate::state::{CpuState, Injection};
use crate::tlb::Tlbs;

/// One logical processor.
#[derive(Debug)]
pub struct Cpu {
    /// Registers. Plain data between runs.
    pub state: CpuState,
    /// What kind of CPU it is. Changing it flushes nothing: see [`Cpu::flush_tlb`].
    pub config: Config,
    /// What the host debugs.
    pub debug: DebugControl,
    kick: Arc<Kick>,
    tlbs: Tlbs,
    /// Its own, if it shares none.
    blocks: Option<BlockCache>,
    code: Option<Arc<CodePages>>,
    seen_code: Seen,
    completion: Completion,
    /// CR0, CR3, CR4 and EFER when the translations were made.
    translated_with: [u64; 4],
}

impl Cpu {
    /// A CPU after RESET, one of those that share `code`: they take decoded code for unchanged until a write is
    /// told there.
    #[must_use]
    pub fn sharing(config: Config, code: Arc<CodePages>) -> Cpu {
        Cpu { code: Some(code), ..Cpu::with_blocks(config, None) }
    }

    /// A CPU after RESET. It compares code with memory each time: anybody may write there without telling it.
    #[must_use]
    pub fn new(config: Config) -> Cpu {
        Cpu::with_blocks(config, Some(BlockCache::new(BlockCache::OF_GUEST)))
    }

    fn with_blocks(config: Config, blocks: Option<BlockCache>) -> Cpu {
        Cpu {
            state: CpuState::reset(),
            config,
            debug: DebugControl::default(),
            kick: Arc::new(Kick::new()),
            tlbs: Tlbs::new(),
            blocks,
            code: None,
            seen_code: Seen::default(),
            completion: Completion::default(),
            translated_with: [0; 4],
        }
    }

    /// The mailbox through which other threads reach this CPU.
    #[must_use]
    pub fn kick(&self) -> &Arc<Kick> {
        &self.kick
    }

    /// Executes instructions until something ends it.
    ///
    /// What the last exit left to be completed is completed first, even if a stop is requested.
    pub fn run(&mut self, bus: &mut dyn Bus) -> CpuExit {
        if let Some(exit) = self.completion.next_write() {
            return exit;
        }
        self.notice_changes();
        let kick = Arc::clone(&self.kick);
        let code = self.code.clone();
        let mut shared = code.as_ref().map(|code| code.blocks());
        let (mut core, own) = self.core(bus);
        let blocks = shared.as_deref_mut().or(own).expect("a CPU without blocks of its own shares some");
        core.update_mode();
        core.select_context();
        core.hear_of_code();
        kick.enter();
        let exit = core.execute(blocks);
        kick.leave();
        self.translated_with = self.translation_registers();
        exit
    }

    /// Answers [`CpuExit::MmioRead`]; missing bytes read as zero.
    pub fn complete_mmio_read(&mut self, data: &[u8]) {
        self.completion.complete_read(data);
    }

    /// Answers [`CpuExit::PortIn`] with `size * count` bytes; missing bytes read as zero.
    pub fn complete_port_in(&mut self, data: &[u8]) {
        self.completion.complete_port(data);
    }

    /// Forgets what the last exit left to be completed: the instruction at RIP starts anew.
    pub fn abandon_completion(&mut self) {
        self.completion = Completion::default();
    }

    /// Moves RIP behind the instruction whose interception ended the last run
    /// ([`crate::Intercepted::Exit`]): the caller has emulated it.
    pub fn skip_instruction(&mut self) {
        let length = std::mem::take(&mut self.completion.intercepted);
        self.state.rip = self.state.rip.wrapping_add(u64::from(length));
        if !self.state.code64() {
            self.state.rip &= 0xffff_ffff;
        }
    }

    /// The guest gets `exception` before its next instruction.
    pub fn inject(&mut self, exception: Exception) {
        self.state.injection = Some(Injection::Exception(exception));
    }

    /// Goes on somewhere else, as after RESET: what it was about to do is forgotten. Code that it has decoded stays so.
    pub fn put_to(&mut self, state: CpuState) {
        self.state = state;
        self.completion = Completion::default();
        self.flush_tlb();
    }

    /// Drops all cached translations. For changes that the CPU cannot see itself, from the owner's
    /// thread; other threads use [`Kick::request_flush`].
    pub fn flush_tlb(&mut self) {
        self.tlbs.flush();
    }

    /// The guest-physical address of a linear address as a supervisor read would find it, without
    /// setting accessed bits (KVM_TRANSLATE); `None` if there is none.
    pub fn translate(&mut self, bus: &mut dyn Bus, linear: u64) -> Option<u64> {
        let kick = Arc::clone(&self.kick);
        let (mut core, _) = self.core(bus);
        core.select_context();
        core.hear_of_code();
        kick.enter();
        core.flush_as_asked();
        let gpa = core.probe(linear);
        kick.leave();
        gpa
    }

    fn translation_registers(&self) -> [u64; 4] {
        [self.state.cr0, self.state.cr3, self.state.cr4, self.state.efer]
    }

    /// Translations do not outlive the registers that they were made with, whoever changed those.
    fn notice_changes(&mut self) {
        if self.translated_with != self.translation_registers() {
            self.tlbs.flush();
        }
    }

    fn core<'a>(&'a mut self, bus: &'a mut dyn Bus) -> (Core<'a>, Option<&'a mut BlockCache>) {
        let core = Core {
            next_rip: self.state.rip,
            s: &mut self.state,
            tlbs: &mut self.tlbs,
            bus,
            completion: &mut self.completion,
            kick: &self.kick,
            code: self.code.as_deref(),
            seen_code: &mut self.seen_code,
            config: self.config,
            debug: self.debug,
            why: Why::NonCanonical,
            new_world: false,
            attention: false,
            exit_after: None,
            emulate_next: false,
            emulating: false,
            view: View::Supervisor,
            bits: 64,
            stepping: false,
            watches_memory: false,
            watch_hits: 0,
            casts_shadow: false,
            delivered: false,
            patience: Patience::default(),
        };
        (core, self.blocks.as_mut())
    }
}
