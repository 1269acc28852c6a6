//! What the rig makes of machines that panic, hang, die or talk nonsense, with shell scripts in the place of QEMU,
//! of Bochs and of our own. The CDs that Bochs boots from are real: their tests need xorriso and isolinux.
//!
//! Each test runs [`privet_rig::run`] in a process of its own, whose PATH leads to its script.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

use libtest_mimic::{Arguments, Failed, Trial};
use privet_kernel::Kernel;
use privet_report::{CaseReport, Place, Verdict};
use privet_rig::{
    Attached, CaseRun, Event, GuestModules, GuestPlan, GuestPort, GuestProgram, ModuleLoad, ModuleParam, Patience,
    Plan, Progress, RigError, SimOptions, Work, run, run_program,
};

fn main() -> ExitCode {
    if let Some(directory) = std::env::var_os(DIRECTORY) {
        let mut arguments = std::env::args().skip(1);
        return match (arguments.next().as_deref(), arguments.next()) {
            // What the rig takes for a machine of ours.
            (Some("sim-machine"), Some(job)) => {
                panic!("{}", Command::new(Path::new(&directory).join("sim")).arg(job).exec())
            }
            _ => run_in_child(Path::new(&directory)),
        };
    }
    let test = |name: &str, body: fn()| {
        Trial::test(name, move || {
            body();
            Ok::<(), Failed>(())
        })
    };
    let tests = vec![
        test("reports_come_in_order_and_say_where_they_were_obtained", reports_come_in_order),
        test("a_panic_is_blamed_on_its_row_and_the_rest_runs_in_a_new_boot", panic_during_a_row),
        test("a_panic_because_init_ended_is_an_error", panic_of_init),
        test("a_hang_is_a_timeout_and_the_rest_runs_in_a_new_boot", hang_during_a_row),
        test("a_boot_ends_when_its_console_has_been_silent_for_long", silent_boot),
        test("an_early_end_is_an_error_with_the_last_word", early_end),
        test("nonsense_on_the_port_is_an_error", nonsense),
        test("events_of_rows_that_do_not_run_are_nonsense", impossible_events),
        test("a_worker_that_skips_rows_gets_another_boot", skipped_rows),
        test("a_machine_that_never_gets_anywhere_is_given_up", never_anywhere),
        test("init_says_why_it_cannot_go_on", broken_init),
        test("trouble_outside_of_rows_is_an_error_after_all_reports", unattributed_trouble),
        test("consoles_are_kept_as_artifacts", artifacts),
        test("a_missing_emulator_names_its_package", no_emulator),
        test("parameters_without_effect_are_refused", foreign_parameters),
        test("a_panic_between_rows_is_not_lost", panic_between_rows),
        test("an_interrupt_ends_the_machine", interrupted),
        test("a_machine_dies_with_its_runner", killed_runner),
        test("bochs_gets_a_cd_and_reports_over_its_second_serial_port", bochs_reports),
        test("bochs_gets_its_debugger_going_and_its_input_stays_open", bochs_input),
        test("a_panic_and_a_hang_under_bochs_are_blamed_on_their_rows", bochs_panics_and_hangs),
        test("bochs_ends_with_a_panic_that_is_its_last_word", bochs_last_word),
        test("machines_run_side_by_side_and_one_that_breaks_leaves_the_others_rows_alone", side_by_side),
        test("machines_that_boot_are_counted", booting),
        test("a_missing_bochs_names_its_packages", no_bochs),
        test("rows_run_in_a_copy_of_a_machine_that_is_booted_once", copies),
        test("copies_run_side_by_side", copies_side_by_side),
        test("a_copy_that_dies_is_replaced", copies_are_replaced),
        test("a_copy_that_dies_or_hangs_takes_one_row_with_it", copies_die),
        test("a_row_that_met_what_the_sim_has_not_is_an_error", not_simulated),
        test("a_machine_that_does_not_get_ready_leaves_no_snapshot", no_snapshot),
        test("a_snapshot_that_is_broken_or_of_another_machine_is_made_again", other_snapshots),
        test("a_program_is_heard_to_its_end_and_its_status_told", program),
        test("a_program_whose_machine_dies_has_no_status", program_dies),
        test("trouble_before_a_snapshot_is_told_whoever_made_it", trouble_in_a_snapshot),
    ];
    libtest_mimic::run(&Arguments::from_args(), tests).exit_code()
}

/// Names the directory of a test to its child.
const DIRECTORY: &str = "PRIVET_RIG_TEST_DIRECTORY";

