//! Statistics of a real VM and vCPU.

use privet_harness::exit::Exit;

use crate::{PLENTY, host, real_mode};

#[test]
fn a_run_counts_exits_and_unknown_names_are_absent() {
    let Some(host) = host() else { return };
    // out 0x10, al; hlt
    let (vm, vcpu, _memory) = real_mode(&host, b"\xE6\x10\xF4");
    let stats = vcpu.stats().unwrap();
    assert!(stats.id().starts_with("kvm-") && stats.id().ends_with("/vcpu-0"), "{}", stats.id());
    let before = stats.snapshot().unwrap();
    assert!(matches!(vcpu.run(PLENTY), Ok(Exit::Io { .. })));
    assert_eq!(vcpu.run(PLENTY), Ok(Exit::Hlt));
    let after = stats.snapshot().unwrap();
    assert!(after.since(&before, "exits").unwrap() > 0);
    assert_eq!(stats.get("exits").unwrap(), after.get("exits"));
    assert_eq!(after.get("no_such_statistic"), None);
    assert_eq!(stats.get("no_such_statistic"), Ok(None));
    assert!(vm.stats().unwrap().names().contains(&"pages_4k"));
}
