//! Boots a kernel with its console on standard output: `boot BZIMAGE INITRAMFS [CPUS] [MORE COMMAND LINE] [PROFILE]`.

use std::io::Write;
use std::time::Instant;

use privet_sim::{Description, Limits, Machine, Outcome};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (kernel, initramfs) = (std::fs::read(&arguments[0])?, std::fs::read(&arguments[1])?);
    let more = arguments.get(3).map_or("", String::as_str);
    let command_line = format!("console=ttyS0 panic=-1 tsc=nowatchdog {more}");
    let mut description = Description::new(kernel.into(), initramfs.into(), command_line);
    description.cpus = arguments.get(2).map_or(Ok(2), |cpus| cpus.parse())?;
    description.profile = arguments.get(4).map_or(Ok(description.profile), |profile| profile.parse())?;
    let mut machine = Machine::new(&description)?;
    let started = Instant::now();
    let mut limits = Limits::default();
    loop {
        limits.instructions = Some(machine.instructions() + 1_000_000);
        let outcome = machine.run(&limits);
        std::io::stdout().write_all(&machine.take_console())?;
        std::io::stdout().flush()?;
        for finding in machine.take_findings() {
            println!("[{finding}]");
        }
        match outcome {
            Outcome::InstructionLimit => {}
            Outcome::Port => println!("[port: {}]", String::from_utf8_lossy(&machine.take_port())),
            outcome => {
                println!("[{outcome:?}]");
                break;
            }
        }
    }
    let (seconds, instructions) = (started.elapsed().as_secs_f64(), machine.instructions() as f64 / 1e6);
    println!(
        "[{instructions:.1} M instructions, {:.3} s virtual, {seconds:.2} s, {:.1} M/s]",
        machine.now().as_secs_f64(),
        instructions / seconds
    );
    Ok(())
}
