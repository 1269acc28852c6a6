//! Whatever a worker does, its job ends with one report that says what happened.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use privet::interrupt::{Cause, Interrupt};
use privet::place::Context;
use privet::plan::Job;
use privet::pool::{Event, Finished, KernelLogs, Overtime, Pool};
use privet::process::{Started, Until};
use privet_harness::vendor::Vendor;
use privet_report::{Place, Verdict};

const ID: &str = "upm.access.example";

/// A shell script in the place of a worker; `$REPORT` is what reports go to.
fn script(text: &str) -> Command {
    let mut command = Command::new("sh");
    command.arg("-c").arg(format!("REPORT=/proc/self/fd/$PRIVET_REPORT_FD\n{text}"));
    command
}

/// A script that says `verdict` as a worker does.
fn saying(verdict: &str) -> String {
    format!(r#"echo '{{"id":"{ID}","verdict":"{verdict}","reason":"","exits":7,"details":[]}}' > "$REPORT""#)
}

/// Runs one job for each of `scripts`, one after the other.
fn run(scripts: &[&str], limit: Duration, interrupt: &Interrupt, mut started: impl FnMut()) -> Vec<Finished> {
    let job = |number: usize| Job {
        id: ID.into(),
        label: number.to_string(),
        seed: 1,
        limit,
        keep: false,
        vendor: Vendor::Amd,
        schedules: Vec::new(),
    };
    let jobs: Vec<Job> = (0..scripts.len()).map(job).collect();
    let worker = |job: &Job| Started::new(script(scripts[job.label.parse::<usize>().unwrap()]));
    let pool = Pool {
        worker: &worker,
        until: Until::End,
        at_a_time: 1,
        overtime: Overtime { margin: Duration::ZERO, ..Overtime::HERE },
        context: &Context::here(Place::Host),
        kernel_logs: KernelLogs::Ignored,
        slots: None,
        interrupt,
    };
    let mut finished = Vec::new();
    pool.run(&jobs, |event| match event {
        Event::Started(_) => started(),
        Event::Finished(_, end) => finished.push(*end),
    });
    finished
}

/// Runs one job to its end.
fn ending_of(script: &str) -> Finished {
    let mut finished = run(&[script], Duration::from_secs(60), &Interrupt::new().unwrap(), || {});
    assert_eq!(finished.len(), 1);
    finished.remove(0)
}

fn is_alive(pid: &str) -> bool {
    // A process that nobody has waited for yet is a zombie, which does nothing any more.
    std::fs::read_to_string(Path::new("/proc").join(pid).join("stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().unwrap_or_default().trim_start().starts_with('Z'))
}

/// A process that was killed dies when the kernel gets to it. If it was not, this does not end.
fn wait_for_the_death_of(pid: &str) {
    while is_alive(pid) {
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap().trim()
}

#[test]
fn stray_output_is_kept_and_does_not_damage_the_report() {
    let end = ending_of(&format!("echo '{{}}'; echo oops >&2; {}", saying("pass")));
    assert_eq!((end.report.verdict, end.report.exits), (Verdict::Pass, 7));
    assert_eq!((text(&end.stdout), text(&end.stderr)), ("{}", "oops"));
}

#[test]
fn a_signal_is_named_with_the_last_words() {
    let end = ending_of("echo first >&2; echo last words >&2; kill -SEGV $$");
    assert_eq!(end.report.verdict, Verdict::Error);
    assert!(end.report.reason.contains("SIGSEGV"), "{}", end.report.reason);
    assert_eq!(end.report.details, ["stderr: first", "stderr: last words"]);
}

#[test]
fn an_end_without_a_verdict_is_an_error() {
    for (script, expected) in [
        ("exit 3", "exit status 3"),
        ("exit 0", "without a verdict"),
        ("echo nonsense > \"$REPORT\"", "garbage"),
        ("printf '{\"id\":' > \"$REPORT\"", "garbage"),
        (&format!("{0}; {0}", saying("pass")), "garbage"),
        (&saying("pass").replace(ID, "upm.access.other"), "reported on upm.access.other"),
        (&format!("{}; exit 5", saying("pass")), "said \"pass\" and then died: exit status 5"),
        (&format!("{}; kill -ABRT $$", saying("skip")), "said \"skip\" and then died: SIGABRT"),
    ] {
        let end = ending_of(script);
        assert_eq!(end.report.verdict, Verdict::Error, "{script}");
        assert!(end.report.reason.contains(expected), "{script}: {}", end.report.reason);
        assert!(!end.report.reason.contains('\n'), "{script}");
    }
}

#[test]
fn a_program_that_cannot_be_started_is_an_error() {
    let jobs = [Job {
        id: ID.into(),
        label: ID.into(),
        seed: 1,
        limit: Duration::from_secs(60),
        keep: false,
        vendor: Vendor::Amd,
        schedules: Vec::new(),
    }];
    let pool = Pool {
        worker: &|_| Started::new(Command::new("/nonexistent/worker")),
        until: Until::End,
        at_a_time: 1,
        overtime: Overtime { margin: Duration::ZERO, ..Overtime::HERE },
        context: &Context::here(Place::Host),
        kernel_logs: KernelLogs::Ignored,
        slots: None,
        interrupt: &Interrupt::new().unwrap(),
    };
    let mut verdicts = Vec::new();
    pool.run(&jobs, |event| {
        if let Event::Finished(_, end) = event {
            verdicts.push((end.report.verdict, end.report.reason));
        }
    });
    assert_eq!(verdicts.len(), 1);
    assert!(verdicts[0].0 == Verdict::Error && verdicts[0].1.contains("cannot be started"), "{verdicts:?}");
}

#[test]
fn a_worker_that_hangs_is_killed_with_all_that_it_started() {
    let hang = "sleep 1000 & echo $$ $!; echo hanging >&2; wait";
    let ends = run(&[hang, &saying("pass")], Duration::from_secs(1), &Interrupt::new().unwrap(), || {});
    let verdicts: Vec<_> = ends.iter().map(|end| end.report.verdict).collect();
    assert_eq!(verdicts, [Verdict::Timeout, Verdict::Pass]);
    assert!(ends[0].report.reason.contains("within 1 s"), "{}", ends[0].report.reason);
    assert_eq!(ends[0].report.details, ["stderr: hanging"]);
    let pids: Vec<_> = text(&ends[0].stdout).split(' ').collect();
    assert_eq!(pids.len(), 2);
    pids.into_iter().for_each(wait_for_the_death_of);
}

#[test]
fn what_a_worker_leaves_behind_does_not_hold_up_the_run() {
    let end = ending_of(&format!("sleep 1000 & echo $!; {}", saying("pass")));
    assert_eq!(end.report.verdict, Verdict::Pass);
    wait_for_the_death_of(text(&end.stdout));
}

#[test]
fn endless_output_is_cut_to_its_end() {
    let end = ending_of(&format!("yes | head -c 3000000; echo the end; {}", saying("pass")));
    assert_eq!(end.report.verdict, Verdict::Pass);
    assert!(end.stdout.len() < 1_000_000 && text(&end.stdout).ends_with("the end"));
}

#[test]
fn an_interrupt_ends_the_running_worker_and_starts_no_other() {
    let interrupt = Interrupt::new().unwrap();
    let mut starts = 0;
    let ends = run(&["exec sleep 1000", "exit 0"], Duration::from_secs(600), &interrupt, || {
        starts += 1;
        interrupt.end(Cause::Signal(Signal::SIGINT));
    });
    assert_eq!((starts, ends.len(), interrupt.signal()), (1, 0, Some(2)));
}

/// The variable that turns the test below into the runner that it kills.
const VICTIM: &str = "PRIVET_TEST_VICTIM";

#[test]
fn a_worker_does_not_outlive_its_runner() {
    if let Ok(pid_file) = std::env::var(VICTIM) {
        let hang = format!("echo $$ > '{pid_file}.new'; mv '{pid_file}.new' '{pid_file}'; exec sleep 1000");
        run(&[&hang], Duration::from_secs(600), &Interrupt::new().unwrap(), || {});
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let pid_file = dir.path().join("pid");
    let mut runner = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_worker_does_not_outlive_its_runner"])
        .env(VICTIM, &pid_file)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let pid = loop {
        match std::fs::read_to_string(&pid_file) {
            Ok(pid) => break pid.trim().to_owned(),
            Err(_) => {
                assert!(runner.try_wait().unwrap().is_none(), "the runner ended before its worker");
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    };
    assert!(is_alive(&pid));
    runner.kill().unwrap();
    runner.wait().unwrap();
    wait_for_the_death_of(&pid);
}
