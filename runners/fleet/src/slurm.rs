//! A fleet as scripts for Slurm: an array job for each array, `submit` which submits them in order, and `epilog` for
//! slurm.conf.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use privet_results::fleet_plan;

use crate::fleet::{Fleet, JobArray, KeyIds, Spread};
use crate::node::licence;
use crate::shell::quoted;

/// Seconds before its end at which a job is told to write down what it has.
const NOTICE_S: u32 = 30;

/// Writes a fleet into a directory that the nodes share: scripts, lists of rows, the plan, and directories for results
/// and logs.
///
/// # Errors
/// Of the file system; that the directory is not empty is one, too.
pub fn write(fleet: &Fleet, dir: &Path) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    if fs::read_dir(dir)?.next().is_some() {
        return Err(io::Error::new(
            io::ErrorKind::DirectoryNotEmpty,
            "it is not empty: results of two fleets would be mixed up",
        ));
    }
    for sub in ["results", "logs", "rows"] {
        fs::create_dir(dir.join(sub))?;
    }
    for array in &fleet.arrays {
        let rows: String = array.rows.iter().map(|row| format!("{row}\n")).collect();
        fs::write(dir.join("rows").join(&array.name), rows)?;
        program(&dir.join(format!("{}.sbatch", array.name)), &sbatch(fleet, array))?;
    }
    program(&dir.join("submit"), &submit(fleet))?;
    program(&dir.join("epilog"), include_str!("slurm/epilog"))?;
    // Last: where it is, all is.
    fs::write(dir.join(fleet_plan::NAME), serde_json::to_string_pretty(&fleet.plan())? + "\n")
}

fn program(path: &Path, text: &str) -> io::Result<()> {
    fs::write(path, text)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
}

/// The script of an array.
fn sbatch(fleet: &Fleet, array: &JobArray) -> String {
    let JobArray { name, features, claims, minutes, alone, shards, .. } = array;
    let width = if *alone { "%1" } else { "" };
    let mut options = vec![
        format!("job-name=privet-{name}"),
        format!("array=1-{shards}{width}"),
        "nodes=1".to_owned(),
        format!("time={minutes}"),
        // To this script alone, which is the run by then.
        format!("signal=B:TERM@{NOTICE_S}"),
        // A node that dies gives its job to another. What a job says is never repeated.
        "requeue".to_owned(),
        "open-mode=append".to_owned(),
        format!("output=logs/{name}-%a.log"),
    ];
    if !features.is_empty() {
        options.push(format!("constraint={}", features.join("&")));
    }
    if *alone {
        options.push("exclusive".to_owned());
    }
    let counted = |join: &str| {
        claims.iter().map(|claim| format!("{}{join}{}", licence(&claim.name), claim.count)).collect::<Vec<_>>()
    };
    match fleet.key_ids {
        KeyIds::Licences if !claims.is_empty() => options.push(format!("licenses={}", counted(":").join(","))),
        KeyIds::Gres if !claims.is_empty() => options.push(format!("gres={}", counted(":").join(","))),
        _ => {}
    }
    let header: String = options.iter().map(|option| format!("#SBATCH --{option}\n")).collect();
    format!("#!/bin/bash\n{header}set -eu\ncd \"$SLURM_SUBMIT_DIR\"\n{}", command(fleet, array))
}

/// What a job runs, in the place of its script.
fn command(fleet: &Fleet, array: &JobArray) -> String {
    let task = "$SLURM_ARRAY_TASK_ID";
    let program = format!("exec \"${{PRIVET:-{}}}\"", fleet.program);
    let options: String = array.options.iter().map(|option| format!(" {}", quoted(option))).collect();
    let rows = format!("mapfile -t rows < rows/{}\n", array.name);
    let result = array.result(task);
    let partition = format!("--partition \"{task}/{}\"", array.shards);
    match array.spread {
        Spread::Rows => format!(
            "{rows}{program} run --format json --output \"{result}\" {partition}{options} --exact \"${{rows[@]}}\"\n"
        ),
        Spread::Schedules { each, seed } => format!(
            "{rows}{program} run --format json --output \"{result}\" --schedules {each} --seed $(({seed} + {task})){options} --exact \"${{rows[@]}}\"\n"
        ),
        Spread::KernelMutants => {
            let results = result.trim_end_matches("/trials.jsonl");
            format!("{program} mutants --kernel --results \"{results}\" {partition}{options}\n")
        }
    }
}

