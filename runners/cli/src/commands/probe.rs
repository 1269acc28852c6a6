//! `privet probe`: what this machine can run, or one of the rig, and why not more.

use std::io::Write;

use clap::ValueEnum;
use privet_fleet::Node;
use privet_harness::host::Host;
use privet_harness::need::Need;
use privet_harness::probe;
use privet_harness::uapi::Capability;
use privet_harness::vm_type::VmType;
use privet_kernel::Kernel;
use privet_report::Place;
use privet_rig::Attached;

use super::show::show;
use crate::args::{Probe, ProbeFormat, ProbeOn, Recording};
use crate::exit::{Early, Status};
use crate::guest_program::GuestProgram;
use crate::place::Context;

/// Writes what this machine can run to `out`, or lets a machine of the rig say the same of itself.
///
/// # Errors
/// If `out` cannot be written, or there is no rig.
pub fn probe(args: &Probe, out: impl Write) -> Result<Status, Early> {
    match args.on {
        ProbeOn::Rig => rig(args, out),
        ProbeOn::Host | ProbeOn::InRig if args.rig.is_given() => {
            Err(Early::usage("a machine, a kernel and module parameters need --on rig".to_owned()))
        }
        ProbeOn::Host | ProbeOn::InRig if args.format != ProbeFormat::Pretty => show(&node(args.format), out),
        ProbeOn::Host => tell(facts_of(Place::Host).into_iter().chain([rig_kernel()]), out),
        ProbeOn::InRig => tell(facts_of(Place::Rig), out),
    }
}

/// This program, run in a machine of the rig.
fn rig(args: &Probe, mut out: impl Write) -> Result<Status, Early> {
    let options = &args.rig;
    let path = std::env::current_exe().map_err(|error| Early::nothing_ran(format!("cannot find privet: {error}")))?;
    let machine = options.machine_for(options.vendor())?;
    if args.format == ProbeFormat::Pretty {
        let name = ("machine".to_owned(), vec![format!("{machine}, which is no hardware")]);
        tell([name], &mut out)?;
    }
    let format = args.format.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
    drop(out);
    GuestProgram {
        path,
        arguments: ["probe", "--on", "in-rig", "--format", &format].map(Into::into).into(),
        files: Vec::new(),
        machine,
        sim: options.sim(options.vendor()),
        beside: Vec::new(),
        attached: Attached::default(),
        is_kept: false,
        recording: Recording::default(),
    }
    .run(options)
}

/// This machine in the words of schedulers. A VM type counts if guests of it do run.
fn node(format: ProbeFormat) -> String {
    let works = |host: &Host, vm_type: VmType| {
        let runs = probe::ring0(host).is_ok() || vm_type.needs_secure_processor() || vm_type == VmType::Tdx;
        runs && host.why_not(vm_type).is_none()
    };
    let offered =
        |host: Host| VmType::ALL.into_iter().filter(|vm_type| works(&host, *vm_type)).map(|t| t.to_string()).collect();
    let node = Node::here(Host::open().map(offered).unwrap_or_default());
    match format {
        ProbeFormat::Slurm => node.slurm_conf(),
        ProbeFormat::Nfd => node.nfd_labels(),
        ProbeFormat::Json | ProbeFormat::Pretty => node.json(),
    }
}

/// A name, and what is to be said of it, in lines.
type Fact = (String, Vec<String>);

/// The kernel, each VM type with the reason if it is missing, what a guest can really do, and how many rows can run.
fn facts_of(place: Place) -> Vec<Fact> {
    let here = Context::here(place);
    let mut facts = vec![("kernel".to_owned(), vec![format!("Linux {}", here.kernel)])];
    if !here.module_params.is_empty() {
        facts.push(("parameters".to_owned(), vec![here.module_params.join(" ")]));
    }
    match Host::open() {
        Ok(host) => facts.extend(host_facts(&host)),
        Err(error) => facts.push(("/dev/kvm".to_owned(), vec![format!("no: {error}")])),
    }
    facts
}

/// The kernel that the rig would boot.
fn rig_kernel() -> Fact {
    let rig = match Kernel::cached() {
        Ok(kernel) => format!("Linux {}, {}", kernel.release, kernel.image.display()),
        Err(error) => format!("no: {error}"),
    };
    ("rig".to_owned(), vec![rig])
}

fn tell(facts: impl IntoIterator<Item = Fact>, mut out: impl Write) -> Result<Status, Early> {
    let mut text = String::new();
    for (name, lines) in facts {
        for (i, line) in lines.iter().enumerate() {
            text += &format!("{:<16}{line}\n", if i == 0 { name.as_str() } else { "" });
        }
    }
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(|error| Early::usage(format!("cannot write to standard output: {error}")))?;
    Ok(Status::Passed)
}

fn host_facts(host: &Host) -> Vec<Fact> {
    let yes_or_why = |usable: Result<(), &str>| usable.map_or_else(|why| format!("no: {why}"), |()| "yes".to_owned());
    let guest_memfd = Need::GuestMemfd.unmet(host, VmType::Plain).map(|lack| lack.reason);
    let mut facts = vec![
        ("guest ring 0".to_owned(), vec![yes_or_why(probe::ring0(host))]),
        ("hypercalls".to_owned(), vec![yes_or_why(probe::hypercall(host))]),
        ("guest_memfd".to_owned(), vec![yes_or_why(guest_memfd.as_deref().map_or(Ok(()), Err))]),
    ];
    let table = privet_cases::table();
    for vm_type in VmType::ALL {
        let rows = table.iter().filter(|row| row.vm == vm_type);
        let (unmet, met): (Vec<_>, Vec<_>) = rows.map(|row| row.unmet(host)).partition(Option::is_some);
        let mut lines = match host.why_not(vm_type) {
            Some(why) => vec![format!("no: {why}")],
            None => vec![capabilities(host, vm_type)],
        };
        lines.push(format!("{} of {} rows can run", met.len(), met.len() + unmet.len()));
        facts.push((format!("{vm_type} VMs"), lines));
    }
    facts
}

/// What a VM of this type has, as the VM itself says.
fn capabilities(host: &Host, vm_type: VmType) -> String {
    let has = |capability: &Capability| match host.capability(vm_type, *capability) {
        Ok(0) => None,
        Ok(1) => Some(Ok(capability.name.to_owned())),
        Ok(bits) => Some(Ok(format!("{}={bits:#x}", capability.name))),
        Err(stop) => Some(Err(stop.to_string())),
    };
    let found: Result<Vec<String>, String> = Capability::ALL.iter().filter_map(has).collect();
    found.map_or_else(|why| format!("no: {why}"), |names| format!("yes: {}", names.join(" ")))
}
