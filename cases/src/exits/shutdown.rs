//! A guest that cannot take an exception any more.

use privet_harness::case::Case;
use privet_harness::exit::Exit;
use privet_harness::outcome::Outcome;
use privet_harness::test_range::RangeSpec;
use privet_protocol::Op;

use crate::row::Row;
use crate::types::Types;

/// `lidt [rip + 1]; int3`, and the descriptor of a table of one byte.
const TRIPLE_FAULT: [u8; 18] = [0x0f, 0x01, 0x1d, 1, 0, 0, 0, 0xcc, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

pub(super) fn rows() -> Vec<Row> {
    vec![
        Row::new(
            "exits.triple_fault",
            Types::ALL,
            "A guest without a table of interrupts that takes an exception is shut down: KVM_EXIT_SHUTDOWN, whether the host \
             sees its registers or not.",
            triple_fault,
        )
        .basis(&["arch/x86/kvm/svm/svm.c: shutdown_interception", "arch/x86/kvm/vmx/vmx.c: handle_triple_fault"])
        .upstream("x86/sev_smoke_test: test_sev_shutdown"),
    ]
}

fn triple_fault(t: &Case) -> Outcome {
    let g = t.guest().range(RangeSpec::new(1).backing(t.platform().backing())).boot()?;
    let (v, gva) = (g.vcpu(0), g.range(0).private_gva(0));
    g.make_private(0, 0..1)?;
    v.write_bytes(gva, &TRIPLE_FAULT)?;
    v.start(Op::Execute { gva: gva.0, argument: 0 })?.expect_exit(&Exit::Shutdown)
}
