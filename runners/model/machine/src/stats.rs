//! Binary statistics: counters, and the file in which programs read them.
//!
//! Source: `virt/kvm/binary_stats.c:kvm_stats_read`, `include/linux/kvm_host.h:KVM_GENERIC_VCPU_STATS`,
//! `arch/x86/kvm/x86.c:kvm_vm_stats_desc`, `kvm_vcpu_stats_desc`.

use std::sync::atomic::{AtomicU64, Ordering};

const HEADER_SIZE: usize = 24;
const NAME_SIZE: usize = 48;
const DESCRIPTOR_SIZE: usize = 16 + NAME_SIZE;

/// The fields of `struct kvm_stats_desc` that differ.
#[derive(Clone, Copy)]
struct Shape {
    flags: u32,
    exponent: i16,
    values: u16,
}

const SECONDS: u32 = 2 << 4;
const BOOLEAN: u32 = 4 << 4;
const COUNTER: Shape = Shape { flags: 0, exponent: 0, values: 1 };
const INSTANT: Shape = Shape { flags: 1, exponent: 0, values: 1 };
const PEAK: Shape = Shape { flags: 2, exponent: 0, values: 1 };
const INSTANT_BOOLEAN: Shape = Shape { flags: 1 | BOOLEAN, exponent: 0, values: 1 };
const NANOSECONDS: Shape = Shape { flags: SECONDS, exponent: -9, values: 1 };
const HALT_HISTOGRAM: Shape = Shape { flags: 4 | SECONDS, exponent: -9, values: 32 };

