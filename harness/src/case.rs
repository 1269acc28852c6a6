//! The circumstances in which one row is told: where, as what, with which seed and time limit.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::guest::GuestBuilder;
use crate::host::Host;
use crate::outcome::{Outcome, Stop};
use crate::payload::Payload;
use crate::platform::{ByType, Platform};
use crate::trace::{LONGEST_INSTRUCTION, Trace};
use crate::vm::Vm;

/// A payload as the story's row has it: a name for messages and an ELF file.
#[derive(Clone, Copy)]
pub struct PayloadFile {
    /// Name, as in the `.privet` section.
    pub name: &'static str,
    /// The file.
    pub elf: &'static [u8],
}

/// One row being told.
pub struct Case {
    host: Arc<Host>,
    platform: Platform,
    seed: u64,
    limit: Duration,
    file: PayloadFile,
    plan: OnceLock<Payload>,
}

impl Case {
    /// A case on `host` with VMs of `platform`.
    pub fn new(host: Arc<Host>, platform: Platform, payload: PayloadFile, seed: u64, limit: Duration) -> Self {
        Self { host, platform, seed, limit, file: payload, plan: OnceLock::new() }
    }

    /// The host.
    pub fn host(&self) -> &Arc<Host> {
        &self.host
    }

    /// The platform of the row's VMs.
    pub fn platform(&self) -> Platform {
        self.platform
    }

    /// What the row expects where VM types differ: that of its own type.
    pub fn by_type<T>(&self, each: ByType<T>) -> T {
        each.of(self.platform)
    }

    /// The seed of everything random.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// The time that the whole row may take.
    pub fn limit(&self) -> Duration {
        self.limit
    }

    /// The exits so far.
    pub fn trace(&self) -> &Arc<Trace> {
        self.host.trace()
    }

    /// The last exits, one line each, with the payload's instruction at RIP.
    pub fn exit_lines(&self) -> Vec<String> {
        let code = |rip: u64| {
            let segments = self.plan.get().map_or(&[][..], |plan| &plan.segments);
            let bytes = segments.iter().find_map(|segment| segment.bytes.get(rip.checked_sub(segment.gpa)? as usize..));
            bytes.map_or(Vec::new(), |bytes| bytes[..bytes.len().min(LONGEST_INSTRUCTION)].to_vec())
        };
        self.trace().render(&code)
    }

    /// A VM of the row's type, empty.
    pub fn vm(&self) -> Outcome<Vm> {
        Vm::create(&self.host, self.platform.vm_type())
    }

    /// A guest with the general payload, to be configured and booted.
    pub fn guest(&self) -> GuestBuilder<'_> {
        GuestBuilder::new(&self.host, self.platform, self.payload(), self.limit)
    }

    /// A guest of another type than the row's, beside the row's own.
    pub fn guest_of(&self, platform: Platform) -> GuestBuilder<'_> {
        GuestBuilder::new(&self.host, platform, self.payload(), self.limit)
    }

    /// How the payload is loaded.
    ///
    /// # Errors
    /// [`Stop::Error`] if the file is no payload.
    pub fn payload(&self) -> Outcome<&Payload> {
        if let Some(plan) = self.plan.get() {
            return Ok(plan);
        }
        let plan = Payload::parse(self.file.name, self.file.elf).map_err(|error| Stop::Error(error.to_string()))?;
        Ok(self.plan.get_or_init(|| plan))
    }
}
