//! Group `classify`: how KVM takes an access of a guest for private or shared, and what becomes of it. The truth table of
//! each VM type with private memory is here, as data: its rows tell it, and [`truth_table`] shows it.

use privet_harness::case::Case;
use privet_harness::exit::Exit;
use privet_harness::guest_vcpu::GuestVcpu;
use privet_harness::outcome::{Outcome, Stop};
use privet_harness::platform::Platform;
use privet_harness::test_range::{Backing, RangeSpec, TEST_SLOT, TestRange};
use privet_protocol::{Fault, Op, Pattern, Sharing, Values, Width};

use crate::expect::{expect_eq, expect_no_exit_but};
use crate::row::Row;
use crate::types::Types;

const FAULTIN: &str = "arch/x86/kvm/mmu/mmu.c: kvm_mmu_faultin_pfn, kvm_handle_noslot_fault, kvm_mmu_faultin_pfn_gmem";
const KINDS: &str = "arch/x86/kvm/mmu/mmu.c: kvm_mmu_page_fault; svm/svm.c: npf_interception; vmx/common.h: \
                     __vmx_handle_ept_violation";

const HOST: Pattern = Pattern(0xaa);
const VALUE: u64 = 0x5a5a;

/// What is at the address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Behind {
    /// A slot with host memory and a guest_memfd.
    GuestMemfd,
    /// A slot with host memory only.
    HostMemory,
    /// No slot.
    Nothing,
}

/// What becomes of the access.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// It is one to the host's memory.
    Host,
    /// It is one to the guest_memfd.
    GuestMemfd,
    /// The page comes from the guest_memfd, and the guest takes #VC with error code 0x404: it has not validated it.
    NotValidated,
    /// The page comes from the guest_memfd, and the TD takes #VE: it has not accepted it.
    NotAccepted,
    /// `KVM_EXIT_MEMORY_FAULT`, with the flag PRIVATE or without.
    MemoryFault(Sharing),
    /// `KVM_EXIT_MMIO`.
    Mmio,
    /// The guest takes #VC or #VE, and asks for MMIO.
    MmioByTheGuest,
}

impl Fate {
    /// In a few characters.
    pub fn short(self) -> &'static str {
        match self {
            Fate::Host => "map(hva)",
            Fate::GuestMemfd => "map(gmem)",
            Fate::NotValidated => "map(gmem), #VC 0x404",
            Fate::NotAccepted => "map(gmem), #VE",
            Fate::MemoryFault(Sharing::Private) => "MF(8)",
            Fate::MemoryFault(Sharing::Shared) => "MF(0)",
            Fate::Mmio => "MMIO",
            Fate::MmioByTheGuest => "#VC/#VE, MMIO",
        }
    }
}

/// A place in the truth table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cell {
    /// How the guest accesses the page.
    pub access: Sharing,
    /// The attribute of the page.
    pub attribute: Sharing,
    /// What is at the address.
    pub behind: Behind,
}

/// The VM types that have a truth table.
pub const CLASSIFIED: [Platform; 3] = [Platform::Upm, Platform::Snp, Platform::Tdx];

const KINDS_OF_ACCESS: [Sharing; 2] = [Sharing::Private, Sharing::Shared];
const BEHIND: [Behind; 3] = [Behind::GuestMemfd, Behind::HostMemory, Behind::Nothing];

impl Cell {
    /// All places, line by line.
    pub fn all() -> impl Iterator<Item = Cell> {
        let lines = KINDS_OF_ACCESS.into_iter().flat_map(|access| KINDS_OF_ACCESS.map(|attribute| (access, attribute)));
        lines.flat_map(|(access, attribute)| BEHIND.map(|behind| Cell { access, attribute, behind }))
    }

    /// The name of its row.
    pub fn row(self) -> String {
        let kind = |sharing| if sharing == Sharing::Private { "private" } else { "shared" };
        let behind = match self.behind {
            Behind::GuestMemfd => "guest_memfd",
            Behind::HostMemory => "host_memory",
            Behind::Nothing => "nothing",
        };
        format!("classify.{}_access.{}_attribute.{behind}", kind(self.access), kind(self.attribute))
    }

