//! Plain VMs: all memory is the host's.

use privet_protocol::{AliasBits, Doorbell};

use super::Facts;
use crate::outcome::Stop;
use crate::test_range::Backing;
use crate::vm_type::VmType;

pub(super) const FACTS: Facts = Facts {
    vm_type: VmType::Plain,
    doorbell: Doorbell::Port,
    has_private_memory: false,
    backing: Backing::HostOnly,
    aliases: AliasBits::NONE,
    fill_private: |_, _, _, _| Err(Stop::Error("a plain VM has no private memory".into())),
};
