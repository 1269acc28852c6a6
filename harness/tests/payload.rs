//! The loader accepts the payload that the workspace builds and refuses whatever is wrong with one.

use privet_harness::payload::{LoadError, MAX_PAGES, Payload};
use privet_payloads::GENERAL;
use privet_protocol::{DESCRIPTOR_BYTES, MAGIC, PAYLOAD_BASE, PAYLOAD_END, VERSION};
use proptest::prelude::*;

/// Offsets in the ELF header.
mod at {
    pub(super) const CLASS: usize = 4;
    pub(super) const DATA: usize = 5;
    pub(super) const TYPE: usize = 16;
    pub(super) const MACHINE: usize = 18;
    pub(super) const ENTRY: usize = 24;
    pub(super) const PHOFF: usize = 32;
    pub(super) const SHOFF: usize = 40;
    pub(super) const PHENTSIZE: usize = 54;
    pub(super) const PHNUM: usize = 56;
    pub(super) const SHENTSIZE: usize = 58;
    pub(super) const SHNUM: usize = 60;
}

/// Offsets in a program header.
mod ph {
    pub(super) const TYPE: usize = 0;
    pub(super) const OFFSET: usize = 8;
    pub(super) const VADDR: usize = 16;
    pub(super) const PADDR: usize = 24;
    pub(super) const FILESZ: usize = 32;
    pub(super) const MEMSZ: usize = 40;
    pub(super) const BYTES: usize = 56;
}

/// The embedded payload, to be broken.
struct Elf(Vec<u8>);

impl Elf {
    fn new() -> Self {
        Self(GENERAL.elf.to_vec())
    }

    fn put(mut self, at: usize, bytes: &[u8]) -> Self {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }

    fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.0[at..at + 8].try_into().unwrap())
    }

    /// The offset of a field of program header `index`.
    fn program_header(&self, index: usize, field: usize) -> usize {
        self.u64(at::PHOFF) as usize + index * ph::BYTES + field
    }

    /// With a field of program header `index` set.
    fn segment(self, index: usize, field: usize, value: u64) -> Self {
        let at = self.program_header(index, field);
        self.put(at, &value.to_le_bytes())
    }

    /// With both addresses of program header `index` set.
    fn moved(self, index: usize, address: u64) -> Self {
        self.segment(index, ph::VADDR, address).segment(index, ph::PADDR, address)
    }

    /// The offset of the descriptor. The magic is in the code as well, which does not begin a segment.
    fn descriptor(&self) -> usize {
        self.u64(self.program_header(1, ph::OFFSET)) as usize
    }

    /// Checks that the loader refuses the file because of `field`, and says `problem` about it.
    #[track_caller]
    fn expect_refusal(self, field: &str, problem: &str) {
        let error = Payload::parse("broken", &self.0).expect_err(field);
        assert_eq!(error.file, "broken");
        assert!(error.field.starts_with(field), "the field is not {field}: {error}");
        assert!(error.problem.contains(problem), "nothing about {problem}: {error}");
        assert_eq!(error.to_string().lines().count(), 1);
    }
}

#[test]
fn the_general_payload_is_loaded_as_it_was_linked() {
    let plan = Payload::parse(GENERAL.name, GENERAL.elf).unwrap();
    assert_eq!((plan.name.as_str(), plan.protocol_version, plan.entry), (GENERAL.name, VERSION, PAYLOAD_BASE));
    let access: Vec<_> = plan.segments.iter().map(|s| (s.writable, s.executable)).collect();
    assert_eq!(access, [(false, true), (false, false), (true, false)], "code, constants, data");
    let pages: u64 = plan.segments.iter().map(|s| s.pages().0).sum();
    assert!(pages <= MAX_PAGES, "{pages} pages");

    let elf = Elf::new();
    for (index, segment) in plan.segments.iter().enumerate() {
        let field = |field| elf.u64(elf.program_header(index, field)) as usize;
        let (offset, in_file, in_memory) = (field(ph::OFFSET), field(ph::FILESZ), field(ph::MEMSZ));
        assert_eq!(segment.bytes[..in_file], GENERAL.elf[offset..offset + in_file]);
        assert!(segment.bytes[in_file..].iter().all(|byte| *byte == 0));
        assert_eq!(segment.bytes.len(), in_memory.next_multiple_of(4096));
    }
}

#[test]
fn code_has_names() {
    let symbols = Payload::parse(GENERAL.name, GENERAL.elf).unwrap().symbols;
    assert_eq!(symbols.describe(PAYLOAD_BASE + 3), "_start+0x3");
    assert_eq!(symbols.describe(PAYLOAD_BASE - 1), "not in the payload's code");
    assert_eq!(symbols.describe(PAYLOAD_END), "not in the payload's code");
}

