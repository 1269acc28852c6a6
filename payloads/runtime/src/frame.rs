//! The registers of what an exception interrupted, as the stubs in `exceptions` leave them on the stack.

/// What the stubs push, and below it what the CPU pushed.
#[repr(C)]
pub(crate) struct Frame {
    r15_to_r8: [u64; 8],
    rbp: u64,
    pub(crate) rdi: u64,
    pub(crate) rsi: u64,
    pub(crate) rdx: u64,
    pub(crate) rcx: u64,
    pub(crate) rbx: u64,
    pub(crate) rax: u64,
    pub(crate) vector: u64,
    pub(crate) error_code: u64,
    pub(crate) rip: u64,
    cs: u64,
    rflags: u64,
    pub(crate) rsp: u64,
    ss: u64,
}
