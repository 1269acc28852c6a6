//! Payloads as they are loaded: what an ELF file puts where in guest memory, or why it cannot be one.

use std::ffi::CStr;
use std::sync::Arc;

use goblin::container::{Container, Ctx, Endian};
use goblin::elf::Elf;
use goblin::elf::header::{EI_CLASS, EI_DATA, ELFCLASS32, ELFCLASS64, ELFDATA2LSB, ELFMAG, EM_X86_64, ET_EXEC, Header};
use goblin::elf::program_header::{PF_W, PF_X, PT_LOAD, ProgramHeader};
use goblin::elf::section_header::{SHT_NOBITS, SHT_SYMTAB, SectionHeader};
use goblin::elf::sym::{STT_FUNC, STT_NOTYPE, Sym};
use privet_protocol::{Descriptor, DescriptorField, PAYLOAD_BASE, PAYLOAD_END, VERSION};

use crate::units::{PAGE_SIZE, PageCount};

/// Pages that a payload may occupy, memory that is not in the file included.
pub const MAX_PAGES: u64 = 18;

/// The section in which a payload describes itself.
const DESCRIPTOR_SECTION: &str = ".privet";

/// x86-64 is little endian, and 32-bit files are refused before anything is read with this.
const ELF64: Ctx = Ctx { container: Container::Big, le: Endian::Little };

/// Why a file is no payload: which file, which field of it, and what is wrong with that field.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("payload {file}: {field} {problem}")]
pub struct LoadError {
    /// The file, as the caller named it.
    pub file: String,
    /// The field, by its name in the ELF specification, with the index of its header if there are several.
    pub field: String,
    /// What is wrong with it.
    pub problem: String,
}

/// A field and what is wrong with it.
type Problem = (String, String);

/// What to put where in guest memory, and how to enter it.
#[derive(Clone, Debug)]
pub struct Payload {
    /// The payload's name, by its own account.
    pub name: String,
    /// The protocol version that it was built for: [`VERSION`], or it would not be here.
    pub protocol_version: u32,
    /// GVA of the entry point.
    pub entry: u64,
    /// What to load. Disjoint, page-aligned, within the payload window, in ascending order.
    pub segments: Vec<Segment>,
    /// Names for addresses in the payload.
    pub symbols: Arc<Symbols>,
}

/// A piece of guest memory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Segment {
    /// Where it begins; GPA and GVA are the same here.
    pub gpa: u64,
    /// Its content: whole pages, padded with zeros.
    pub bytes: Vec<u8>,
    /// Whether the payload writes to it.
    pub writable: bool,
    /// Whether the payload executes it.
    pub executable: bool,
}

impl Segment {
    /// How many pages it occupies.
    pub fn pages(&self) -> PageCount {
        PageCount::of_bytes(self.bytes.len() as u64)
    }

    /// The address after it.
    fn end(&self) -> u64 {
        self.gpa + self.bytes.len() as u64
    }
}

impl Payload {
    /// Reads the ELF file `elf`; `file` is what errors call it.
    ///
    /// # Errors
    /// The first field that makes it impossible to load the file as a payload of this protocol version.
    pub fn parse(file: &str, elf: &[u8]) -> Result<Self, LoadError> {
        read(elf).map_err(|(field, problem)| LoadError { file: file.into(), field, problem })
    }
}

fn read(elf: &[u8]) -> Result<Payload, Problem> {
    let header = header(elf)?;
    let segments = segments(elf, &header)?;
    let entry = header.e_entry;
    if !segments.iter().any(|s| s.executable && (s.gpa..s.end()).contains(&entry)) {
        return problem("e_entry", format!("{entry:#x} lies in no executable segment"));
    }
    let sections = Sections::read(elf, &header)?;
    let Descriptor { version, name } = descriptor(&sections)?;
    let symbols = Symbols::read(&sections, &segments)?;
    Ok(Payload { name: name.into(), protocol_version: version, entry, segments, symbols: Arc::new(symbols) })
}

fn header(elf: &[u8]) -> Result<Header, Problem> {
    if !elf.starts_with(ELFMAG) {
        return problem("e_ident", "does not begin with the magic of ELF: this is no ELF file");
    }
    match elf.get(EI_CLASS).copied() {
        Some(ELFCLASS64) | None => {}
        Some(ELFCLASS32) => return problem("e_ident[EI_CLASS]", "says 32-bit; a payload is 64-bit"),
        Some(class) => return problem("e_ident[EI_CLASS]", format!("is {class}; a payload has {ELFCLASS64}, 64-bit")),
    }
    if elf.get(EI_DATA).is_some_and(|data| *data != ELFDATA2LSB) {
        return problem("e_ident[EI_DATA]", "is not little endian");
    }
    let header = Elf::parse_header(elf)
        .map_err(|error| (String::from("ELF header"), format!("cannot be read, the file is truncated: {error}")))?;
    if header.e_machine != EM_X86_64 {
        return problem("e_machine", format!("is {}; a payload has {EM_X86_64}, x86-64", header.e_machine));
    }
    if header.e_type != ET_EXEC {
        return problem(
            "e_type",
            format!("is {}; a payload has {ET_EXEC}, ET_EXEC: link it statically", header.e_type),
        );
    }
    Ok(header)
}

