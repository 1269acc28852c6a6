//! `privet`: tests of the private memory of confidential VMs on KVM.

use std::io;
use std::process::ExitCode;

use clap::ColorChoice;
use privet::args::{Cli, Command, Fleet, Kselftests, Rig};
use privet::exit::{Early, Status};
use privet::report::paint::Paint;
use privet::{closed_stdout, commands, kselftest_worker, model, rig, worker};

fn main() -> ExitCode {
    if privet_rig::is_init() {
        privet_rig::init(rig::prepare, rig::serve);
    }
    match Cli::of_this_process().and_then(|cli| command(cli.command, cli.color)) {
        Ok(status) => status.into(),
        Err(early) => {
            eprintln!("privet: {early}");
            early.status.into()
        }
    }
}

fn command(command: Command, color: ColorChoice) -> Result<Status, Early> {
    if command.prints() {
        closed_stdout::check()?;
    }
    match command {
        Command::List(args) => commands::list::list(&args, io::stdout().lock()),
        Command::Run(args) => commands::run::run(&args, Paint::on_stdout(color)),
        Command::Explain(args) => commands::explain::explain(&args, io::stdout().lock()),
        Command::Measure(args) => commands::measure::measure(&args, io::stdout().lock()),
        Command::Probe(args) => commands::probe::probe(&args, io::stdout().lock()),
        Command::Rig(Rig::Build(args)) => commands::rig_build::rig_build(args, io::stdout().lock()),
        Command::Rig(Rig::Fetch(args)) => commands::rig_fetch::rig_fetch(args, io::stdout().lock()),
        Command::Rig(Rig::Snapshots(what)) => commands::rig_snapshots::rig_snapshots(&what, io::stdout().lock()),
        Command::Fleet(Fleet::Slurm(args)) => commands::fleet::slurm(&args, io::stdout().lock()),
        Command::Fleet(Fleet::Lava(args)) => commands::fleet::lava(&args, io::stdout().lock()),
        Command::Collect(args) => commands::collect::collect(&args, io::stdout().lock()),
        Command::Diff(args) => commands::difference::difference(&args, io::stdout().lock()),
        Command::Report(args) => commands::report::report(&args, io::stdout().lock()),
        Command::Compare(args) => commands::compare::compare(&args, io::stdout().lock()),
        Command::Kselftests(Kselftests::Build(args)) => commands::kselftests::build(args, io::stdout().lock()),
        Command::Kselftests(Kselftests::Worker(args)) => reported(kselftest_worker::run(&args)),
        Command::Sim(args) => commands::sim::sim(args),
        Command::Model(args) => commands::model::model(&args),
        Command::Mutants(args) if args.kernel.kernel => {
            commands::kernel_mutants::kernel_mutants(&args, io::stdout().lock())
        }
        Command::Mutants(args) if args.silicon => {
            commands::silicon_mutants::silicon_mutants(&args, io::stdout().lock())
        }
        Command::Mutants(args) => commands::mutants::mutants(&args, io::stdout().lock()),
        Command::Completions(args) => commands::completions::completions(&args, io::stdout().lock()),
        Command::Man(args) => commands::completions::man(&args, io::stdout().lock()),
        Command::WhatModel => model::describe(io::stdout().lock()),
        Command::SimMachine { job } => {
            privet_rig::sim_machine(&job).map(|()| Status::Passed).map_err(Early::nothing_ran)
        }
        Command::Worker(args) => reported(worker::run(&args)),
        Command::ReadyWorker => reported(worker::run_told()),
    }
}

/// The end of a worker.
fn reported(result: io::Result<()>) -> Result<Status, Early> {
    result.map(|()| Status::Passed).map_err(|error| Early::usage(format!("cannot report: {error}")))
}
