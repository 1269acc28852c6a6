//! Every format can be read back, by the rules of those who read it, whatever the verdicts are and in
//! whatever order they come.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use nix::sys::signal::Signal;
use privet::interrupt::Cause;
use privet::plan::{self, Job};
use privet::report::{Format, in_format};
use privet::summary::Summary;
use privet_report::{CaseReport, Ending, Place, Verdict};
use privet_results::run_file::RunFile;
use proptest::prelude::*;

/// Output that can be looked at afterwards.
#[derive(Clone, Default)]
struct Sink(Rc<RefCell<Vec<u8>>>);

impl io::Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.borrow_mut().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

const IDS: [&str; 7] = [
    "plain.mmio.read",
    "plain.mmio.read.4",
    "plain.slots.toggle",
    "upm.access.code",
    "upm.convert.range.4k_at_0",
    "upm.convert.range.2m-at-4k",
    "upm.exits.flags",
];

/// A run over [`IDS`], with a verdict for those that ended, in the order in which they did.
#[derive(Clone, Debug)]
struct Told {
    jobs: Vec<Job>,
    ends: Vec<(usize, CaseReport)>,
}

impl Told {
    fn summary(&self) -> Summary {
        let mut summary = Summary { duration_us: 1_234_567, ..Summary::default() };
        self.ends.iter().for_each(|(_, report)| summary.add(&Ending::of(report.clone())));
        summary.not_run = self.jobs.len() - self.ends.len();
        if summary.not_run > 0 {
            summary.end_early(Cause::Signal(Signal::SIGINT));
        }
        summary
    }

    fn in_format(&self, format: Format) -> String {
        let sink = Sink::default();
        let mut report = in_format(format, None, Box::new(sink.clone()));
        report.begin(&self.jobs).unwrap();
        for (index, end) in &self.ends {
            report.started(*index).unwrap();
            report.finished(*index, &Ending::of(end.clone())).unwrap();
        }
        report.end(&self.summary()).unwrap();
        drop(report);
        String::from_utf8(sink.0.take()).unwrap()
    }

    /// The verdicts by label.
    fn verdicts(&self) -> BTreeMap<&str, Verdict> {
        self.ends.iter().map(|(index, report)| (self.jobs[*index].label.as_str(), report.verdict)).collect()
    }
}

fn report(job: &Job, verdict: Verdict, text: &str) -> CaseReport {
    CaseReport {
        id: job.id.clone(),
        on: Place::Rig,
        kernel: "7.3.4".into(),
        vendor: "intel".into(),
        vm: job.vm().into(),
        module_params: vec!["kvm.mmio_caching=Y".into()],
        machine: None,
        defect: None,
        schedule: None,
        verdict,
        reason: if verdict == Verdict::Pass { String::new() } else { text.into() },
        lacks: None,
        duration_us: 1500,
        exits: 3,
        seed: job.seed,
        repro: format!("privet run --exact {} --on rig --seed {}", job.id, job.seed),
        details: if verdict == Verdict::Pass { vec![] } else { vec![text.into(), "trace".into()] },
    }
}

/// Text as a guest, a kernel or a shell might leave it, some of it made to be misread.
fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("needs kvm.mmio_caching=Y, is N".to_owned()),
        Just("not ok 7 surprise # SKIP ok 3 x".to_owned()),
        Just("# selftests: kvm: other".to_owned()),
        Just("two\nlines\n1..5\nok 1 fake".to_owned()),
        Just("]]> <&\"'\u{1b}[31m\u{0}".to_owned()),
        any::<String>(),
    ]
}