fn segments(elf: &[u8], header: &Header) -> Result<Vec<Segment>, Problem> {
    if usize::from(header.e_phentsize) != ProgramHeader::size(ELF64) {
        return problem("e_phentsize", format!("is {}, not that of 64-bit ELF", header.e_phentsize));
    }
    let headers = ProgramHeader::parse(elf, header.e_phoff as usize, header.e_phnum.into(), ELF64)
        .map_err(|error| (String::from("e_phoff"), format!("leads out of the file: {error}")))?;
    let mut segments = Vec::new();
    let mut pages = 0;
    for (index, load) in headers.iter().enumerate().filter(|(_, header)| header.p_type == PT_LOAD) {
        let segment =
            segment(elf, load).map_err(|(field, problem)| (format!("{field} of program header {index}"), problem))?;
        pages += segment.pages().0;
        if pages > MAX_PAGES {
            return problem("p_memsz", format!("adds up to {pages} pages or more; a payload has at most {MAX_PAGES}"));
        }
        segments.push(segment);
    }
    if segments.is_empty() {
        return problem("e_phnum", "counts no PT_LOAD: there is nothing to load");
    }
    segments.sort_by_key(|segment| segment.gpa);
    for pair in segments.windows(2) {
        if pair[0].end() > pair[1].gpa {
            return problem("p_vaddr", format!("{:#x} lies in the pages of the segment before it", pair[1].gpa));
        }
    }
    Ok(segments)
}

fn segment(elf: &[u8], header: &ProgramHeader) -> Result<Segment, Problem> {
    let ProgramHeader { p_vaddr, p_paddr, p_offset, p_filesz, p_memsz, p_flags, .. } = *header;
    if p_filesz > p_memsz {
        return problem("p_filesz", format!("{p_filesz:#x} is more than p_memsz {p_memsz:#x}"));
    }
    if p_memsz == 0 {
        return problem("p_memsz", "is 0: the segment is empty");
    }
    if !p_vaddr.is_multiple_of(PAGE_SIZE) {
        return problem("p_vaddr", format!("{p_vaddr:#x} is not aligned to {PAGE_SIZE} bytes"));
    }
    if p_paddr != p_vaddr {
        return problem("p_paddr", format!("{p_paddr:#x} is not p_vaddr {p_vaddr:#x}: low memory is identity-mapped"));
    }
    if (p_vaddr as i64) << 16 >> 16 != p_vaddr as i64 {
        return problem("p_vaddr", format!("{p_vaddr:#x} is not canonical"));
    }
    let Some(end) = p_vaddr.checked_add(p_memsz) else {
        return problem("p_memsz", format!("{p_memsz:#x} from p_vaddr {p_vaddr:#x} on wraps around"));
    };
    if p_vaddr < PAYLOAD_BASE || end > PAYLOAD_END {
        let window = format!("{PAYLOAD_BASE:#x}..{PAYLOAD_END:#x}");
        return problem("p_vaddr", format!("{p_vaddr:#x} .. {end:#x} is not within the payload window {window}"));
    }
    let Some(content) = slice(elf, p_offset, p_filesz) else {
        return problem("p_offset", format!("{p_offset:#x} + p_filesz {p_filesz:#x} is past the end: truncated"));
    };
    // At most the window, so the memory that a file can claim is bounded.
    let mut bytes = content.to_vec();
    bytes.resize(p_memsz.next_multiple_of(PAGE_SIZE) as usize, 0);
    Ok(Segment { gpa: p_vaddr, bytes, writable: p_flags & PF_W != 0, executable: p_flags & PF_X != 0 })
}

