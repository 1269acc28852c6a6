//! Flushing translations, those of other vCPUs included.
//!
//! There are no interrupts, so vCPUs cooperate: a flush starts a new *generation*, and every vCPU flushes its
//! own TLB when it sees one. A vCPU in a long operation looks at every round and is waited for; any other
//! one is either in the host or in a short operation, and looks before its next one.
#![expect(unsafe_code, reason = "control registers")]

use core::arch::asm;
use core::hint::spin_loop;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::SeqCst;

use crate::vcpu::Vcpu;

const CR4_PGE: u64 = 1 << 7;

static GENERATION: AtomicU64 = AtomicU64::new(0);

/// Flushes the translations of this vCPU and waits until every vCPU in a long operation has flushed its own.
/// Page-table entries must have been written before.
pub fn flush_everywhere() {
    let generation = GENERATION.fetch_add(1, SeqCst) + 1;
    catch_up(Vcpu::current());
    for vcpu in Vcpu::all() {
        while vcpu.flushes_promptly.load(SeqCst) != 0 && vcpu.flushed.load(SeqCst) < generation {
            // Two vCPUs that flush at once would otherwise wait for each other.
            catch_up(Vcpu::current());
            spin_loop();
        }
    }
}

/// Flushes the translations of this vCPU if anyone has asked for it since the last time.
pub fn catch_up(vcpu: &Vcpu) {
    let generation = GENERATION.load(SeqCst);
    if vcpu.flushed.load(SeqCst) != generation {
        flush_all();
        vcpu.flushed.store(generation, SeqCst);
    }
}

/// Promises to call [`catch_up`] again and again until `work` returns.
pub fn promptly<T>(vcpu: &Vcpu, work: impl FnOnce() -> T) -> T {
    vcpu.flushes_promptly.store(1, SeqCst);
    catch_up(vcpu);
    let result = work();
    vcpu.flushes_promptly.store(0, SeqCst);
    result
}

/// Flushes all translations of this vCPU, global ones included (Intel SDM vol. 3, 4.10.4.1).
fn flush_all() {
    // SAFETY: writes back what is there, PGE apart, which only decides what the TLB keeps.
    unsafe {
        let cr4: u64;
        asm!("mov {}, cr4", out(reg) cr4, options(nostack, preserves_flags));
        if cr4 & CR4_PGE != 0 {
            asm!("mov cr4, {}", in(reg) cr4 & !CR4_PGE, options(nostack, preserves_flags));
            asm!("mov cr4, {}", in(reg) cr4, options(nostack, preserves_flags));
        } else {
            asm!("mov {s}, cr3", "mov cr3, {s}", s = out(reg) _, options(nostack, preserves_flags));
        }
    }
}
