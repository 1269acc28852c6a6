//! What KVM_RUN said, as data.

use std::fmt;

use nix::errno::Errno;
use privet_protocol::DOORBELL_PORT;

use crate::outcome::{Outcome, Stop};
use crate::run_page::{EXIT, EXIT_LEN, RunPage, SENTINEL};
use crate::uapi::{EXIT_SNP_REQ_CERTS, EXIT_TDX, MEMORY_EXIT_FLAG_PRIVATE};
use crate::units::Gpa;

/// `TDVMCALL_SETUP_EVENT_NOTIFY_INTERRUPT`.
const SETUP_EVENT_NOTIFY: u64 = 0x1_0004;

/// The way of the data of a port access, as the guest sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// The guest reads.
    In,
    /// The guest writes.
    Out,
}

/// Why KVM_RUN returned.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Exit {
    /// `KVM_EXIT_IO`.
    Io {
        /// The port.
        port: u16,
        /// `in` or `out`.
        direction: Direction,
        /// Bytes of each access: 1, 2 or 4.
        size: u8,
        /// Accesses, more than one for string instructions.
        count: u32,
        /// What the guest wrote, `size * count` bytes; empty for `in`.
        data: Vec<u8>,
    },
    /// `KVM_EXIT_MMIO`.
    Mmio {
        /// Where.
        gpa: Gpa,
        /// Bytes, 1 to 8.
        len: u32,
        /// What the guest writes, zero-extended; None for a read.
        write: Option<u64>,
    },
    /// `KVM_EXIT_HYPERCALL`.
    Hypercall {
        /// RAX.
        nr: u64,
        /// RBX, RCX, RDX. KVM leaves the other three of `kvm_run` as they were.
        args: [u64; 3],
        /// Bit 0: the guest was in long mode. Not written for SNP page-state changes.
        flags: u64,
    },
    /// `KVM_EXIT_MEMORY_FAULT` with EFAULT or EHWPOISON, as documented.
    MemoryFault {
        /// What KVM_RUN failed with.
        errno: Errno,
        /// Bit 3: the access was private.
        flags: u64,
        /// The start of the range, without any shared bit.
        gpa: Gpa,
        /// The length of the range in bytes.
        size: u64,
    },
    /// `KVM_EXIT_HLT`.
    Hlt,
    /// `KVM_EXIT_SHUTDOWN`: a triple fault, unless the VM type says otherwise.
    Shutdown,
    /// EINTR: a kick, or a run that was asked to return at once.
    Interrupted,
    /// `KVM_EXIT_INTERNAL_ERROR`.
    InternalError {
        /// 1 emulation, 2 simultaneous exceptions, 3 event delivery, 4 unexpected exit reason.
        suberror: u32,
        /// Up to 16 words.
        data: Vec<u64>,
    },
    /// `KVM_EXIT_FAIL_ENTRY`.
    FailEntry {
        /// As the hardware gave it.
        hardware_reason: u64,
        /// The CPU on which it happened.
        cpu: u32,
    },
    /// `KVM_EXIT_SYSTEM_EVENT`.
    SystemEvent {
        /// 1 shutdown, 2 reset, 3 crash, 6 SEV termination, 7 TDX fatal.
        kind: u32,
        /// Up to 16 words.
        data: Vec<u64>,
    },
    /// `KVM_EXIT_TDX`: a TD asks user space for something by TDG.VP.VMCALL.
    Tdx {
        /// Which function, as in its R11.
        nr: u64,
        /// Its answer unless userspace sets another.
        ret: u64,
        /// The first two words of what it asks: 0x10000 leaf, 0; 0x10002 gpa, size; 0x10004 vector, and 0 here.
        values: [u64; 2],
    },
    /// `KVM_EXIT_DIRTY_RING_FULL`: the vCPU does not run until its ring is harvested and reset.
    DirtyRingFull,
    /// `KVM_EXIT_SNP_REQ_CERTS`: an SNP guest asks for a report with the host's certificates. What it says is not looked
    /// at, but for the alignment.
    CertificatesWanted {
        /// Where the guest wants them.
        gpa: Gpa,
        /// For how many pages there is room.
        pages: u64,
    },
    /// KVM_RUN failed before the guest ran.
    Refused {
        /// What it failed with.
        errno: Errno,
    },
    /// KVM_RUN failed after the guest ran, with an exit reason that does not explain it.
    Failed {
        /// What it failed with.
        errno: Errno,
        /// `exit_reason`, 0 if KVM filled in none.
        reason: u32,
    },
    /// Any other exit reason.
    Other {
        /// `exit_reason`.
        reason: u32,
    },
}

