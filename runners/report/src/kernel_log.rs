//! What the kernel said while a row ran, from `/dev/kmsg` (Documentation/ABI/testing/dev-kmsg).
//!
//! A row whose kernel warns has found a bug, whatever the guest saw. One [`KernelLog`] is opened when a
//! row starts and judged when it ends; rows that run at the same time each see every line.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;

use crate::{CaseReport, Verdict};

/// The longest record that the kernel hands out, with its dictionary (`PRINTK_MESSAGE_MAX`).
const RECORD_MAX: usize = 2048 + 8192;

/// The most lines that a report carries: the first ones tell the cause.
const LINES_MAX: usize = 200;

/// One message of the kernel itself; what user space wrote into the log is left out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LogLine {
    /// The number of the message since boot.
    pub sequence: u64,
    /// Microseconds since boot.
    pub time_us: u64,
    /// The message, without its newline.
    pub text: String,
}

impl LogLine {
    /// The message in a record of `/dev/kmsg` (`prefix,sequence,time,flags;text`, then dictionary lines);
    /// nothing if user space wrote it or the record is not in this form.
    pub fn parse(record: &str) -> Option<Self> {
        let (header, body) = record.split_once(';')?;
        let mut fields = header.split(',');
        let prefix: u32 = fields.next()?.parse().ok()?;
        let sequence = fields.next()?.parse().ok()?;
        let time_us = fields.next()?.parse().ok()?;
        // The facility is above the three bits of the level; the kernel's own is 0.
        if prefix >> 3 != 0 {
            return None;
        }
        let text = body.lines().next().unwrap_or_default().to_owned();
        Some(Self { sequence, time_us, text })
    }

    /// Whether the kernel says here that something is wrong with the kernel.
    pub fn is_trouble(&self) -> bool {
        is_trouble(&self.text)
    }
}

/// Whether this line of a kernel log reports a bug of the kernel: WARN, BUG, Oops, panic, lockdep, a
/// sanitizer, corrupted lists and counters, or an RMP fault that nobody expected.
pub fn is_trouble(text: &str) -> bool {
    const STARTS: &[&str] = &[
        "WARNING: ",
        "BUG: ",
        "kernel BUG at ",
        "Oops",
        "UBSAN: ",
        "Kernel panic",
        "general protection fault",
        "list_add corruption",
        "list_del corruption",
        "refcount_t: ",
        "unchecked MSR access error",
        "INFO: trying to register non-static key",
        "INFO: task ",
    ];
    const ANYWHERE: &[&str] = &[
        ": BUG: ",
        "KASAN: ",
        "KCSAN: ",
        "KFENCE: ",
        "KMSAN: ",
        "Unexpected RMP fault",
        "possible recursive locking detected",
    ];
    // A thread or module may be named first: `watchdog: BUG: soft lockup`.
    STARTS.iter().any(|start| text.starts_with(start)) || ANYWHERE.iter().any(|part| text.contains(part))
}

/// The kernel's log from one moment on.
#[derive(Debug)]
pub struct KernelLog {
    kmsg: File,
}

impl KernelLog {
    /// The log from now on.
    ///
    /// # Errors
    /// Of `open(2)`: EPERM or EACCES where `kernel.dmesg_restrict` keeps the log from users.
    pub fn from_now() -> io::Result<Self> {
        let mut kmsg = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open("/dev/kmsg")?;
        kmsg.seek(SeekFrom::End(0))?;
        Ok(Self { kmsg })
    }

