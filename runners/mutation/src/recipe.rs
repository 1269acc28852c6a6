//! How a module is made again with one of its files changed: by the commands that the kernel's build has left beside its
//! objects (`.name.o.cmd`, see scripts/Kbuild.include), with other names for what they read and write.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use privet_kernel::BuildTree;

/// Why a file cannot be compiled again at all.
#[derive(Debug, thiserror::Error)]
pub enum RecipeError {
    /// A file of the build is missing or not as this version of the kernel's build leaves it.
    #[error("{}: {why}: name a source that builds {wanted} as a module, or leave that file out of --files", path.display())]
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
}

/// What became of an attempt.
#[derive(Debug, PartialEq, Eq)]
pub enum Made {
    /// The module with the change in it.
    Module(PathBuf),
    /// The compiler makes the same of it as without the change: nobody can tell them apart.
    Same,
    /// It does not compile: the compiler's first complaint.
    Rejected(String),
}

/// The commands for one file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Recipe {
    /// The name of the module that the file is a part of, as its file has it: `kvm-amd`.
    pub module: String,
    objects: PathBuf,
    source: PathBuf,
    object: String,
    compile: String,
    /// The objects of the module, in their order.
    parts: Vec<String>,
    /// Makes one object of them.
    join: String,
    /// Makes the module of that.
    link: String,
}

/// The directory of KVM's modules, below the objects.
const KVM: &str = "arch/x86/kvm";

impl Recipe {
    /// The commands for `file`, below the top of the source, as the build of KVM's modules has used them.
    ///
    /// # Errors
    /// [`RecipeError::Unknown`] if no module of KVM's is made of it.
    pub fn of(tree: &BuildTree, file: &str) -> Result<Self, RecipeError> {
        let unknown = |path: &Path, why: &str| RecipeError::Unknown {
            path: path.to_owned(),
            why: why.to_owned(),
            wanted: file.to_owned(),
        };
        let object = Path::new(file).with_extension("o").display().to_string();
        for module in ["kvm", "kvm-amd", "kvm-intel"] {
            let list = tree.objects.join(KVM).join(format!("{module}.mod"));
            let Ok(parts) = fs::read_to_string(&list) else { continue };
            let parts: Vec<_> = parts.lines().map(str::to_owned).collect();
            let Some(part) = parts.iter().find(|part| normal(part) == object) else { continue };
            let command = |of: &str| {
                let path = Path::new(of);
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                let path = tree.objects.join(path.with_file_name(format!(".{name}.cmd")));
                let text = fs::read_to_string(&path).map_err(|error| unknown(&path, &error.to_string()))?;
                let saved = text.lines().find_map(|line| line.strip_prefix(&format!("savedcmd_{of} := ")));
                // As make reads it: a dollar sign of the shell's is written twice.
                saved.map(|saved| saved.replace("$$", "$")).ok_or_else(|| unknown(&path, "it has no saved command"))
            };
            let joined = format!("{KVM}/{module}.o");
            return Ok(Self {
                compile: command(part)?,
                join: command(&joined)?,
                link: command(&format!("{KVM}/{module}.ko"))?,
                module: module.to_owned(),
                objects: tree.objects.clone(),
                source: tree.source.join(Path::new(part).with_extension("c")),
                object: part.clone(),
                parts,
            });
        }
        Err(unknown(&tree.objects.join(KVM).join("*.mod"), "no module of KVM's is made of it"))
    }

    /// Makes the module with `text` in place of the file, in the directory `work`.
    ///
    /// # Errors
    /// If a program cannot be started, or the unchanged parts do not link.
    pub fn make(&self, text: &str, work: &Path) -> Result<Made, RecipeError> {
        let io = |what: String| move |source| RecipeError::Io { what, source };
        let name = self.source.file_name().unwrap_or_default();
        let (source, object) = (work.join(name), work.join(name).with_extension("o"));
        fs::write(&source, text).map_err(io(format!("write {}", source.display())))?;

        let beside = self.source.parent().unwrap_or(&self.source).display();
        let named = Path::new(&self.object).parent().unwrap_or(Path::new("")).display();
        let compile = without_dependencies(&self.compile)
            .replace(&self.source.display().to_string(), &source.display().to_string())
            .replace(&self.object, &object.display().to_string())
            // What stands beside the file is found from where the changed one is, too, and it calls itself as before.
            .replacen(" -c ", &format!(" -iquote {beside} -fmacro-prefix-map={}/={named}/ -c ", work.display()), 1);
        if let Err(complaint) = self.shell(&compile)? {
            return Ok(Made::Rejected(complaint));
        }
        let compiled = |path: &Path| fs::read(path).map_err(io(format!("read {}", path.display())));
        if code(&compiled(&object)?) == code(&compiled(&self.objects.join(&self.object))?) {
            return Ok(Made::Same);
        }

        let list = work.join("parts");
        let parts: Vec<_> = self
            .parts
            .iter()
            .map(|part| if *part == self.object { object.display().to_string() } else { part.clone() })
            .collect();
        fs::write(&list, parts.join("\n")).map_err(io(format!("write {}", list.display())))?;
        let (joined, module) = (work.join("joined.o"), work.join(format!("{}.ko", self.module)));
        let before = format!("{KVM}/{}", self.module);
        let join = self
            .join
            .replace(&format!("@{before}.mod"), &format!("@{}", list.display()))
            .replace(&format!("{before}.o"), &joined.display().to_string());
        let link = self
            .link
            .replace(&format!("{before}.ko"), &module.display().to_string())
            .replace(&format!("{before}.o"), &joined.display().to_string());
        for command in [join, link] {
            if let Err(complaint) = self.shell(&command)? {
                return Ok(Made::Rejected(complaint));
            }
        }
        Ok(Made::Module(module))
    }

    /// Runs a command of the kernel's build; inside is the first complaint if it fails.
    fn shell(&self, command: &str) -> Result<Result<(), String>, RecipeError> {
        let ran = Command::new("sh")
            .args(["-c", command])
            .current_dir(&self.objects)
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .output()
            .map_err(|source| RecipeError::Io { what: "run sh".into(), source })?;
        if ran.status.success() {
            return Ok(Ok(()));
        }
        let told = String::from_utf8_lossy(&ran.stderr).into_owned() + &String::from_utf8_lossy(&ran.stdout);
        let complaint = told.lines().find(|line| line.contains("error")).or(told.lines().last());
        Ok(Err(complaint.unwrap_or("it said nothing").trim().to_owned()))
    }
}

/// A path without `.` and `..`, as the kernel's build and its debug info have them.
#[must_use]
pub fn normal(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "." => {}
            ".." => drop(parts.pop()),
            _ => parts.push(part),
        }
    }
    parts.join("/")
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
    fn paths_and_commands_are_made_plain() {
        assert_eq!(normal("arch/x86/kvm/../../../virt/kvm/guest_memfd.o"), "virt/kvm/guest_memfd.o");
        assert_eq!(normal("/a/objects/./../source/b.c"), "/a/source/b.c");
        assert_eq!(without_dependencies("gcc -Wp,-MMD,a/.b.o.d -c -o a/b.o b.c"), "gcc -c -o a/b.o b.c");
    }
}
