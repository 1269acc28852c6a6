//! How a kernel is made again with one of its files changed: the module that the file is a part of, or the image.

use std::fs;
use std::path::{Path, PathBuf};

use privet_kernel::{BuildTree, KernelError};

use crate::compilation::{Compilation, Compiled, RecipeError, io, saved_command, shell};
use crate::rooms::Rooms;

/// What became of a changed object.
#[derive(Debug, PartialEq, Eq)]
pub enum Linked {
    /// The module with it.
    Module(PathBuf),
    /// The image with it.
    Image(PathBuf),
    /// It does not link: the first complaint.
    Rejected(String),
}

/// The commands for one file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Recipe {
    compilation: Compilation,
    whole: Whole,
}

/// What a file is a part of.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Whole {
    /// A module of KVM's, with its name as its file has it: `kvm-amd`.
    Module {
        name: String,
        /// Its objects, in their order.
        parts: Vec<String>,
        /// Makes one object of them.
        join: String,
        /// Makes the module of that.
        link: String,
    },
    /// The kernel itself.
    Image,
}

/// The directory of KVM's modules, below the objects.
const KVM: &str = "arch/x86/kvm";

impl Recipe {
    /// The commands for `file`, below the top of the source, as the kernel's build has used them.
    ///
    /// # Errors
    /// [`RecipeError::Unknown`] if neither a module of KVM's nor the image is made of it.
    pub fn of(tree: &BuildTree, file: &str) -> Result<Self, RecipeError> {
        let object = Path::new(file).with_extension("o").display().to_string();
        for name in ["kvm", "kvm-amd", "kvm-intel"] {
            let list = tree.objects.join(KVM).join(format!("{name}.mod"));
            let Ok(parts) = fs::read_to_string(&list) else { continue };
            let parts: Vec<_> = parts.lines().map(str::to_owned).collect();
            let Some(part) = parts.iter().find(|part| normal(part) == object) else { continue };
            return Ok(Self {
                compilation: Compilation::of(tree, part)?,
                whole: Whole::Module {
                    join: saved_command(tree, &format!("{KVM}/{name}.o"))?,
                    link: saved_command(tree, &format!("{KVM}/{name}.ko"))?,
                    name: name.to_owned(),
                    parts,
                },
            });
        }
        let compilation = Compilation::of(tree, &object)?;
        if compilation.is_for_a_module() {
            return Err(RecipeError::Unknown {
                path: tree.objects.join(object),
                why: "it is a part of a module that is not KVM's".to_owned(),
                wanted: format!("{file} into the image"),
            });
        }
        Ok(Self { compilation, whole: Whole::Image })
    }

    /// Compiles `text` in place of the file, in the directory `work`.
    ///
    /// # Errors
    /// If the compiler cannot be started, or `work` not be written.
    pub fn compile(&self, text: &str, work: &Path) -> Result<Compiled, RecipeError> {
        self.compilation.compile(text, work)
    }

    /// Makes the module or the image with `object` in place of the file's, in the directory `work`; images are linked in
    /// `rooms`.
    ///
    /// # Errors
    /// If a program cannot be started, or there is no place for what is made.
    pub fn link(&self, object: &Path, work: &Path, rooms: &Rooms<'_>) -> Result<Linked, RecipeError> {
        match &self.whole {
            Whole::Module { name, parts, join, link } => self.link_module((name, parts), (join, link), object, work),
            Whole::Image => {
                let image = work.join("bzImage");
                match rooms.link(&self.compilation.object, object, &image) {
                    Ok(()) => Ok(Linked::Image(image)),
                    Err(KernelError::Command { complaint, .. }) => Ok(Linked::Rejected(complaint)),
                    Err(error) => Err(error.into()),
                }
            }
        }
    }

    /// The file's object as it is in the image, with a table of lines, which the image itself does not have; nothing if it
    /// is a part of a module.
    ///
    /// # Errors
    /// If it does not compile, or there is no place for it.
    pub fn lines_in_image(&self) -> Result<Option<Vec<u8>>, RecipeError> {
        let Whole::Image = self.whole else { return Ok(None) };
        let work =
            tempfile::tempdir().map_err(io(format!("create a directory in {}", std::env::temp_dir().display())))?;
        self.compilation.with_lines(work.path()).map(Some)
    }

    fn link_module(
        &self,
        (name, parts): (&str, &[String]),
        (join, link): (&str, &str),
        object: &Path,
        work: &Path,
    ) -> Result<Linked, RecipeError> {
        let list = work.join("parts");
        let parts: Vec<_> = parts
            .iter()
            .map(|part| if *part == self.compilation.object { object.display().to_string() } else { part.clone() })
            .collect();
        fs::write(&list, parts.join("\n")).map_err(io(format!("write {}", list.display())))?;
        let (joined, module) = (work.join("joined.o"), work.join(format!("{name}.ko")));
        let before = format!("{KVM}/{name}");
        let join = join
            .replace(&format!("@{before}.mod"), &format!("@{}", list.display()))
            .replace(&format!("{before}.o"), &joined.display().to_string());
        let link = link
            .replace(&format!("{before}.ko"), &module.display().to_string())
            .replace(&format!("{before}.o"), &joined.display().to_string());
        for command in [join, link] {
            if let Err(complaint) = shell(&command, &self.compilation.objects)? {
                return Ok(Linked::Rejected(complaint));
            }
        }
        Ok(Linked::Module(module))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_made_plain() {
        assert_eq!(normal("arch/x86/kvm/../../../virt/kvm/guest_memfd.o"), "virt/kvm/guest_memfd.o");
        assert_eq!(normal("/a/objects/./../source/b.c"), "/a/source/b.c");
    }
}
