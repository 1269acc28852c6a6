//! The harness on whatever /dev/kvm there is: only plain VMs and real-mode guests of a few bytes, which every
//! host can run. Without /dev/kvm each test says so and does nothing.

mod guest_memfd;
mod probe;
mod refused;
mod slots;
mod stats;
mod vcpu;

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use privet_harness::host::Host;
use privet_harness::mapping::Mapping;
use privet_harness::memslot::SlotSpec;
use privet_harness::units::{Gpa, PAGE_SIZE, PageCount};
use privet_harness::vcpu::Vcpu;
use privet_harness::vm::Vm;
use privet_harness::vm_type::VmType;

/// More than any guest here needs, on a slow machine too.
const PLENTY: Duration = Duration::from_secs(10);

/// The host; without one the test is skipped.
fn host() -> Option<Host> {
    Host::open().map_err(|error| skip(&error.to_string())).ok()
}

/// Says why a test does nothing, past the test runner's capture of what tests print.
fn skip(reason: &str) {
    let test = std::thread::current();
    let line = format!("{} is skipped: {reason}\n", test.name().unwrap_or("a test"));
    std::io::stderr().write_all(line.as_bytes()).unwrap();
}

/// Where [`real_mode`] puts the code.
const CODE: u64 = PAGE_SIZE;
/// How much memory it gives the guest, from GPA 0 on.
const PAGES: PageCount = PageCount(4);

/// A plain VM whose vCPU 0 starts `code` in real mode, with ES = DS = 0.
fn real_mode(host: &Host, code: &[u8]) -> (Vm, Vcpu, Arc<Mapping>) {
    let vm = Vm::create(host, VmType::Plain).unwrap();
    let memory = Arc::new(Mapping::anonymous(PAGES.bytes()).unwrap());
    memory.write(CODE, code).unwrap();
    vm.add_slot(SlotSpec::shared(0, Gpa(0), PAGES, &memory)).unwrap();
    let vcpu = vm.create_vcpu(0).unwrap();
    let kvm = vcpu.kvm().unwrap();
    let mut sregs = kvm.get_sregs().unwrap();
    (sregs.cs.base, sregs.cs.selector) = (0, 0);
    kvm.set_sregs(&sregs).unwrap();
    let mut regs = kvm.get_regs().unwrap();
    (regs.rip, regs.rflags) = (CODE, 1 << 1);
    kvm.set_regs(&regs).unwrap();
    (vm, vcpu, memory)
}