impl Exit {
    /// A memory fault as a row expects it: EFAULT, one page, and no flag but the one for private accesses.
    pub fn memory_fault(gpa: Gpa, private: bool) -> Exit {
        let flags = if private { MEMORY_EXIT_FLAG_PRIVATE } else { 0 };
        Exit::MemoryFault { errno: Errno::EFAULT, flags, gpa, size: crate::units::PAGE_SIZE }
    }

    /// How a guest leaves when it has answered, whatever its doorbell is: KVM turns a GHCB's and a TDVMCALL's port
    /// access into the same exit.
    pub fn doorbell() -> Exit {
        Exit::Io { port: DOORBELL_PORT, direction: Direction::Out, size: 1, count: 1, data: vec![0] }
    }

    /// Whether a guest has rung.
    pub(crate) fn is_doorbell(&self) -> bool {
        matches!(self, Exit::Io { port: DOORBELL_PORT, direction: Direction::Out, .. })
    }

    /// Understands what KVM_RUN returned and left in the page.
    ///
    /// # Errors
    /// `Stop::Error` if the page contradicts itself, such as port data outside of it.
    pub fn decode(returned: Result<(), Errno>, page: &RunPage) -> Outcome<Exit> {
        use kvm_bindings as kvm;

        let reason = page.exit_reason()?;
        match (returned, reason) {
            (Err(Errno::EINTR), SENTINEL | kvm::KVM_EXIT_UNKNOWN | kvm::KVM_EXIT_INTR) => Ok(Exit::Interrupted),
            (Err(errno), SENTINEL) => Ok(Exit::Refused { errno }),
            (Err(errno @ (Errno::EFAULT | Errno::EHWPOISON)), kvm::KVM_EXIT_MEMORY_FAULT) => Ok(Exit::MemoryFault {
                errno,
                flags: page.u64(EXIT)?,
                gpa: Gpa(page.u64(EXIT + 8)?),
                size: page.u64(EXIT + 16)?,
            }),
            (Err(errno), reason) => Ok(Exit::Failed { errno, reason }),
            (Ok(()), kvm::KVM_EXIT_IO) => io(page),
            (Ok(()), kvm::KVM_EXIT_MMIO) => mmio(page),
            (Ok(()), kvm::KVM_EXIT_HYPERCALL) => {
                let mut args = [0; 3];
                for (arg, offset) in args.iter_mut().zip((EXIT + 8..).step_by(8)) {
                    *arg = page.u64(offset)?;
                }
                Ok(Exit::Hypercall { nr: page.u64(EXIT)?, args, flags: page.u64(EXIT + 64)? })
            }
            (Ok(()), kvm::KVM_EXIT_HLT) => Ok(Exit::Hlt),
            (Ok(()), kvm::KVM_EXIT_SHUTDOWN) => Ok(Exit::Shutdown),
            (Ok(()), kvm::KVM_EXIT_INTERNAL_ERROR) => {
                Ok(Exit::InternalError { suberror: page.u32(EXIT)?, data: words(page)? })
            }
            (Ok(()), kvm::KVM_EXIT_FAIL_ENTRY) => {
                Ok(Exit::FailEntry { hardware_reason: page.u64(EXIT)?, cpu: page.u32(EXIT + 8)? })
            }
            (Ok(()), kvm::KVM_EXIT_SYSTEM_EVENT) => Ok(Exit::SystemEvent { kind: page.u32(EXIT)?, data: words(page)? }),
            (Ok(()), EXIT_TDX) => {
                let nr = page.u64(EXIT + 8)?;
                // What it asks is one word there, and the next is none of KVM's.
                let second = if nr == SETUP_EVENT_NOTIFY { 0 } else { page.u64(EXIT + 32)? };
                Ok(Exit::Tdx { nr, ret: page.u64(EXIT + 16)?, values: [page.u64(EXIT + 24)?, second] })
            }
            (Ok(()), kvm::KVM_EXIT_DIRTY_RING_FULL) => Ok(Exit::DirtyRingFull),
            (Ok(()), EXIT_SNP_REQ_CERTS) => {
                Ok(Exit::CertificatesWanted { gpa: Gpa(page.u64(EXIT)?), pages: page.u64(EXIT + 8)? })
            }
            (Ok(()), reason) => Ok(Exit::Other { reason }),
        }
    }
}