#[test]
fn what_is_not_x86_64_elf_is_refused() {
    Elf(Vec::new()).expect_refusal("e_ident", "no ELF file");
    Elf(b"#!/bin/sh\n".to_vec()).expect_refusal("e_ident", "no ELF file");
    Elf::new().put(at::CLASS, &[1]).expect_refusal("e_ident[EI_CLASS]", "32-bit");
    Elf::new().put(at::CLASS, &[7]).expect_refusal("e_ident[EI_CLASS]", "is 7");
    Elf::new().put(at::DATA, &[2]).expect_refusal("e_ident[EI_DATA]", "little endian");
    Elf::new().put(at::MACHINE, &183u16.to_le_bytes()).expect_refusal("e_machine", "183");
    Elf::new().put(at::TYPE, &3u16.to_le_bytes()).expect_refusal("e_type", "is 3");
}

#[test]
fn truncated_files_are_refused() {
    for len in [4, 5, 40, 63] {
        Elf(GENERAL.elf[..len].to_vec()).expect_refusal("ELF header", "truncated");
    }
    Elf(GENERAL.elf[..64 + ph::BYTES].to_vec()).expect_refusal("e_phoff", "out of the file");
    Elf(GENERAL.elf[..0x1800].to_vec()).expect_refusal("p_offset of program header 0", "truncated");
    Elf(GENERAL.elf[..GENERAL.elf.len() - 2048].to_vec()).expect_refusal("", "");
}

#[test]
fn headers_that_lead_out_of_the_file_are_refused() {
    Elf::new().put(at::PHOFF, &u64::MAX.to_le_bytes()).expect_refusal("e_phoff", "out of the file");
    Elf::new().put(at::PHNUM, &u16::MAX.to_le_bytes()).expect_refusal("e_phoff", "out of the file");
    Elf::new().put(at::PHENTSIZE, &32u16.to_le_bytes()).expect_refusal("e_phentsize", "is 32");
    Elf::new().put(at::SHOFF, &u64::MAX.to_le_bytes()).expect_refusal("e_shoff", "out of the file");
    Elf::new().put(at::SHNUM, &u16::MAX.to_le_bytes()).expect_refusal("e_shoff", "out of the file");
    Elf::new().put(at::SHENTSIZE, &40u16.to_le_bytes()).expect_refusal("e_shentsize", "is 40");
}

#[test]
fn segments_that_cannot_be_loaded_are_refused() {
    let none = (0..3).fold(Elf::new(), |elf, index| {
        let at = elf.program_header(index, ph::TYPE);
        elf.put(at, &4u32.to_le_bytes())
    });
    none.expect_refusal("e_phnum", "no PT_LOAD");

    let more_in_file = Elf::new();
    let file_size = more_in_file.u64(more_in_file.program_header(0, ph::FILESZ));
    more_in_file
        .segment(0, ph::MEMSZ, file_size - 1)
        .expect_refusal("p_filesz of program header 0", "more than p_memsz");

    Elf::new()
        .segment(1, ph::FILESZ, 0)
        .segment(1, ph::MEMSZ, 0)
        .expect_refusal("p_memsz of program header 1", "empty");
    Elf::new().segment(1, ph::OFFSET, 1 << 40).expect_refusal("p_offset of program header 1", "past the end");
    Elf::new().segment(1, ph::OFFSET, u64::MAX).expect_refusal("p_offset of program header 1", "past the end");
    Elf::new().moved(1, PAYLOAD_BASE + 0x8010).expect_refusal("p_vaddr of program header 1", "not aligned");
    Elf::new().segment(1, ph::PADDR, 0).expect_refusal("p_paddr of program header 1", "identity-mapped");
}

#[test]
fn segments_in_the_wrong_place_are_refused() {
    Elf::new().moved(1, PAYLOAD_BASE).expect_refusal("p_vaddr", "segment before it");
    Elf::new().moved(1, 0xffff_ffff_ffff_f000).segment(1, ph::MEMSZ, 0x2000).expect_refusal("p_memsz", "wraps around");
    Elf::new().moved(1, 1 << 47).expect_refusal("p_vaddr of program header 1", "not canonical");
    Elf::new().moved(1, 0xffff_8000_0000_0000).expect_refusal("p_vaddr of program header 1", "payload window");
    Elf::new().moved(1, PAYLOAD_BASE - 0x1000).expect_refusal("p_vaddr of program header 1", "payload window");
    Elf::new().moved(2, PAYLOAD_END - 0x1000).expect_refusal("p_vaddr of program header 2", "payload window");
    Elf::new().segment(2, ph::MEMSZ, 1 << 40).expect_refusal("p_vaddr of program header 2", "payload window");
    Elf::new().segment(2, ph::MEMSZ, MAX_PAGES * 4096).expect_refusal("p_memsz", "at most 18");
}

