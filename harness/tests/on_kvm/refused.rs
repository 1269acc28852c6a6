//! A filter of system calls that refuses `KVM_CREATE_GUEST_MEMFD`, as security modules do.
#![expect(unsafe_code, reason = "prctl(2) with a filter")]

use std::thread;

use nix::errno::Errno;
use privet_harness::host::Host;
use privet_harness::need::Need;
use privet_harness::uapi::{Capability, KVM_CREATE_GUEST_MEMFD};
use privet_harness::vm_type::VmType;

/// From here on the ioctl is EACCES for the calling thread, and for no other.
fn refuse_guest_memfds() {
    let (load, equal, answer) =
        (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, libc::BPF_RET);
    // struct seccomp_data: the number of the call, then its architecture, RIP and arguments of 8 bytes each.
    let (call, request) = (0, 24);
    let step = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    let mut steps = [
        step(load, 0, 0, call),
        step(equal, 0, 3, libc::SYS_ioctl as u32),
        step(load, 0, 0, request),
        step(equal, 0, 1, KVM_CREATE_GUEST_MEMFD as u32),
        step(answer, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EACCES as u32),
        step(answer, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: steps.len() as u16, filter: steps.as_mut_ptr() };
    // SAFETY: the program and its steps live until the call returns; it changes what this thread may ask for.
    let refused = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
            | libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program, 0, 0)
    };
    assert_eq!(refused, 0, "{}", Errno::last());
}

#[test]
fn a_refused_guest_memfd_is_a_reason_to_skip() {
    let Some(host) = crate::host() else { return };
    if host.capability(VmType::Plain, Capability::GUEST_MEMFD).unwrap() == 0 {
        return crate::skip("plain VMs have no guest_memfd here");
    }
    assert_eq!(Need::GuestMemfd.unmet(&host, VmType::Plain), None);
    let why = thread::spawn(|| {
        refuse_guest_memfds();
        let host = Host::open().unwrap();
        Need::GuestMemfd.unmet(&host, VmType::Plain)
    });
    let why = why.join().unwrap().expect("a need that is not met").reason;
    assert!(why.contains("EACCES") && why.contains("KVM_CREATE_GUEST_MEMFD"), "{why}");
}
