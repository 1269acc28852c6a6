//! A program's side of the ABI: descriptors, requests, and a guest of a few bytes in real mode.
#![expect(unsafe_code, reason = "mmap, close and memory that a guest writes to")]

use std::ffi::{c_int, c_void};
use std::ptr;

use nix::errno::Errno;
use privet_machine::calls;
use privet_machine::paths::{self, Node};

pub(crate) const PAGE: u64 = 4096;

pub(crate) const CREATE_VM: u64 = 0xae01;
pub(crate) const CREATE_VCPU: u64 = 0xae41;
pub(crate) const SET_REGION2: u64 = 0x40a0_ae49;
pub(crate) const SET_ATTRIBUTES: u64 = 0x4020_aed2;
pub(crate) const CREATE_GUEST_MEMFD: u64 = 0xc040_aed4;
pub(crate) const PRE_FAULT: u64 = 0xc040_aed5;
pub(crate) const RUN: u64 = 0xae80;
pub(crate) const GET_STATS_FD: u64 = 0xaece;

pub(crate) const PRIVATE: u64 = 8;
pub(crate) const SW_PROTECTED: u64 = 1;

/// A descriptor of the model's, closed as the C library would.
pub(crate) struct Fd(pub(crate) c_int);

impl Drop for Fd {
    fn drop(&mut self) {
        let closing = calls::closing(self.0);
        // SAFETY: a descriptor that is ours.
        unsafe { libc::close(self.0) };
        drop(closing);
    }
}

impl Fd {
    /// `/dev/kvm`.
    pub(crate) fn kvm() -> Self {
        Self(paths::open(&Node::Kvm, libc::O_RDWR | libc::O_CLOEXEC).unwrap())
    }

    pub(crate) fn vm(kind: u64) -> Self {
        Self::kvm().make(CREATE_VM, kind).unwrap()
    }

    pub(crate) fn ioctl(&self, request: u64, argument: u64) -> Result<c_int, Errno> {
        let result = calls::ioctl(self.0, request, argument).expect("a descriptor of the model's");
        privet_machine::signals::restore();
        result
    }

    pub(crate) fn with<T>(&self, request: u64, argument: &T) -> Result<c_int, Errno> {
        self.ioctl(request, ptr::from_ref(argument) as u64)
    }

    /// An ioctl that returns a descriptor.
    pub(crate) fn make(&self, request: u64, argument: u64) -> Result<Self, Errno> {
        self.ioctl(request, argument).map(Self)
    }

    pub(crate) fn guest_memfd(&self, bytes: u64, flags: u64) -> Result<Self, Errno> {
        self.with(CREATE_GUEST_MEMFD, &[bytes, flags, 0, 0, 0, 0, 0, 0]).map(Self)
    }

    pub(crate) fn set_attributes(&self, address: u64, bytes: u64, attributes: u64) -> Result<c_int, Errno> {
        self.with(SET_ATTRIBUTES, &[address, bytes, attributes, 0])
    }
}

/// `kvm_userspace_memory_region2`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(crate) struct Region {
    pub(crate) slot: u32,
    pub(crate) flags: u32,
    pub(crate) gpa: u64,
    pub(crate) bytes: u64,
    pub(crate) hva: u64,
    pub(crate) offset: u64,
    pub(crate) file: i32,
    pub(crate) pad: [u32; 29],
}

impl Fd {
    pub(crate) fn set_region(&self, region: Region) -> Result<c_int, Errno> {
        self.with(SET_REGION2, &region)
    }
}

/// Anonymous memory, unmapped when dropped.
pub(crate) struct Memory {
    pub(crate) start: *mut u8,
    bytes: usize,
}

impl Memory {
    pub(crate) fn new(bytes: u64) -> Self {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        Self::map(bytes, flags, -1)
    }

    /// A shared mapping of a descriptor.
    pub(crate) fn of(fd: &Fd, bytes: u64) -> Self {
        Self::map(bytes, libc::MAP_SHARED, fd.0)
    }

    fn map(bytes: u64, flags: c_int, fd: c_int) -> Self {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping.
        let start = unsafe { libc::mmap(ptr::null_mut(), bytes as usize, protection, flags, fd, 0) };
        assert_ne!(start, libc::MAP_FAILED);
        Self { start: start.cast(), bytes: bytes as usize }
    }

    pub(crate) fn write(&self, offset: usize, bytes: &[u8]) {
        assert!(offset + bytes.len() <= self.bytes);
        for (index, byte) in bytes.iter().enumerate() {
            // SAFETY: in bounds.
            unsafe { self.start.add(offset + index).write_volatile(*byte) };
        }
    }

    pub(crate) fn read<const N: usize>(&self, offset: usize) -> [u8; N] {
        assert!(offset + N <= self.bytes);
        // SAFETY: in bounds.
        std::array::from_fn(|index| unsafe { self.start.add(offset + index).read_volatile() })
    }

    pub(crate) fn u64(&self, offset: usize) -> u64 {
        u64::from_le_bytes(self.read(offset))
    }

    pub(crate) fn u32(&self, offset: usize) -> u32 {
        u32::from_le_bytes(self.read(offset))
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: mapped by `map`; VMs that use it are told first, as by the C library's symbol.
        let unmap = || unsafe { libc::munmap(self.start.cast::<c_void>(), self.bytes) };
        calls::changing_mappings(self.start as u64..self.start as u64 + self.bytes as u64, unmap);
    }
}

/// A VM with one page of code at 0 and one vCPU in real mode at its start.
pub(crate) struct Guest {
    pub(crate) run: Memory,
    pub(crate) vcpu: Fd,
    pub(crate) vm: Fd,
    _code: Memory,
}

impl Guest {
    pub(crate) fn new(kind: u64, code: &[u8]) -> Self {
        let vm = Fd::vm(kind);
        let memory = Memory::new(PAGE);
        memory.write(0, code);
        vm.set_region(Region { slot: 0, bytes: PAGE, hva: memory.start as u64, file: -1, ..Region::default() })
            .unwrap();
        let vcpu = vm.make(CREATE_VCPU, 0).unwrap();
        let run = Memory::of(&vcpu, 3 * PAGE);
        let mut sregs = [0u8; 312];
        vcpu.ioctl(0x8138_ae83, sregs.as_mut_ptr() as u64).unwrap();
        // The base and the selector of CS.
        sregs[..8].fill(0);
        sregs[12..14].fill(0);
        vcpu.ioctl(0x4138_ae84, sregs.as_ptr() as u64).unwrap();
        let guest = Self { run, vcpu, vm, _code: memory };
        guest.set_rip(0);
        guest
    }

    pub(crate) fn set_rip(&self, rip: u64) {
        let mut regs = [0u64; 18];
        (regs[16], regs[17]) = (rip, 2);
        self.vcpu.with(0x4090_ae82, &regs).unwrap();
    }

    /// Runs and returns the exit reason, or the error and the exit reason.
    pub(crate) fn run(&self) -> Result<u32, (Errno, u32)> {
        self.run.write(8, &0xffffu32.to_le_bytes());
        let result = self.vcpu.ioctl(RUN, 0);
        let reason = self.run.u32(8);
        result.map(|_| reason).map_err(|errno| (errno, reason))
    }
}
