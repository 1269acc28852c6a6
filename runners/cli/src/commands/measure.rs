//! `privet measure ID`: what the secure processor measures of the guests that a row launches, as the launches
//! themselves have put it down.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use privet_cases::Entry;
use privet_harness::host::Host;
use privet_harness::launch::Part;
use privet_harness::measure::{Event, EventLog, Method};
use privet_harness::outcome::Stop;
use privet_harness::units::{Gpa, PAGE_SIZE};
use privet_harness::vendor::Vendor;
use privet_harness::vm_type::VmType;
use privet_rig::Attached;
use serde_json::{Value, json};

use crate::args::{Measure, MeasureOn, Recording};
use crate::exit::{Early, Status};
use crate::guest_program::GuestProgram;
use crate::selection::no_such_row;

/// The seed of the row, so that the same command has the same answer.
const SEED: u64 = 1;
/// How long the row may take.
const LIMIT: Duration = Duration::from_secs(60);

/// Tells the row and writes what its launches have measured to `out`.
///
/// # Errors
/// If there is no such row, or no place that can run it, or `out` cannot be written.
pub fn measure(args: &Measure, mut out: impl Write) -> Result<Status, Early> {
    let table = privet_cases::table();
    let Some(row) = table.iter().find(|row| row.id == args.id) else {
        let ids: Vec<String> = table.into_iter().map(|row| row.id).collect();
        return Err(no_such_row(&ids, &args.id, true));
    };
    let host = match (args.on, Host::open()) {
        (Some(MeasureOn::Host), _) if args.rig.is_given() => {
            return Err(Early::usage("a machine, a kernel and module parameters need --on rig"));
        }
        (Some(MeasureOn::Host), Err(error)) => return Err(Early::nothing_ran(error.to_string())),
        (Some(MeasureOn::Host), Ok(host)) => host,
        (None, Ok(host)) if !args.rig.is_given() && row.unmet(&host).is_none() => host,
        _ => {
            drop(out);
            return in_rig(args, row.vm);
        }
    };
    let host = Arc::new(host);
    let ran = row.run(Arc::clone(&host), SEED, LIMIT);
    let launches = host.trace().launches();
    let mut text = String::new();
    for (index, log) in launches.iter().enumerate() {
        text += &if args.json { format!("{}\n", as_json(row, index + 1, log)) } else { as_text(index + 1, log) };
    }
    let single = host.trace().ended_launches().saturating_sub(launches.len() as u64);
    if single > 0 || (launches.is_empty() && ran.outcome.is_ok()) {
        text += &not_put_down(row, single, args.json);
    }
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(|error| Early::usage(format!("cannot write to standard output: {error}")))?;
    match ran.outcome {
        Ok(()) => Ok(Status::Passed),
        Err(Stop::Skip(lack)) => Err(Early::nothing_ran(format!("{} cannot run here: {}", row.id, lack.reason))),
        Err(stop) => Err(Early { status: Status::Failed, message: format!("{} did not pass: {stop}", row.id) }),
    }
}

/// This program, told to do the same in a machine of the rig.
fn in_rig(args: &Measure, vm: VmType) -> Result<Status, Early> {
    let path = std::env::current_exe().map_err(|error| Early::nothing_ran(format!("cannot find privet: {error}")))?;
    let json = args.json.then_some("--json");
    let arguments = ["measure", "--on", "host", &args.id].into_iter().chain(json).map(OsString::from).collect();
    let vendor = args.rig.vendor_or(vm.vendor().unwrap_or(Vendor::Amd));
    GuestProgram {
        path,
        arguments,
        files: Vec::new(),
        machine: args.rig.machine_for(vendor)?,
        sim: args.rig.sim(vendor),
        beside: Vec::new(),
        attached: Attached::default(),
        is_kept: false,
        recording: Recording::default(),
    }
    .run(&args.rig)
}

/// What there is to say of so many launches by single commands, or of a row without any launch.
fn not_put_down(row: &Entry, single: u64, as_json: bool) -> String {
    let id = &row.id;
    match (as_json, single) {
        (true, 0) => String::new(),
        (true, _) => format!("{}\n", json!({ "type": "not_put_down", "id": id, "launches": single })),
        (false, 0) => format!("{id}: no guest whose launch is measured and comes to its end\n"),
        (false, _) => format!(
            "{id}: {single} {} of single commands, which this row is about: what they measure was not put down\n",
            if single == 1 { "launch" } else { "launches" }
        ),
    }
}

/// Pages of one type that lie together.
struct Run<'a> {
    event: &'a Event,
    pages: u64,
}

/// The events of a log, those that continue each other as one.
fn runs(log: &EventLog) -> Vec<Run<'_>> {
    let mut runs: Vec<Run<'_>> = Vec::new();
    for event in log.events() {
        let pages = (event.content.len() as u64).div_ceil(PAGE_SIZE);
        match runs.last_mut() {
            Some(Run { event: last, pages: so_far }) if continues(last, *so_far, event) => *so_far += pages,
            _ => runs.push(Run { event, pages }),
        }
    }
    runs
}

fn continues(last: &Event, pages: u64, next: &Event) -> bool {
    let end = last.gpa.map(|gpa| gpa + pages * PAGE_SIZE);
    end.is_some() && end == next.gpa && (last.page_type, last.part) == (next.page_type, next.part)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn method(log: &EventLog) -> &'static str {
    match log.method() {
        Method::Sha256 => "sha256",
        Method::Sha384 => "sha384",
        Method::Mrtd => "mrtd",
    }
}

fn part_name(part: Part) -> &'static str {
    match part {
        Part::Code => "code",
        Part::Data => "data",
        Part::Tables => "page tables",
    }
}

/// A table of what lies together, and the digest.
fn as_text(guest: usize, log: &EventLog) -> String {
    let mut text = format!("guest {guest}: {} {}\n", method(log), hex(&log.digest()));
    let mut vcpu = 0;
    for Run { event, pages } in runs(log) {
        let what = match (event.gpa, event.part) {
            (None, _) => {
                vcpu += 1;
                format!("the state of vCPU {}", vcpu - 1)
            }
            (Some(_), part) => part.map_or("", part_name).to_owned(),
        };
        let gpa = event.gpa.map_or("-".to_owned(), |gpa| gpa.to_string());
        let line = format!("    {gpa:<14}{pages:>4} {:<6}{:<12}{what}", plural(pages), event.page_type);
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

fn plural(pages: u64) -> &'static str {
    if pages == 1 { "page" } else { "pages" }
}

/// Page by page.
fn as_json(row: &Entry, guest: usize, log: &EventLog) -> Value {
    let pages: Vec<Value> = log.events().iter().flat_map(pages_of).collect();
    json!({
        "type": "launch",
        "id": row.id,
        "guest": guest,
        "method": method(log),
        "digest": hex(&log.digest()),
        "pages": pages,
    })
}

fn pages_of(event: &Event) -> Vec<Value> {
    let page = |index: usize| {
        json!({
            "gpa": event.gpa.map(|Gpa(gpa)| gpa + index as u64 * PAGE_SIZE),
            "type": event.page_type.to_string(),
            "part": event.part.map(part_name),
        })
    };
    (0..event.content.len().div_ceil(PAGE_SIZE as usize)).map(page).collect()
}