fn told() -> impl Strategy<Value = Told> {
    let verdict =
        prop::sample::select(vec![Verdict::Pass, Verdict::Fail, Verdict::Error, Verdict::Timeout, Verdict::Skip]);
    (1..3u32, 0..=IDS.len() * 2).prop_flat_map(move |(repeat, ended)| {
        let ids: Vec<String> = IDS.map(String::from).to_vec();
        let jobs = plan::jobs(&ids, repeat, 11, Duration::from_secs(1));
        let order = Just((0..jobs.len()).collect::<Vec<_>>()).prop_shuffle();
        let ends = prop::collection::vec((verdict.clone(), text()), jobs.len());
        (Just(jobs), order, ends).prop_map(move |(jobs, order, ends)| {
            let ended = order.into_iter().zip(ends).take(ended.max(1));
            let ends = ended.map(|(index, (verdict, text))| (index, report(&jobs[index], verdict, &text))).collect();
            Told { jobs, ends }
        })
    })
}

/// One level of KTAP, read by the rules of Documentation/dev-tools/ktap.rst.
struct Ktap {
    planned: usize,
    /// Each result: whether it is ok, its name, its directive, and what is nested in it.
    results: Vec<(bool, String, Option<String>, Option<Ktap>)>,
}

impl Ktap {
    fn read(text: &str) -> Result<Ktap, String> {
        let mut lines = text.lines().peekable();
        let top = Self::level(&mut lines, 0)?;
        match lines.next() {
            None => Ok(top),
            Some(line) => Err(format!("left over: {line}")),
        }
    }

    fn level<'a>(lines: &mut std::iter::Peekable<impl Iterator<Item = &'a str>>, depth: usize) -> Result<Ktap, String> {
        let mut own = |what: &str| {
            let line = lines.next().ok_or_else(|| format!("no {what}"))?;
            line.strip_prefix(&" ".repeat(depth))
                .map(str::to_owned)
                .ok_or_else(|| format!("{what}: indentation of {line}"))
        };
        if own("version")? != "KTAP version 1" {
            return Err("the first line is not the version".into());
        }
        let mut plan = own("plan")?;
        if plan.starts_with("# Subtest: ") {
            plan = own("plan")?;
        }
        let planned = plan.strip_prefix("1..").and_then(|n| n.parse().ok()).ok_or(format!("no plan: {plan}"))?;
        let (mut results, mut nested) = (Vec::new(), None);
        while let Some(line) = lines.peek() {
            let indentation = line.len() - line.trim_start_matches(' ').len();
            if indentation == depth + 2 && nested.is_none() {
                nested = Some(Self::level(lines, depth + 2)?);
                continue;
            }
            if indentation < depth {
                break;
            }
            if indentation > depth {
                return Err(format!("indentation of {line}"));
            }
            let line = lines.next().unwrap_or_default()[depth..].to_owned();
            if line.starts_with('#') {
                continue;
            }
            let (ok, rest) = match line.strip_prefix("not ok ") {
                Some(rest) => (false, rest),
                None => (true, line.strip_prefix("ok ").ok_or(format!("unknown line: {line}"))?),
            };
            let (number, rest) = rest.split_once(' ').ok_or(format!("no name: {line}"))?;
            if number != (results.len() + 1).to_string() {
                return Err(format!("out of sequence: {line}"));
            }
            let (name, directive) = match rest.split_once(" # ") {
                Some((name, directive)) => (name, Some(directive.to_owned())),
                None => (rest, None),
            };
            if name.contains('#') {
                return Err(format!("# in a description: {line}"));
            }
            results.push((ok, name.to_owned(), directive, nested.take()));
        }
        Ok(Ktap { planned, results })
    }

    /// The leaves by their whole names, while parents are held to their children.
    fn leaves(&self, prefix: &str, found: &mut BTreeMap<String, Verdict>) -> Result<(), String> {
        for (ok, name, directive, nested) in &self.results {
            let label = format!("{prefix}{name}");
            let word = directive.as_ref().and_then(|directive| directive.split(' ').next());
            match nested {
                Some(nested) => {
                    nested.leaves(&format!("{label}."), found)?;
                    if *ok != nested.results.iter().all(|(ok, ..)| *ok) {
                        return Err(format!("{label} does not say what its children say"));
                    }
                    let skipped =
                        nested.results.iter().all(|(_, _, d, _)| d.as_ref().is_some_and(|d| d.starts_with("SKIP")));
                    if skipped != (word == Some("SKIP")) {
                        return Err(format!("{label}: all children skipped is {skipped}"));
                    }
                }
                None => {
                    let verdict = match (ok, word) {
                        (true, None) => Verdict::Pass,
                        (true, Some("SKIP")) => Verdict::Skip,
                        (false, None) => Verdict::Fail,
                        (false, Some("ERROR")) => Verdict::Error,
                        (false, Some("TIMEOUT")) => Verdict::Timeout,
                        other => return Err(format!("{label}: {other:?}")),
                    };
                    found.insert(label, verdict);
                }
            }
        }
        Ok(())
    }

    /// Whether every level has as many results as its plan says.
    fn is_complete(&self) -> bool {
        self.planned == self.results.len() && self.results.iter().flat_map(|(.., nested)| nested).all(Ktap::is_complete)
    }
}