/// The child: runs rows `plain.test.0` to `.2` and prints what happens, one line each.
fn run_in_child(directory: &Path) -> ExitCode {
    let case = |number: u64| {
        let id = format!("plain.test.{number}");
        CaseRun { label: id.clone(), id, seed: 40 + number, limit_ms: 100, keep: false, schedules: Vec::new() }
    };
    let read_param = |text: String| text.parse::<ModuleParam>().expect("a test gives good parameters");
    let plan = Plan {
        kernel: Kernel::named(&directory.join("bzImage"), directory).expect("the test made a kernel"),
        machine: fs::read_to_string(directory.join("machine")).expect("the test named one").parse().expect("a name"),
        worker: std::env::current_exe().expect("every process has one"),
        programs: Vec::new(),
        cases: (0..3).map(case).collect(),
        machines: fs::read_to_string(directory.join("machines")).map_or(1, |count| count.parse().expect("a number")),
        module_params: fs::read_to_string(directory.join("param")).map(read_param).into_iter().collect(),
        patience: Patience {
            boot: Duration::from_secs(20),
            silence: Duration::from_secs(if directory.join("silence").exists() { 1 } else { 20 }),
            row: Duration::from_millis(900),
            pause: Duration::from_millis(900),
        },
        sim: SimOptions::default(),
        without_rule: None,
        tdx_faults: Vec::new(),
        // Rows go on from where a machine was saved; the program of a test boots one of its own.
        keeps_snapshot: !directory.join("program").exists(),
        files: Vec::new(),
        records: false,
        artifacts: Some(directory.join("artifacts")),
    };
    // The test closes standard input when it wants the run to end.
    let interrupt = std::io::stdin();
    if directory.join("program").exists() {
        let program =
            GuestProgram { path: "/programs/test".into(), arguments: vec!["--flag".into()], tells_symbols: false };
        let ended =
            run_program(&plan, program, Attached::default(), interrupt.as_fd(), &mut |news| println!("{news:?}"));
        println!("{ended:?}");
        return ExitCode::SUCCESS;
    }
    let ran = run(&plan, interrupt.as_fd(), &mut |progress| match progress {
        Progress::Booting(machines) => println!("{BOOTING}{machines}"),
        Progress::Console(line) => println!("{CONSOLE}{line}"),
        Progress::Row(event) => println!("{}", serde_json::to_string(&event).expect("events are data")),
        Progress::Symbols(_) | Progress::Recorded(..) => panic!("nobody asked"),
    });
    match ran {
        Ok(()) => ExitCode::SUCCESS,
        Err(RigError::Interrupted) => ExitCode::from(130),
        Err(error) => {
            println!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// What a child prints before a line of the console.
const CONSOLE: &str = "console: ";

/// What a child prints before the number of machines that are booting.
const BOOTING: &str = "booting: ";

/// What the scripts for QEMU begin with: where the guest's console goes, and what it gets.
const QEMU: &str = r#"#!/bin/sh
cd "$PRIVET_RIG_TEST_DIRECTORY"
for argument; do
    case "$previous" in
        -serial) console="${argument#file:}" ;;
        -initrd) initrd="$argument" ;;
    esac
    previous="$argument"
done
"#;

/// The same for Bochs, which also has to be told to go on, and whose guest reports over a serial port. What it
/// gets is on a CD.
const BOCHS: &str = r#"#!/bin/sh
cd "$PRIVET_RIG_TEST_DIRECTORY"
for argument; do
    [ "$previous" = -f ] && config="$argument"
    previous="$argument"
done
value() { sed -n "s|^$1:.*$2=\([^,]*\).*|\1|p" "$config"; }
console=$(value com1 dev)
initrd=$(value ata0-master path)
exec >"$(value com2 dev)"
read -r command && [ "$command" = c ] || exit 9
"#;

/// The same for a machine of ours, which is asked in JSON, and is saved when its guest is ready.
const SIM: &str = r#"#!/bin/sh
cd "$PRIVET_RIG_TEST_DIRECTORY"
value() { echo "$job" | sed -n "s|.*\"$1\":\"*\([^,\"}]*\).*|\1|p"; }
job="$1"
console=$(value console)
initrd=$(value initramfs)
task() { read -r job && row=$(value seed); }
save() { ready; echo saved > "$(value save_to)"; exit; }
"#;

/// What all go on with: the guest's messages.
const PRELUDE: &str = r#"boot=1
while ! mkdir "boot-$boot" 2>/dev/null; do boot=$((boot + 1)); done
[ -z "$initrd" ] || cat "$initrd" > "boot-$boot/initrd"
echo "$@" > "boot-$boot/arguments"
echo $$ > "boot-$boot/pid"
ready() { echo '"ready"'; }
started() { echo "{\"event\":{\"started\":$1}}"; }
passed() { echo "{\"event\":{\"finished\":[$1,{\"id\":\"a\",\"on\":\"host\",\"kernel\":\"k\",\"vm\":\"plain\",\"verdict\":\"pass\",\"reason\":\"\",\"duration_us\":1,\"exits\":1,\"seed\":1,\"repro\":\"\"}]}}"; }
pass() { started $1; passed $1; }
say() { echo "$@" >> "$console"; }
done_() { echo '"done"'; }
"#;

/// A directory with a kernel and with a script for QEMU.
struct Rig {
    directory: tempfile::TempDir,
}

/// What a run printed, and whether it succeeded.
struct Ran {
    events: Vec<Event>,
    /// How many machines were booting, each time that it changed.
    booting: Vec<usize>,
    /// What machines that were booting wrote to their consoles.
    consoles: Vec<String>,
    error: Option<String>,
}

impl Rig {
    fn new(script: &str) -> Self {
        Self::with("qemu", "qemu-system-x86_64", QEMU, script)
    }

    fn bochs(script: &str) -> Self {
        Self::with("bochs", "bochs", BOCHS, script)
    }

    /// Its script runs once for the snapshot, where `$initrd` is something, and once for each copy, where `task` waits for
    /// the next row, whose number plus 40 then is in `$row`.
    fn sim(script: &str) -> Self {
        Self::with("sim", "sim", SIM, script)
    }

    fn with(machine: &str, emulator: &str, beginning: &str, script: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let emulator = directory.path().join(emulator);
        fs::write(&emulator, format!("{beginning}{PRELUDE}{script}")).unwrap();
        fs::set_permissions(&emulator, fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(directory.path().join("machine"), machine).unwrap();
        fs::write(directory.path().join("bzImage"), image()).unwrap();
        module(directory.path(), "kvm", "");
        module(directory.path(), "kvm-amd", "kvm");
        module(directory.path(), "kvm-intel", "kvm");
        Self { directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn start(&self, path: &str) -> Child {
        Command::new(std::env::current_exe().unwrap())
            .env(DIRECTORY, self.directory.path())
            .env("XDG_CACHE_HOME", self.directory.path())
            .env("PATH", format!("{}{path}", self.directory.path().display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    }

    fn run(&self) -> Ran {
        let mut child = self.start(":/usr/bin:/bin");
        // Held until the run has ended: its end is the interrupt.
        let _stdin = child.stdin.take();
        let (mut events, mut booting, mut consoles, mut error) = (Vec::new(), Vec::new(), Vec::new(), None);
        for line in BufReader::new(child.stdout.take().unwrap()).lines() {
            let line = line.unwrap();
            if let Some(console) = line.strip_prefix(CONSOLE) {
                consoles.push(console.to_owned());
                continue;
            }
            match (line.strip_prefix(BOOTING), serde_json::from_str(&line)) {
                (Some(machines), _) => booting.push(machines.parse().unwrap()),
                (None, Ok(event)) => events.push(event),
                (None, Err(_)) => error = Some(line),
            }
        }
        assert_eq!(child.wait().unwrap().success(), error.is_none());
        Ran { events, booting, consoles, error }
    }

    /// The plan in the initramfs of a boot, where it comes last.
    fn plan(&self, boot: usize) -> GuestPlan {
        let initrd = fs::read(self.path(&format!("boot-{boot}/initrd"))).unwrap();
        let start = initrd.windows(8).rposition(|window| window == b"{\"work\":").unwrap();
        serde_json::Deserializer::from_slice(&initrd[start..]).into_iter().next().unwrap().unwrap()
    }

    fn boots(&self) -> usize {
        (1..).take_while(|boot| self.path(&format!("boot-{boot}")).exists()).count()
    }
}

impl Ran {
    /// The reports, with the numbers of their rows.
    fn reports(&self) -> Vec<(usize, &CaseReport)> {
        self.events
            .iter()
            .filter_map(|event| match event {
                Event::Finished(number, report) => Some((*number, report.as_ref())),
                Event::Started(_) => None,
            })
            .collect()
    }

    fn verdicts(&self) -> Vec<(usize, Verdict)> {
        self.reports().iter().map(|(number, report)| (*number, report.verdict)).collect()
    }
}

/// The modules of a boot that has them as files.
fn modules_of(plan: GuestPlan) -> Vec<ModuleLoad> {
    match plan.modules {
        GuestModules::Files(modules) => modules,
        GuestModules::Memory(bytes) => panic!("its modules are to come into {bytes} bytes of memory"),
    }
}

/// The rows of a boot that has them in its plan.
fn rows(plan: GuestPlan) -> Vec<CaseRun> {
    match plan.work {
        Work::Rows(rows) => rows,
        other => panic!("{other:?}"),
    }
}

/// The smallest thing that passes for a bzImage of Linux 7.3.4.
fn image() -> Vec<u8> {
    let mut image = vec![0; 5 * 512];
    image[0x1f1] = 4;
    image[0x1fe..0x200].copy_from_slice(&0xaa55u16.to_le_bytes());
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x20e..0x210].copy_from_slice(&0x200u16.to_le_bytes());
    image[0x211] = 1;
    image[0x400..0x405].copy_from_slice(b"7.3.4");
    image
}

/// A module of Linux 7.3.4 with nothing in it.
fn module(directory: &Path, name: &str, depends: &str) {
    let source = directory.join("module.c");
    let info = format!("vermagic=7.3.4 SMP\\0depends={depends}\\0parmtype=mmio_caching:bool");
    fs::write(&source, format!("const char info[] __attribute__((section(\".modinfo\"))) = \"{info}\";\n")).unwrap();
    let object = directory.join(format!("{name}.ko"));
    assert!(Command::new("cc").arg("-c").arg(&source).arg("-o").arg(object).status().unwrap().success());
}

/// Whether the process whose number is in this file is still there, waiting for it to go.
fn is_gone(pid_file: &Path) -> bool {
    let pid = fs::read_to_string(pid_file).unwrap();
    let process = Path::new("/proc").join(pid.trim());
    for _ in 0..1000 {
        let state = fs::read_to_string(process.join("stat")).unwrap_or_default();
        // Whoever inherits the process may take its time to collect it.
        if state.is_empty() || state.contains(") Z ") {
            return true;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    false
}

/// Waits until the script wrote this file.
fn wait_for(file: &Path) {
    for _ in 0..2000 {
        if fs::read_to_string(file).is_ok_and(|text| text.ends_with('\n')) {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("{} did not appear", file.display());
}

fn reports_come_in_order() {
    let rig = Rig::new("ready; pass 0; pass 1; pass 2; done_");
    fs::write(rig.path("param"), "kvm.mmio_caching=0").unwrap();
    let ran = rig.run();
    assert_eq!(ran.error, None);
    assert_eq!(ran.events[0], Event::Started(0));
    assert_eq!(ran.verdicts(), [(0, Verdict::Pass), (1, Verdict::Pass), (2, Verdict::Pass)]);
    assert!(ran.reports().iter().all(|(_, report)| report.on == Place::Rig));
    assert_eq!(rig.boots(), 1);
    let loads = modules_of(rig.plan(1)).into_iter().map(|load| (load.path, load.params));
    let expected = [("/modules/kvm.ko", "mmio_caching=0"), ("/modules/kvm_amd.ko", "")];
    assert!(loads.eq(expected.map(|(path, params)| (path.to_owned(), params.to_owned()))));
    let arguments = fs::read_to_string(rig.path("boot-1/arguments")).unwrap();
    assert!(arguments.contains("-accel tcg") && arguments.contains("panic=-1"), "{arguments}");
}

fn panic_during_a_row() {
    let rig = Rig::new(
        "ready\nif [ $boot = 1 ]; then say '[    1.0] before'; pass 0; say '[    1.9] privet: plain.test.1 starts'; started 1\n\
         say '[    2.0] BUG: kernel NULL pointer dereference'; say '[    2.0] Kernel panic - not syncing: Fatal exception'\n\
         else pass 0; done_; fi",
    );
    let ran = rig.run();
    assert_eq!(ran.error, None);
    assert_eq!(ran.verdicts(), [(0, Verdict::Pass), (1, Verdict::Fail), (2, Verdict::Pass)]);
    let report = ran.reports()[1].1;
    assert_eq!(report.reason, "the rig's kernel panicked: BUG: kernel NULL pointer dereference");
    assert_eq!((report.id.as_str(), report.seed, report.vm.as_str()), ("plain.test.1", 41, "plain"));
    assert_eq!((report.kernel.as_str(), report.on), ("7.3.4", Place::Rig));
    assert_eq!(
        report.details,
        [
            "console: [    1.9] privet: plain.test.1 starts",
            "console: [    2.0] BUG: kernel NULL pointer dereference",
            "console: [    2.0] Kernel panic - not syncing: Fatal exception"
        ]
    );
    assert_eq!(rig.boots(), 2);
    let ids: Vec<_> = rows(rig.plan(2)).into_iter().map(|case| case.id).collect();
    assert_eq!(ids, ["plain.test.2"]);
}

fn panic_of_init() {
    let rig =
        Rig::new("ready; started 0; say 'Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000100'");
    let ran = rig.run();
    assert_eq!(ran.error, None);
    assert_eq!(ran.verdicts(), [(0, Verdict::Error), (1, Verdict::Error), (2, Verdict::Error)]);
}

fn hang_during_a_row() {
    let rig = Rig::new("ready; if [ $boot = 1 ]; then started 0; exec sleep 1000; else pass 0; pass 1; done_; fi");
    let ran = rig.run();
    assert_eq!(ran.error, None);
    assert_eq!(ran.verdicts(), [(0, Verdict::Timeout), (1, Verdict::Pass), (2, Verdict::Pass)]);
    let report = ran.reports()[0].1;
    assert_eq!(report.reason, "the rig hung: this row had not ended after 1 s");
    assert!((1_000_000..60_000_000).contains(&report.duration_us), "{}", report.duration_us);
    assert!(is_gone(&rig.path("boot-1/pid")));
}

fn silent_boot() {
    let rig = Rig::new("say '[    0.1] Linux version 7.3.4'; exec sleep 1000");
    fs::write(rig.path("silence"), "").unwrap();
    let ran = rig.run();
    assert_eq!(ran.consoles[0], "[    0.1] Linux version 7.3.4");
    let error = ran.error.unwrap();
    let why = "its console was silent for 1 s, its last line was \"[    0.1] Linux version 7.3.4\"";
    assert!(error.contains(why), "{error}");
    let rig = Rig::new("exec sleep 1000");
    fs::write(rig.path("silence"), "").unwrap();
    let error = rig.run().error.unwrap();
    assert!(error.contains("silent for 1 s, it never said anything"), "{error}");
    assert!(is_gone(&rig.path("boot-2/pid")));
}

fn early_end() {
    let rig = Rig::new(
        "ready; if [ $boot = 1 ]; then pass 0; started 1; echo 'qemu: out of memory' >&2; exit 3; fi; pass 0; done_",
    );
    let ran = rig.run();
    assert_eq!(ran.error, None);
    assert_eq!(ran.verdicts(), [(0, Verdict::Pass), (1, Verdict::Error), (2, Verdict::Pass)]);
    assert_eq!(ran.reports()[1].1.reason, "the rig ended: exit status: 3; its last word was \"qemu: out of memory\"");
}

fn nonsense() {
    let rig = Rig::new(
        "ready; if [ $boot = 1 ]; then started 0; printf 'gar\\033bage\\n'; exec sleep 1000; fi; pass 0; pass 1; done_",
    );
    let ran = rig.run();
    assert_eq!(ran.error, None);
    assert_eq!(ran.verdicts(), [(0, Verdict::Error), (1, Verdict::Pass), (2, Verdict::Pass)]);
    assert_eq!(ran.reports()[0].1.reason, "the rig talked nonsense: \"gar\\u{1b}bage\"");
}

fn impossible_events() {
    for impossible in ["passed 0", "started 3", "pass 0; started 0", "started 0; started 0", "pass 0; passed 0"] {
        let rig = Rig::new(&format!("ready; if [ $boot = 1 ]; then {impossible}; exec sleep 1000; fi; exit 9"));
        let ran = rig.run();
        // Without the check the first boot would have hung.
        assert!(ran.verdicts().iter().all(|(_, verdict)| *verdict != Verdict::Timeout), "{impossible}");
        assert!(ran.error.is_some_and(|error| error.contains("exit status: 9")), "{impossible}");
        assert!(is_gone(&rig.path("boot-1/pid")), "{impossible}");
    }
}

fn skipped_rows() {
    let rig = Rig::new("ready; if [ $boot = 1 ]; then pass 1; started 2; else pass 0; fi; done_");
    let ran = rig.run();
    assert_eq!(ran.error, None);
    assert_eq!(ran.verdicts(), [(1, Verdict::Pass), (2, Verdict::Error), (0, Verdict::Pass)]);
    assert_eq!(ran.reports()[1].1.reason, "the worker ended without a report");
}

fn never_anywhere() {
    let rig = Rig::new("echo 'qemu: no such machine' >&2; exit 1");
    let error = rig.run().error.unwrap();
    assert_eq!(
        error,
        "the rig broke: the rig ended: exit status: 1; its last word was \"qemu: no such machine\" in 2 boots in a row, before any row had a verdict"
    );
    assert_eq!(rig.boots(), 2);
}

fn broken_init() {
    let rig = Rig::new(r#"echo '{"broken":"cannot load /modules/kvm.ko"}'"#);
    let error = rig.run().error.unwrap();
    assert!(error.contains("the rig's init gave up: cannot load /modules/kvm.ko"), "{error}");
}

fn unattributed_trouble() {
    let rig = Rig::new(r#"ready; pass 0; pass 1; pass 2; echo '{"unattributed":"WARNING: late"}'; done_"#);
    let ran = rig.run();
    assert_eq!(ran.verdicts().len(), 3);
    assert!(ran.error.unwrap().contains("no row was running, the rig's kernel logged \"WARNING: late\""));
}

fn artifacts() {
    let rig = Rig::new("ready; say boot $boot; if [ $boot = 1 ]; then started 0; exit 1; fi; pass 0; pass 1; done_");
    rig.run();
    for boot in 1..=2 {
        let log = fs::read_to_string(rig.path(&format!("artifacts/amd-boot-{boot}.log"))).unwrap();
        assert_eq!(log, format!("boot {boot}\n"));
    }
}

fn no_emulator() {
    let rig = Rig::new("");
    fs::remove_file(rig.path("qemu-system-x86_64")).unwrap();
    let mut child = rig.start("");
    let mut output = String::new();
    child.stdout.take().unwrap().read_to_string(&mut output).unwrap();
    assert!(!child.wait().unwrap().success());
    assert!(output.contains("not installed: qemu-system-x86_64") && output.contains("qemu-system-x86"), "{output}");
    assert_eq!(output.lines().count(), 1, "{output}");
}

fn foreign_parameters() {
    let rig = Rig::new("ready");
    for (param, expected) in [
        ("kvm_intel.ept=0", "there is no module parameter kvm_intel.ept=0: the rig only loads kvm, kvm_amd"),
        ("kvm.mmio_cache=0", "there is no module parameter kvm.mmio_cache=0: in Linux 7.3.4 kvm has mmio_caching"),
    ] {
        fs::write(rig.path("param"), param).unwrap();
        assert_eq!(rig.run().error.unwrap(), expected);
    }
    assert_eq!(rig.boots(), 0);
}

fn panic_between_rows() {
    let rig = Rig::new(
        "ready; if [ $boot = 1 ]; then pass 0; say 'Kernel panic - not syncing: late'; exit 0; fi; pass 0; pass 1; done_",
    );
    let ran = rig.run();
    assert_eq!(ran.verdicts(), [(0, Verdict::Pass), (1, Verdict::Pass), (2, Verdict::Pass)]);
    assert!(
        ran.error
            .unwrap()
            .contains("while no row was running, the rig's kernel panicked: Kernel panic - not syncing: late")
    );
}

fn interrupted() {
    let rig = Rig::new("ready; started 0; exec sleep 1000");
    let mut child = rig.start(":/usr/bin:/bin");
    wait_for(&rig.path("boot-1/pid"));
    drop(child.stdin.take());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(is_gone(&rig.path("boot-1/pid")));
}

fn killed_runner() {
    let rig = Rig::new("ready; started 0; exec sleep 1000");
    let mut child = rig.start(":/usr/bin:/bin");
    wait_for(&rig.path("boot-1/pid"));
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(is_gone(&rig.path("boot-1/pid")));
}

fn bochs_reports() {
    // A power-off ends it with status 1.
    let rig = Rig::bochs("ready; pass 0; pass 1; pass 2; done_; exit 1");
    fs::write(rig.path("param"), "kvm_intel.ept=1").unwrap();
    module(rig.directory.path(), "kvm-intel", "kvm\\0parmtype=ept:bool");
    let ran = rig.run();
    assert_eq!(ran.error, None);
    assert_eq!(ran.verdicts(), [(0, Verdict::Pass), (1, Verdict::Pass), (2, Verdict::Pass)]);
    let plan = rig.plan(1);
    assert_eq!(plan.port, GuestPort::SecondSerial);
    let modules = modules_of(plan);
    let loads: Vec<_> = modules.iter().map(|load| (load.path.as_str(), load.params.as_str())).collect();
    assert_eq!(loads, [("/modules/kvm.ko", ""), ("/modules/kvm_intel.ko", "ept=1")]);
    let cd = fs::read(rig.path("boot-1/initrd")).unwrap();
    let has = |text: &[u8]| cd.windows(text.len()).any(|window| window == text);
    assert!(has(b"rdinit=/privet") && has(b"panic=-1") && has(b"noxsave"));
    assert!(cd[0x8001..].starts_with(b"CD001"));
}

fn bochs_input() {
    // `timeout` ends with 124 if `cat` still waits for more.
    let rig = Rig::bochs("ready; timeout 0.2 cat >&2; [ $? = 124 ] || exit 7; pass 0; pass 1; pass 2; done_; exit 1");
    assert_eq!(rig.run().error, None);
}

fn bochs_panics_and_hangs() {
    let rig = Rig::bochs(
        "ready; case $boot in 1) started 0; say '[    2.0] Kernel panic - not syncing: broken'; exit 1 ;;\n\
         2) started 0; exec sleep 1000 ;; *) pass 0; done_; exit 1 ;; esac",
    );
    let ran = rig.run();
    assert_eq!(ran.error, None);
    assert_eq!(ran.verdicts(), [(0, Verdict::Fail), (1, Verdict::Timeout), (2, Verdict::Pass)]);
    assert_eq!(ran.reports()[0].1.reason, "the rig's kernel panicked: Kernel panic - not syncing: broken");
    // Its guests' seconds may take longer.
    assert_eq!(ran.reports()[1].1.reason, "the rig hung: this row had not ended after 6 s");
    assert!(ran.reports().iter().all(|(_, report)| report.on == Place::Rig));
    assert!(ran.reports()[..2].iter().all(|(_, report)| report.vendor == "intel"));
    assert!(is_gone(&rig.path("boot-2/pid")));
}

fn bochs_last_word() {
    let rig = Rig::bochs(
        "ready; if [ $boot = 1 ]; then started 0; echo '1p[CPU0  ] >>PANIC<< exception with no resolution' >&2\n\
         echo 'Bochs is exiting' >&2; exit 1; fi; pass 0; pass 1; done_; exit 1",
    );
    let ran = rig.run();
    assert_eq!(
        ran.reports()[0].1.reason,
        "the rig ended: exit status: 1; its last word was \"exception with no resolution\""
    );
    assert_eq!(ran.verdicts().len(), 3);
}

fn side_by_side() {
    // The first to come is the one that breaks, with every row that it has.
    let rig = Rig::bochs(
        "[ $boot = 1 ] || while ! [ -e boot-1/pid ]; do sleep 0.01; done\n\
         grep -aq '\"seed\":4[1]' \"$initrd\" || exit 3; ready; pass 0; done_; exit 1",
    );
    fs::write(rig.path("machines"), "2").unwrap();
    let ran = rig.run();
    assert_eq!(ran.verdicts(), [(1, Verdict::Pass)]);
    assert!(ran.error.unwrap().contains("exit status: 3"));
    assert_eq!(rig.boots(), 3);
    let rows: Vec<Vec<_>> =
        (1..=3).map(|boot| rows(rig.plan(boot)).into_iter().map(|case| case.seed - 40).collect()).collect();
    assert!(rows.contains(&vec![0, 2]) && rows.contains(&vec![1]), "{rows:?}");
}

fn booting() {
    let rig = Rig::new("ready; if [ $boot = 1 ]; then started 0; exit 1; fi; pass 0; pass 1; done_");
    assert_eq!(rig.run().booting, [1, 0, 1, 0]);
    let rig = Rig::new("exit 1");
    assert_eq!(rig.run().booting, [1, 0, 1, 0]);
}

fn no_bochs() {
    let rig = Rig::bochs("");
    fs::remove_file(rig.path("bochs")).unwrap();
    std::os::unix::fs::symlink("/usr/bin/xorriso", rig.path("xorriso")).unwrap();
    let mut child = rig.start("");
    let mut output = String::new();
    child.stdout.take().unwrap().read_to_string(&mut output).unwrap();
    assert!(!child.wait().unwrap().success());
    assert!(output.starts_with("not installed: bochs; run `apt-get install bochs "), "{output}");
    assert_eq!(output.lines().count(), 1, "{output}");
}

/// The snapshots of a rig.
fn snapshots(rig: &Rig) -> Vec<PathBuf> {
    let entries = fs::read_dir(rig.path("privet/snapshots")).into_iter().flatten().flatten().map(|entry| entry.path());
    entries.filter(|path| path.is_dir()).collect()
}

fn copies() {
    let rig = Rig::sim(
        "[ -z \"$initrd\" ] || save; grep -q saved \"$(value saved)\" || exit 9; while task; do pass 0; done_; done; exec sleep 1000",
    );
    for boots in [2, 3] {
        let ran = rig.run();
        assert_eq!(ran.error, None);
        assert_eq!(ran.verdicts(), [(0, Verdict::Pass), (1, Verdict::Pass), (2, Verdict::Pass)]);
        assert!(ran.reports().iter().all(|(_, report)| report.machine.as_deref() == Some("sim")));
        assert_eq!(ran.booting, if boots == 2 { vec![1, 0] } else { vec![] });
        // One copy did all rows. The second time the snapshot was there.
        assert_eq!(rig.boots(), boots);
    }
    assert_eq!(snapshots(&rig).len(), 1);
    assert!((1..=3).all(|boot| is_gone(&rig.path(&format!("boot-{boot}/pid")))));
}

fn copies_side_by_side() {
    // The first row ends when the second one has begun.
    let rig = Rig::sim(
        "[ -z \"$initrd\" ] || save; while task; do [ $row != 40 ] || while ! [ -e second ]; do sleep 0.01; done\n\
         [ $row != 41 ] || touch second; pass 0; done_; done",
    );
    fs::write(rig.path("machines"), "2").unwrap();
    let ran = rig.run();
    assert_eq!(ran.error, None);
    assert_eq!((ran.verdicts().len(), rig.boots()), (3, 3));
}

fn copies_die() {
    let rig = Rig::sim(
        "[ -z \"$initrd\" ] || save; task; case $row in 40) started 0; echo 'processor 1 has shut down' >&2; exit 1 ;;\n\
         41) started 0; echo '{\"stuck\":\"all processors wait\"}'; exec sleep 1000 ;; *) exit 3 ;; esac",
    );
    let ran = rig.run();
    assert_eq!(ran.error, None);
    assert_eq!(ran.verdicts(), [(0, Verdict::Error), (1, Verdict::Timeout), (2, Verdict::Error)]);
    let reasons: Vec<_> = ran.reports().iter().map(|(_, report)| report.reason.as_str()).collect();
    assert_eq!(reasons[0], "the rig ended: exit status: 1; its last word was \"processor 1 has shut down\"");
    assert_eq!(reasons[1], "the rig hung: all processors wait");
    assert_eq!(reasons[2], "the rig ended: exit status: 3; it said nothing");
    assert!(ran.events.contains(&Event::Started(2)));
    assert_eq!(rig.boots(), 4);
}

fn copies_are_replaced() {
    let rig = Rig::sim(
        "[ -z \"$initrd\" ] || save; while task; do say \"console of $row\"; started 0; [ $row != 41 ] || exit 1; passed 0; done_; done",
    );
    let ran = rig.run();
    assert_eq!(ran.error, None);
    assert_eq!(ran.verdicts(), [(0, Verdict::Pass), (1, Verdict::Error), (2, Verdict::Pass)]);
    assert_eq!(ran.reports()[1].1.details, ["console: console of 41"], "each row has a console of its own");
    assert_eq!(rig.boots(), 3);
}

fn not_simulated() {
    let rig = Rig::sim(
        "[ -z \"$initrd\" ] || save; while task; do [ $row = 41 ] || pass 0; [ $row != 41 ] || { started 0\n\
         echo '{\"notsimulated\":\"RDMSR 0x123\"}'; passed 0; }; done_; done",
    );
    let ran = rig.run();
    assert_eq!(ran.error, None);
    assert_eq!(ran.verdicts(), [(0, Verdict::Pass), (1, Verdict::Error), (2, Verdict::Pass)]);
    let report = ran.reports()[1].1;
    assert_eq!(report.reason, "the row met what the machine has not: RDMSR 0x123");
    assert_eq!(report.details, ["it said pass: "]);
}

fn no_snapshot() {
    let rig = Rig::sim("say '[    1.0] Kernel panic - not syncing: too early'; exit 1");
    let ran = rig.run();
    assert_eq!(ran.verdicts(), []);
    assert_eq!(
        ran.error.unwrap(),
        "the rig broke: the rig's kernel panicked: Kernel panic - not syncing: too early, before its guest was ready"
    );
    assert_eq!(snapshots(&rig), Vec::<PathBuf>::new());
}

fn other_snapshots() {
    let rig = Rig::sim("[ -z \"$initrd\" ] || save; while task; do pass 0; done_; done");
    assert_eq!(rig.run().error, None);
    fs::write(rig.path("param"), "kvm.mmio_caching=0").unwrap();
    assert_eq!(rig.run().error, None);
    assert_eq!(snapshots(&rig).len(), 2);
    // As a full disk or another version might leave it.
    fs::write(snapshots(&rig)[0].join("facts.json"), "{").unwrap();
    fs::write(snapshots(&rig)[1].join("facts.json"), "{").unwrap();
    assert_eq!(rig.run().error, None);
    assert_eq!(rig.boots(), 3 * 2);
}

fn trouble_in_a_snapshot() {
    let rig = Rig::sim(
        "[ -z \"$initrd\" ] || { echo '{\"unattributed\":\"WARNING: early\"}'; save; }; while task; do pass 0; done_; done",
    );
    for _ in 0..2 {
        let ran = rig.run();
        assert_eq!(ran.verdicts().len(), 3);
        assert!(ran.error.unwrap().contains("no row was running, the rig's kernel logged \"WARNING: early\""));
    }
}

/// What a machine that gets a program tells.
fn run_a_program(rig: &Rig) -> String {
    fs::write(rig.path("program"), "").unwrap();
    let mut child = rig.start(":/usr/bin:/bin");
    let _stdin = child.stdin.take();
    let mut told = String::new();
    child.stdout.take().unwrap().read_to_string(&mut told).unwrap();
    child.wait().unwrap();
    told
}

fn program() {
    let rig = Rig::sim(
        "ready; echo '{\"printed\":[\"out\",\"a\u{ff}\"]}'; echo '{\"printed\":[\"err\",\"b\"]}'\n\
         echo '{\"notsimulated\":\"RDMSR 0x123\"}'; echo '{\"unattributed\":\"WARNING: late\"}'; echo '{\"exited\":7}'; done_",
    );
    let told = run_a_program(&rig);
    let end = "Ok(ProgramEnd { status: 7, not_simulated: Some(\"RDMSR 0x123\"), trouble: Some(\"WARNING: late\"), recorded: None })";
    assert_eq!(told.lines().collect::<Vec<_>>(), ["Printed(Out, [97, 255])", "Printed(Err, [98])", end]);
    let Work::Program(program) = rig.plan(1).work else { panic!("no program") };
    assert_eq!((program.path, program.arguments), ("/programs/test".into(), vec!["--flag".into()]));
}

fn program_dies() {
    let rig = Rig::sim("ready; echo '{\"printed\":[\"out\",\"a\"]}'; echo 'processor 1 has shut down' >&2; exit 1");
    let told = run_a_program(&rig);
    assert!(told.starts_with("Printed(Out, [97])\nErr("), "{told}");
    assert!(told.contains("its last word was \\\"processor 1 has shut down"), "{told}");
}