    /// What becomes of reads and writes in a VM of this type; none where there is no such access: what is private in a UPM VM
    /// is said by the attribute, and not by the guest.
    pub fn fate(self, platform: Platform) -> Option<Fate> {
        let is_upm = platform == Platform::Upm;
        Some(match (self.access, self.attribute, self.behind) {
            (access, attribute, _) if access != attribute && is_upm => return None,
            (access, attribute, _) if access != attribute => Fate::MemoryFault(access),
            (Sharing::Private, _, Behind::GuestMemfd) => match platform {
                Platform::Snp => Fate::NotValidated,
                Platform::Tdx => Fate::NotAccepted,
                _ => Fate::GuestMemfd,
            },
            (Sharing::Private, ..) => Fate::MemoryFault(Sharing::Private),
            (Sharing::Shared, _, Behind::Nothing) if is_upm => Fate::Mmio,
            (Sharing::Shared, _, Behind::Nothing) => Fate::MmioByTheGuest,
            (Sharing::Shared, ..) => Fate::Host,
        })
    }
}

/// The truth tables side by side, as a page in Markdown. Each place is a row of the table.
pub fn truth_table() -> String {
    let mut page = String::from(
        "# What becomes of a guest's access\n\n\
         Reads and writes of a page, by kind of access, attribute and what is at the address. MF(8) and MF(0) are\n\
         KVM_EXIT_MEMORY_FAULT with and without the flag PRIVATE. Each place is one row, by the name in its line behind the\n\
         type: `privet run upm.classify snp.classify`.\n\n\
         | access | attribute | at the address |",
    );
    for platform in CLASSIFIED {
        page += &format!(" {} |", platform.vm_type());
    }
    page += " row |\n|---|---|---|---|---|---|---|\n";
    for cell in Cell::all() {
        let kind = |sharing| if sharing == Sharing::Private { "private" } else { "shared" };
        let behind = match cell.behind {
            Behind::GuestMemfd => "slot with guest_memfd",
            Behind::HostMemory => "slot without",
            Behind::Nothing => "no slot",
        };
        page += &format!("| {} | {} | {behind} |", kind(cell.access), kind(cell.attribute));
        for platform in CLASSIFIED {
            page += &format!(" {} |", cell.fate(platform).map_or("-", Fate::short));
        }
        page += &format!(" {} |\n", cell.row());
    }
    page
}

pub(crate) fn rows() -> Vec<Row> {
    let row = |cell: Cell| {
        // Where no type but one says by itself what is private, the attribute does.
        let types =
            if cell.access == cell.attribute { Types::WITH_PRIVATE_MEMORY } else { Types::WITH_PRIVATE_ACCESSES };
        let about = match cell.behind {
            Behind::GuestMemfd => {
                "A read and a write of this kind, of pages with this attribute in a slot with a guest_memfd, end as the truth \
                 table of the VM type says."
            }
            Behind::HostMemory => {
                "A read and a write of this kind, of pages with this attribute in a slot without a guest_memfd, end as the \
                 truth table of the VM type says."
            }
            Behind::Nothing => {
                "A read and a write of this kind, of pages with this attribute where no slot is, end as the truth table of \
                 the VM type says."
            }
        };
        Row::new(cell.row(), types, about, move |t| classify(t, cell)).basis(&[FAULTIN, KINDS])
    };
    Cell::all().map(row).collect()
}

fn classify(t: &Case, cell: Cell) -> Outcome {
    let platform = t.platform();
    let fate = cell.fate(platform).ok_or_else(|| Stop::Error(format!("{platform:?} has no such access")))?;
    let backing = if cell.behind == Behind::HostMemory { Backing::HostOnly } else { Backing::HostAndGuestMemfd };
    let g = t.guest().vcpus(2).range(RangeSpec::new(2).backing(backing)).boot()?;
    let range = g.range(0);
    range.host_fill(range.all(), HOST)?;
    if cell.attribute == Sharing::Private {
        range.set_private(g.vm(), range.all())?;
    }
    if cell.behind == Behind::Nothing {
        g.vm().delete_slot(TEST_SLOT)?;
    }
    // A vCPU and a page for each: none is mapped before.
    let gva = |page| range.gva(cell.access, page).0;
    let read = Op::Read { gva: gva(0), width: Width::B8 };
    let write = Op::Write { gva: gva(1), width: Width::B8, value: VALUE };
    let exits = t.trace().exits();
    match fate {
        Fate::Host => {
            expect_eq("what was read", &g.vcpu(0).call(read)?[0], &HOST.word(0))?;
            g.vcpu(1).call(write)?;
            expect_no_exit_but(t, exits, 2)?;
            expect_eq("the word in the host's view", &word(range, 1)?, &VALUE)
        }
        Fate::GuestMemfd => {
            expect_eq("what was read", &g.vcpu(0).call(read)?[0], &0)?;
            g.vcpu(1).call(write)?;
            expect_no_exit_but(t, exits, 2)?;
            expect_eq("the word in the host's view", &word(range, 1)?, &HOST.word(1))
        }
        Fate::NotValidated | Fate::NotAccepted => {
            let expected = if fate == Fate::NotValidated { (29, 0x404) } else { (20, 0) };
            for (index, op) in [read, write].into_iter().enumerate() {
                expect_eq("vector and error code", &exception(g.vcpu(index).attempt(op)?), &Some(expected))?;
            }
            expect_no_exit_but(t, exits, 2)
        }
        Fate::MemoryFault(kind) => {
            let fault = |page| Exit::memory_fault(range.gpa(page), kind == Sharing::Private);
            expect_leaves(g.vcpu(0), read, &fault(0))?;
            expect_leaves(g.vcpu(1), write, &fault(1))
        }
        Fate::Mmio | Fate::MmioByTheGuest => {
            expect_leaves(g.vcpu(0), read, &Exit::Mmio { gpa: range.gpa(0), len: 8, write: None })?;
            expect_leaves(g.vcpu(1), write, &Exit::Mmio { gpa: range.gpa(1), len: 8, write: Some(VALUE) })
        }
    }
}

