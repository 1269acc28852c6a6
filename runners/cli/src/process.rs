//! One worker process from its start to its end: its report, its output, its time limit.
#![expect(unsafe_code, reason = "pre_exec ties the worker to this process, and pidfd_open has no safe wrapper")]

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::interrupt::Interrupt;

/// The environment variable that tells a worker the descriptor that its report goes to. A descriptor of
/// its own, so that whatever a row prints cannot damage the report.
pub const REPORT_FD: &str = "PRIVET_REPORT_FD";

/// The most that is kept of each stream of a worker: its last bytes.
const KEPT: usize = 256 * 1024;

/// How a worker ended.
#[derive(Debug)]
pub enum End {
    /// By itself.
    Exited(ExitStatus),
    /// It has not: it had made its report, and was left at that ([`Until::Report`]).
    Left,
    /// It was killed after its time limit.
    OutOfTime,
    /// It did not go when it was killed, so it hangs inside the kernel. It is left behind.
    Unkillable(Pid),
    /// It was killed because the run was interrupted.
    Interrupted,
}

/// When a worker has done its work.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Until {
    /// When it has ended, and it is known how.
    End,
    /// When its report is there. For a machine that is gone then: to take a process down takes it longer than many a row.
    Report,
}

/// What is left of a worker.
#[derive(Debug)]
pub struct Ended {
    /// How it ended.
    pub end: End,
    /// What it wrote to its report descriptor.
    pub report: Vec<u8>,
    /// The last bytes of its standard output.
    pub stdout: Vec<u8>,
    /// The last bytes of its standard error.
    pub stderr: Vec<u8>,
    /// From when it could begin to its end.
    pub duration: Duration,
}

/// A worker that was started and has not been waited for.
#[derive(Debug)]
pub struct Started {
    child: Child,
    report: Stream,
    stdout: Stream,
    stderr: Stream,
}

impl Started {
    /// Starts a worker, with nothing to read.
    ///
    /// # Errors
    /// If the process cannot be started.
    pub fn new(mut command: Command) -> io::Result<Self> {
        command.stdin(Stdio::null());
        Self::spawn(command)
    }

    /// Starts a worker that gets ready before it is told its row, and waits until it is ready: until it begins its
    /// report with a newline.
    ///
    /// # Errors
    /// If the process cannot be started, or ends before; [`io::ErrorKind::TimedOut`] if it is not ready in time. Then it
    /// is killed, and not waited for: it may hang inside the kernel.
    pub fn ready(mut command: Command, limit: Duration) -> io::Result<Self> {
        command.stdin(Stdio::piped());
        let mut worker = Self::spawn(command)?;
        let said = worker.report.first_byte(Instant::now() + limit);
        if said.is_err() {
            kill(&mut worker.child);
        }
        said.map(|()| worker)
    }