fn io(page: &RunPage) -> Outcome<Exit> {
    let head = page.u64(EXIT)?.to_le_bytes();
    let (size, port) = (head[1], u16::from_le_bytes([head[2], head[3]]));
    let count = u32::from_le_bytes([head[4], head[5], head[6], head[7]]);
    let direction = if head[0] == 0 { Direction::In } else { Direction::Out };
    let bytes = u64::from(size) * u64::from(count);
    let offset = page.u64(EXIT + 8)?;
    if bytes > page.bytes().len() || offset > page.bytes().len() - bytes {
        return Err(Stop::Error(format!(
            "kvm_run says that {bytes:#x} bytes of port {port:#x} are at {offset:#x}, outside of the page"
        )));
    }
    let mut data = vec![0; if direction == Direction::Out { bytes as usize } else { 0 }];
    page.bytes().read(offset, &mut data)?;
    Ok(Exit::Io { port, direction, size, count, data })
}

fn mmio(page: &RunPage) -> Outcome<Exit> {
    let len = page.u32(EXIT + 16)?;
    let is_write = page.u32(EXIT + 20)? & 0xFF != 0;
    let mask = u64::MAX.checked_shr(64 - 8 * len.clamp(1, 8)).unwrap_or(0);
    let data = page.u64(EXIT + 8)? & mask;
    Ok(Exit::Mmio { gpa: Gpa(page.u64(EXIT)?), len, write: is_write.then_some(data) })
}