type Table = [(&'static str, Shape)];

const VM: &Table = &[
    ("remote_tlb_flush", COUNTER),
    ("remote_tlb_flush_requests", COUNTER),
    ("mmu_shadow_zapped", COUNTER),
    ("mmu_pte_write", COUNTER),
    ("mmu_pde_zapped", COUNTER),
    ("mmu_flooded", COUNTER),
    ("mmu_recycled", COUNTER),
    ("mmu_cache_miss", COUNTER),
    ("mmu_unsync", INSTANT),
    ("mmu_shadow_pages", INSTANT),
    ("pages_4k", INSTANT),
    ("pages_2m", INSTANT),
    ("pages_1g", INSTANT),
    ("nx_lpage_splits", INSTANT),
    ("max_mmu_rmap_size", PEAK),
    ("max_mmu_page_hash_collisions", PEAK),
];

const VCPU: &Table = &[
    ("halt_successful_poll", COUNTER),
    ("halt_attempted_poll", COUNTER),
    ("halt_poll_invalid", COUNTER),
    ("halt_wakeup", COUNTER),
    ("halt_poll_success_ns", NANOSECONDS),
    ("halt_poll_fail_ns", NANOSECONDS),
    ("halt_wait_ns", NANOSECONDS),
    ("halt_poll_success_hist", HALT_HISTOGRAM),
    ("halt_poll_fail_hist", HALT_HISTOGRAM),
    ("halt_wait_hist", HALT_HISTOGRAM),
    ("blocking", INSTANT_BOOLEAN),
    ("pf_taken", COUNTER),
    ("pf_fixed", COUNTER),
    ("pf_emulate", COUNTER),
    ("pf_spurious", COUNTER),
    ("pf_fast", COUNTER),
    ("pf_mmio_spte_created", COUNTER),
    ("pf_guest", COUNTER),
    ("tlb_flush", COUNTER),
    ("invlpg", COUNTER),
    ("exits", COUNTER),
    ("io_exits", COUNTER),
    ("mmio_exits", COUNTER),
    ("signal_exits", COUNTER),
    ("irq_window_exits", COUNTER),
    ("nmi_window_exits", COUNTER),
    ("l1d_flush", COUNTER),
    ("halt_exits", COUNTER),
    ("request_irq_exits", COUNTER),
    ("irq_exits", COUNTER),
    ("host_state_reload", COUNTER),
    ("fpu_reload", COUNTER),
    ("insn_emulation", COUNTER),
    ("insn_emulation_fail", COUNTER),
    ("hypercalls", COUNTER),
    ("irq_injections", COUNTER),
    ("nmi_injections", COUNTER),
    ("req_event", COUNTER),
    ("nested_run", COUNTER),
    ("directed_yield_attempted", COUNTER),
    ("directed_yield_successful", COUNTER),
    ("preemption_reported", COUNTER),
    ("preemption_other", COUNTER),
    ("guest_mode", INSTANT_BOOLEAN),
    ("notify_window_exits", COUNTER),
];

/// One statistic: the index of its value.
#[derive(Clone, Copy)]
pub(crate) struct Stat(usize);

/// Looks a statistic up while compiling.
const fn stat(table: &Table, name: &str) -> Stat {
    let (mut index, mut value) = (0, 0);
    while index < table.len() {
        let (candidate, shape) = table[index];
        let mut byte = 0;
        while byte < name.len() && byte < candidate.len() && name.as_bytes()[byte] == candidate.as_bytes()[byte] {
            byte += 1;
        }
        if byte == name.len() && byte == candidate.len() {
            return Stat(value);
        }
        value += shape.values as usize;
        index += 1;
    }
    panic!("no such statistic")
}

/// VM: present leaf entries of 4 KiB.
pub(crate) const PAGES_4K: Stat = stat(VM, "pages_4k");
/// VM: present leaf entries of 2 MiB.
pub(crate) const PAGES_2M: Stat = stat(VM, "pages_2m");
/// VM: flushes of all vCPUs' translations.
pub(crate) const REMOTE_TLB_FLUSH: Stat = stat(VM, "remote_tlb_flush");
/// VM: requests for those.
pub(crate) const REMOTE_TLB_FLUSH_REQUESTS: Stat = stat(VM, "remote_tlb_flush_requests");
/// vCPU: page faults that reached the fault handler.
pub(crate) const PF_TAKEN: Stat = stat(VCPU, "pf_taken");
/// vCPU: faults that installed a mapping.
pub(crate) const PF_FIXED: Stat = stat(VCPU, "pf_fixed");
/// vCPU: faults that ended in emulation.
pub(crate) const PF_EMULATE: Stat = stat(VCPU, "pf_emulate");
/// vCPU: write protections that were lifted without a lock.
pub(crate) const PF_FAST: Stat = stat(VCPU, "pf_fast");
/// vCPU: MMIO entries installed.
pub(crate) const PF_MMIO_SPTE_CREATED: Stat = stat(VCPU, "pf_mmio_spte_created");
/// vCPU: exits that hardware would have made.
pub(crate) const EXITS: Stat = stat(VCPU, "exits");
/// vCPU: port accesses.
pub(crate) const IO_EXITS: Stat = stat(VCPU, "io_exits");
/// vCPU: instructions whose MMIO went to user space.
pub(crate) const MMIO_EXITS: Stat = stat(VCPU, "mmio_exits");
/// vCPU: runs that a signal ended.
pub(crate) const SIGNAL_EXITS: Stat = stat(VCPU, "signal_exits");
/// vCPU: HLT.
pub(crate) const HALT_EXITS: Stat = stat(VCPU, "halt_exits");
/// vCPU: runs that ended because user space wants to inject.
pub(crate) const REQUEST_IRQ_EXITS: Stat = stat(VCPU, "request_irq_exits");
/// vCPU: wake-ups from HLT.
pub(crate) const HALT_WAKEUP: Stat = stat(VCPU, "halt_wakeup");
/// vCPU: 1 while it is halted.
pub(crate) const BLOCKING: Stat = stat(VCPU, "blocking");
/// vCPU: instructions decoded by the emulator.
pub(crate) const INSN_EMULATION: Stat = stat(VCPU, "insn_emulation");
/// vCPU: instructions that the emulator gave up on.
pub(crate) const INSN_EMULATION_FAIL: Stat = stat(VCPU, "insn_emulation_fail");
/// vCPU: hypercalls.
pub(crate) const HYPERCALLS: Stat = stat(VCPU, "hypercalls");
/// vCPU: interrupts delivered.
pub(crate) const IRQ_INJECTIONS: Stat = stat(VCPU, "irq_injections");
/// vCPU: NMIs delivered.
pub(crate) const NMI_INJECTIONS: Stat = stat(VCPU, "nmi_injections");

/// The statistics of one VM or vCPU.
pub(crate) struct Stats {
    /// What the file says before the values.
    preamble: Vec<u8>,
    values: Vec<AtomicU64>,
}

impl Stats {
    /// Those of the VM that process `pid` made.
    pub(crate) fn of_vm(pid: i32) -> Self {
        Self::new(VM, &format!("kvm-{pid}"))
    }

    /// Those of a vCPU of such a VM.
    pub(crate) fn of_vcpu(pid: i32, id: u32) -> Self {
        Self::new(VCPU, &format!("kvm-{pid}/vcpu-{id}"))
    }

    fn new(table: &Table, id: &str) -> Self {
        let descriptors = HEADER_SIZE + NAME_SIZE;
        let data = descriptors + DESCRIPTOR_SIZE * table.len();
        let header = [0, NAME_SIZE, table.len(), HEADER_SIZE, descriptors, data];
        let mut preamble: Vec<u8> = header.iter().flat_map(|&field| (field as u32).to_le_bytes()).collect();
        preamble.extend(name_field(id));
        let mut count = 0u32;
        for (name, shape) in table {
            let bucket_size = 0u32;
            preamble.extend(shape.flags.to_le_bytes());
            preamble.extend(shape.exponent.to_le_bytes());
            preamble.extend(shape.values.to_le_bytes());
            preamble.extend((count * 8).to_le_bytes());
            preamble.extend(bucket_size.to_le_bytes());
            preamble.extend(name_field(name));
            count += u32::from(shape.values);
        }
        Self { preamble, values: (0..count).map(|_| AtomicU64::new(0)).collect() }
    }

    /// Adds to a counter.
    pub(crate) fn add(&self, stat: Stat, amount: u64) {
        self.values[stat.0].fetch_add(amount, Ordering::Relaxed);
    }

    /// Adds one to a counter.
    pub(crate) fn count(&self, stat: Stat) {
        self.add(stat, 1);
    }

    /// Sets an instant value.
    pub(crate) fn set(&self, stat: Stat, value: u64) {
        self.values[stat.0].store(value, Ordering::Relaxed);
    }

    /// At most `bytes` bytes of the file from `offset` on.
    pub(crate) fn read(&self, offset: u64, bytes: usize) -> Vec<u8> {
        let values = self.values.iter().flat_map(|value| value.load(Ordering::Relaxed).to_le_bytes());
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        self.preamble.iter().copied().chain(values).skip(offset).take(bytes).collect()
    }
}

fn name_field(name: &str) -> [u8; NAME_SIZE] {
    let mut field = [0; NAME_SIZE];
    let bytes = &name.as_bytes()[..name.len().min(NAME_SIZE - 1)];
    field[..bytes.len()].copy_from_slice(bytes);
    field
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_is_found_where_its_descriptor_says() {
        let stats = Stats::of_vcpu(7, 2);
        stats.add(PF_MMIO_SPTE_CREATED, 5);
        let file = stats.read(0, usize::MAX);
        let field = |at: usize| u32::from_le_bytes(file[at..at + 4].try_into().unwrap()) as usize;
        assert!(file[24..].starts_with(b"kvm-7/vcpu-2\0"));
        let (count, descriptors, data) = (field(8), field(16), field(20));
        let descriptor = (0..count)
            .map(|index| descriptors + index * DESCRIPTOR_SIZE)
            .find(|at| file[at + 16..].starts_with(b"pf_mmio_spte_created\0"))
            .unwrap();
        let at = data + field(descriptor + 8);
        assert_eq!(file[at..at + 8], 5u64.to_le_bytes());
        assert_eq!(stats.read(at as u64, 8), 5u64.to_le_bytes());
        assert_eq!(stats.read(file.len() as u64, 8), []);
        assert_eq!(stats.read(u64::MAX, 8), []);
    }
}
