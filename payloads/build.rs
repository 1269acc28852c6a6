//! Builds the payloads by a cargo of their own and tells `src/lib.rs` where they are.
//!
//! A payload is code for a bare CPU, yet it is built for the host's target: that is the one target that
//! every stable toolchain brings a `core` for. It needs code generation flags that a build script cannot
//! set for its own package, hence a nested cargo with its own target directory.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, exit};

const TARGET: &str = "x86_64-unknown-linux-gnu";
const PROFILE: &str = "payload";
const PACKAGE: &str = "privet-payload-general";

/// What of the outer cargo's environment reaches the nested one. Everything else that speaks to cargo or
/// rustc stays out: flags, wrappers (clippy-driver, coverage), profile overrides, target directories.
const INHERITED: [&str; 5] = ["CARGO_HOME", "CARGO_MAKEFLAGS", "RUSTC", "RUSTUP_HOME", "RUSTUP_TOOLCHAIN"];

fn main() {
    let payloads = variable("CARGO_MANIFEST_DIR");
    let workspace = payloads.parent().expect("payloads/ lies in the workspace").to_path_buf();
    let script = workspace.join("linker/payload.ld");
    println!("cargo::rerun-if-changed=build.rs");
    for package in ["protocol", "runtime", "general"] {
        for input in ["Cargo.toml", "src"] {
            println!("cargo::rerun-if-changed={}", payloads.join(package).join(input).display());
        }
    }
    for input in ["linker/payload.ld", "Cargo.toml", "Cargo.lock"] {
        println!("cargo::rerun-if-changed={}", workspace.join(input).display());
    }

    let target_dir = variable("OUT_DIR").join("payloads");
    build(&workspace, &script, &target_dir);

    let elf = target_dir.join(TARGET).join(PROFILE).join(PACKAGE);
    println!("cargo::rustc-env=PRIVET_PAYLOAD_GENERAL={}", elf.display());
}

fn build(workspace: &Path, script: &Path, target_dir: &Path) {
    let mut cargo = Command::new(variable("CARGO"));
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        let speaks_to_cargo = text.starts_with("CARGO") || text.starts_with("RUST");
        if speaks_to_cargo && !INHERITED.contains(&text.as_ref()) {
            cargo.env_remove(&name);
        }
    }
    // The outer cargo has resolved and fetched already, and only packages of this workspace are built
    // here: a network is never needed, and a lock file that would change is an error.
    cargo
        .args(["build", "--quiet", "--locked", "--offline", "--package", PACKAGE])
        .args(["--target", TARGET, "--profile", PROFILE])
        .arg("--target-dir")
        .arg(target_dir)
        .env("CARGO_ENCODED_RUSTFLAGS", rustflags(script).join("\x1f"))
        .current_dir(workspace);
    match cargo.status() {
        Ok(status) if status.success() => {}
        Ok(status) => fail(&format!("building {PACKAGE} for the guest failed ({status}), see above")),
        Err(error) => fail(&format!("cannot start the nested cargo for {PACKAGE}: {error}")),
    }
}

fn rustflags(script: &Path) -> Vec<String> {
    [
        "--cfg=privet_payload",
        "-Cpanic=abort",
        "-Crelocation-model=static",
        "-Cno-redzone=yes",
        // No C compiler: the linker of the toolchain, which rustc finds in its own sysroot.
        "-Clinker=rust-lld",
        "-Clinker-flavor=ld.lld",
        "-Clink-arg=-static",
        "-Clink-arg=--gc-sections",
        "-Clink-arg=-zmax-page-size=4096",
    ]
    .map(String::from)
    .into_iter()
    .chain([format!("-Clink-arg=-T{}", script.display())])
    .collect()
}

fn variable(name: &str) -> PathBuf {
    env::var_os(name).unwrap_or_else(|| fail(&format!("{name} is not set: run this by cargo"))).into()
}

fn fail(message: &str) -> ! {
    eprintln!("error: {message}");
    exit(1)
}