/// What LAVA's line parser makes of some output: name and result, after parse-output.py in
/// Linaro/test-definitions.
fn lava(text: &str) -> Vec<(String, &'static str)> {
    let result = |line: &str, word: &str| {
        line.match_indices(word).find_map(|(at, _)| {
            let rest = &line[at + word.len()..];
            let (number, name) = rest.split_once(' ')?;
            let is_number = (1..=5).contains(&number.len()) && number.bytes().all(|byte| byte.is_ascii_digit());
            is_number.then(|| name.to_owned())
        })
    };
    let (mut prefix, mut found) = (String::new(), Vec::new());
    for line in text.lines() {
        if let Some((_, suite)) = line.split_once("# selftests:") {
            prefix = suite.trim().replace(": ", "_");
        } else if let Some(name) = result(line, "not ok ") {
            let name = name.split("# ").next().unwrap_or_default().trim_end();
            found.push((format!("{prefix}/{name}"), "fail"));
        } else if let Some(name) = result(line, "ok ") {
            let (name, skipped) = (name.replace("# SKIP", ""), name.contains("# SKIP"));
            found.push((format!("{prefix}/{}", name.trim_end()), if skipped { "skip" } else { "pass" }));
        }
    }
    found
}

proptest! {
    #[test]
    fn ktap_says_what_happened(told in told()) {
        let text = told.in_format(Format::Ktap);
        let ktap = Ktap::read(&text).map_err(|why| TestCaseError::fail(format!("{why}\n{text}")))?;
        let mut leaves = BTreeMap::new();
        ktap.leaves("", &mut leaves).map_err(|why| TestCaseError::fail(format!("{why}\n{text}")))?;
        let leaves: BTreeMap<&str, Verdict> = leaves.iter().map(|(name, verdict)| (name.as_str(), *verdict)).collect();
        prop_assert_eq!(leaves, told.verdicts(), "{}", text);
        prop_assert_eq!(ktap.is_complete(), told.ends.len() == told.jobs.len(), "{}", text);
    }

    #[test]
    fn flat_ktap_says_what_happened_and_lava_sees_it(told in told()) {
        let text = told.in_format(Format::KtapFlat);
        let ktap = Ktap::read(&text).map_err(|why| TestCaseError::fail(format!("{why}\n{text}")))?;
        prop_assert_eq!(ktap.planned, told.jobs.len());
        prop_assert_eq!(ktap.results.len(), told.ends.len(), "{}", text);
        let mut ends = told.ends.clone();
        ends.sort_by_key(|(index, _)| *index);
        let expected: Vec<(String, &str)> = ends.iter().map(|(index, report)| {
            let word = match report.verdict {
                Verdict::Pass => "pass",
                Verdict::Skip => "skip",
                Verdict::Fail | Verdict::Error | Verdict::Timeout => "fail",
            };
            (format!("kvm_privet/{}", told.jobs[*index].label), word)
        }).collect();
        prop_assert_eq!(lava(&text), expected, "{}", text);
    }

    #[test]
    fn junit_is_xml_that_says_what_happened(told in told()) {
        let text = told.in_format(Format::Junit);
        let junit = quick_junit::Report::deserialize_from_str(&text)
            .map_err(|why| TestCaseError::fail(format!("{why}\n{text}")))?;
        let summary = told.summary();
        prop_assert_eq!(junit.tests, told.jobs.len());
        prop_assert_eq!(junit.failures, summary.fail);
        prop_assert_eq!(junit.errors, summary.error + summary.timeout);
        let cases: Vec<_> = junit.test_suites.iter().flat_map(|suite| &suite.test_cases).collect();
        let names: Vec<&str> = cases.iter().map(|case| case.name.as_str()).collect();
        prop_assert_eq!(names, told.jobs.iter().map(|job| job.label.as_str()).collect::<Vec<_>>());
        let skipped = cases.iter().filter(|case| matches!(case.status, quick_junit::TestCaseStatus::Skipped { .. }));
        prop_assert_eq!(skipped.count(), summary.skip + summary.not_run);
    }

    #[test]
    fn json_lines_carry_every_report(told in told()) {
        let text = told.in_format(Format::Json);
        let mut lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let summary = lines.pop().unwrap();
        prop_assert_eq!(&summary["type"], "summary");
        for (word, count) in [("pass", told.summary().pass), ("skip", told.summary().skip), ("fail", told.summary().fail)] {
            prop_assert_eq!(&summary[word], count);
        }
        prop_assert_eq!(&lines.remove(0)["type"], "run");
        prop_assert_eq!(lines.len(), told.ends.len());
        for (line, (_, report)) in lines.into_iter().zip(&told.ends) {
            prop_assert_eq!(&line["type"], "case");
            prop_assert_eq!(&serde_json::from_value::<CaseReport>(line).unwrap(), report);
        }
        let read = RunFile::parse(&text).unwrap();
        prop_assert_eq!(read.missing().len(), told.jobs.len() - told.ends.len());
        prop_assert!(read.ended.iter().zip(&told.ends).all(|(read, (_, told))| read.ending == Ending::of(told.clone())));
    }

    #[test]
    fn prose_names_every_row_that_did_not_pass(told in told()) {
        let text = told.in_format(Format::Pretty);
        let (_, summary) = text.rsplit_once("\n\n").unwrap_or(("", &text));
        for (label, verdict) in told.verdicts() {
            if matches!(verdict, Verdict::Fail | Verdict::Error | Verdict::Timeout) {
                let named = summary.lines().any(|line| line.starts_with(&format!("{verdict:<7} {label}: ")));
                prop_assert!(named, "{label} is not in\n{summary}");
            }
        }
        let rows = format!("{} rows", told.jobs.len());
        prop_assert!(summary.contains(&rows), "{}", summary);
        prop_assert!(summary.contains("on rig, Linux 7.3.4, kvm_intel (kvm.mmio_caching=Y)"));
        let escape = '\u{1b}';
        prop_assert!(!text.contains(escape));
    }
}

#[test]
fn skips_are_told_once_per_reason() {
    let ids: Vec<String> = IDS.map(String::from).to_vec();
    let jobs = plan::jobs(&ids, 1, 1, Duration::from_secs(1));
    let reason = |index: usize| if index < 5 { "no upm here" } else { "no mmio caching" };
    let ends = jobs.iter().enumerate().map(|(i, job)| (i, report(job, Verdict::Skip, reason(i)))).collect();
    let text = Told { jobs, ends }.in_format(Format::Pretty);
    assert_eq!(text.matches("no upm here").count(), 1, "{text}");
    assert!(text.contains("5 rows: no upm here") && text.contains("2 rows: no mmio caching"), "{text}");
}