/// The first word of a page in the host's view.
fn word(range: &TestRange, page: u64) -> Outcome<u64> {
    range.host().read_u64(page * privet_harness::units::PAGE_SIZE)
}

fn exception(ended: Result<Values, Fault>) -> Option<(u64, u64)> {
    ended.err().map(|fault| (fault.vector, fault.error_code))
}

fn expect_leaves(vcpu: &GuestVcpu, op: Op, exit: &Exit) -> Outcome {
    vcpu.start(op)?.expect_exit(exit)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The kernel's truth tables, as read in its source by somebody who has not written the rows: access, attribute, then what
    /// becomes of it in a slot with a guest_memfd, in one without, and without a slot.
    const FACTS: [(Platform, [&str; 5]); 10] = [
        (Platform::Upm, ["P", "P", "map(gmem)", "MF(8)", "MF(8)"]),
        (Platform::Upm, ["S", "S", "map(hva)", "map(hva)", "MMIO"]),
        (Platform::Snp, ["P", "P", "map(gmem), #VC 0x404", "MF(8)", "MF(8)"]),
        (Platform::Snp, ["P", "S", "MF(8)", "MF(8)", "MF(8)"]),
        (Platform::Snp, ["S", "P", "MF(0)", "MF(0)", "MF(0)"]),
        (Platform::Snp, ["S", "S", "map(hva)", "map(hva)", "#VC/#VE, MMIO"]),
        (Platform::Tdx, ["P", "P", "map(gmem), #VE", "MF(8)", "MF(8)"]),
        (Platform::Tdx, ["P", "S", "MF(8)", "MF(8)", "MF(8)"]),
        (Platform::Tdx, ["S", "P", "MF(0)", "MF(0)", "MF(0)"]),
        (Platform::Tdx, ["S", "S", "map(hva)", "map(hva)", "#VC/#VE, MMIO"]),
    ];

    fn kind(letter: &str) -> Sharing {
        if letter == "P" { Sharing::Private } else { Sharing::Shared }
    }

    #[test]
    fn the_truth_tables_are_the_kernels() {
        let mut told = 0;
        for (platform, [access, attribute, fates @ ..]) in FACTS {
            for (behind, expected) in BEHIND.into_iter().zip(fates) {
                let cell = Cell { access: kind(access), attribute: kind(attribute), behind };
                assert_eq!(cell.fate(platform).map(Fate::short), Some(expected), "{platform:?} {cell:?}");
                told += 1;
            }
        }
        let all = CLASSIFIED.into_iter().flat_map(|platform| Cell::all().filter_map(move |cell| cell.fate(platform)));
        assert_eq!(all.count(), told, "nothing is told that is in no facts");
    }

    #[test]
    fn each_place_is_a_row_of_its_types_and_no_other() {
        let ids: Vec<String> = crate::table().into_iter().map(|entry| entry.id).collect();
        for platform in CLASSIFIED {
            for cell in Cell::all() {
                let id = format!("{}.{}", platform.vm_type(), cell.row());
                assert_eq!(ids.contains(&id), cell.fate(platform).is_some(), "{id}");
            }
        }
        assert_eq!(ids.iter().filter(|id| id.contains(".classify.")).count(), 30);
    }

    #[test]
    fn the_page_has_a_line_for_each_place() {
        let page = truth_table();
        assert!(page.contains("| access | attribute | at the address | upm | snp | tdx | row |"), "{page}");
        let line =
            "| private | shared | no slot | - | MF(8) | MF(8) | classify.private_access.shared_attribute.nothing |";
        assert!(page.contains(line), "{page}");
        assert_eq!(page.lines().filter(|line| line.contains("classify.")).count(), 12);
    }
}
