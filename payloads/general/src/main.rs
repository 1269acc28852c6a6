//! The payload that executes the operations that the host sends.
//!
//! Built for the guest by the build script of `privet-payloads`. For the host it is a program that says so.
#![cfg_attr(privet_payload, no_std, no_main)]

#[cfg(privet_payload)]
privet_runtime::payload!("general", privet_payload_general::execute);

#[cfg(not(privet_payload))]
fn main() -> std::process::ExitCode {
    eprintln!("privet-payload-general runs in guests only; `cargo run -p privet -- run` starts some");
    std::process::ExitCode::FAILURE
}
