//! The guest payloads, built with the workspace (see `build.rs`) and embedded.

/// A payload as the linker left it: an ELF file for the harness's loader.
#[derive(Clone, Copy, Debug)]
pub struct Payload {
    /// The name that errors call it by; the payload's descriptor carries the same one.
    pub name: &'static str,
    /// The ELF file, symbols and line tables included.
    pub elf: &'static [u8],
}

/// Executes the operations that the host sends.
pub const GENERAL: Payload = Payload { name: "general", elf: include_bytes!(env!("PRIVET_PAYLOAD_GENERAL")) };
