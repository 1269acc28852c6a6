//! The model as a place: its library, the machine that it shall be, and programs on it.

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use privet_harness::found::Proven;
use privet_harness::vendor::Vendor;
use privet_machine::options::{DEFECT, OPTIONS, PERSONALITY};
use privet_machine::{Defect, Options};
use privet_report::Place;
use privet_rig::ModuleParam;

use crate::exit::{Early, Status};
use crate::interrupt::Interrupt;
use crate::place::Context;
use crate::plan::Job;
use crate::pool::{Event, KernelLogs, Overtime, Pool};
use crate::process::{Started, Until};
use crate::worker;

/// The library, as it is called where cargo puts it and where packages do.
const LIBRARY: &str = "libprivet_model.so";

/// What a probe guest would show: the model runs compiled code in ring 0, and hypercalls come back.
const PROVEN: [Proven; 2] = [Proven::Ring0, Proven::Hypercall];

/// The variables that describe a machine, each of which is set or must not be.
type Variables = [(&'static str, Option<String>); 3];

/// A machine that the model can be.
#[derive(Clone, Debug)]
pub struct Model {
    variables: Variables,
    defect: Option<Defect>,
}

/// The module parameters that the model has, by module and name.
const MODULE_PARAMS: [(&str, &str); 3] = [("kvm", "mmio_caching"), ("kvm", "tdp_mmu"), ("kvm_amd", "nrips")];

impl Model {
    /// The machine with the processors of this vendor, or else AMD's without memory encryption.
    ///
    /// # Errors
    /// If it has no such module parameter.
    pub fn described(
        vendor: Option<Vendor>,
        module_params: &[ModuleParam],
        defect: Option<Defect>,
    ) -> Result<Self, Early> {
        let settings: Vec<&str> = module_params.iter().map(|param| param.setting.as_str()).collect();
        let settings = Some(settings.join(",")).filter(|settings| !settings.is_empty());
        let name = defect.map(|defect| defect.name().to_owned());
        let variables = [(PERSONALITY, vendor.map(|vendor| vendor.to_string())), (OPTIONS, settings), (DEFECT, name)];
        let of = |name: &str| {
            let (_, value) = variables.iter().find(|(variable, _)| *variable == name)?;
            value.as_ref().map(OsString::from)
        };
        let names = |param: &ModuleParam| MODULE_PARAMS.iter().any(|(module, name)| param.is(module, name));
        let is_known = module_params.iter().all(names) && Options::from_variables(of).is_ok();
        if !is_known {
            return Err(Early::usage(
                "the model has the module parameters kvm.mmio_caching, kvm.tdp_mmu and kvm_amd.nrips, with the values Y and N, and no others",
            ));
        }
        Ok(Self { variables, defect })
    }

    /// The machine, once it has been seen to come up under `program`, which is this one.
    ///
    /// # Errors
    /// One line, if there is no library, or it does not get under a program.
    pub fn ready(&self, program: &Path) -> Result<Ready, String> {
        let mut preload = library(program)?.into_os_string();
        if let Some(others) = std::env::var_os("LD_PRELOAD").filter(|others| !others.is_empty()) {
            preload.push(":");
            preload.push(others);
        }
        let context =
            Context { defect: self.defect.map(|defect| defect.name().to_owned()), ..Context::nowhere(Place::Model) };
        let mut ready = Ready { preload, variables: self.variables.clone(), program: program.to_owned(), context };
        let mut command = Command::new(program);
        command.arg("what-model").stdin(Stdio::null());
        ready.lie_under(&mut command);
        let output = command.output().map_err(|error| format!("cannot start {}: {error}", program.display()))?;
        let seen: Context = serde_json::from_slice(&output.stdout).map_err(|_| {
            let said = String::from_utf8_lossy(&output.stderr);
            format!("the model does not start: {}", said.lines().next().unwrap_or("it says nothing"))
        })?;
        ready.context = Context { defect: ready.context.defect, ..seen };
        Ok(ready)
    }
}

/// A machine that comes up under programs.
#[derive(Clone, Debug)]
pub struct Ready {
    preload: OsString,
    variables: Variables,
    /// This program, which is also the worker.
    program: PathBuf,
    /// The machine as reports describe it.
    context: Context,
}

impl Ready {
    /// Puts the model under a program that is yet to be started.
    pub fn lie_under(&self, command: &mut Command) {
        command.env("LD_PRELOAD", &self.preload);
        for (name, value) in &self.variables {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
    }

    /// The machine as reports describe it.
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// Runs jobs on it, so many at a time, and tells what happens.
    pub fn run(&self, jobs: &[Job], at_a_time: usize, interrupt: &Interrupt, tell: impl FnMut(Event)) {
        let pool = Pool {
            worker: &|job| {
                let mut command = worker::command(&self.program, job, &PROVEN);
                self.lie_under(&mut command);
                Started::new(command)
            },
            until: Until::End,
            at_a_time,
            overtime: Overtime::HERE,
            context: &self.context,
            // The kernel under the model has no part in it.
            kernel_logs: KernelLogs::Ignored,
            slots: None,
            interrupt,
        };
        pool.run(jobs, tell);
    }
}

/// Writes what [`Model::ready`] reads.
///
/// # Errors
/// If the model is not under this process, or `out` cannot be written.
pub fn describe(mut out: impl Write) -> Result<Status, Early> {
    // The dynamic loader goes on without a library that it cannot load, and everything would seem to run on the
    // model that runs on the host.
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    if !maps.contains(LIBRARY) {
        return Err(Early::nothing_ran(format!("{LIBRARY} is not loaded into this process")));
    }
    let text = serde_json::json!(Context::here(Place::Model));
    writeln!(out, "{text}").map_err(|error| Early::usage(format!("cannot write to standard output: {error}")))?;
    Ok(Status::Passed)
}

/// The library that belongs to this program: where cargo leaves it, beside it, or where libraries are installed.
fn library(program: &Path) -> Result<PathBuf, String> {
    let dir = program.parent().unwrap_or(Path::new("/"));
    // What lies beside the program after `cargo build` of another package may be older than what is in deps.
    let candidates = ["deps", ".", "../lib"].map(|below| dir.join(below).join(LIBRARY));
    let library = candidates
        .iter()
        .find_map(|path| path.canonicalize().ok())
        .ok_or_else(|| format!("no {LIBRARY} beside {}: build it with `cargo build -p privet`", program.display()))?;
    if library.to_string_lossy().contains([':', ' ']) {
        return Err(format!("{}: the dynamic loader takes no colon or space in LD_PRELOAD", library.display()));
    }
    Ok(library)
}
