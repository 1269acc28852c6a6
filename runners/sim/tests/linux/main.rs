//! The rig's kernel on machines of ours. Without one in the cache (`privet rig build`) these tests are ignored.

mod init;

use std::process::ExitCode;
use std::sync::Arc;

use libtest_mimic::{Arguments, Failed, Trial};
use privet_kernel::Kernel;
use privet_sim::{Description, Limits, Machine, Outcome, Profile, Rewindable, Turns};

fn main() -> ExitCode {
    let kernel = Kernel::cached();
    if let Err(error) = &kernel {
        eprintln!("no kernel to boot, so all of these tests are ignored: {error}");
    }
    let kernel: Option<Arc<[u8]>> =
        kernel.ok().map(|kernel| std::fs::read(kernel.image).expect("a kernel that is found can be read").into());
    let test = |name: &str, body: fn(&Description)| {
        let kernel = kernel.clone();
        let missing = kernel.is_none();
        let body = move || {
            let command_line = "console=ttyS0 panic=-1 tsc=nowatchdog".to_owned();
            let kernel = kernel.expect("ignored without one");
            body(&Description::new(kernel, init::initramfs().into(), command_line));
            Ok::<(), Failed>(())
        };
        Trial::test(name, body).with_ignored_flag(missing)
    };
    let tests = vec![
        test("linux_boots_talks_over_its_port_and_switches_off", boots_and_switches_off),
        test("one_processor_and_eight", one_and_eight),
        test("a_genoa_and_a_milan_have_what_snp_hosts_need", snp_hosts),
        test("a_granite_has_what_vmx_hosts_need", vmx_host),
        test("a_seed_is_a_run_to_the_last_instruction", seeds),
        test("who_is_recorded_does_the_same", recorded),
        test("a_saved_machine_goes_on_as_the_one_that_was_saved", save_and_restore),
        test("a_saved_machine_is_not_changed_by_one_that_goes_on_from_it", restored_twice),
        test("a_rewound_machine_is_the_one_that_was_saved", rewound),
    ];
    libtest_mimic::run(&Arguments::from_args(), tests).exit_code()
}

fn instructions(millions: u64) -> Limits {
    Limits { instructions: Some(millions * 1_000_000), ..Limits::default() }
}

fn console(machine: &mut Machine) -> String {
    String::from_utf8_lossy(&machine.take_console()).into_owned()
}

/// Runs until init has said its word, answers, and runs to the end; what the console had.
fn run_to_the_end(machine: &mut Machine) -> String {
    let mut port = Vec::new();
    while !port.ends_with(init::HELLO) {
        assert_eq!(machine.run(&Limits::default()), Outcome::Port, "{}", console(machine));
        port.extend(machine.take_port());
    }
    machine.feed_port(b"answer\n");
    // The terminal echoes.
    let mut outcome = Outcome::Port;
    while outcome == Outcome::Port {
        machine.take_port();
        outcome = machine.run(&Limits::default());
    }
    let console = console(machine);
    assert_eq!(outcome, Outcome::PoweredOff, "{console}");
    console
}

/// What programs have said on a console: without the kernel's messages, which come when they come, in the middle of
/// others' lines, too.
fn said_by_programs(console: &str) -> String {
    let before_message = |line| str::split_once(line, "[    ").map_or(line, |(before, _)| before);
    console.split_inclusive('\n').map(before_message).collect()
}

fn boots_and_switches_off(description: &Description) {
    let mut machine = Machine::new(description).unwrap();
    let console = run_to_the_end(&mut machine);
    for word in ["Brought up 1 node, 2 CPUs", "Run /init", "reboot: Power down"] {
        assert!(console.contains(word), "{word} is missing: {console}");
    }
    assert!(said_by_programs(&console).contains("init got: answer"), "{console}");
    assert_eq!(machine.take_findings(), [], "what an ordinary boot asks for is there");
}

fn one_and_eight(description: &Description) {
    for (cpus, word) in [(1, "Total of 1 processors"), (8, "Brought up 1 node, 8 CPUs")] {
        let mut machine = Machine::new(&Description { cpus, ..description.clone() }).unwrap();
        let console = run_to_the_end(&mut machine);
        assert!(console.contains(word), "{console}");
    }
}

/// The kernel's own words at each stage of its start as a host of SNP guests.
fn snp_hosts(description: &Description) {
    for profile in [Profile::Genoa, Profile::Milan] {
        snp_host(description, profile);
    }
}