/// The script that submits all: first what can run side by side, then what may take its node down.
fn submit(fleet: &Fleet) -> String {
    let mut text = "#!/bin/bash\n# Submits all jobs of this fleet. Options are passed on to sbatch.\nset -eu\ncd \"$(dirname \"$0\")\"\nafter=()\n".to_owned();
    let (alone, together): (Vec<&JobArray>, Vec<&JobArray>) = fleet.arrays.iter().partition(|array| array.alone);
    for array in together {
        text += &format!("after+=(\"$(sbatch --parsable \"$@\" {}.sbatch)\")\n", array.name);
    }
    for array in alone {
        text += "dependency=()\n[ ${#after[@]} -eq 0 ] || dependency=(--dependency=\"afterany$(printf ':%s' \"${after[@]}\")\")\n";
        text += &format!("after+=(\"$(sbatch --parsable \"${{dependency[@]}}\" \"$@\" {}.sbatch)\")\n", array.name);
    }
    text + "echo \"${after[@]}\"\n"
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use privet_results::fleet_plan::FleetPlan;

    use super::*;
    use crate::fleet::Claim;

    fn array(name: &str, rows: &[&str]) -> JobArray {
        JobArray {
            name: name.into(),
            features: vec!["snp".into(), "genoa".into()],
            claims: vec![Claim { name: "sev_es".into(), count: 4 }],
            minutes: 10,
            alone: false,
            rows: rows.iter().map(ToString::to_string).collect(),
            shards: 2,
            spread: Spread::Rows,
            options: vec!["--on".into(), "host".into(), "a b".into()],
        }
    }

    fn fleet(arrays: Vec<JobArray>) -> Fleet {
        Fleet { program: "privet".into(), key_ids: KeyIds::Licences, arrays }
    }

    #[test]
    fn a_job_asks_for_what_its_rows_need() {
        let array = array("snp", &["snp.a.1"]);
        let script = sbatch(&fleet(vec![array.clone()]), &array);
        for line in [
            "#SBATCH --array=1-2\n",
            "#SBATCH --constraint=snp&genoa\n",
            "#SBATCH --licenses=sev_es_asid:4\n",
            "#SBATCH --signal=B:TERM@30\n",
            "exec \"${PRIVET:-privet}\" run --format json --output \"results/snp-$SLURM_ARRAY_TASK_ID.json\" \
             --partition \"$SLURM_ARRAY_TASK_ID/2\" --on host 'a b' --exact \"${rows[@]}\"\n",
        ] {
            assert!(script.contains(line), "{line} is not in {script}");
        }
        let gres = Fleet { key_ids: KeyIds::Gres, ..fleet(vec![array.clone()]) };
        assert!(sbatch(&gres, &array).contains("#SBATCH --gres=sev_es_asid:4\n"));
    }

    #[test]
    fn what_may_take_a_node_down_comes_last_alone_and_one_at_a_time() {
        let risky = JobArray { alone: true, ..array("risky", &["snp.a.1"]) };
        let fleet = fleet(vec![risky.clone(), array("snp", &[])]);
        let script = sbatch(&fleet, &risky);
        assert!(script.contains("#SBATCH --array=1-2%1\n") && script.contains("#SBATCH --exclusive\n"), "{script}");
        let submit = submit(&fleet);
        assert!(submit.find("snp.sbatch").unwrap() < submit.find("risky.sbatch").unwrap(), "{submit}");
        assert!(submit.contains("afterany"), "{submit}");
    }

    #[test]
    fn the_plan_has_each_row_once_and_the_directory_is_taken_once() {
        let dir = tempfile::tempdir().unwrap();
        let fleet = fleet(vec![array("snp", &["snp.a.1", "snp.a.2", "snp.a.3"])]);
        write(&fleet, dir.path()).unwrap();
        let plan = FleetPlan::in_dir(dir.path()).unwrap().unwrap();
        assert_eq!(plan, fleet.plan());
        assert_eq!(plan.arrays[0].shards[0].rows, ["snp.a.1", "snp.a.3"]);
        assert_eq!(plan.arrays[0].shards[1].file, "results/snp-2.json");
        assert!(write(&fleet, dir.path()).unwrap_err().to_string().contains("not empty"));
        for script in ["submit", "snp.sbatch", "epilog"] {
            let checked = Command::new("bash").arg("-n").arg(dir.path().join(script)).status().unwrap();
            assert!(checked.success(), "{script}");
        }
    }

    #[test]
    fn schedules_and_mutants_are_spread_by_other_means() {
        let schedules = JobArray { spread: Spread::Schedules { each: 50, seed: 7 }, ..array("s", &["upm.a.1"]) };
        let script = command(&fleet(vec![]), &schedules);
        assert!(
            script.contains("--schedules 50 --seed $((7 + $SLURM_ARRAY_TASK_ID))") && !script.contains("--partition")
        );
        let mutants = JobArray { spread: Spread::KernelMutants, rows: Vec::new(), ..array("m", &[]) };
        let script = command(&fleet(vec![]), &mutants);
        assert!(
            script.contains("mutants --kernel --results \"results/m-$SLURM_ARRAY_TASK_ID\" --partition"),
            "{script}"
        );
        assert_eq!(fleet(vec![mutants]).plan().arrays[0].shards[0].file, "results/m-1/trials.jsonl");
    }
}
