//! The launch of a SEV or SEV-ES guest, step by step; a step that is out of order does not compile.
//!
//! ```
//! # use privet_harness::{launch::{Piece, sev}, mapping::Mapping, outcome::Outcome, sev::{Device, SevPolicy}, vm::Vm};
//! # fn story(vm: &Vm, device: &Device, memory: &Mapping, piece: &Piece) -> Outcome {
//! let mut launch = sev::Launch::create(vm, device, Default::default())?.start(SevPolicy::NONE)?;
//! launch.encrypt(memory, piece)?;
//! launch.measure()?.finish()?;
//! # Ok(())
//! # }
//! ```
//!
//! Nothing is encrypted before the key is there:
//! ```compile_fail,E0599
//! # use privet_harness::{launch::{Piece, sev}, mapping::Mapping, outcome::Outcome, sev::{Device, SevPolicy}, vm::Vm};
//! # fn story(vm: &Vm, device: &Device, memory: &Mapping, piece: &Piece) -> Outcome {
//! sev::Launch::create(vm, device, Default::default())?.encrypt(memory, piece)?;
//! # Ok(())
//! # }
//! ```
//!
//! Nor after the measurement:
//! ```compile_fail,E0599
//! # use privet_harness::{launch::{Piece, sev}, mapping::Mapping, outcome::Outcome, sev::{Device, SevPolicy}, vm::Vm};
//! # fn story(vm: &Vm, device: &Device, memory: &Mapping, piece: &Piece) -> Outcome {
//! let launch = sev::Launch::create(vm, device, Default::default())?.start(SevPolicy::NONE)?;
//! launch.measure()?.encrypt(memory, piece)?;
//! # Ok(())
//! # }
//! ```
//!
//! And what was not measured is not finished:
//! ```compile_fail,E0599
//! # use privet_harness::{launch::sev, outcome::Outcome, sev::{Device, SevPolicy}, vm::Vm};
//! # fn story(vm: &Vm, device: &Device) -> Outcome {
//! sev::Launch::create(vm, device, Default::default())?.start(SevPolicy::NONE)?.finish()?;
//! # Ok(())
//! # }
//! ```

use kvm_bindings::kvm_sev_init;

use super::plan::Piece;
use crate::mapping::Mapping;
use crate::measure::{EventLog, Method, SevFeatures, VcpuState};
use crate::outcome::{Outcome, Stop};
use crate::sev::{Commands, Device, Memory, PageType, Secret, SevPolicy};
use crate::vcpu::Vcpu;
use crate::vm::Vm;

/// `INIT2` is done: the VM is a guest without a key.
#[derive(Debug)]
pub struct Created {
    features: SevFeatures,
}
/// The guest has a key, and memory can be encrypted with it.
#[derive(Debug)]
pub struct Started {
    /// What is encrypted so far.
    log: EventLog,
}
/// What was encrypted is measured; the owner may add a secret.
#[derive(Debug)]
pub struct Measured {
    log: EventLog,
    measurement: Measurement,
}
/// The guest may run.
#[derive(Debug)]
pub struct Running {
    measurement: Measurement,
}

/// What `LAUNCH_MEASURE` returns (SEV API, 6.5.2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Measurement {
    /// A MAC over version, policy, launch digest and nonce, with a key that the owner of a session has.
    pub mac: [u8; 32],
    /// The nonce.
    pub nonce: [u8; 16],
}

impl Measurement {
    const BYTES: u32 = 48;
}

/// A launch of which the last step led to `S`.
#[derive(Debug)]
pub struct Launch<'a, S> {
    commands: Commands<'a>,
    state: S,
}

impl<'a> Launch<'a, Created> {
    /// Makes `vm`, of type SEV or SEV-ES and without vCPUs so far, a guest without a key.
    ///
    /// # Errors
    /// `Stop::Fail` with what KVM and the firmware say.
    pub fn create(vm: &'a Vm, device: &Device, init: kvm_sev_init) -> Outcome<Self> {
        let commands = Commands::new(vm, device);
        commands.init2(init)?;
        Ok(Launch { commands, state: Created { features: SevFeatures(init.vmsa_features) } })
    }

