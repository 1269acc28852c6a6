//! Plain VMs: all memory is the host's.

use privet_protocol::{AliasBits, Conversion, Doorbell};

use super::Facts;
use crate::launch::{Launch, Launched};
use crate::outcome::{Outcome, Stop};
use crate::test_range::Backing;
use crate::vm_type::VmType;

pub(super) const FACTS: Facts = Facts {
    vm_type: VmType::Plain,
    doorbell: |_| Doorbell::Port,
    conversion: Conversion::Hypercall,
    has_private_memory: false,
    has_firmware_pages: false,
    begins_at_the_reset_vector: false,
    backing: Backing::HostOnly,
    aliases: |_| Ok(AliasBits::NONE),
    private_parts: &[],
    launch,
};

fn launch(launch: &Launch<'_>) -> Outcome<Launched> {
    match launch.plan.private().next() {
        None => launch.all_shared(),
        Some(_) => Err(Stop::Error("a plain VM has no private memory".into())),
    }
}
