//! The model from outside: rows and programs on it, and what its defects do to rows.

use std::collections::BTreeSet;
use std::process::{Command, Output, Stdio};

use privet_harness::vm_type::VmType;
use privet_report::{CaseReport, Place, Verdict};
use serde_json::Value;

/// Runs `privet` with a cache that holds no kernel.
fn privet(args: &[&str]) -> Output {
    let cache = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_privet"));
    command.args(args).env("XDG_CACHE_HOME", cache.path()).stdin(Stdio::null());
    command.output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn reports(output: &Output) -> Vec<CaseReport> {
    let lines: Vec<Value> = stdout(output).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let cases = lines.into_iter().filter(|line| line["type"] == "case");
    cases.map(|line| serde_json::from_value(line).unwrap()).collect()
}

/// The reports of a run on the model with these arguments.
fn run(args: &[&str]) -> (Vec<CaseReport>, Option<i32>) {
    let output = privet(&[&["run", "--on", "model", "--format", "json"], args].concat());
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    (reports(&output), output.status.code())
}

/// The first row of each group of each VM type that the model has.
fn one_of_each_group() -> Vec<String> {
    let mut groups = BTreeSet::new();
    let rows = privet_cases::table().into_iter().filter(|row| matches!(row.vm, VmType::Plain | VmType::Upm));
    let ids = rows.map(|row| row.id);
    ids.filter(|id| groups.insert(id.splitn(3, '.').take(2).collect::<Vec<_>>().join("."))).collect()
}

#[test]
fn rows_of_every_group_pass_and_say_that_it_was_on_the_model() {
    let ids = one_of_each_group();
    let mut args = vec!["--exact"];
    args.extend(ids.iter().map(String::as_str));
    let (reports, status) = run(&args);
    assert_eq!(status, Some(0));
    assert_eq!(reports.len(), ids.len());
    for report in &reports {
        assert_eq!(report.on, Place::Model, "{}", report.id);
        assert!(report.kernel.is_empty() && report.vendor == "amd" && report.defect.is_none(), "{report:?}");
        assert!(matches!(report.verdict, Verdict::Pass | Verdict::Skip), "{}: {}", report.id, report.reason);
        assert!(report.module_params.iter().any(|param| param == "kvm.mmio_caching=Y"), "{report:?}");
        assert!(report.repro.contains("--on model"), "{}", report.repro);
    }
    let passed = reports.iter().filter(|report| report.verdict == Verdict::Pass).count();
    assert!(passed * 4 > reports.len() * 3, "{passed} of {} passed", reports.len());
}

#[test]
fn people_are_told_that_a_pass_is_none_on_hardware() {
    let output = privet(&["run", "--on", "model", "upm.punch.while_shared"]);
    assert_eq!(output.status.code(), Some(0));
    assert!(stdout(&output).contains("on the model, which is no hardware, kvm_amd"), "{}", stdout(&output));
}

#[test]
fn module_parameters_and_processors_are_as_asked_for() {
    let (reports, status) =
        run(&["--exact", "upm.mmio.nothing_is_cached", "--module-param", "kvm.mmio_caching=0", "--vendor", "both"]);
    assert_eq!(status, Some(0), "{reports:?}");
    let mut vendors: Vec<_> = reports.iter().map(|report| report.vendor.as_str()).collect();
    vendors.sort_unstable();
    assert_eq!(vendors, ["amd", "intel"]);
    assert!(reports.iter().all(|report| report.module_params[0] == "kvm.mmio_caching=N"), "{reports:?}");
}

#[test]
fn a_defect_turns_a_row_red_and_the_report_says_which() {
    let (reports, status) = run(&["--exact", "upm.punch.while_shared", "--defect", "hole-not-zeroed"]);
    assert_eq!((reports[0].verdict, status), (Verdict::Fail, Some(1)));
    assert_eq!(reports[0].defect.as_deref(), Some("hole-not-zeroed"));
    // The command line that it gives repeats it.
    let words: Vec<&str> = reports[0].repro.split(' ').skip(1).collect();
    let again = privet(&[&words[..], &["--format", "json"]].concat());
    assert_eq!(self::reports(&again)[0].reason, reports[0].reason);
}

#[test]
fn defects_of_the_environment_do_not_reach_a_run() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_privet"));
    command.args(["run", "--on", "model", "--exact", "upm.punch.while_shared"]);
    let output = command.env("PRIVET_MODEL_DEFECT", "hole-not-zeroed").output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stdout(&output));
}

#[test]
fn every_defect_is_explained() {
    let output = privet(&["list", "--defects", "--format", "json"]);
    let lines: Vec<Value> = stdout(&output).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), privet_machine::Defect::ALL.len());
    let text = stdout(&privet(&["list", "--defects"]));
    for line in lines {
        for part in ["name", "summary", "explanation"] {
            assert!(text.contains(line[part].as_str().unwrap()), "{line}");
        }
    }
}

#[test]
fn mutants_are_caught_by_rows_that_look_and_survive_others() {
    let caught = privet(&["mutants", "upm.punch.while_shared", "--defect", "hole-not-zeroed"]);
    assert_eq!(caught.status.code(), Some(0), "{}", stdout(&caught));
    assert!(
        stdout(&caught).contains("caught    hole-not-zeroed by 1 row: upm.punch.while_shared\n"),
        "{}",
        stdout(&caught)
    );
    let survived = privet(&["mutants", "upm.punch.while_shared", "--defect", "fault-size-zero"]);
    assert_eq!(survived.status.code(), Some(1), "{}", stdout(&survived));
    let text = stdout(&survived);
    assert!(text.contains("survived  fault-size-zero") && text.contains("never     upm.punch.while_shared"), "{text}");
}

#[test]
fn a_program_runs_on_the_model_and_its_status_is_the_status() {
    let script = "cat /sys/module/kvm/parameters/mmio_caching; exit 7";
    let output = privet(&["model", "--module-param", "kvm.mmio_caching=0", "--", "sh", "-c", script]);
    assert_eq!((stdout(&output).as_str(), output.status.code()), ("N\n", Some(7)));
}

#[test]
fn a_program_that_would_run_without_the_model_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("static");
    let elf = std::fs::read(env!("CARGO_BIN_EXE_privet")).unwrap();
    std::fs::write(&program, without_loader(elf)).unwrap();
    let output = privet(&["model", program.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("linked statically") && said.lines().count() == 1, "{said}");
}

/// An ELF file whose PT_INTERP header is PT_NULL.
fn without_loader(mut elf: Vec<u8>) -> Vec<u8> {
    let headers = u64::from_le_bytes(elf[32..40].try_into().unwrap()) as usize;
    let count = usize::from(u16::from_le_bytes(elf[56..58].try_into().unwrap()));
    let types = (0..count).map(|header| headers + header * 56);
    let interp = types.into_iter().find(|at| elf[*at..at + 4] == 3_u32.to_le_bytes()).unwrap();
    elf[interp..interp + 4].fill(0);
    elf
}

#[test]
fn a_place_that_skips_what_the_other_runs_is_a_difference() {
    // There is no kernel for a rig here.
    let output = privet(&["run", "--on", "model", "--diff", "rig", "--exact", "upm.punch.while_shared"]);
    assert_eq!(output.status.code(), Some(1));
    let text = stdout(&output);
    assert!(text.starts_with("upm.punch.while_shared\n    model pass"), "{text}");
    assert!(text.contains("    rig   skip") && text.contains("1 row: 1 differ, 0 ran in both places"), "{text}");
}