fn snp_host(description: &Description, profile: Profile) {
    let command_line = format!("{} iommu=pt", description.command_line);
    let description = Description { profile, command_line, ..description.clone() };
    let mut machine = Machine::new(&description).unwrap();
    let console = run_to_the_end(&mut machine);
    for word in [
        "SEV-SNP: RMP table physical range [0x000000007f600000 - 0x000000007fffffff]",
        "AMD-Vi: IOMMU SNP support enabled",
        "ccp 0000:00:02.0: sev enabled",
        "ccp 0000:00:02.0: psp enabled",
    ] {
        assert!(console.contains(word), "{word} is missing: {console}");
    }
    assert_eq!(machine.take_findings(), []);
}

/// The kernel has nothing to complain about, and asks for nothing that is not there.
fn vmx_host(description: &Description) {
    let description = Description { profile: Profile::Granite, ..description.clone() };
    let mut machine = Machine::new(&description).unwrap();
    let console = run_to_the_end(&mut machine);
    assert!(
        console.contains("smpboot: CPU0: Intel Xeon (privet sim) (family: 0x6, model: 0xad, stepping: 0x1)"),
        "{console}"
    );
    for word in ["disabled by BIOS", "WARNING", "old microcode", "unchecked MSR"] {
        assert!(!console.contains(word), "{word}: {console}");
    }
    assert_eq!(machine.take_findings(), []);
}

fn seeds(description: &Description) {
    let run = |seed: u64| {
        let mut machine = Machine::new(&Description { seed, ..description.clone() }).unwrap();
        assert_eq!(machine.run(&instructions(40)), Outcome::InstructionLimit);
        machine.reseed(seed, Turns::Short);
        assert_eq!(machine.run(&instructions(45)), Outcome::InstructionLimit);
        (machine.instructions(), machine.now(), machine.digest())
    };
    let first = run(1);
    assert_eq!(first, run(1));
    assert_ne!(first.2, run(2).2);
}

fn recorded(description: &Description) {
    let command_line = format!("{} norandmaps", description.command_line);
    let description = Description { command_line, ..description.clone() };
    let run = |records: bool| {
        let mut machine = Machine::new(&description).unwrap();
        if records {
            machine.start_recording();
        }
        run_to_the_end(&mut machine);
        (machine.instructions(), machine.digest(), machine.take_record())
    };
    let (instructions, digest, nothing) = run(false);
    let (of_recorded, digest_of_recorded, record) = run(true);
    assert_eq!((instructions, digest), (of_recorded, digest_of_recorded));
    assert_eq!(nothing.instructions(), 0);
    // Events are no instructions, and are counted as such by the clock.
    let missing = instructions.abs_diff(record.instructions());
    assert!(missing < instructions / 100, "{} of {instructions}", record.instructions());
    assert_eq!(record.programs.keys().collect::<Vec<_>>(), ["/init"]);
}

fn save_and_restore(description: &Description) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("machine");
    let mut machine = Machine::new(description).unwrap();
    machine.run(&instructions(30));
    machine.save(&path).unwrap();
    let mut restored = Machine::restore(&path).unwrap();
    assert_eq!(machine.digest(), restored.digest());
    for machine in [&mut machine, &mut restored] {
        assert_eq!(machine.run(&instructions(50)), Outcome::InstructionLimit);
    }
    assert_eq!(machine.instructions(), restored.instructions());
    assert_eq!(machine.digest(), restored.digest());
    assert!(machine.save(&path).unwrap_err().to_string().contains("exists"), "nothing is overwritten");
}

/// What it did before it was rewound, code that was overwritten among it, changes nothing that comes after.
fn rewound(description: &Description) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("machine");
    let mut machine = Machine::new(description).unwrap();
    machine.run(&instructions(30));
    machine.save(&path).unwrap();
    let before = machine.digest();
    assert_eq!(machine.run(&instructions(50)), Outcome::InstructionLimit);
    let after = (machine.instructions(), machine.digest());
    let mut again = Rewindable::restore(&path).unwrap();
    run_to_the_end(&mut again.machine);
    for _ in 0..2 {
        again.rewind().unwrap();
        assert_eq!(again.machine.digest(), before);
        assert_eq!(again.machine.run(&instructions(50)), Outcome::InstructionLimit);
        assert_eq!((again.machine.instructions(), again.machine.digest()), after);
    }
}

fn restored_twice(description: &Description) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("machine");
    let mut machine = Machine::new(description).unwrap();
    machine.run(&instructions(30));
    machine.save(&path).unwrap();
    let before = machine.digest();
    run_to_the_end(&mut Machine::restore(&path).unwrap());
    assert_eq!(Machine::restore(&path).unwrap().digest(), before);
}
