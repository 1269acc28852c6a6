//! Whatever a selftest prints and however it ends, it is read, and never to be better than its process: the
//! script `run` beside this directory grows inputs for it.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../properties.rs"]
mod properties;

fuzz_target!(|input: (u8, &[u8])| {
    let (how, bytes) = input;
    properties::hold(how, bytes);
});