    /// Tells a worker that is ready what to do.
    ///
    /// # Errors
    /// If it does not listen any more.
    pub fn tell(&mut self, line: &[u8]) -> io::Result<()> {
        match &mut self.child.stdin {
            Some(stdin) => stdin.write_all(line),
            None => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    /// Sends away a worker that is ready: it ends without a row.
    ///
    /// # Errors
    /// Of `waitpid(2)`.
    pub fn dismiss(mut self) -> io::Result<()> {
        // This closes its standard input.
        self.child.wait().map(drop)
    }

    fn spawn(mut command: Command) -> io::Result<Self> {
        let (report, report_writer) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
        command
            .env(REPORT_FD, report_writer.as_raw_fd().to_string())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A group of its own: a Ctrl-C on the terminal reaches the runner only, which then decides.
            .process_group(0);
        bind_to_this_process(&mut command, report_writer.as_raw_fd());
        let mut child = command.spawn()?;
        let stdout = Stream::new(child.stdout.take().expect("it was asked for").into());
        let stderr = Stream::new(child.stderr.take().expect("it was asked for").into());
        Ok(Self { child, report: Stream::new(report), stdout, stderr })
    }

    /// Waits until the worker has done its work, `limit` has passed or `interrupt` comes. The worker and whatever it
    /// started are killed in the latter cases, and also if the thread that started it ends first; it then has `grace`
    /// to go.
    ///
    /// # Errors
    /// If the process cannot be watched.
    pub fn end(mut self, until: Until, limit: Duration, grace: Duration, interrupt: &Interrupt) -> io::Result<Ended> {
        let start = Instant::now();
        match until {
            Until::End => drop(self.child.stdin.take()),
            // Not closed as long as this process lives.
            Until::Report => std::mem::forget(self.child.stdin.take()),
        }
        let streams = [&mut self.report, &mut self.stdout, &mut self.stderr];
        let end = match watch(&mut self.child, streams, until, start + limit, grace, interrupt) {
            Ok(end) => end,
            Err(error) => {
                kill(&mut self.child);
                return Err(error);
            }
        };
        Ok(Ended {
            end,
            report: self.report.kept.into(),
            stdout: self.stdout.kept.into(),
            stderr: self.stderr.kept.into(),
            duration: start.elapsed(),
        })
    }
}

/// Makes the worker die with the thread that starts it, and inherit the report descriptor.
fn bind_to_this_process(command: &mut Command, report_fd: RawFd) {
    let parent = Pid::this();
    let bind = move || {
        prctl::set_pdeathsig(Signal::SIGKILL)?;
        if Pid::parent() != parent {
            // The runner died before the line above: no signal will come.
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        // SAFETY: the descriptor stays open until the spawn has returned, in this process and so in the
        // child's copy.
        let report = unsafe { std::os::fd::BorrowedFd::borrow_raw(report_fd) };
        fcntl(report, FcntlArg::F_SETFD(FdFlag::empty()))?;
        Ok(())
    };
    // SAFETY: between fork and exec only prctl, getppid and fcntl are called. They are plain system calls:
    // no locks, no allocation.
    unsafe { command.pre_exec(bind) };
}

/// Collects what the worker writes until it has done its work.
fn watch(
    child: &mut Child,
    mut streams: [&mut Stream; 3],
    until: Until,
    deadline: Instant,
    grace: Duration,
    interrupt: &Interrupt,
) -> io::Result<End> {
    let pidfd = pidfd_open(child.id())?;
    let mut deadline = deadline;
    let mut killed: Option<End> = None;
    loop {
        let mut fds: Vec<PollFd<'_>> =
            streams.iter().filter_map(|s| Some(PollFd::new(s.pipe.as_ref()?.as_fd(), PollFlags::POLLIN))).collect();
        let exited = fds.len();
        fds.push(PollFd::new(pidfd.as_fd(), PollFlags::POLLIN));
        if killed.is_none() {
            fds.push(PollFd::new(interrupt.as_fd(), PollFlags::POLLIN));
        }
        match poll(&mut fds, timeout(deadline)) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let is_ready = |fd: &PollFd<'_>| fd.any() == Some(true);
        let ready: Vec<bool> = fds.iter().map(is_ready).collect();
        let mut of_streams = ready.iter();
        for stream in streams.iter_mut().filter(|s| s.pipe.is_some()) {
            if of_streams.next() == Some(&true) {
                stream.read()?;
            }
        }
        if ready[exited] {
            // Whatever the worker started and left behind would keep the pipes open.
            kill(child);
            for stream in streams {
                stream.drain()?;
            }
            let status = child.wait()?;
            return Ok(killed.unwrap_or(End::Exited(status)));
        }
        if until == Until::Report && streams[0].kept.back() == Some(&b'\n') {
            for stream in streams {
                stream.drain()?;
            }
            return Ok(End::Left);
        }
        if ready.get(exited + 1) == Some(&true) {
            kill(child);
            killed = Some(End::Interrupted);
            deadline = Instant::now() + grace;
        } else if Instant::now() >= deadline {
            if killed.is_some() {
                return Ok(End::Unkillable(pid(child)));
            }
            kill(child);
            killed = Some(End::OutOfTime);
            deadline = Instant::now() + grace;
        }
    }
}

/// The time to wait until `deadline`, rounded up to a millisecond so that a poll does not spin.
fn timeout(deadline: Instant) -> PollTimeout {
    let left = deadline.saturating_duration_since(Instant::now()) + Duration::from_micros(999);
    PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
}

/// Kills the worker and whatever it has started. It has not been waited for, so its id is still its own.
fn kill(child: &mut Child) {
    let _ = killpg(pid(child), Signal::SIGKILL);
}

fn pid(child: &Child) -> Pid {
    Pid::from_raw(child.id().cast_signed())
}

/// A descriptor that polls as readable once the process has ended.
fn pidfd_open(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_open takes two integers and touches no memory of ours.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us, and nothing else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// One stream of a worker, and the last [`KEPT`] bytes of it.
#[derive(Debug)]
struct Stream {
    /// `None` after its end.
    pipe: Option<File>,
    kept: VecDeque<u8>,
}

impl Stream {
    fn new(pipe: OwnedFd) -> Self {
        Self { pipe: Some(pipe.into()), kept: VecDeque::new() }
    }

    /// Waits for the first byte, which is dropped.
    fn first_byte(&mut self, deadline: Instant) -> io::Result<()> {
        let Some(pipe) = &mut self.pipe else { return Ok(()) };
        loop {
            match poll(&mut [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)], timeout(deadline)) {
                Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
                Ok(_) => return pipe.read_exact(&mut [0]),
                Err(nix::errno::Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Reads once, which does not block after a poll that said so.
    fn read(&mut self) -> io::Result<()> {
        let Some(pipe) = &mut self.pipe else { return Ok(()) };
        let mut buffer = [0; 16 * 1024];
        let read = pipe.read(&mut buffer)?;
        if read == 0 {
            self.pipe = None;
        }
        self.kept.extend(&buffer[..read]);
        let surplus = self.kept.len().saturating_sub(KEPT);
        self.kept.drain(..surplus);
        Ok(())
    }

    /// Reads what is there now, and does not wait for the end.
    fn drain(&mut self) -> io::Result<()> {
        while let Some(pipe) = &self.pipe {
            let mut fds = [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)];
            if poll(&mut fds, PollTimeout::ZERO)? == 0 {
                break;
            }
            self.read()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A script that reaches its report by its path: some shells redirect to descriptors of one digit only.
    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_worker_can_be_left_when_its_report_is_there() {
        const ENOUGH: Duration = Duration::from_secs(60);
        let worker =
            Started::new(shell("echo printed; echo told >/proc/self/fd/$PRIVET_REPORT_FD; exec sleep 1000")).unwrap();
        let pid = pid(&worker.child);
        let ended = worker.end(Until::Report, ENOUGH, ENOUGH, &Interrupt::new().unwrap()).unwrap();
        assert!(matches!(ended.end, End::Left), "{ended:?}");
        assert_eq!((&*ended.report, &*ended.stdout), (&b"told\n"[..], &b"printed\n"[..]));
        nix::sys::signal::kill(pid, Signal::SIGKILL).unwrap();
        nix::sys::wait::waitpid(pid, None).unwrap();
        let died = Started::new(shell("exit 3")).unwrap();
        let ended = died.end(Until::Report, ENOUGH, ENOUGH, &Interrupt::new().unwrap()).unwrap();
        assert!(matches!(ended.end, End::Exited(status) if status.code() == Some(3)), "{ended:?}");
    }

    #[test]
    fn a_worker_that_gets_ready_is_waited_for_and_one_that_does_not_is_given_up() {
        const ENOUGH: Duration = Duration::from_secs(60);
        let worker = Started::ready(
            shell("echo >/proc/self/fd/$PRIVET_REPORT_FD; read -r row; echo $row >/proc/self/fd/$PRIVET_REPORT_FD"),
            ENOUGH,
        );
        let mut worker = worker.unwrap();
        worker.tell(b"a row\n").unwrap();
        let ended = worker.end(Until::End, ENOUGH, ENOUGH, &Interrupt::new().unwrap()).unwrap();
        assert_eq!(ended.report, b"a row\n");
        let died = Started::ready(shell("exit 1"), ENOUGH).unwrap_err();
        assert_eq!(died.kind(), io::ErrorKind::UnexpectedEof);
        let silent = Started::ready(shell("exec sleep 1000"), Duration::from_millis(10)).unwrap_err();
        assert_eq!(silent.kind(), io::ErrorKind::TimedOut);
    }
}
