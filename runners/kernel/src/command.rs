//! Programs that a build runs: watched line by line, ended by the caller's interrupt, and named when they
//! fail.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::error::KernelError;

/// Runs programs one after the other and keeps what they say in a file.
pub struct Runner<'a> {
    /// Ends the program that is running when it becomes readable or hangs up.
    pub interrupt: BorrowedFd<'a>,
    /// Everything that the programs write to either stream.
    pub log: File,
    /// Where the caller keeps that log if a program fails.
    pub log_path: PathBuf,
}

impl Runner<'_> {
    /// Runs `command` to its end and hands over each line of its output. `what` names it in errors.
    ///
    /// # Errors
    /// If it cannot be started, fails, or is interrupted. Nothing that it started is left running.
    pub fn run(&mut self, what: &str, command: &mut Command, on_line: &mut dyn FnMut(&str)) -> Result<(), KernelError> {
        let cannot = |verb: &str| {
            let what = format!("{verb} {what}");
            move |source| KernelError::Io { what, source }
        };
        let (mut output, writer) = std::io::pipe().map_err(cannot("start"))?;
        // A group of its own, so that all that the program started can be ended with it.
        command
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .stdout(writer.try_clone().map_err(cannot("start"))?)
            .stderr(writer)
            .process_group(0);
        let mut group = Group(command.spawn().map_err(cannot("start"))?);
        // The command holds the writing end: without this the output would never end.
        command.stdout(Stdio::null()).stderr(Stdio::null());

        let mut told = Told::default();
        let mut buffer = [0; 16 * 1024];
        loop {
            let mut fds =
                [PollFd::new(output.as_fd(), PollFlags::POLLIN), PollFd::new(self.interrupt, PollFlags::POLLIN)];
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) => {}
                Err(Errno::EINTR) => continue,
                Err(errno) => return Err(cannot("watch")(errno.into())),
            }
            if fds[1].any() == Some(true) {
                return Err(KernelError::Interrupted);
            }
            let length = output.read(&mut buffer).map_err(cannot("watch"))?;
            if length == 0 {
                break;
            }
            self.log.write_all(&buffer[..length]).map_err(cannot("keep the output of"))?;
            told.take(&buffer[..length], on_line);
        }
        let status = group.0.wait().map_err(cannot("wait for"))?;
        if status.success() {
            return Ok(());
        }
        Err(KernelError::Command {
            what: what.to_owned(),
            status: status.to_string(),
            complaint: told.complaint(),
            log: self.log_path.clone(),
        })
    }
}

/// A program and all that it started, which end when this is dropped.
struct Group(Child);

impl Drop for Group {
    fn drop(&mut self) {
        // A program that was waited for has given its number back.
        if let Ok(None) = self.0.try_wait() {
            let _ = killpg(Pid::from_raw(self.0.id().cast_signed()), Signal::SIGKILL);
            let _ = self.0.wait();
        }
    }
}

/// The output of a program as far as an error needs it.
#[derive(Default)]
struct Told {
    unfinished: Vec<u8>,
    first_error: Option<String>,
    last: String,
}

impl Told {
    fn take(&mut self, bytes: &[u8], on_line: &mut dyn FnMut(&str)) {
        self.unfinished.extend_from_slice(bytes);
        while let Some(newline) = self.unfinished.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.unfinished.drain(..=newline).collect();
            let line = String::from_utf8_lossy(&line);
            let line = line.trim();
            if line.is_empty() {
                continue;
            }
            on_line(line);
            // make repeats the failure of a compiler level by level: the first line is the cause.
            let is_error = ["error:", "Error:", "E: ", "*** ", "not found"].iter().any(|mark| line.contains(mark));
            if is_error && self.first_error.is_none() {
                self.first_error = Some(line.to_owned());
            }
            self.last = line.to_owned();
        }
    }

    fn complaint(self) -> String {
        let complaint = self.first_error.unwrap_or(self.last);
        if complaint.is_empty() { "it said nothing".into() } else { complaint }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run_shell(script: &str, interrupt: BorrowedFd<'_>) -> (Result<(), KernelError>, Vec<String>) {
        let mut runner = Runner { interrupt, log: tempfile::tempfile().unwrap(), log_path: "build.log".into() };
        let mut lines = Vec::new();
        let result =
            runner.run("the script", Command::new("sh").args(["-c", script]), &mut |line| lines.push(line.to_owned()));
        (result, lines)
    }

    #[test]
    fn both_streams_are_read_and_success_is_success() {
        let (interrupt, _writer) = std::io::pipe().unwrap();
        let (result, lines) = run_shell("echo a; echo b >&2", interrupt.as_fd());
        result.unwrap();
        assert_eq!(lines, ["a", "b"]);
    }

    #[test]
    fn the_first_error_is_named() {
        let (interrupt, _writer) = std::io::pipe().unwrap();
        let (result, _) = run_shell("echo x.c:1: error: no; echo 'make: *** [x] Error 1'; exit 2", interrupt.as_fd());
        let error = result.unwrap_err().to_string();
        assert!(error.starts_with("the script failed (exit status: 2): x.c:1: error: no"), "{error}");
        assert!(error.contains("build.log"), "{error}");
    }

    #[test]
    fn an_interrupt_ends_the_program_and_its_children() {
        let (interrupt, writer) = std::io::pipe().unwrap();
        drop(writer);
        let (result, _) = run_shell("sleep 1000 & wait", interrupt.as_fd());
        assert!(matches!(result, Err(KernelError::Interrupted)));
    }
}
