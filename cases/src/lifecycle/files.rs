//! guest_memfds: which can be made, and what kind of files they are.

use kvm_bindings::kvm_create_guest_memfd;
use nix::errno::Errno;
use nix::fcntl::readlink;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::stat::SFlag;
use nix::sys::statfs::fstatfs;
use nix::sys::uio::{pread, pwrite};
use nix::unistd::{close, ftruncate, read, write};
use privet_harness::case::Case;
use privet_harness::mapping::MapOptions;
use privet_harness::need::Need;
use privet_harness::outcome::{Outcome, Stop};
use privet_harness::test_range::{RangeSpec, TEST_BASE, TestRange};
use privet_harness::uapi::{
    Capability, GUEST_MEMFD_FLAG_INIT_SHARED, GUEST_MEMFD_FLAG_MMAP, KVM_CREATE_GUEST_MEMFD, MEM_GUEST_MEMFD,
};
use privet_harness::units::{PAGE_SIZE, PageCount};

use crate::expect::{expect_eq, expect_errno, expect_ok};
use crate::row::Row;
use crate::types::Types;

const CREATE: &str = "virt/kvm/guest_memfd.c: kvm_gmem_create";
const SIZE: u64 = 4 * PAGE_SIZE;

/// The magic number of the kernel's file system for these files, `GUEST_MEMFD_MAGIC`.
const MAGIC: i64 = 0x474d_454d;

/// The rows.
pub(super) fn rows() -> Vec<Row> {
    let rows = [
        Row::new(
            "lifecycle.guest_memfd_flags",
            Types::ALL,
            "KVM_CREATE_GUEST_MEMFD takes MMAP in every VM and INIT_SHARED where there is no private memory, \
             alone and together; every other flag is EINVAL.",
            flags,
        )
        .basis(&[CREATE, "kvm_gmem_get_supported_flags"])
        .upstream("guest_memfd_test: test_guest_memfd_flags")
        .needs(Need::Capability(Capability::GUEST_MEMFD_FLAGS, GUEST_MEMFD_FLAG_MMAP as i32)),
        Row::new(
            "lifecycle.guest_memfd_sizes",
            Types::ALL,
            "Sizes that are 0, not whole pages or negative as a signed number are EINVAL; all others are \
             fine up to the largest.",
            sizes,
        )
        .basis(&[CREATE])
        .upstream("guest_memfd_test: test_create_guest_memfd_invalid_sizes"),
        Row::new(
            "lifecycle.guest_memfd_arguments",
            Types::ALL,
            "An argument that cannot be read is EFAULT, a full table of descriptors is EMFILE, and the \
             reserved words are not looked at.",
            arguments,
        )
        .basis(&["virt/kvm/kvm_main.c: kvm_vm_ioctl, KVM_CREATE_GUEST_MEMFD", CREATE]),
        Row::new(
            "lifecycle.guest_memfd_is_a_file_of_its_own",
            Types::ALL,
            "A guest_memfd is a regular file of the size asked for and 4 KiB blocks, by the name of [kvm-gmem], that \
             can be neither read nor written nor resized nor, without the flag, mapped; two of them are two files.",
            is_a_file_of_its_own,
        )
        .basis(&["virt/kvm/guest_memfd.c: kvm_gmem_fops, kvm_gmem_setattr, kvm_gmem_mmap"])
        .upstream("guest_memfd_test: test_file_read_write, test_file_size, test_create_guest_memfd_multiple"),
        Row::new(
            "lifecycle.guest_memfd_has_its_own_file_system",
            Types::UPM,
            "statfs of a guest_memfd tells the magic number of its own file system.",
            file_system,
        )
        .basis(&["virt/kvm/guest_memfd.c: kvm_gmem_init_fs_context"])
        .needs(Need::Capability(Capability::GUEST_MEMFD_FLAGS, GUEST_MEMFD_FLAG_MMAP as i32)),
        Row::new(
            "lifecycle.guest_memfd_outlives_the_vm",
            Types::UPM,
            "A guest_memfd whose VM is closed keeps its size and cannot be bound by another VM: it still belongs \
             to the first one.",
            outlives_the_vm,
        )
        .basis(&["virt/kvm/guest_memfd.c: __kvm_gmem_create takes a reference to the VM"]),
    ];
    rows.into_iter().map(|row| row.needs(Need::GuestMemfd)).collect()
}

fn flags(t: &Case) -> Outcome {
    let vm = t.vm()?;
    let supported = match t.platform().has_private_memory() {
        true => GUEST_MEMFD_FLAG_MMAP,
        false => GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED,
    };
    let single = (0..64).map(|bit| 1 << bit);
    for flags in single.chain([0, 3, GUEST_MEMFD_FLAG_MMAP | 1 << 2, u64::MAX]) {
        let (what, made) = (format!("a guest_memfd with flags {flags:#x}"), vm.create_guest_memfd_raw(SIZE, flags));
        match flags & !supported {
            0 => expect_ok(&what, made).map(drop)?,
            _ => expect_errno(&what, made, Errno::EINVAL)?,
        }
    }
    Ok(())
}

