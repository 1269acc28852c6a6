//! Tests that were posted to the kernel's lists and are not in Linux 7.3, by their descriptions. Functions have
//! the names of the cases where the description names no function.

use super::Origin::Series;
use super::{Function, Test, covered, open};

const FD_BASED: Test = Test {
    name: "priv_memfd_test",
    origin: Series("selftests: KVM: fd-based approach for supporting KVM guest private memory, RFC V2, 2022-05"),
    functions: PRIV_MEMFD,
};

/// The eight cases, by their names in the series: private or shared memory, private or shared access.
const PRIV_MEMFD: &[Function] = &[
    covered("PMPAT"),
    covered("PMSAT"),
    covered("SMSAT"),
    covered("SMPAT"),
    covered("PSAT"),
    covered("SPAT"),
    covered("PSPAHCT"),
    covered("PSAWDAT"),
];

const ONE_BACKING: &str = "a page of a SEV guest has one backing, so nothing can be allocated twice";
const INTERRUPTS: &str = "Secure AVIC is about interrupts, not about memory";
const NO_IN_PLACE: &str = "conversion in place needs KVM_SET_MEMORY_ATTRIBUTES2, which Linux 7.3 does not have";

pub(super) const TESTS: &[Test] = &[
    FD_BASED,
    Test {
        name: "x86/sev_priv_memfd_test",
        origin: Series("selftests: KVM: sev: private memory, RFC V1, 2022-05"),
        functions: &[
            covered("PMPAT"),
            covered("PMSAT"),
            covered("SMSAT"),
            covered("SMPAT"),
            covered("PSAT"),
            covered("SPAT"),
            covered("PSPAHCT"),
            open("PSAWDAT", ONE_BACKING),
        ],
    },
    Test {
        name: "private_mem_test",
        origin: Series("selftests: KVM: execution of guest code from private memory, RFC V3, 2022-08"),
        functions: &[covered("guest_conv_test_fn_explicit"), covered("guest_conv_test_fn_implicit")],
    },
    Test {
        name: "x86/sev_private_mem_test",
        origin: Series("KVM: selftests: sev: private memory, V3, 2023-01"),
        functions: &[covered("guest_conv_test_fn_explicit"), covered("guest_conv_test_fn_implicit")],
    },
    Test {
        name: "x86/sev_all_boot_test",
        origin: Series("KVM: selftests: Add tests for SEV and SEV-ES guests, v2, 2021-12"),
        functions: &[
            covered("guest_sev_code"),
            covered("guest_sev_es_code"),
            covered("cpuid_by_ghcb_msr"),
            covered("cpuid_by_ghcb_page"),
        ],
    },
    Test {
        name: "x86/sev_es_ghcb_ucall",
        origin: Series("Add ability for SEV-ES guests to use ucalls via GHCB, 2024-04; Secure AVIC, RFC v2, 2025-09"),
        functions: &[
            covered("ghcb_ioio_ucall"),
            covered("ghcb_msr"),
            covered("ghcb_mmio"),
            covered("snp_register_ghcb"),
            open("savic_test", INTERRUPTS),
            open("xapic_ipi_test", INTERRUPTS),
            open("xapic_state_test", INTERRUPTS),
        ],
    },
    Test {
        name: "x86/snp_launch_test",
        origin: Series("SEV-SNP selftests, RFC to v3, 2024-07 to 2024-09"),
        functions: &[
            covered("test_snp_launch_start"),
            covered("test_snp_launch_update"),
            covered("test_snp_launch_finish"),
            covered("policy_mismatch"),
        ],
    },
    Test {
        name: "x86/coco_pre_fault_memory_test",
        origin: Series("SEV-SNP selftests, RFC to v3, 2024-07 to 2024-09"),
        functions: &[
            covered("prefault_none"),
            covered("prefault_shared_before_finalizing"),
            covered("prefault_private_before_finalizing"),
            covered("prefault_private_shared_after_finalizing"),
            covered("fallocate_around_update"),
            covered("deallocate_after_update"),
        ],
    },
    Test {
        name: "x86/tdx_vm_test",
        origin: Series("TDX KVM selftests, v6 to v13, 2025-04 to 2026-05"),
        functions: &[
            covered("verify_td_lifecycle"),
            covered("verify_report_fatal_error"),
            covered("verify_td_ioexit"),
            covered("verify_td_cpuid"),
            covered("verify_get_td_vmcall_info"),
            covered("verify_guest_writes"),
            covered("verify_guest_reads"),
            covered("verify_guest_msr_writes"),
            covered("verify_guest_msr_reads"),
            covered("verify_guest_hlt"),
            covered("verify_mmio_reads"),
            covered("verify_mmio_writes"),
            covered("verify_td_cpuid_tdcall"),
            covered("verify_host_reading_private_mem"),
            covered("verify_tdcall_vp_info"),
            covered("verify_log_dirty_pages_flag_on_non_gmemfd_slot"),
        ],
    },
    Test {
        name: "x86/tdx_shared_mem_test",
        origin: Series("TDX KVM selftests, v6, 2025-04"),
        functions: &[covered("verify_shared_mem")],
    },
    Test {
        name: "x86/tdx_upm_test",
        origin: Series("TDX KVM selftests, v6, 2025-04"),
        functions: &[covered("verify_upm_explicit"), covered("verify_upm_implicit"), covered("stress")],
    },
    Test {
        name: "x86/tdx_in_place_conversions_test",
        origin: Series("verify_conversions, proof of concept, 2026-06"),
        functions: &[open("verify_conversions", NO_IN_PLACE)],
    },
    Test {
        name: "x86/guest_memfd_conversions_test",
        origin: Series("guest_memfd in-place conversion, v13, 2026-09: in linux-next"),
        functions: &[
            open("init_private", NO_IN_PLACE),
            open("init_shared", NO_IN_PLACE),
            open("indexing", NO_IN_PLACE),
            open("before_allocation_shared", NO_IN_PLACE),
            open("before_allocation_private", NO_IN_PLACE),
            open("unallocated_folios", NO_IN_PLACE),
            open("truncate", NO_IN_PLACE),
            open("forked_accesses", NO_IN_PLACE),
            open("elevated_refcount", NO_IN_PLACE),
            // What the series changes in merged tests.
            open("private_mem_conversions_test_sigbus", NO_IN_PLACE),
            open("private_mem_kvm_exits_test_mmio_after_deletion", NO_IN_PLACE),
        ],
    },
];
