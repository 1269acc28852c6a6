//! guest_memfd files and statistics as files.

use nix::errno::Errno;
use privet_machine::calls;

use crate::driver::{CREATE_VCPU, Fd, GET_STATS_FD, PAGE, SW_PROTECTED};

const KEEP_SIZE: i32 = 1;
const PUNCH: i32 = 3;

#[test]
fn files_are_refused_as_the_kernel_refuses_them() {
    let vm = Fd::vm(SW_PROTECTED);
    for (bytes, flags) in [(0, 0), (1, 0), (1 << 63, 0), (PAGE, 2), (PAGE, 3), (PAGE, 4), (PAGE, 1 << 63)] {
        assert_eq!(vm.guest_memfd(bytes, flags).err(), Some(Errno::EINVAL), "{bytes:#x} bytes, flags {flags:#x}");
    }
    let file = vm.guest_memfd(2 * PAGE, 0).unwrap();
    let page = PAGE as i64;
    for (mode, offset, bytes, expected) in [
        (0, 0, page, Err(Errno::EOPNOTSUPP)),
        (2, 0, page, Err(Errno::EOPNOTSUPP)),
        (KEEP_SIZE | 8, 0, page, Err(Errno::EOPNOTSUPP)),
        (KEEP_SIZE, 1, page, Err(Errno::EINVAL)),
        (KEEP_SIZE, 0, 1, Err(Errno::EINVAL)),
        (KEEP_SIZE, page, 2 * page, Err(Errno::EINVAL)),
        (KEEP_SIZE, -page, page, Err(Errno::EINVAL)),
        (KEEP_SIZE, 0, 0, Err(Errno::EINVAL)),
        (PUNCH, i64::MAX & !0xfff, page, Err(Errno::EFBIG)),
        (KEEP_SIZE, 0, 2 * page, Ok(())),
        (PUNCH, page, 100 * page, Ok(())),
        (PUNCH, 100 * page, page, Ok(())),
    ] {
        assert_eq!(calls::fallocate(file.0, mode, offset, bytes), Some(expected), "{mode} {offset:#x} {bytes:#x}");
    }
    let map = |flags| calls::mmap(file.0, (std::ptr::null_mut(), 4096), 1, flags, 0).map(|mapped| mapped.map(drop));
    assert_eq!(map(libc::MAP_SHARED), Some(Err(Errno::ENODEV)));
    let mappable = vm.guest_memfd(PAGE, 1).unwrap();
    let private = calls::mmap(mappable.0, (std::ptr::null_mut(), 4096), 1, libc::MAP_PRIVATE, 0);
    assert_eq!(private.map(|mapped| mapped.map(drop)), Some(Err(Errno::EINVAL)));
}

#[test]
fn statistics_outlive_the_descriptors_of_what_they_are_of() {
    let vm = Fd::vm(0);
    let vcpu = vm.make(CREATE_VCPU, 3).unwrap();
    let (of_vm, of_vcpu) = (vm.make(GET_STATS_FD, 0).unwrap(), vcpu.make(GET_STATS_FD, 0).unwrap());
    drop((vm, vcpu));
    for (file, id) in
        [(of_vm, format!("kvm-{}\0", std::process::id())), (of_vcpu, format!("kvm-{}/vcpu-3\0", std::process::id()))]
    {
        let bytes = calls::read_at(file.0, 24, 48).unwrap().unwrap();
        assert!(bytes.starts_with(id.as_bytes()));
        assert_eq!(calls::write(file.0), Some(Errno::EBADF));
    }
}
