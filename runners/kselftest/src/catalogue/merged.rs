//! The tests that are in Linux 7.3.

use super::Origin::Merged;
use super::{Function, Test, covered, open, part};

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
            part("guest_code_delete_memory_region", "test_delete_memory_region"),
            part("guest_code_move_memory_region", "test_move_memory_region"),
            part("guest_code_mmio_during_vectoring", "test_mmio_during_vectoring"),
            part("test_invalid_guest_memfd", "test_add_private_memory_region"),
            part("spawn_vm", "test_move_memory_region"),
            part("vcpu_worker", "test_move_memory_region"),
            part("wait_for_vcpu", "test_move_memory_region"),
        ],
    },
    Test {
        name: "memslot_modification_stress_test",
        origin: Merged,
        functions: &[
            open(
                "run_test",
                "adds and deletes a slot beside many busy vCPUs for as long as it is told; rows do so a few times",
            ),
            part("vcpu_worker", "run_test"),
            part("main", "run_test"),
        ],
    },
    Test { name: "memslot_perf_test", origin: Merged, functions: MEMSLOT_PERF },
    Test {
        name: "mmu_stress_test",
        origin: Merged,
        functions: &[
            open(
                "main",
                "fills 128 GiB of guest memory in shared slots while its mapping becomes read-only: about load, not about slots",
            ),
            part("calc_default_nr_vcpus", "main"),
            part("spawn_workers", "main"),
            part("vcpu_worker", "main"),
            part("assert_sync_stage", "main"),
            part("guest_code", "main"),
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
            covered("test_collapse"),
            part("test_fault_sigbus", "test_fault_overflow"),
            part("test_guest_memfd", "test_create_guest_memfd_multiple"),
            part("__test_guest_memfd", "test_create_guest_memfd_multiple"),
            part("guest_code", "test_guest_memfd_guest"),
        ],
    },
    Test {
        name: "pre_fault_memory_test",
        origin: Merged,
        functions: &[
            covered("pre_fault_memory"),
            covered("__test_pre_fault_memory"),
            covered("delete_slot_worker"),
            part("test_pre_fault_memory", "__test_pre_fault_memory"),
        ],
    },
    Test { name: "vm_types_test", origin: Merged, functions: &[covered("main")] },
    Test {
        name: "coalesced_io_test",
        origin: Merged,
        functions: &[
            covered("test_coalesced_io"),
            part("vcpu_run_and_verify_io_exit", "test_coalesced_io"),
            part("vcpu_run_and_verify_coalesced_io", "test_coalesced_io"),
        ],
    },
    Test {
        name: "x86/private_mem_conversions_test",
        origin: Merged,
        functions: &[
            covered("guest_test_explicit_conversion"),
            covered("guest_test_punch_hole"),
            covered("handle_exit_hypercall"),
            covered("test_mem_conversions"),
            part("__test_mem_conversions", "test_mem_conversions"),
            part("memcmp_h", "test_mem_conversions"),
        ],
    },
    Test {
        name: "x86/private_mem_kvm_exits_test",
        origin: Merged,
        functions: &[
            covered("test_private_access_memslot_deleted"),
            covered("test_private_access_memslot_not_private"),
            part("run_vcpu_get_exit_reason", "test_private_access_memslot_not_private"),
        ],
    },
    Test {
        name: "x86/userspace_io_test",
        origin: Merged,
        functions: &[
            open(
                "guest_ins_port80",
                "repeated port input whose count userspace changes behind KVM's back: no memory is involved",
            ),
            part("guest_code", "guest_ins_port80"),
            part("main", "guest_ins_port80"),
        ],
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
        functions: &[
            covered("main"),
            covered("test_vm_types"),
            covered("test_flags"),
            covered("test_features"),
            part("test_init2", "test_vm_types"),
            part("test_init2_invalid", "test_vm_types"),
            part("__sev_ioctl", "test_vm_types"),
        ],
    },
    Test { name: "x86/sev_migrate_tests", origin: Merged, functions: MIGRATION },
    Test {
        name: "x86/sev_smoke_test",
        origin: Merged,
        functions: &[
            covered("guest_sev_code"),
            covered("guest_sev_es_code"),
            covered("guest_snp_code"),
            covered("test_sync_vmsa"),
            covered("test_sev_shutdown"),
            part("test_sev", "guest_sev_code"),
            part("test_sev_smoke", "guest_sev_code"),
            part("guest_sev_test_msr", "guest_sev_code"),
            part("guest_sev_test_regs", "guest_sev_code"),
        ],
    },
    Test {
        name: "x86/sev_dbg_test",
        origin: Merged,
        functions: &[
            covered("test_sev_dbg"),
            part("__test_sev_dbg", "test_sev_dbg"),
            part("____test_sev_dbg", "test_sev_dbg"),
            part("validate_dst", "test_sev_dbg"),
            part("validate_buffers", "test_sev_dbg"),
        ],
    },
];

const MEMSLOT_PERF: &[Function] = &[
    open("test_memslot_map_loop", SPEED),
    open("test_memslot_unmap_loop", SPEED),
    open("test_memslot_unmap_loop_chunked", SPEED),
    open("test_memslot_move_prepare_active", SPEED),
    open("test_memslot_move_prepare_inactive", SPEED),
    open("test_memslot_rw_loop", SPEED),
    part("test_memslot_do_unmap", "test_memslot_unmap_loop"),
    part("test_memslot_map_unmap_check", "test_memslot_map_loop"),
    part("test_memslot_unmap_loop_common", "test_memslot_unmap_loop"),
    part("test_memslot_move_prepare", "test_memslot_move_prepare_active"),
    part("test_memslot_move_loop", "test_memslot_move_prepare_active"),
    part("guest_code_test_memslot_map", "test_memslot_map_loop"),
    part("guest_code_test_memslot_unmap", "test_memslot_unmap_loop"),
    part("guest_code_test_memslot_move", "test_memslot_move_prepare_active"),
    part("guest_code_test_memslot_rw", "test_memslot_rw_loop"),
    part("check_mmio_access", "test_memslot_move_prepare_inactive"),
    part("test_loop", "test_memslot_rw_loop"),
    part("test_execute", "test_memslot_rw_loop"),
    part("alloc_vm", "test_memslot_rw_loop"),
    part("prepare_vm", "test_memslot_rw_loop"),
    part("vm_gpa2hva", "test_memslot_rw_loop"),
    part("vm_slot2gpa", "test_memslot_rw_loop"),
    part("vcpu_worker", "test_memslot_rw_loop"),
    part("wait_for_vcpu", "test_memslot_rw_loop"),
];

const MIGRATION: &[Function] = &[
    covered("test_sev_migrate_from"),
    covered("test_sev_migrate_locking"),
    covered("test_sev_migrate_parameters"),
    covered("test_sev_mirror"),
    covered("test_sev_mirror_parameters"),
    covered("test_sev_move_copy"),
    covered("test_sev_snp_migrate_reject"),
    covered("test_sev_snp_mirror_reject"),
    part("sev_migrate_from", "test_sev_migrate_from"),
    part("locking_test_thread", "test_sev_migrate_locking"),
    part("sev_mirror_create", "test_sev_mirror"),
    part("verify_mirror_allowed_cmds", "test_sev_mirror"),
];