    /// Gives it a key.
    ///
    /// # Errors
    /// `Stop::Fail` with what KVM and the firmware say.
    pub fn start(self, policy: SevPolicy) -> Outcome<Launch<'a, Started>> {
        self.commands.launch_start(0, policy, None)?;
        let log = EventLog::new(Method::Sha256, self.state.features);
        Ok(Launch { commands: self.commands, state: Started { log } })
    }
}

impl<'a> Launch<'a, Started> {
    /// Encrypts a piece of the guest's own memory in `view`, the host's view of that, and pins it.
    ///
    /// # Errors
    /// `Stop::Fail` with where, and what KVM and the firmware say.
    pub fn encrypt(&mut self, view: &Mapping, piece: &Piece) -> Outcome {
        let bytes = piece.in_own_memory();
        let (place, len) = (Memory::In(view, bytes.start), bytes.end - bytes.start);
        let describe = |what: &dyn std::fmt::Display| {
            Stop::Fail(format!("{len:#x} bytes at gpa {} to be encrypted: {what}", piece.gpa))
        };
        self.commands
            .register_region(place, len)
            .map_err(|errno| describe(&format!("KVM_MEMORY_ENCRYPT_REG_REGION: {errno:?}")))?;
        let mut plain = vec![0; len as usize];
        view.read(bytes.start, &mut plain)?;
        self.commands.launch_update_data(place, len as u32).map_err(|refused| describe(&refused))?;
        self.state.log.add(PageType::Normal, piece.gpa, plain, piece.part);
        Ok(())
    }

    /// What is measured so far.
    pub fn log(&self) -> &EventLog {
        &self.state.log
    }

    /// Encrypts the state of all vCPUs of a SEV-ES guest, which are these.
    ///
    /// # Errors
    /// `Stop::Fail` with what KVM and the firmware say.
    pub fn encrypt_vcpus(&mut self, vcpus: &[Vcpu]) -> Outcome {
        let states = vcpus.iter().map(VcpuState::of).collect::<Outcome<Vec<_>>>()?;
        self.commands.launch_update_vmsa()?;
        states.iter().for_each(|state| self.state.log.add_vcpu(state));
        Ok(())
    }

    /// Measures all of it.
    ///
    /// # Errors
    /// `Stop::Fail` with what KVM and the firmware say.
    pub fn measure(self) -> Outcome<Launch<'a, Measured>> {
        let memory = Mapping::anonymous(crate::units::PAGE_SIZE)?;
        let (result, length) = self.commands.launch_measure(Memory::In(&memory, 0), Measurement::BYTES);
        result?;
        if length != Measurement::BYTES {
            return Err(Stop::Fail(format!("KVM_SEV_LAUNCH_MEASURE: {length} bytes, not {}", Measurement::BYTES)));
        }
        let mut measurement = Measurement { mac: [0; 32], nonce: [0; 16] };
        memory.read(0, &mut measurement.mac)?;
        memory.read(32, &mut measurement.nonce)?;
        Ok(Launch { commands: self.commands, state: Measured { log: self.state.log, measurement } })
    }
}

impl<'a> Launch<'a, Measured> {
    /// The measurement.
    pub fn measurement(&self) -> Measurement {
        self.state.measurement
    }

    /// Adds the owner's secret.
    ///
    /// # Errors
    /// `Stop::Fail` with what KVM and the firmware say.
    pub fn secret(&mut self, secret: Secret<'_>) -> Outcome {
        Ok(self.commands.launch_secret(secret)?)
    }

    /// Ends the launch.
    ///
    /// # Errors
    /// `Stop::Fail` with what KVM and the firmware say.
    pub fn finish(self) -> Outcome<Launch<'a, Running>> {
        self.commands.launch_finish()?;
        self.commands.vm().launched(self.state.log);
        Ok(Launch { commands: self.commands, state: Running { measurement: self.state.measurement } })
    }
}

impl Launch<'_, Running> {
    /// The measurement.
    pub fn measurement(&self) -> Measurement {
        self.state.measurement
    }
}

impl<'a, S> Launch<'a, S> {
    /// The commands, for what may come in any state.
    pub fn commands(&self) -> Commands<'a> {
        self.commands
    }
}
