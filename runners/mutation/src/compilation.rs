//! How one file is compiled again: by the command that the kernel's build has left beside its object (`.name.o.cmd`, see
//! scripts/Kbuild.include), with other names for what it reads and writes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use privet_kernel::BuildTree;

/// Why a file cannot be compiled again at all.
#[derive(Debug, thiserror::Error)]
pub enum RecipeError {
    /// A file of the build is missing or not as this version of the kernel's build leaves it.
    #[error("{}: {why}: name a source and a --config that build {wanted}, or leave that file out of --files", path.display())]
    Unknown {
        /// What was read.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
        /// What was to be compiled.
        wanted: String,
    },
    /// A program could not be started, or a file not be written.
    #[error("cannot {what}: {source}")]
    Io {
        /// What failed.
        what: String,
        /// Why.
        source: std::io::Error,
    },
    /// The kernel could not be linked at all.
    #[error("{0}")]
    Kernel(#[from] privet_kernel::KernelError),
}

/// What became of a changed file.
#[derive(Debug, PartialEq, Eq)]
pub enum Compiled {
    /// Its object, which differs.
    Object(PathBuf),
    /// The compiler makes the same of it as without the change: nobody can tell them apart.
    Same,
    /// It does not compile: the compiler's first complaint.
    Rejected(String),
}

/// The command for one file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Compilation {
    /// The top of what was built, in which commands run.
    pub(crate) objects: PathBuf,
    source: PathBuf,
    /// The object, below that top, as the build names it.
    pub(crate) object: String,
    command: String,
}

impl Compilation {
    /// That of `object`, as the build names it.
    pub(crate) fn of(tree: &BuildTree, object: &str) -> Result<Self, RecipeError> {
        Ok(Self {
            objects: tree.objects.clone(),
            source: tree.source.join(Path::new(object).with_extension("c")),
            object: object.to_owned(),
            command: saved_command(tree, object)?,
        })
    }

    /// Whether it makes a part of a module.
    pub(crate) fn is_for_a_module(&self) -> bool {
        self.command.split(' ').any(|word| word == "-DMODULE")
    }

    /// Compiles `text` in place of the file, in the directory `work`.
    pub(crate) fn compile(&self, text: &str, work: &Path) -> Result<Compiled, RecipeError> {
        let name = self.source.file_name().unwrap_or_default();
        let (source, object) = (work.join(name), work.join(name).with_extension("o"));
        fs::write(&source, text).map_err(io(format!("write {}", source.display())))?;
        let beside = self.source.parent().unwrap_or(&self.source).display();
        let named = Path::new(&self.object).parent().unwrap_or(Path::new("")).display();
        // What stands beside the file is found from where the changed one is, too, and it calls itself as before.
        let there = format!(" -iquote {beside} -fmacro-prefix-map={}/={named}/ -c ", work.display());
        let command = self
            .writing(&object)
            .replace(&self.source.display().to_string(), &source.display().to_string())
            .replacen(" -c ", &there, 1);
        if let Err(complaint) = shell(&command, &self.objects)? {
            return Ok(Compiled::Rejected(complaint));
        }
        let compiled = |path: &Path| fs::read(path).map_err(io(format!("read {}", path.display())));
        let is_same = code(&compiled(&object)?) == code(&compiled(&self.objects.join(&self.object))?);
        Ok(if is_same { Compiled::Same } else { Compiled::Object(object) })
    }

    /// The object of the file as it is, with a table of lines.
    pub(crate) fn with_lines(&self, work: &Path) -> Result<Vec<u8>, RecipeError> {
        let object = work.join("lines.o");
        let command = self.writing(&object).replacen(" -c ", " -g1 -c ", 1);
        if let Err(complaint) = shell(&command, &self.objects)? {
            return Err(RecipeError::Unknown {
                path: self.objects.join(&self.object),
                why: format!("its command does not compile the unchanged file: {complaint}"),
                wanted: self.source.display().to_string(),
            });
        }
        fs::read(&object).map_err(io(format!("read {}", object.display())))
    }

    /// The command with another file to write, and without the one that it writes for make.
    fn writing(&self, object: &Path) -> String {
        without_dependencies(&self.command).replace(&self.object, &object.display().to_string())
    }
}

/// The command that has made a file, below the top of what was built.
pub(crate) fn saved_command(tree: &BuildTree, of: &str) -> Result<String, RecipeError> {
    let path = Path::new(of);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let path = tree.objects.join(path.with_file_name(format!(".{name}.cmd")));
    let unknown = |why: String| RecipeError::Unknown { path: path.clone(), why, wanted: of.to_owned() };
    let text = fs::read_to_string(&path).map_err(|error| unknown(error.to_string()))?;
    let saved = text.lines().find_map(|line| line.strip_prefix(&format!("savedcmd_{of} := ")));
    // As make reads it: a dollar sign of the shell's is written twice.
    saved.map(|saved| saved.replace("$$", "$")).ok_or_else(|| unknown("it has no saved command".to_owned()))
}

/// Runs a command of the kernel's build; inside is the first complaint if it fails.
pub(crate) fn shell(command: &str, objects: &Path) -> Result<Result<(), String>, RecipeError> {
    let ran = Command::new("sh")
        .args(["-c", command])
        .current_dir(objects)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .map_err(io("run sh".to_owned()))?;
    if ran.status.success() {
        return Ok(Ok(()));
    }
    let told = String::from_utf8_lossy(&ran.stderr).into_owned() + &String::from_utf8_lossy(&ran.stdout);
    let complaint = told.lines().find(|line| line.contains("error")).or(told.lines().last());
    Ok(Err(complaint.unwrap_or("it said nothing").trim().to_owned()))
}

/// Turns an I/O error into one that says what was tried.
pub(crate) fn io(what: String) -> impl FnOnce(std::io::Error) -> RecipeError {
    move |source| RecipeError::Io { what, source }
}

/// A compiler's command without the file that it writes for make.
fn without_dependencies(command: &str) -> String {
    let words = command.split(' ').filter(|word| !word.starts_with("-Wp,-MMD,"));
    words.collect::<Vec<_>>().join(" ")
}

/// The code and data of an object: all that is loaded, with its relocations, but not where the lines are.
fn code(object: &[u8]) -> Option<Vec<(String, Vec<u8>)>> {
    let elf = goblin::elf::Elf::parse(object).ok()?;
    let name = |section: &goblin::elf::SectionHeader| elf.shdr_strtab.get_at(section.sh_name).unwrap_or("").to_owned();
    let kept = elf.section_headers.iter().filter(|section| {
        let name = name(section);
        !name.contains("debug") && !matches!(name.as_str(), ".symtab" | ".strtab" | ".shstrtab" | ".comment")
    });
    Some(
        kept.map(|section| {
            let bytes = section.file_range().and_then(|range| object.get(range)).unwrap_or_default();
            (name(section), bytes.to_vec())
        })
        .collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_write_nothing_for_make() {
        assert_eq!(without_dependencies("gcc -Wp,-MMD,a/.b.o.d -c -o a/b.o b.c"), "gcc -c -o a/b.o b.c");
    }
}
