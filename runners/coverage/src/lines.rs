//! Where in the source the instructions of a kernel come from, by its debug info.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use addr2line::Context;
use gimli::{Dwarf, EndianArcSlice, LittleEndian, SectionId};
use object::{Object, ObjectSection, ObjectSymbol, RelocationTarget, SectionIndex, SymbolKind};

use crate::executed_lines::SourceLine;
use crate::symbols::{Function, Symbols};

/// Why debug info cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("{what}: its debug info cannot be read: {why}: build the kernel again, or leave the file out")]
pub struct LinesError {
    what: String,
    why: String,
}

/// Some instructions that come from one line of source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Line {
    /// The linear address of the first byte.
    pub(crate) start: u64,
    /// Behind the last.
    pub(crate) end: u64,
    /// The file, as the compiler was given it.
    pub(crate) file: String,
    pub(crate) line: u32,
}

type Reader = EndianArcSlice<LittleEndian>;

/// The debug info of a running kernel and of its modules.
#[derive(Default)]
pub struct Lines {
    /// By module, the kernel itself without a name: one file each, or some of the objects that the kernel is made of.
    files: BTreeMap<Option<String>, Vec<Debug>>,
}

impl std::fmt::Debug for Lines {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Lines").field(&self.files.keys()).finish()
    }
}

/// What is known of one ELF file.
struct Debug {
    context: Context<Reader>,
    /// How much higher the code is than the debug info says.
    slide: u64,
}

impl Lines {
    /// Nothing yet.
    #[must_use]
    pub fn new() -> Lines {
        Lines::default()
    }

    /// Whether no file had debug info.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// Takes the debug info of a file, if it has any: `vmlinux`, or an object that it was made of, or the `.ko` of a module.
    /// The sections of the latter two lie where their symbols say.
    ///
    /// # Errors
    /// If it is damaged.
    pub fn add(&mut self, module: Option<&str>, elf: &[u8], symbols: &Symbols) -> Result<(), LinesError> {
        let failed = |why: &dyn std::fmt::Display| LinesError {
            what: module.map_or_else(|| "vmlinux".to_owned(), |module| format!("{module}.ko")),
            why: why.to_string(),
        };
        let file = object::File::parse(elf).map_err(|error| failed(&error))?;
        if file.section_by_name(SectionId::DebugLine.name()).is_none() {
            return Ok(());
        }
        let running = addresses(module, symbols);
        let is_linked = file.kind() != object::ObjectKind::Relocatable;
        let bases = if is_linked { HashMap::new() } else { section_bases(&file, &running) };
        let load = |id: SectionId| section(&file, id.name(), &bases).map(|bytes| Reader::new(bytes, LittleEndian));
        let dwarf = Dwarf::load(load).map_err(|error| failed(&error))?;
        let context = Context::from_dwarf(dwarf).map_err(|error| failed(&error))?;
        let slide = if is_linked { slide(&file, &running) } else { 0 };
        self.files.entry(module.map(str::to_owned)).or_default().push(Debug { context, slide });
        Ok(())
    }

    /// All lines that have instructions of their own, in the files' names as the compiler was given them.
    #[must_use]
    pub fn with_code(&self, symbols: &Symbols) -> BTreeSet<SourceLine> {
        symbols.functions().flat_map(|function| self.of(function)).map(|line| (line.file, line.line)).collect()
    }

    /// The lines of a function, in the order of their addresses; none without debug info.
    pub(crate) fn of(&self, function: &Function) -> Vec<Line> {
        self.files.get(&function.module).into_iter().flatten().flat_map(|debug| debug.of(function)).collect()
    }
}

impl Debug {
    fn of(&self, function: &Function) -> Vec<Line> {
        let (start, end) = (function.start.wrapping_sub(self.slide), function.end.wrapping_sub(self.slide));
        let Ok(found) = self.context.find_location_range(start, end) else { return Vec::new() };
        found
            .filter_map(|(start, length, location)| {
                let start = start.wrapping_add(self.slide).max(function.start);
                let end = start.wrapping_add(length).min(function.end);
                let (file, line) = (location.file?.to_owned(), location.line.filter(|line| *line != 0)?);
                Some(Line { start, end, file, line })
            })
            .collect()
    }
}

/// Where the functions of a module, or of the kernel, are, of those whose names are not ambiguous.
fn addresses<'a>(module: Option<&str>, symbols: &'a Symbols) -> HashMap<&'a str, u64> {
    let mut found: HashMap<&str, Option<u64>> = HashMap::new();
    for function in symbols.functions().filter(|function| function.module.as_deref() == module) {
        found.entry(&function.name).and_modify(|known| *known = None).or_insert(Some(function.start));
    }
    found.into_iter().filter_map(|(name, address)| Some((name, address?))).collect()
}

/// The addresses of the sections of a module that functions are in. All other sections begin at 0.
fn section_bases(file: &object::File<'_>, running: &HashMap<&str, u64>) -> HashMap<SectionIndex, u64> {
    let mut bases = HashMap::new();
    for symbol in file.symbols().filter(|symbol| symbol.kind() == SymbolKind::Text) {
        let (Ok(name), Some(section)) = (symbol.name(), symbol.section_index()) else { continue };
        if let Some(address) = running.get(name) {
            bases.entry(section).or_insert(address.wrapping_sub(symbol.address()));
        }
    }
    bases
}

/// How much higher than linked the kernel runs (KASLR).
fn slide(file: &object::File<'_>, running: &HashMap<&str, u64>) -> u64 {
    let linked = file.symbols().find(|symbol| symbol.name() == Ok("_stext")).map(|symbol| symbol.address());
    match (running.get("_stext"), linked) {
        (Some(running), Some(linked)) => running.wrapping_sub(linked),
        _ => 0,
    }
}

/// A section of debug info, empty if there is none, with addresses filled in where a module has relocations.
fn section(
    file: &object::File<'_>,
    name: &str,
    bases: &HashMap<SectionIndex, u64>,
) -> Result<Arc<[u8]>, object::read::Error> {
    let Some(section) = file.section_by_name(name) else { return Ok(Arc::default()) };
    let mut bytes = section.uncompressed_data()?.into_owned();
    if file.kind() != object::ObjectKind::Relocatable {
        return Ok(bytes.into());
    }
    for (offset, relocation) in section.relocations() {
        let RelocationTarget::Symbol(symbol) = relocation.target() else { continue };
        let symbol = file.symbol_by_index(symbol)?;
        let base = symbol.section_index().and_then(|section| bases.get(&section)).copied().unwrap_or_default();
        let value = base.wrapping_add(symbol.address()).wrapping_add_signed(relocation.addend());
        let (start, size) = (offset as usize, usize::from(relocation.size() / 8));
        if let Some(place) = bytes.get_mut(start..start + size) {
            place.copy_from_slice(&value.to_le_bytes()[..size]);
        }
    }
    Ok(bytes.into())
}
