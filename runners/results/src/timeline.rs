//! What happened in a row, read from the lines of its report: exits by vCPU, steps of the host, the kernel's log.

/// What happened, in order.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Timeline {
    /// The lanes: vCPUs of VMs, in the order of their names. The host has its own.
    pub vcpus: Vec<(u64, u64)>,
    /// Exits and steps of the host, by time.
    pub events: Vec<Event>,
    /// What the kernel logged, in order.
    pub kernel_log: Vec<String>,
    /// What else the row or its worker said.
    pub other: Vec<String>,
}

/// An exit, or a step of the host.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Event {
    /// When, in microseconds since the row began.
    pub at_us: u64,
    /// On which vCPU, as an index into [`Timeline::vcpus`]; none for the host.
    pub vcpu: Option<usize>,
    /// What kind.
    pub kind: EventKind,
    /// The number of the exit, or nothing for the host.
    pub number: Option<u64>,
    /// What it was, in a line.
    pub what: String,
    /// The guest's instruction, where it is known.
    pub instruction: Option<String>,
}

/// Kinds of events, which look different in the picture.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum EventKind {
    /// The guest asks for a conversion, or the host converts.
    Conversion,
    /// The guest faults on private memory.
    MemoryFault,
    /// The payload has done what it was told.
    Done,
    /// Another exit.
    Exit,
    /// The host changes a VM's memory.
    HostStep,
}

impl EventKind {
    /// All of them.
    pub const ALL: [EventKind; 5] =
        [EventKind::Conversion, EventKind::MemoryFault, EventKind::Exit, EventKind::Done, EventKind::HostStep];

    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            EventKind::Conversion => "conversion",
            EventKind::MemoryFault => "memory fault",
            EventKind::Done => "operation done",
            EventKind::Exit => "other exit",
            EventKind::HostStep => "host step",
        }
    }
}

impl Timeline {
    /// Reads the lines of a report.
    pub fn of(details: &[String]) -> Self {
        let mut timeline = Self::default();
        let mut lanes: Vec<Option<(u64, u64)>> = Vec::new();
        for line in details {
            if let Some((lane, event)) = exit(line).or_else(|| host_step(line)) {
                lanes.push(lane);
                timeline.events.push(event);
            } else if let Some(text) = line.strip_prefix("kernel log: ") {
                timeline.kernel_log.push(text.to_owned());
            } else {
                timeline.other.push(line.clone());
            }
        }
        timeline.vcpus = lanes.iter().flatten().copied().collect();
        timeline.vcpus.sort_unstable();
        timeline.vcpus.dedup();
        for (event, lane) in timeline.events.iter_mut().zip(lanes) {
            event.vcpu = lane.and_then(|lane| timeline.vcpus.binary_search(&lane).ok());
        }
        timeline.events.sort_by_key(|event| event.at_us);
        timeline
    }
}

/// `exit 2 +84509 us vm 1 vcpu 0: Convert 0x1000 ...: HYPERCALL 12 (...) at rip 0x1002d6 ...`.
fn exit(line: &str) -> Option<(Option<(u64, u64)>, Event)> {
    let (number, rest) = line.strip_prefix("exit ")?.split_once(" +")?;
    let (at_us, rest) = rest.split_once(" us vm ")?;
    let (vm, rest) = rest.split_once(" vcpu ")?;
    let (vcpu, rest) = rest.split_once(": ")?;
    let (what, instruction) = match rest.rsplit_once(" at rip ") {
        Some((what, at)) => (what, at.split('`').nth(1)),
        None => (rest, None),
    };
    let kind = match () {
        () if what.ends_with(": done") => EventKind::Done,
        () if what.contains("HYPERCALL 12") => EventKind::Conversion,
        () if what.contains("MEMORY_FAULT") => EventKind::MemoryFault,
        () => EventKind::Exit,
    };
    let event = Event {
        at_us: at_us.parse().ok()?,
        vcpu: None,
        kind,
        number: Some(number.parse().ok()?),
        what: what.to_owned(),
        instruction: instruction.map(str::to_owned),
    };
    Some((Some((vm.parse().ok()?, vcpu.parse().ok()?)), event))
}

/// `host +84600 us vm 1: SET_MEMORY_ATTRIBUTES private, ...`.
fn host_step(line: &str) -> Option<(Option<(u64, u64)>, Event)> {
    let (at_us, rest) = line.strip_prefix("host +")?.split_once(" us ")?;
    let kind = match rest.contains("SET_MEMORY_ATTRIBUTES") {
        true => EventKind::Conversion,
        false => EventKind::HostStep,
    };
    let at_us = at_us.parse().ok()?;
    Some((None, Event { at_us, vcpu: None, kind, number: None, what: rest.to_owned(), instruction: None }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<String> {
        text.lines().map(|line| line.trim().to_owned()).collect()
    }

    #[test]
    fn lines_become_events_in_lanes() {
        let timeline = Timeline::of(&lines(
            "exit 1 +10 us vm 1 vcpu 1: Nop: done
             host +12 us vm 1: SET_MEMORY_ATTRIBUTES private, gpa 0x1000, 0x1000 bytes
             exit 2 +11 us vm 1 vcpu 0: Convert 0x1 0x1: HYPERCALL 12 (0x1, 0x1, 0x10), flags 0x1 at rip 0x1002d6 `vmmcall`
             kernel log: [    1.000002] WARNING: it broke
             stderr: exit 3
             host +13 us vm 1: PUNCH_HOLE offset 0x0, 0x1000 bytes: EINVAL",
        ));
        assert_eq!(timeline.vcpus, [(1, 0), (1, 1)]);
        let told: Vec<_> = timeline.events.iter().map(|event| (event.at_us, event.vcpu, event.kind)).collect();
        assert_eq!(
            told,
            [
                (10, Some(1), EventKind::Done),
                (11, Some(0), EventKind::Conversion),
                (12, None, EventKind::Conversion),
                (13, None, EventKind::HostStep)
            ]
        );
        assert_eq!(timeline.events[1].instruction.as_deref(), Some("vmmcall"));
        assert_eq!(timeline.kernel_log, ["[    1.000002] WARNING: it broke"]);
        assert_eq!(timeline.other, ["stderr: exit 3"]);
    }

    #[test]
    fn what_only_looks_like_an_event_is_told_as_it_is() {
        for line in ["exit", "exit x +1 us vm 1 vcpu 0: HLT", "exit 1 +1 us vm 1: HLT", "host +x us vm 1: y", "host"] {
            assert_eq!(Timeline::of(&[line.to_owned()]).other, [line]);
        }
    }
}
