//! A machine to test the CPU in: some RAM, an MMIO hole, MSRs and CPUID of no consequence.
#![expect(unsafe_code, reason = "guest memory is mapped and named to the CPU here")]

use std::ptr::NonNull;

use privet_cpu::state::{cr0, cr4, efer};
use privet_cpu::{
    Access, Bus, Cpu, CpuState, CpuidResult, Event, Exception, HostPage, Intercept, Intercepted, Resolve, Seg, Segment,
};

/// Guest memory: a mapping that starts at guest-physical address 0.
pub(crate) struct Ram {
    start: NonNull<u8>,
    size: usize,
}

// SAFETY: the mapping is only accessed with volatile or atomic accesses, see `HostPage::new`.
unsafe impl Send for Ram {}
// SAFETY: as above.
unsafe impl Sync for Ram {}

impl Ram {
    /// Maps `size` zeroed bytes, at the host's choice of address or at `at` (low memory).
    pub(crate) fn new(size: usize) -> Ram {
        // SAFETY: a new private anonymous mapping.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                size,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        assert_ne!(start, libc::MAP_FAILED);
        Ram { start: NonNull::new(start.cast()).expect("not MAP_FAILED"), size }
    }

    pub(crate) fn write(&self, at: u64, bytes: &[u8]) {
        assert!(at as usize + bytes.len() <= self.size);
        for (index, &byte) in bytes.iter().enumerate() {
            // SAFETY: inside the mapping.
            unsafe { self.start.as_ptr().add(at as usize + index).write_volatile(byte) };
        }
    }

    pub(crate) fn read(&self, at: u64, size: usize) -> Vec<u8> {
        assert!(at as usize + size <= self.size);
        // SAFETY: inside the mapping.
        (0..size).map(|index| unsafe { self.start.as_ptr().add(at as usize + index).read_volatile() }).collect()
    }

    pub(crate) fn write_u64(&self, at: u64, value: u64) {
        self.write(at, &value.to_le_bytes());
    }

    pub(crate) fn read_u64(&self, at: u64) -> u64 {
        u64::from_le_bytes(self.read(at, 8).try_into().expect("8 bytes"))
    }

    /// The page for the CPU; `None` beyond the end.
    pub(crate) fn page(&self, gpa: u64) -> Option<HostPage> {
        // SAFETY: the mapping lives as long as the `Ram`, which outlives the CPU in every test, and is
        // accessed with volatile accesses only.
        (gpa < self.size as u64).then(|| unsafe { HostPage::new(self.start.as_ptr().add(gpa as usize), true) })
    }
}

impl Drop for Ram {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `new`, which nobody uses any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.size) };
    }
}

/// A bus with RAM at 0 and MMIO everywhere else.
pub(crate) struct TestBus<'a> {
    pub(crate) ram: &'a Ram,
    /// What the emulator finds in its place.
    pub(crate) emulators: Option<&'a Ram>,
    pub(crate) accesses: Vec<(u64, Access)>,
    pub(crate) events: Vec<Event>,
    pub(crate) intercept: Option<fn(&mut CpuState, Intercept) -> Intercepted>,
}

impl<'a> TestBus<'a> {
    pub(crate) fn new(ram: &'a Ram) -> TestBus<'a> {
        TestBus { ram, emulators: None, accesses: Vec::new(), events: Vec::new(), intercept: None }
    }
}

impl Bus for TestBus<'_> {
    fn resolve(&mut self, _: &mut CpuState, gpa: u64, access: Access) -> Resolve {
        self.accesses.push((gpa, access));
        let ram = self.emulators.filter(|_| access.emulated).unwrap_or(self.ram);
        ram.page(gpa).map_or(Resolve::Mmio, Resolve::Page)
    }

    fn cpuid(&mut self, _: &CpuState, leaf: u32, subleaf: u32) -> CpuidResult {
        CpuidResult { eax: leaf, ebx: subleaf, ecx: 3, edx: 4 }
    }

    fn rdmsr(&mut self, _: &CpuState, _: u32) -> Result<u64, Exception> {
        Err(Exception::gp(0))
    }

    fn wrmsr(&mut self, _: &mut CpuState, _: u32, _: u64) -> Result<(), Exception> {
        Err(Exception::gp(0))
    }

    fn tsc(&mut self, _: &CpuState) -> u64 {
        12345
    }

    fn intercept(&mut self, state: &mut CpuState, what: Intercept, _: u8) -> Intercepted {
        self.intercept.map_or(Intercepted::Native, |intercept| intercept(state, what))
    }

    fn take_event(&mut self, _: &mut CpuState, interrupts_open: bool, nmis_open: bool) -> Option<Event> {
        let open = |event: &Event| match event {
            Event::Nmi => nmis_open,
            Event::Interrupt(_) => interrupts_open,
            Event::Switched | Event::Halted => true,
        };
        let index = self.events.iter().position(open)?;
        Some(self.events.remove(index))
    }
}

/// Where the page tables of [`long_mode`] are: one page each of levels 4 and 3.
pub(crate) const TABLES: u64 = 0x1000;
/// Bits of a present, writable, user-accessible PTE.
pub(crate) const RWU: u64 = 7;

/// Puts a CPU into long mode at this CPL, with the first 512 GiB mapped one to one by 1 GiB pages.
pub(crate) fn long_mode(cpu: &mut Cpu, ram: &Ram, cpl: u16) {
    ram.write_u64(TABLES, (TABLES + 0x1000) | RWU);
    for index in 0..512 {
        ram.write_u64(TABLES + 0x1000 + index * 8, index << 30 | 0x80 | RWU);
    }
    let state = &mut cpu.state;
    state.cr0 = cr0::PE | cr0::PG | cr0::WP | cr0::ET | cr0::NE;
    state.cr3 = TABLES;
    state.cr4 = cr4::PAE | cr4::OSFXSR | cr4::OSXMMEXCPT;
    state.efer = efer::LME | efer::LMA | efer::NXE | efer::SCE;
    state.rflags = 2;
    for seg in [Seg::Es, Seg::Ss, Seg::Ds, Seg::Fs, Seg::Gs] {
        state.segments[seg as usize] = Segment::data(0x10 | cpl);
    }
    state.segments[Seg::Cs as usize] = Segment::code64(0x8 | cpl);
}