    /// The messages since the last call, or since this log was opened.
    ///
    /// # Errors
    /// Of `read(2)`; messages that were overwritten before they were read are not an error.
    pub fn lines(&mut self) -> io::Result<Vec<LogLine>> {
        let mut lines = Vec::new();
        let mut record = [0; RECORD_MAX];
        loop {
            match self.kmsg.read(&mut record) {
                Ok(0) => return Ok(lines),
                Ok(length) => {
                    lines.extend(LogLine::parse(&String::from_utf8_lossy(&record[..length])));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(lines),
                // EPIPE: the oldest messages are gone, the next read goes on after them.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// Holds a row to what the kernel said while it ran.
///
/// Trouble fails the row, whatever it thought of itself. A row that did not pass gets all lines as details;
/// one that did gets none.
pub fn judge(report: &mut CaseReport, lines: &[LogLine]) {
    if let Some(trouble) = lines.iter().find(|line| line.is_trouble()) {
        let own = match report.verdict {
            Verdict::Pass => String::new(),
            verdict => format!("; the row itself: {verdict}: {}", report.reason),
        };
        report.verdict = Verdict::Fail;
        report.reason = format!("the kernel logged \"{}\"{own}", trouble.text);
    }
    if report.verdict != Verdict::Pass && report.verdict != Verdict::Skip {
        let attached = lines.iter().take(LINES_MAX).map(|line| {
            let (seconds, micros) = (line.time_us / 1_000_000, line.time_us % 1_000_000);
            format!("kernel log: [{seconds:5}.{micros:06}] {}", line.text)
        });
        report.details.extend(attached);
        if lines.len() > LINES_MAX {
            let more = lines.len() - LINES_MAX;
            report.details.push(format!("kernel log: {more} more lines"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Place;

    fn report(verdict: Verdict) -> CaseReport {
        CaseReport {
            id: "upm.access.example".into(),
            on: Place::Host,
            vendor: String::new(),
            kernel: "7.3.4".into(),
            vm: "upm".into(),
            module_params: Vec::new(),
            machine: None,
            defect: None,
            schedule: None,
            verdict,
            reason: String::new(),
            lacks: None,
            duration_us: 1,
            exits: 1,
            seed: 0,
            repro: String::new(),
            details: Vec::new(),
        }
    }

    fn line(text: &str) -> LogLine {
        LogLine { sequence: 7, time_us: 1_000_002, text: text.into() }
    }

    #[test]
    fn a_record_is_taken_apart() {
        let record = "4,1234,56789012,-;WARNING: CPU: 0\n SUBSYSTEM=pci\n";
        let expected = LogLine { sequence: 1234, time_us: 56_789_012, text: "WARNING: CPU: 0".into() };
        assert_eq!(LogLine::parse(record), Some(expected));
    }

    #[test]
    fn user_space_cannot_fail_a_row() {
        assert_eq!(LogLine::parse("12,1,2,-;BUG: says a daemon\n"), None);
        assert_eq!(LogLine::parse("garbage"), None);
        assert_eq!(LogLine::parse("4,x,2,-;text"), None);
    }

    #[test]
    fn trouble_is_recognised_and_talk_is_not() {
        for text in [
            "WARNING: CPU: 1 PID: 77 at arch/x86/kvm/mmu/mmu.c:4711 kvm_mmu_fault+0x1/0x2 [kvm]",
            "WARNING: arch/x86/kvm/mmu/mmu.c:4711 at kvm_mmu_fault+0x1/0x2 [kvm], CPU#0: privet/77",
            "WARNING: possible circular locking dependency detected",
            "WARNING: suspicious RCU usage",
            "BUG: kernel NULL pointer dereference, address: 0000000000000008",
            "BUG: KASAN: slab-use-after-free in kvm_gmem_release+0x1/0x2",
            "BUG: sleeping function called from invalid context at mm/x.c:1",
            "watchdog: BUG: soft lockup - CPU#1 stuck for 22s!",
            "kernel BUG at mm/filemap.c:3!",
            "Oops: general protection fault, probably for non-canonical address",
            "UBSAN: shift-out-of-bounds in arch/x86/kvm/x.c:1:2",
            "Unexpected RMP fault for GPA 0x1000",
            "SEV: Unexpected RMP fault, no SNP VM",
            "Kernel panic - not syncing: Fatal exception",
        ] {
            assert!(is_trouble(text), "{text}");
        }
        for text in [
            "kvm [12]: ignored rdmsr: 0xc0010115 data 0x0",
            "kvm: SMP vm created on host with unstable TSC; guest TSC will not be reliable",
            "kvm_amd: Nested Paging enabled",
            "SVM: kvm: Nested Paging enabled",
            "DEBUG: nothing",
            "rcu: INFO: rcu_preempt self-detected stall on CPU",
        ] {
            assert!(!is_trouble(text), "{text}");
        }
    }

    #[test]
    fn trouble_fails_a_row_that_passed() {
        let mut report = report(Verdict::Pass);
        judge(&mut report, &[line("kvm: hello"), line("WARNING: it broke")]);
        assert_eq!(report.verdict, Verdict::Fail);
        assert_eq!(report.reason, "the kernel logged \"WARNING: it broke\"");
        assert_eq!(
            report.details,
            ["kernel log: [    1.000002] kvm: hello", "kernel log: [    1.000002] WARNING: it broke"]
        );
    }

    #[test]
    fn trouble_keeps_what_the_row_thought() {
        let mut report = report(Verdict::Timeout);
        report.reason = "no exit within 10 s".into();
        judge(&mut report, &[line("BUG: it broke")]);
        assert_eq!(report.verdict, Verdict::Fail);
        assert!(report.reason.ends_with("the row itself: timeout: no exit within 10 s"));
    }

    #[test]
    fn talk_changes_nothing_but_helps_a_failure() {
        let mut passed = report(Verdict::Pass);
        judge(&mut passed, &[line("kvm: hello")]);
        assert_eq!(passed, report(Verdict::Pass));

        let mut failed = report(Verdict::Error);
        judge(&mut failed, &vec![line("kvm: hello"); LINES_MAX + 3]);
        assert_eq!(failed.verdict, Verdict::Error);
        assert_eq!(failed.details.len(), LINES_MAX + 1);
        assert_eq!(failed.details[LINES_MAX], "kernel log: 3 more lines");
    }
}