fn descriptor<'a>(sections: &Sections<'a>) -> Result<Descriptor<'a>, Problem> {
    let Some(section) = sections.named(DESCRIPTOR_SECTION) else {
        return problem(DESCRIPTOR_SECTION, "is missing: the file is no payload, or was stripped of its sections");
    };
    let descriptor = Descriptor::decode(sections.content(section)?).map_err(|field| {
        let field = match field {
            DescriptorField::Size => "size",
            DescriptorField::Magic => "magic",
            DescriptorField::Name => "name",
        };
        (format!("{field} in {DESCRIPTOR_SECTION}"), String::from("is not that of a payload's descriptor"))
    })?;
    if descriptor.version != VERSION {
        let found = descriptor.version;
        return problem(
            &format!("version in {DESCRIPTOR_SECTION}"),
            format!("is {found}, this harness speaks protocol version {VERSION}: rebuild the payload"),
        );
    }
    Ok(descriptor)
}

/// The sections of a file.
struct Sections<'a> {
    elf: &'a [u8],
    headers: Vec<SectionHeader>,
    names: &'a [u8],
}

impl<'a> Sections<'a> {
    fn read(elf: &'a [u8], header: &Header) -> Result<Self, Problem> {
        if header.e_shoff != 0 && usize::from(header.e_shentsize) != SectionHeader::size(ELF64) {
            return problem("e_shentsize", format!("is {}, not that of 64-bit ELF", header.e_shentsize));
        }
        let headers = SectionHeader::parse(elf, header.e_shoff as usize, header.e_shnum.into(), ELF64)
            .map_err(|error| (String::from("e_shoff"), format!("leads out of the file: {error}")))?;
        let mut sections = Self { elf, headers, names: &[] };
        if let Some(names) = sections.headers.get(usize::from(header.e_shstrndx)) {
            sections.names = sections.content(names)?;
        }
        Ok(sections)
    }

    fn named(&self, name: &str) -> Option<&SectionHeader> {
        self.headers.iter().find(|header| string(self.names, header.sh_name) == Some(name))
    }

    fn content(&self, header: &SectionHeader) -> Result<&'a [u8], Problem> {
        if header.sh_type == SHT_NOBITS {
            return Ok(&[]);
        }
        slice(self.elf, header.sh_offset, header.sh_size).ok_or_else(|| {
            let place = format!("{:#x} + sh_size {:#x}", header.sh_offset, header.sh_size);
            (String::from("sh_offset"), format!("{place} is past the end: truncated"))
        })
    }
}

/// Names for the code of a payload. Empty if its file has none.
#[derive(Clone, Debug, Default)]
pub struct Symbols {
    /// Address and mangled name, ascending; a name holds up to the next one.
    names: Vec<(u64, String)>,
    /// The address after the last of the code.
    end: u64,
}

impl Symbols {
    fn read(sections: &Sections<'_>, segments: &[Segment]) -> Result<Self, Problem> {
        let Some(table) = sections.headers.iter().find(|header| header.sh_type == SHT_SYMTAB) else {
            return Ok(Self::default());
        };
        let content = sections.content(table)?;
        let symbols = Sym::parse(content, 0, content.len() / Sym::size(Container::Big), ELF64)
            .map_err(|error| (String::from(".symtab"), format!("cannot be read: {error}")))?;
        let Some(strings) = sections.headers.get(table.sh_link as usize) else {
            return problem("sh_link of .symtab", format!("is {}, there is no such section", table.sh_link));
        };
        let strings = sections.content(strings)?;
        let code = |address: u64| segments.iter().any(|s| s.executable && (s.gpa..s.end()).contains(&address));
        let mut names: Vec<_> = symbols
            .iter()
            .filter(|symbol| matches!(symbol.st_type(), STT_FUNC | STT_NOTYPE) && code(symbol.st_value))
            .filter_map(|symbol| Some((symbol.st_value, string(strings, symbol.st_name)?.to_owned())))
            .collect();
        names.sort();
        let end = segments.iter().filter(|s| s.executable).map(Segment::end).max().unwrap_or(0);
        Ok(Self { names, end })
    }

    /// What `rip` points into, as `function+0x12`, or that this is unknown.
    pub fn describe(&self, rip: u64) -> String {
        let after = self.names.partition_point(|(address, _)| *address <= rip);
        match self.names[..after].last() {
            Some((address, name)) if rip < self.end => {
                format!("{:#}+{:#x}", rustc_demangle::demangle(name), rip - address)
            }
            _ => "not in the payload's code".into(),
        }
    }
}

fn slice(bytes: &[u8], offset: u64, len: u64) -> Option<&[u8]> {
    let start = usize::try_from(offset).ok()?;
    bytes.get(start..start.checked_add(usize::try_from(len).ok()?)?)
}

/// The string at `offset` of a string table.
fn string(table: &[u8], offset: usize) -> Option<&str> {
    CStr::from_bytes_until_nul(table.get(offset..)?).ok()?.to_str().ok()
}

fn problem<T>(field: &str, problem: impl Into<String>) -> Result<T, Problem> {
    Err((field.into(), problem.into()))
}
