//! A range of guest memory that a row tests: two aliases in the guest, two backings on the host.

use std::ops::Range;
use std::sync::Arc;

use privet_protocol::{Pattern, Sharing};

use crate::guest_memfd::GuestMemfd;
use crate::mapping::Mapping;
use crate::memslot::SlotSpec;
use crate::outcome::{Outcome, Stop};
use crate::units::{Gpa, Gva, PAGE_SIZE, PageCount};
use crate::vm::Vm;

/// GPA of the first test range: above 4 GiB, where nothing else lives.
pub const TEST_BASE: Gpa = Gpa(0x1_0000_0000);

/// The bit of a GVA that tells the shared alias of a test range from its private alias. In a UPM VM both map
/// the same GPA; in SEV and TDX VMs the C-bit or the shared bit makes the difference.
pub(crate) const SHARED_ALIAS: u64 = 1 << 39;

/// Where a guest maps a GPA of a test range as shared memory.
pub fn shared_alias(gpa: Gpa) -> Gva {
    Gva(gpa.0 | SHARED_ALIAS)
}

/// First slot id of test ranges; smaller ids belong to the guest's own memory.
pub const TEST_SLOT: u32 = 10;

/// What is behind the slots of a test range.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Backing {
    /// Host memory only: no guest_memfd.
    HostOnly,
    /// Host memory for shared accesses, a guest_memfd for private ones.
    HostAndGuestMemfd,
    /// One guest_memfd that the host maps too (`GUEST_MEMFD_FLAG_MMAP | INIT_SHARED`).
    MappedGuestMemfd,
}

/// Where a test range lies and what is behind it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RangeSpec {
    /// First byte.
    pub gpa: Gpa,
    /// Length.
    pub pages: PageCount,
    /// How many memslots it is cut into, all over one guest_memfd.
    pub slots: u32,
    /// What is behind it.
    pub backing: Backing,
}

impl RangeSpec {
    /// `pages` at [`TEST_BASE`] in one slot with both backings.
    pub fn new(pages: u64) -> Self {
        Self { gpa: TEST_BASE, pages: PageCount(pages), slots: 1, backing: Backing::HostAndGuestMemfd }
    }

    /// The same over `slots` memslots.
    pub fn slots(self, slots: u32) -> Self {
        Self { slots, ..self }
    }

    /// The same with another backing.
    pub fn backing(self, backing: Backing) -> Self {
        Self { backing, ..self }
    }

    /// The same at another address.
    pub fn at(self, gpa: Gpa) -> Self {
        Self { gpa, ..self }
    }
}

/// A test range with its memslots in a VM.
pub struct TestRange {
    spec: RangeSpec,
    host: Arc<Mapping>,
    gmem: Option<Arc<GuestMemfd>>,
    slots: Vec<SlotSpec>,
}

impl TestRange {
    /// Allocates the backings of `spec` and installs its slots, the first with id `first_slot`.
    ///
    /// # Errors
    /// [`Stop::Error`] if the host cannot provide the memory, [`Stop::Fail`] if KVM refuses it.
    pub fn install(vm: &Vm, spec: RangeSpec, first_slot: u32) -> Outcome<Self> {
        let (host, gmem) = backings(vm, spec)?;
        let mut slots = Vec::new();
        let each = spec.pages.0 / u64::from(spec.slots);
        for index in 0..u64::from(spec.slots) {
            let last = index + 1 == u64::from(spec.slots);
            let pages = PageCount(if last { spec.pages.0 - index * each } else { each });
            let offset = index * each * PAGE_SIZE;
            slots.push(SlotSpec {
                slot: first_slot + index as u32,
                gpa: spec.gpa + offset,
                pages,
                mapping: Some(host.clone()),
                mapping_offset: offset,
                gmem: gmem.clone().map(|file| (file, offset)),
                flags: 0,
            });
        }
        for slot in &slots {
            vm.add_slot(slot.clone())?;
        }
        Ok(Self { spec, host, gmem, slots })
    }

    /// The length in pages.
    pub fn pages(&self) -> u64 {
        self.spec.pages.0
    }

    /// All pages, as the page indices that the other methods take.
    pub fn all(&self) -> Range<u64> {
        0..self.pages()
    }

    /// The GPA of page `page`.
    pub fn gpa(&self, page: u64) -> Gpa {
        self.spec.gpa + PageCount(page)
    }

    /// The GVA of page `page` in the private alias.
    pub fn private_gva(&self, page: u64) -> Gva {
        Gva(self.gpa(page).0)
    }

    /// The GVA of page `page` in the shared alias.
    pub fn shared_gva(&self, page: u64) -> Gva {
        shared_alias(self.gpa(page))
    }

    /// The GVA of page `page` in the alias of this kind.
    pub fn gva(&self, sharing: Sharing, page: u64) -> Gva {
        match sharing {
            Sharing::Private => self.private_gva(page),
            Sharing::Shared => self.shared_gva(page),
        }
    }

    /// The host's shared view.
    pub fn host(&self) -> &Arc<Mapping> {
        &self.host
    }