#[test]
fn an_entry_point_outside_of_code_is_refused() {
    let elf = Elf::new();
    let constants = elf.u64(elf.program_header(1, ph::VADDR));
    for entry in [0, PAYLOAD_BASE - 1, constants, PAYLOAD_END, u64::MAX] {
        Elf::new().put(at::ENTRY, &entry.to_le_bytes()).expect_refusal("e_entry", "no executable segment");
    }
}

#[test]
fn files_of_another_protocol_are_refused() {
    let descriptor = Elf::new().descriptor();
    assert_eq!(Elf::new().u64(descriptor), MAGIC, "the descriptor begins the second segment");
    Elf::new().put(descriptor, b"PRIVET99").expect_refusal("magic in .privet", "descriptor");
    Elf::new().put(descriptor + 8, &(VERSION + 1).to_le_bytes()).expect_refusal("version in .privet", "rebuild");
    Elf::new().put(descriptor + 12, &u32::MAX.to_le_bytes()).expect_refusal("name in .privet", "descriptor");
    Elf::new().put(descriptor + 16, &[0xff]).expect_refusal("name in .privet", "descriptor");

    Elf::new().put(at::SHOFF, &[0; 8]).expect_refusal(".privet", "missing");
    let name = GENERAL.elf.windows(9).position(|w| w == b"\0.privet\0").unwrap();
    Elf::new().put(name + 1, b".secret").expect_refusal(".privet", "missing");

    let mut short = Elf::new();
    let section = section_of(&short, descriptor as u64);
    short.0[section + 32..section + 40].copy_from_slice(&(DESCRIPTOR_BYTES as u64 - 1).to_le_bytes());
    short.expect_refusal("size in .privet", "descriptor");
}

/// The offset of the header of the section that begins at `offset`.
fn section_of(elf: &Elf, offset: u64) -> usize {
    let mut header = elf.u64(at::SHOFF) as usize;
    while elf.u64(header + 24) != offset {
        header += 64;
    }
    header
}

/// Everything in the file that the loader reads as structure: ELF header and program headers, the descriptor,
/// and what lies behind the segments (symbols, section headers).
fn structure() -> Vec<usize> {
    let elf = Elf::new();
    let descriptor = elf.descriptor();
    let behind = elf.u64(at::SHOFF) as usize - 4096..GENERAL.elf.len();
    (0..64 + 3 * ph::BYTES).chain(descriptor..descriptor + DESCRIPTOR_BYTES).chain(behind).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Whatever bytes change: no panic, and what is accepted can be loaded.
    #[test]
    fn a_mutated_payload_is_refused_or_loadable(
        places in prop::collection::vec(any::<prop::sample::Index>(), 1..8),
        bytes in prop::collection::vec(prop_oneof![Just(0u8), Just(0xff), any::<u8>()], 8),
        len in prop_oneof![9 => Just(GENERAL.elf.len()), 1 => 0..GENERAL.elf.len()],
    ) {
        let structure = structure();
        let mut elf = GENERAL.elf.to_vec();
        for (place, byte) in places.iter().zip(bytes) {
            elf[*place.get(&structure)] = byte;
        }
        elf.truncate(len);
        check_parsed(Payload::parse("mutated", &elf))?;
    }

    #[test]
    fn noise_is_refused(mut bytes in prop::collection::vec(any::<u8>(), 0..4096), magic: bool) {
        if magic {
            for (byte, right) in bytes.iter_mut().zip(GENERAL.elf[..24].iter()) {
                *byte = *right;
            }
        }
        prop_assert!(Payload::parse("noise", &bytes).is_err());
    }
}

fn check_parsed(parsed: Result<Payload, LoadError>) -> Result<(), TestCaseError> {
    match parsed {
        Err(error) => prop_assert_eq!(error.to_string().lines().count(), 1),
        Ok(plan) => {
            let mut free = PAYLOAD_BASE;
            for segment in &plan.segments {
                prop_assert!(segment.gpa.is_multiple_of(4096) && segment.gpa >= free);
                prop_assert!(!segment.bytes.is_empty() && segment.bytes.len().is_multiple_of(4096));
                free = segment.gpa + segment.bytes.len() as u64;
            }
            prop_assert!(free <= PAYLOAD_END);
            prop_assert!(plan.segments.iter().map(|s| s.pages().0).sum::<u64>() <= MAX_PAGES);
            plan.symbols.describe(plan.entry);
        }
    }
    Ok(())
}