/// The `ndata` and `data` that internal errors and system events share.
fn words(page: &RunPage) -> Outcome<Vec<u64>> {
    let most = (EXIT_LEN - 8) / 8;
    let count = u64::from(page.u32(EXIT + 4)?).min(16).min(most);
    (0..count).map(|index| page.u64(EXIT + 8 + 8 * index)).collect()
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Exit::Io { port, direction: Direction::In, size, count, .. } => {
                write!(f, "IO in port {port:#x}, {count} x {size} bytes")
            }
            Exit::Io { port, size, count, data, .. } => {
                write!(f, "IO out port {port:#x}, {count} x {size} bytes:")?;
                data.iter().take(16).try_for_each(|byte| write!(f, " {byte:02x}"))
            }
            Exit::Mmio { gpa, len, write: None } => write!(f, "MMIO read of {len} bytes at gpa {gpa}"),
            Exit::Mmio { gpa, len, write: Some(data) } => {
                write!(f, "MMIO write of {len} bytes at gpa {gpa}: {data:#x}")
            }
            Exit::Hypercall { nr, args: [a, b, c], flags } => {
                write!(f, "HYPERCALL {nr} ({a:#x}, {b:#x}, {c:#x}), flags {flags:#x}")
            }
            Exit::MemoryFault { errno, flags, gpa, size } => {
                let kind = if flags & MEMORY_EXIT_FLAG_PRIVATE == 0 { "shared" } else { "private" };
                write!(f, "MEMORY_FAULT ({errno:?}), {kind} access, flags {flags:#x}, gpa {gpa}, size {size:#x}")
            }
            Exit::Hlt => f.write_str("HLT"),
            Exit::Shutdown => f.write_str("SHUTDOWN"),
            Exit::Interrupted => f.write_str("interrupted (EINTR)"),
            Exit::InternalError { suberror, data } => {
                let name = match suberror {
                    1 => "emulation",
                    2 => "simultaneous exceptions",
                    3 => "event delivery",
                    4 => "unexpected exit reason",
                    _ => "unknown",
                };
                write!(f, "INTERNAL_ERROR {suberror} ({name}), data {data:x?}")
            }
            Exit::FailEntry { hardware_reason, cpu } => {
                write!(f, "FAIL_ENTRY, hardware reason {hardware_reason:#x} on CPU {cpu}")
            }
            Exit::SystemEvent { kind, data } => write!(f, "SYSTEM_EVENT {kind}, data {data:x?}"),
            Exit::Tdx { nr, ret, values: [first, second] } => {
                write!(f, "TDX {nr:#x}, answer {ret:#x}, values {first:#x} {second:#x}")
            }
            Exit::DirtyRingFull => f.write_str("DIRTY_RING_FULL"),
            Exit::CertificatesWanted { gpa, pages } => write!(f, "SNP_REQ_CERTS of {pages} pages at gpa {gpa}"),
            Exit::Refused { errno } => write!(f, "KVM_RUN refused: {errno:?}"),
            Exit::Failed { errno: Errno::EIO, reason: kvm_bindings::KVM_EXIT_UNKNOWN } => f.write_str(
                "KVM_RUN failed: EIO without an exit: KVM has given up the VM; it does so with a TD that has accessed a page \
                 before accepting it, with SEPT_VE_DISABLE",
            ),
            Exit::Failed { errno, reason } => write!(f, "KVM_RUN failed: {errno:?}, exit reason {reason}"),
            Exit::Other { reason } => write!(f, "exit reason {reason}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::mapping::Mapping;
    use crate::units::PAGE_SIZE;

    /// A kvm_run page with an exit reason and the start of the exit union.
    fn page(reason: u32, union: &[u8]) -> RunPage {
        let mapping = Mapping::anonymous(3 * PAGE_SIZE).unwrap();
        mapping.write(8, &reason.to_le_bytes()).unwrap();
        mapping.write(EXIT, union).unwrap();
        RunPage::new(mapping).unwrap()
    }

    fn words(words: &[u64]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    fn decode(returned: Result<(), Errno>, reason: u32, union: &[u8]) -> Exit {
        Exit::decode(returned, &page(reason, union)).unwrap()
    }

    #[test]
    fn what_a_td_asks_is_told_with_the_answer_so_far() {
        let asked = Exit::Tdx { nr: 0x1_0002, ret: 1 << 63 | 3, values: [0x10_0000, 0x1000] };
        assert_eq!(decode(Ok(()), 40, &words(&[0, 0x1_0002, 1 << 63 | 3, 0x10_0000, 0x1000])), asked);
        let notified = Exit::Tdx { nr: SETUP_EVENT_NOTIFY, ret: 1 << 63 | 3, values: [0x20, 0] };
        assert_eq!(decode(Ok(()), 40, &words(&[0, SETUP_EVENT_NOTIFY, 1 << 63 | 3, 0x20, 0x5a5a])), notified);
    }

    #[test]
    fn a_vm_that_is_given_up_says_so() {
        let died = decode(Err(Errno::EIO), 0, &[]);
        assert_eq!(died, Exit::Failed { errno: Errno::EIO, reason: 0 });
        assert!(died.to_string().contains("before accepting it"), "{died}");
    }

    #[test]
    fn a_memory_fault_needs_a_documented_errno() {
        let union = words(&[MEMORY_EXIT_FLAG_PRIVATE, 0x10_0000, 0x1000, 0xBAD]);
        let (gpa, size, flags) = (Gpa(0x10_0000), 0x1000, MEMORY_EXIT_FLAG_PRIVATE);
        assert_eq!(decode(Err(Errno::EFAULT), 39, &union), Exit::memory_fault(gpa, true));
        let poisoned = Exit::MemoryFault { errno: Errno::EHWPOISON, flags, gpa, size };
        assert_eq!(decode(Err(Errno::EHWPOISON), 39, &union), poisoned);
        let undocumented = Exit::Failed { errno: Errno::ENOMEM, reason: 39 };
        assert_eq!(decode(Err(Errno::ENOMEM), 39, &union), undocumented);
        assert_eq!(decode(Ok(()), 39, &union), Exit::Other { reason: 39 });
    }

    #[test]
    fn a_failure_is_told_apart_by_what_became_of_the_sentinel() {
        assert_eq!(decode(Err(Errno::EINVAL), SENTINEL, &[]), Exit::Refused { errno: Errno::EINVAL });
        assert_eq!(decode(Err(Errno::EFAULT), 0, &[]), Exit::Failed { errno: Errno::EFAULT, reason: 0 });
        for reason in [SENTINEL, 0, 10] {
            assert_eq!(decode(Err(Errno::EINTR), reason, &[]), Exit::Interrupted);
        }
        assert_eq!(decode(Err(Errno::EINTR), 39, &[]), Exit::Failed { errno: Errno::EINTR, reason: 39 });
        assert_eq!(decode(Ok(()), SENTINEL, &[]), Exit::Other { reason: SENTINEL });
    }

    #[test]
    fn a_hypercall_has_all_its_arguments() {
        let union = words(&[12, 0x20_0000, 512, 0x10, 4, 5, 6, 0xAAAA, 1]);
        let exit = Exit::Hypercall { nr: 12, args: [0x20_0000, 512, 0x10], flags: 1 };
        assert_eq!(decode(Ok(()), 3, &union), exit);
    }

    #[test]
    fn mmio_data_is_cut_to_its_length() {
        for (len, data) in [(1, 0x88), (2, 0x7788), (4, 0x5566_7788), (8, 0x1122_3344_5566_7788)] {
            let mut union = words(&[0xF000_0000, 0x1122_3344_5566_7788, len]);
            union[20] = 1;
            let len = len as u32;
            assert_eq!(decode(Ok(()), 6, &union), Exit::Mmio { gpa: Gpa(0xF000_0000), len, write: Some(data) });
            union[20] = 0;
            assert_eq!(decode(Ok(()), 6, &union), Exit::Mmio { gpa: Gpa(0xF000_0000), len, write: None });
        }
    }

    #[test]
    fn string_output_has_every_element() {
        let page = page(2, &words(&[0x0000_0003_0080_0201, PAGE_SIZE]));
        page.bytes().write(PAGE_SIZE, &[1, 2, 3, 4, 5, 6, 7]).unwrap();
        let data = vec![1, 2, 3, 4, 5, 6];
        let exit = Exit::Io { port: 0x80, direction: Direction::Out, size: 2, count: 3, data };
        assert_eq!(Exit::decode(Ok(()), &page), Ok(exit));
    }

    #[test]
    fn port_data_outside_of_the_page_is_an_error() {
        let page = page(2, &words(&[0x0000_0001_0080_0101, 3 * PAGE_SIZE]));
        let Err(Stop::Error(line)) = Exit::decode(Ok(()), &page) else { panic!("the page has three pages") };
        assert!(line.contains("port 0x80") && line.contains("0x3000"), "{line}");
    }

    #[test]
    fn errors_and_events_carry_as_many_words_as_they_say() {
        let union = words(&[1 | 2 << 32, 7, 8, 9]);
        assert_eq!(decode(Ok(()), 17, &union), Exit::InternalError { suberror: 1, data: vec![7, 8] });
        assert_eq!(decode(Ok(()), 24, &union), Exit::SystemEvent { kind: 1, data: vec![7, 8] });
        let wanted = Exit::CertificatesWanted { gpa: Gpa(0x5000), pages: 4 };
        assert_eq!(decode(Ok(()), 43, &words(&[0x5000, 4, 0])), wanted);
        assert_eq!(
            decode(Ok(()), 9, &words(&[0x8000_0021, 3])),
            Exit::FailEntry { hardware_reason: 0x8000_0021, cpu: 3 }
        );
    }

    proptest! {
        #[test]
        fn any_page_is_understood_or_refused_in_one_line(
            errno in prop_oneof![Just(0), 1..134i32],
            reason in prop_oneof![0..50u32, Just(SENTINEL), any::<u32>()],
            union in proptest::collection::vec(any::<u8>(), EXIT_LEN as usize),
        ) {
            let returned = if errno == 0 { Ok(()) } else { Err(Errno::from_raw(errno)) };
            let line = match Exit::decode(returned, &page(reason, &union)) {
                Ok(exit) => exit.to_string(),
                Err(stop) => stop.to_string(),
            };
            prop_assert!(!line.is_empty() && !line.contains('\n') && line.len() < 500, "{}", line);
        }
    }
}
