//! Lists the instructions of programs that the CPU does not implement:
//! `cargo run -p privet-cpu --example missing -- /bin/ls /lib/x86_64-linux-gnu/libc.so.6`.
//!
//! Sections are read from end to end, so tables among the code show up as instructions that nobody
//! executes, and so do code paths that CPUID does not let anybody take.

use std::collections::BTreeMap;
use std::process::ExitCode;

use goblin::elf::Elf;
use goblin::elf::section_header::{SHF_EXECINSTR, SHT_PROGBITS};
use iced_x86::{Decoder, DecoderOptions};

/// How often an instruction is there, and where first.
struct Missing {
    count: usize,
    first: u64,
}

fn missing(program: &[u8]) -> Result<BTreeMap<String, Missing>, goblin::error::Error> {
    let mut missing = BTreeMap::new();
    for section in Elf::parse(program)?.section_headers {
        let executable = section.sh_flags & u64::from(SHF_EXECINSTR) != 0 && section.sh_type == SHT_PROGBITS;
        let Some(code) = section.file_range().and_then(|range| program.get(range)).filter(|_| executable) else {
            continue;
        };
        for instruction in &mut Decoder::with_ip(64, code, section.sh_addr, DecoderOptions::NONE) {
            if !privet_cpu::implements(&instruction) {
                let name = format!("{:?} {:?}", instruction.mnemonic(), instruction.cpuid_features());
                missing.entry(name).or_insert(Missing { count: 0, first: instruction.ip() }).count += 1;
            }
        }
    }
    Ok(missing)
}

fn main() -> ExitCode {
    let mut code = ExitCode::SUCCESS;
    for path in std::env::args().skip(1) {
        let missing = std::fs::read(&path)
            .map_err(|error| error.to_string())
            .and_then(|program| missing(&program).map_err(|error| error.to_string()));
        match missing {
            Ok(missing) => {
                println!("{path}");
                for (name, Missing { count, first }) in missing {
                    println!("{count:8} {name}, first at {first:#x}");
                }
            }
            Err(error) => {
                eprintln!("{path}: {error}");
                code = ExitCode::FAILURE;
            }
        }
    }
    code
}
