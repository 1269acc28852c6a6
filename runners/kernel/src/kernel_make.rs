//! Linux's own build, from options to an image and modules.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::command::Runner;
use crate::error::{KernelError, cannot};

/// The image, below the objects.
pub(crate) const BUILT_IMAGE: &str = "arch/x86/boot/bzImage";

/// One build.
pub(crate) struct Make<'a> {
    /// The source, which is only read.
    pub(crate) tree: &'a Path,
    /// A directory for what is compiled. What is there already is compiled again only where the source has changed.
    pub(crate) objects: &'a Path,
    /// The options; all that they do not name is off.
    pub(crate) fragment: &'a str,
    /// What the compiler is told for modules only.
    pub(crate) module_flags: &'a str,
}

impl Make<'_> {
    /// Builds image and modules, and tells which file it is at.
    ///
    /// # Errors
    /// If a program fails or is interrupted.
    pub(crate) fn run(&self, runner: &mut Runner<'_>, on_progress: &mut dyn FnMut(&str)) -> Result<(), KernelError> {
        let fragment = self.objects.join("privet.fragment");
        fs::write(&fragment, self.fragment).map_err(cannot("write", &fragment))?;
        on_progress("configuring");
        let mut configure = self.command(&["allnoconfig"]);
        runner.run("make allnoconfig", configure.env("KCONFIG_ALLCONFIG", &fragment), &mut |_| {})?;

        let jobs = format!("-j{}", std::thread::available_parallelism().map_or(1, usize::from));
        let mut files = 0;
        runner.run("make", &mut self.command(&[&jobs, "bzImage", "modules"]), &mut |line| {
            // "CC      arch/x86/kvm/mmu/mmu.o"
            if let Some((_, file)) =
                line.split_once("  ").filter(|(verb, _)| verb.bytes().all(|byte| byte.is_ascii_uppercase()))
            {
                files += 1;
                on_progress(&format!("compiling: {files} files, {}", file.trim_start()));
            }
        })
    }

    /// Makes these targets.
    pub(crate) fn command(&self, targets: &[&str]) -> Command {
        let mut make = Command::new("make");
        make.arg("-C").arg(self.tree).arg(format!("O={}", self.objects.display())).args(targets);
        if !self.module_flags.is_empty() {
            make.arg(format!("CFLAGS_MODULE={}", self.module_flags));
        }
        // The same source and options give the same kernel.
        make.env("KBUILD_BUILD_USER", "privet").env("KBUILD_BUILD_HOST", "rig").env("KBUILD_BUILD_TIMESTAMP", "@0");
        make
    }
}
