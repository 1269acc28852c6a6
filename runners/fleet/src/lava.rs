//! A test definition for LAVA (docs.lavasoftware.org: "Lava-Test Test Definition 1.0"): the device runs rows, and each is a
//! test case of the job.

use crate::shell::quoted;

/// The definition of a test that runs `program` on the device with these options of `privet run` and these rows.
pub fn lava_definition(program: &str, options: &[String], rows: &[String]) -> String {
    let words: Vec<String> = options.iter().map(|option| quoted(option)).collect();
    let run = format!("{} run --format ktap-flat --output privet.ktap {}", quoted(program), words.join(" "));
    let rows: String = rows.iter().map(|row| format!("            {row} \\\n")).collect();
    include_str!("lava/definition.yaml")
        .replace("@RUN@", run.trim_end())
        .replace("@ROWS@", rows.trim_end_matches("\\\n").trim_end())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;
    use std::process::Command;

    use super::*;

    fn program(path: &Path, text: &str) {
        fs::write(path, text).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// The steps of a definition, as LAVA puts them into a script.
    fn steps(definition: &str) -> String {
        let steps = definition.split("- |\n").nth(1).unwrap();
        steps.lines().map(|line| format!("{}\n", line.trim_start())).collect()
    }

    #[test]
    fn the_steps_run_as_printed_and_each_row_is_a_test_case() {
        let dir = tempfile::tempdir().unwrap();
        let device = |name: &str| dir.path().join(name);
        let ktap = "KTAP version 1\n1..4\n# selftests: kvm: privet\nok 1 upm.a.1\nnot ok 2 upm.a.2\n# skipped: no upm\nok 3 upm.a.3 # SKIP\nnot ok 4 upm.a.4 # TIMEOUT\n";
        program(
            &device("privet"),
            &format!("#!/bin/sh\necho \"$@\" >words\ncat >privet.ktap <<'E'\n{ktap}E\nexit 1\n"),
        );
        program(&device("lava-test-case"), "#!/bin/sh\necho \"$@\" >>cases\n");
        let definition =
            lava_definition("./privet", &["--on".into(), "host".into()], &["upm.a.1".into(), "upm.a.2".into()]);
        let path = format!("{}:{}", dir.path().display(), std::env::var("PATH").unwrap());
        let ran = Command::new("sh")
            .args(["-e", "-c", &steps(&definition)])
            .current_dir(dir.path())
            .env("PATH", path)
            .status();
        assert!(ran.unwrap().success());
        assert_eq!(
            fs::read_to_string(device("words")).unwrap(),
            "run --format ktap-flat --output privet.ktap --on host --exact upm.a.1 upm.a.2\n"
        );
        assert_eq!(
            fs::read_to_string(device("cases")).unwrap(),
            "upm.a.1 --result pass\nupm.a.2 --result fail\nupm.a.3 --result skip\nupm.a.4 --result fail\n\
             privet-run --result pass\n"
        );
    }

    #[test]
    fn a_run_that_leaves_nothing_is_a_failed_test_case() {
        let dir = tempfile::tempdir().unwrap();
        program(&dir.path().join("lava-test-case"), "#!/bin/sh\necho \"$@\" >>cases\n");
        let definition = lava_definition("./not-there", &[], &["upm.a.1".into()]);
        let path = format!("{}:{}", dir.path().display(), std::env::var("PATH").unwrap());
        let ran = Command::new("sh")
            .args(["-e", "-c", &steps(&definition)])
            .current_dir(dir.path())
            .env("PATH", path)
            .output();
        assert!(ran.unwrap().status.success());
        assert_eq!(fs::read_to_string(dir.path().join("cases")).unwrap(), "privet-run --result fail\n");
    }
}