fn sizes(t: &Case) -> Outcome {
    let vm = t.vm()?;
    let largest = i64::MAX as u64 & !(PAGE_SIZE - 1);
    for size in [
        0,
        1,
        PAGE_SIZE / 2,
        PAGE_SIZE - 1,
        PAGE_SIZE + 1,
        largest + 1,
        1 << 63,
        0_u64.wrapping_sub(PAGE_SIZE),
        u64::MAX,
    ] {
        expect_errno(&format!("a guest_memfd of {size:#x} bytes"), vm.create_guest_memfd_raw(size, 0), Errno::EINVAL)?;
    }
    for size in [PAGE_SIZE, 3 * PAGE_SIZE, 1 << 40, largest] {
        let file = expect_ok(&format!("a guest_memfd of {size:#x} bytes"), vm.create_guest_memfd_raw(size, 0))?;
        expect_eq("the file's size", &(expect_ok("fstat", file.fstat())?.st_size as u64), &size)?;
    }
    Ok(())
}

fn arguments(t: &Case) -> Outcome {
    let vm = t.vm()?;
    let unreadable = vm.ioctl_raw(KVM_CREATE_GUEST_MEMFD, 0);
    expect_errno("KVM_CREATE_GUEST_MEMFD at address 0", unreadable, Errno::EFAULT)?;

    let limit = |errno| Stop::Error(format!("the limit of open files: {errno:?}"));
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(limit)?;
    setrlimit(Resource::RLIMIT_NOFILE, 0, hard).map_err(limit)?;
    let without_room = vm.create_guest_memfd_raw(SIZE, 0);
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard).map_err(limit)?;
    expect_errno("a guest_memfd without a free descriptor", without_room, Errno::EMFILE)?;

    let reserved = kvm_create_guest_memfd { size: SIZE, flags: 0, reserved: [u64::MAX; 6] };
    match vm.kvm().create_guest_memfd(reserved) {
        Ok(descriptor) => close(descriptor).map_err(|errno| Stop::Error(format!("closing a guest_memfd: {errno:?}"))),
        Err(error) => Err(Stop::Fail(format!("a guest_memfd with reserved words that are not zero: {error}"))),
    }
}

fn is_a_file_of_its_own(t: &Case) -> Outcome {
    let vm = t.vm()?;
    let (file, other) = (vm.create_guest_memfd(SIZE, 0)?, vm.create_guest_memfd(2 * SIZE, 0)?);
    let mut bytes = [0; 16];
    expect_errno("read", read(&*file, &mut bytes), Errno::EINVAL)?;
    expect_errno("write", write(&*file, &bytes), Errno::EINVAL)?;
    expect_errno("pread", pread(&*file, &mut bytes, 0), Errno::ESPIPE)?;
    expect_errno("pwrite", pwrite(&*file, &bytes, 0), Errno::ESPIPE)?;
    for size in [0, PAGE_SIZE, SIZE, 2 * SIZE] {
        expect_errno(&format!("ftruncate to {size:#x} bytes"), ftruncate(&*file, size as i64), Errno::EINVAL)?;
    }
    for (what, options) in [("MAP_SHARED", MapOptions::new().shared()), ("MAP_PRIVATE", MapOptions::new())] {
        expect_errno(&format!("mmap with {what}"), file.mmap(0, SIZE, options), Errno::ENODEV)?;
    }

    let (stat, other) = (expect_ok("fstat", file.fstat())?, expect_ok("fstat", other.fstat())?);
    expect_eq("the kind of file", &SFlag::from_bits_truncate(stat.st_mode).contains(SFlag::S_IFREG), &true)?;
    expect_eq("the size", &(stat.st_size as u64), &SIZE)?;
    expect_eq("the size of the second file", &(other.st_size as u64), &(2 * SIZE))?;
    expect_eq("the size of a block", &(stat.st_blksize as u64), &PAGE_SIZE)?;
    expect_eq("whether two files have one inode", &(stat.st_ino == other.st_ino), &false)?;
    let link = format!("/proc/self/fd/{}", file.fd());
    let name = readlink(link.as_str()).map_err(|errno| Stop::Error(format!("readlink of {link}: {errno:?}")))?;
    let name = name.to_string_lossy();
    expect_eq(&format!("whether {name} tells what it is"), &name.contains("[kvm-gmem]"), &true)
}

fn file_system(t: &Case) -> Outcome {
    let file = t.vm()?.create_guest_memfd(SIZE, 0)?;
    let found = expect_ok("fstatfs", fstatfs(&*file))?;
    expect_eq("the magic number", &(found.filesystem_type().0 as i64), &MAGIC)
}

fn outlives_the_vm(t: &Case) -> Outcome {
    let vm = t.vm()?;
    let mut range = TestRange::install(&vm, RangeSpec::new(4), 0)?;
    range.allocate(range.all())?;
    let file = range.take_gmem()?;
    drop((range, vm));
    expect_eq("the file's size", &(expect_ok("fstat", file.fstat())?.st_size as u64), &PageCount(4).bytes())?;

    let other = t.vm()?;
    let region = kvm_bindings::kvm_userspace_memory_region2 {
        flags: MEM_GUEST_MEMFD,
        guest_phys_addr: TEST_BASE.0,
        memory_size: PAGE_SIZE,
        guest_memfd: file.fd() as u32,
        ..Default::default()
    };
    expect_errno("binding it in another VM", other.set_user_memory_region2_raw(&region, None), Errno::EINVAL)?;
    expect_errno("the slot of that VM", other.set_user_memory_region2_raw(&Default::default(), None), Errno::EINVAL)
}
