//! The launch of an SNP guest, step by step; a step that is out of order does not compile.
//!
//! ```
//! # use privet_harness::{launch::snp, mapping::Mapping, outcome::Outcome, units::Gpa, vm::Vm};
//! # use privet_harness::sev::{Device, Finish, PageType, SnpPolicy};
//! # fn story(vm: &Vm, device: &Device, source: &Mapping) -> Outcome {
//! let mut launch = snp::Launch::create(vm, device, Default::default())?.start(SnpPolicy::DEFAULT)?;
//! launch.update(PageType::Normal, Gpa(0x10_0000), source, 0..0x1000)?;
//! launch.finish(Finish::PLAIN, &[])?;
//! # Ok(())
//! # }
//! ```
//!
//! No page before there is a guest context:
//! ```compile_fail,E0599
//! # use privet_harness::{launch::snp, mapping::Mapping, outcome::Outcome, units::Gpa, vm::Vm};
//! # use privet_harness::sev::{Device, PageType};
//! # fn story(vm: &Vm, device: &Device, source: &Mapping) -> Outcome {
//! let mut launch = snp::Launch::create(vm, device, Default::default())?;
//! launch.update(PageType::Normal, Gpa(0x10_0000), source, 0..0x1000)?;
//! # Ok(())
//! # }
//! ```
//!
//! Nor after the end:
//! ```compile_fail,E0599
//! # use privet_harness::{launch::snp, mapping::Mapping, outcome::Outcome, units::Gpa, vm::Vm};
//! # use privet_harness::sev::{Device, Finish, PageType, SnpPolicy};
//! # fn story(vm: &Vm, device: &Device, source: &Mapping) -> Outcome {
//! let launch = snp::Launch::create(vm, device, Default::default())?.start(SnpPolicy::DEFAULT)?;
//! let mut finished = launch.finish(Finish::PLAIN, &[])?;
//! finished.update(PageType::Normal, Gpa(0x10_0000), source, 0..0x1000)?;
//! # Ok(())
//! # }
//! ```

use std::ops::Range;

use kvm_bindings::kvm_sev_init;

use super::plan::Part;
use crate::mapping::Mapping;
use crate::measure::{EventLog, Method, SevFeatures, SnpDigest, VcpuState};
use crate::outcome::{Outcome, Stop};
use crate::sev::{Commands, Device, Finish, Firmware, Memory, PageType, SnpPolicy, Update};
use crate::units::{Gpa, PAGE_SIZE};
use crate::vm::Vm;

/// `INIT2` is done: the VM is an SNP guest without a context.
#[derive(Debug)]
pub struct Created(SevFeatures);
/// The guest has a context and a key: pages can be added.
#[derive(Debug)]
pub struct Started {
    /// The pages so far.
    log: EventLog,
}
/// The guest may run.
#[derive(Debug)]
pub struct Running(());

/// A launch of which the last step led to `S`.
#[derive(Debug)]
pub struct Launch<'a, S> {
    commands: Commands<'a>,
    state: S,
}

impl<'a> Launch<'a, Created> {
    /// Makes `vm`, of type SNP and without vCPUs so far, a guest without a context.
    ///
    /// # Errors
    /// `Stop::Fail` with what KVM and the firmware say.
    pub fn create(vm: &'a Vm, device: &Device, init: kvm_sev_init) -> Outcome<Self> {
        let commands = Commands::new(vm, device);
        commands.init2(init)?;
        Ok(Launch { commands, state: Created(SevFeatures(init.vmsa_features | SevFeatures::SNP.0)) })
    }

    /// Gives it a context and a key.
    ///
    /// # Errors
    /// `Stop::Fail` with what KVM and the firmware say.
    pub fn start(self, policy: SnpPolicy) -> Outcome<Launch<'a, Started>> {
        self.commands.snp_launch_start(policy, 0)?;
        let log = EventLog::new(Method::Sha384, self.state.0);
        Ok(Launch { commands: self.commands, state: Started { log } })
    }
}

impl<'a> Launch<'a, Started> {
    /// Adds pages from `gpa` on, which have to be private and in a slot with a guest_memfd, with the content of `bytes`
    /// of `source`. KVM may do it in parts; this goes on until all is done.
    ///
    /// # Errors
    /// `Stop::Fail` with the first GPA that was not done, how many were, and what KVM and the firmware say.
    pub fn update(&mut self, page_type: PageType, gpa: Gpa, source: &Mapping, bytes: Range<u64>) -> Outcome {
        self.update_part(page_type, gpa, source, bytes, None)
    }

    /// The same with what these pages are of a guest's own memory. A page of CPUID that says too much is given again as the
    /// firmware has corrected it, which is then in `source`.
    pub(crate) fn update_part(
        &mut self,
        page_type: PageType,
        gpa: Gpa,
        source: &Mapping,
        bytes: Range<u64>,
        part: Option<Part>,
    ) -> Outcome {
        let all = bytes.end - bytes.start;
        let mut update = Update {
            gfn: gpa.gfn(),
            source: Memory::In(source, bytes.start),
            len: all,
            page_type: page_type.number(),
            flags: 0,
        };
        while update.len > 0 {
            let before = update;
            let mut result = self.commands.snp_launch_update(&mut update);
            if page_type == PageType::Cpuid && result.is_err_and(|refused| refused.firmware == Firmware::INVALID_PARAM)
            {
                result = self.commands.snp_launch_update(&mut update);
            }
            result.map_err(|refused| {
                let (at, done) = (Gpa(before.gfn * PAGE_SIZE), (all - before.len) / PAGE_SIZE);
                Stop::Fail(format!(
                    "{page_type} page at gpa {at}, after {done} of {} pages: {refused}",
                    all / PAGE_SIZE
                ))
            })?;
            if update.len == before.len {
                return Err(Stop::Fail(format!("KVM_SEV_SNP_LAUNCH_UPDATE succeeded and did nothing of {before:x?}")));
            }
            let mut done = vec![0; (before.len - update.len) as usize];
            if page_type.is_measured() {
                source.read(bytes.start + (all - before.len), &mut done)?;
            }
            self.state.log.add(page_type, Gpa(before.gfn * PAGE_SIZE), done, part);
        }
        Ok(())
    }

    /// What the firmware will have measured when the launch is finished with vCPUs in these states, by their index.
    pub fn digest(&self, vcpus: &[VcpuState]) -> SnpDigest {
        self.log_with(vcpus).snp()
    }

    fn log_with(&self, vcpus: &[VcpuState]) -> EventLog {
        let mut log = self.state.log.clone();
        vcpus.iter().for_each(|state| log.add_vcpu(state));
        log
    }

    /// Measures the state of every vCPU, which is this, and ends the launch.
    ///
    /// # Errors
    /// `Stop::Fail` with what KVM and the firmware say.
    pub fn finish(self, finish: Finish<'_>, vcpus: &[VcpuState]) -> Outcome<Launch<'a, Running>> {
        self.commands.snp_launch_finish(finish)?;
        self.commands.vm().launched(self.log_with(vcpus));
        Ok(Launch { commands: self.commands, state: Running(()) })
    }
}

impl<'a, S> Launch<'a, S> {
    /// The commands, for what may come in any state.
    pub fn commands(&self) -> Commands<'a> {
        self.commands
    }
}
