//! The tests that are in Linux 7.3.

use super::Origin::Merged;
use super::{Function, Test, covered, open};

const NO_SEV: &str = "the table has no rows for SEV VMs yet";
const NO_SEV_ES: &str = "the table has no rows for SEV-ES VMs yet";
const NO_SNP: &str = "the table has no rows for SEV-SNP VMs yet";
const SPEED: &str = "measures the speed of memslot changes; what they do is checked by rows about slots";

pub(super) const TESTS: &[Test] = &[
    Test {
        name: "set_memory_region_test",
        origin: Merged,
        functions: &[
            open(
                "test_zero_memory_regions",
                "the vCPU of a VM without slots has no code to run: nothing private is involved",
            ),
            open(
                "test_mmio_during_vectoring",
                "event delivery through an IDT in MMIO is about exceptions, not about memory",
            ),
            covered("test_invalid_memory_region_flags"),
            covered("test_add_max_memory_regions"),
            covered("test_add_private_memory_region"),
            covered("test_add_overlapping_private_memory_regions"),
            covered("test_move_memory_region"),
            open(
                "test_delete_memory_region",
                "deletes the slots under running code, page tables included; rows delete the slots of data",
            ),
        ],
    },
    Test {
        name: "memslot_modification_stress_test",
        origin: Merged,
        functions: &[open(
            "run_test",
            "adds and deletes a slot beside many busy vCPUs for as long as it is told; rows do so a few times",
        )],
    },
    Test {
        name: "memslot_perf_test",
        origin: Merged,
        functions: &[
            open("test_memslot_map_loop", SPEED),
            open("test_memslot_unmap_loop", SPEED),
            open("test_memslot_unmap_loop_chunked", SPEED),
            open("test_memslot_move_prepare_active", SPEED),
            open("test_memslot_move_prepare_inactive", SPEED),
            open("test_memslot_rw_loop", SPEED),
        ],
    },
    Test {
        name: "guest_memfd_test",
        origin: Merged,
        functions: &[
            covered("test_create_guest_memfd_multiple"),
            covered("test_create_guest_memfd_invalid_sizes"),
            covered("test_guest_memfd_flags"),
            covered("test_file_read_write"),
            covered("test_file_size"),
            covered("test_mmap_supported"),
            covered("test_mmap_not_supported"),
            covered("test_mmap_cow"),
            covered("test_fault_overflow"),
            covered("test_fault_private"),
            covered("test_fallocate"),
            covered("test_invalid_punch_hole"),
            covered("test_invalid_binding"),
            covered("test_guest_memfd_guest"),
            open("test_mbind", "NUMA policies need a kernel with NUMA, which the rig's is not"),
            open("test_numa_allocation", "needs a host with two NUMA nodes"),
            open("test_collapse", "guest_memfd has no huge pages; MADV_COLLAPSE is only asked whether it refuses"),
        ],
    },
    Test {
        name: "pre_fault_memory_test",
        origin: Merged,
        functions: &[covered("pre_fault_memory"), covered("__test_pre_fault_memory"), covered("delete_slot_worker")],
    },
    Test { name: "vm_types_test", origin: Merged, functions: &[covered("main")] },
    Test {
        name: "coalesced_io_test",
        origin: Merged,
        functions: &[open(
            "test_coalesced_io",
            "coalesced MMIO is a ring of its own and never used for private memory",
        )],
    },
    Test {
        name: "x86/private_mem_conversions_test",
        origin: Merged,
        functions: &[
            covered("guest_test_explicit_conversion"),
            covered("guest_test_punch_hole"),
            covered("handle_exit_hypercall"),
            covered("test_mem_conversions"),
        ],
    },
    Test {
        name: "x86/private_mem_kvm_exits_test",
        origin: Merged,
        functions: &[
            covered("test_private_access_memslot_deleted"),
            covered("test_private_access_memslot_not_private"),
        ],
    },
    Test {
        name: "x86/userspace_io_test",
        origin: Merged,
        functions: &[open(
            "guest_ins_port80",
            "repeated port input whose count userspace changes behind KVM's back: no memory is involved",
        )],
    },
    Test {
        name: "x86/exit_on_emulation_failure_test",
        origin: Merged,
        functions: &[open(
            "main",
            "KVM_CAP_EXIT_ON_EMULATION_FAILURE changes how a failed emulation is told; rows see it as it is by default",
        )],
    },
    Test {
        name: "x86/sev_init2_tests",
        origin: Merged,
        functions: &[open("test_vm_types", NO_SEV), open("test_flags", NO_SEV), open("test_features", NO_SEV)],
    },
    Test { name: "x86/sev_migrate_tests", origin: Merged, functions: MIGRATION },
    Test {
        name: "x86/sev_smoke_test",
        origin: Merged,
        functions: &[
            open("guest_sev_code", NO_SEV),
            open("guest_sev_es_code", NO_SEV_ES),
            open("guest_snp_code", NO_SNP),
            open("test_sync_vmsa", NO_SEV_ES),
            open("test_sev_shutdown", NO_SEV_ES),
        ],
    },
    Test { name: "x86/sev_dbg_test", origin: Merged, functions: &[open("test_sev_dbg", NO_SEV)] },
];

const MIGRATION: &[Function] = &[
    open("test_sev_migrate_from", NO_SEV),
    open("test_sev_migrate_locking", NO_SEV),
    open("test_sev_migrate_parameters", NO_SEV),
    open("test_sev_mirror", NO_SEV),
    open("test_sev_mirror_parameters", NO_SEV),
    open("test_sev_move_copy", NO_SEV),
    open("test_sev_snp_migrate_reject", NO_SNP),
    open("test_sev_snp_mirror_reject", NO_SNP),
];