    /// The guest_memfd behind the range.
    ///
    /// # Errors
    /// [`Stop::Error`] if the range has none: an error of the row.
    pub fn gmem(&self) -> Outcome<&Arc<GuestMemfd>> {
        self.gmem.as_ref().ok_or_else(|| Stop::Error("this test range has no guest_memfd".into()))
    }

    /// The memslots as they were installed, in the order of their addresses.
    pub fn slots(&self) -> &[SlotSpec] {
        &self.slots
    }

    /// Gives the guest_memfd away, for rows that close it under a guest or keep it longer than the VM. The
    /// slots stay as KVM has them.
    ///
    /// # Errors
    /// [`Stop::Error`] if the range has none, or if somebody else holds it too.
    pub fn take_gmem(&mut self) -> Outcome<GuestMemfd> {
        for slot in &mut self.slots {
            slot.gmem = None;
        }
        self.gmem
            .take()
            .and_then(Arc::into_inner)
            .ok_or_else(|| Stop::Error("the guest_memfd is not the range's own".into()))
    }

    /// Deletes all slots and installs them again: backings and attributes stay, every mapping in the guest is
    /// made anew on its next use. Not while a vCPU uses the range.
    ///
    /// # Errors
    /// [`Stop::Fail`] if KVM refuses.
    pub fn reinstall(&self, vm: &Vm) -> Outcome {
        for slot in &self.slots {
            vm.delete_slot(slot.slot)?;
        }
        self.slots.iter().try_for_each(|slot| vm.add_slot(slot.clone()).map(drop))
    }

    /// Fills pages of the host's shared view: every word of page `i` becomes `pattern.word(i)`.
    ///
    /// # Errors
    /// [`Stop::Error`] if the host's view cannot be accessed there.
    pub fn host_fill(&self, pages: Range<u64>, pattern: Pattern) -> Outcome {
        pages.into_iter().try_for_each(|page| self.host.fill_words(page * PAGE_SIZE, PAGE_SIZE, pattern.word(page)))
    }

    /// Expects every word of pages of the host's shared view to be what `pattern` says.
    ///
    /// # Errors
    /// [`Stop::Fail`] with the first word that differs.
    pub fn host_expect(&self, pages: Range<u64>, pattern: Pattern) -> Outcome {
        for page in pages {
            let word = pattern.word(page);
            if let Some((offset, seen)) = self.host.first_word_other_than(page * PAGE_SIZE, PAGE_SIZE, word)? {
                return Err(Stop::Fail(format!(
                    "the host's shared view at gpa {} holds {seen:#x}, expected {word:#x} (pattern {:#x}, page {page})",
                    self.spec.gpa + offset,
                    pattern.0
                )));
            }
        }
        Ok(())
    }

    /// Expects no word of pages of the host's shared view to be what `pattern` says: what is there is encrypted.
    ///
    /// # Errors
    /// [`Stop::Fail`] with the first word that is.
    pub fn host_expect_not(&self, pages: Range<u64>, pattern: Pattern) -> Outcome {
        for page in pages {
            let word = pattern.word(page);
            if let Some(offset) = self.host.first_word_equal_to(page * PAGE_SIZE, PAGE_SIZE, word)? {
                return Err(Stop::Fail(format!(
                    "the host's shared view at gpa {} holds {word:#x} (pattern {:#x}, page {page}), expected ciphertext",
                    self.spec.gpa + offset,
                    pattern.0
                )));
            }
        }
        Ok(())
    }

    /// Allocates pages in the guest_memfd, as VMMs do when a page becomes private.
    pub fn allocate(&self, pages: Range<u64>) -> Outcome {
        let (offset, len) = bytes(pages);
        self.gmem()?.allocate(offset, len)
    }

    /// Punches pages out of the guest_memfd, as VMMs do when a page becomes shared.
    pub fn punch(&self, pages: Range<u64>) -> Outcome {
        let (offset, len) = bytes(pages);
        self.gmem()?.punch(offset, len)
    }

    /// Sets the private attribute of pages.
    pub fn set_private(&self, vm: &Vm, pages: Range<u64>) -> Outcome {
        vm.set_private(self.gpa(pages.start), PageCount(pages.end - pages.start))
    }

    /// Clears the private attribute of pages.
    pub fn set_shared(&self, vm: &Vm, pages: Range<u64>) -> Outcome {
        vm.set_shared(self.gpa(pages.start), PageCount(pages.end - pages.start))
    }
}

fn backings(vm: &Vm, spec: RangeSpec) -> Outcome<(Arc<Mapping>, Option<Arc<GuestMemfd>>)> {
    let bytes = spec.pages.bytes();
    Ok(match spec.backing {
        Backing::HostOnly => (Arc::new(Mapping::anonymous(bytes)?), None),
        Backing::HostAndGuestMemfd => (Arc::new(Mapping::anonymous(bytes)?), Some(vm.create_guest_memfd(bytes, 0)?)),
        Backing::MappedGuestMemfd => {
            let (mapping, file) = vm.mapped_guest_memfd(bytes)?;
            (Arc::new(mapping), Some(file))
        }
    })
}

fn bytes(pages: Range<u64>) -> (u64, u64) {
    (pages.start * PAGE_SIZE, (pages.end - pages.start) * PAGE_SIZE)
}
