//! Requests through the GHCB that a row makes word by word, well-formed or not (GHCB specification 56421, 2.3 and 4).
//!
//! The row prepares the page in shared memory; the guest exchanges it with its own GHCB around one VMGEXIT.

use privet_protocol::Op;

use crate::guest::Guest;
use crate::guest_vcpu::Running;
use crate::launch::ghcb;
use crate::outcome::Outcome;
use crate::test_range::TestRange;
use crate::units::{Gpa, PAGE_SIZE};

/// A field of the page: the index of its word, which is the number of its valid bit, too.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Field(usize);

impl Field {
    /// CPL, a byte, of which all eight are the field here.
    pub const CPL: Field = Field(0xc8 / 8);
    /// RAX.
    pub const RAX: Field = Field(0x1f8 / 8);
    /// RBX.
    pub const RBX: Field = Field(0x318 / 8);
    /// RCX.
    pub const RCX: Field = Field(0x308 / 8);
    /// RDX.
    pub const RDX: Field = Field(0x310 / 8);
    /// SW_EXITCODE.
    pub const EXIT_CODE: Field = Field(0x390 / 8);
    /// SW_EXITINFO1.
    pub const EXIT_INFO_1: Field = Field(0x398 / 8);
    /// SW_EXITINFO2.
    pub const EXIT_INFO_2: Field = Field(0x3a0 / 8);
    /// SW_SCRATCH.
    pub const SCRATCH: Field = Field(0x3a8 / 8);
    /// XCR0.
    pub const XCR0: Field = Field(0x3e8 / 8);
}

const VALID_BITMAP: usize = 0x3f0 / 8;
const BUFFER: usize = 0x800 / 8;
/// The last word: the version of the protocol in bits 31:16, the usage of the page in bits 63:32.
const VERSION_AND_USAGE: usize = 0xff8 / 8;
const VERSION_2: u64 = 2 << 16;
const WORDS: usize = PAGE_SIZE as usize / 8;

/// The page, before a request or after it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Page {
    words: Box<[u64; WORDS]>,
}

impl Page {
    /// A request with this code, SW_EXITINFO1 and 2.
    pub fn request(code: u64, info_1: u64, info_2: u64) -> Page {
        let mut page = Page { words: Box::new([0; WORDS]) };
        page.words[VERSION_AND_USAGE] = VERSION_2;
        page.with(Field::EXIT_CODE, code).with(Field::EXIT_INFO_1, info_1).with(Field::EXIT_INFO_2, info_2)
    }

    /// The same with a valid field more.
    pub fn with(mut self, field: Field, value: u64) -> Page {
        self.words[field.0] = value;
        self.words[VALID_BITMAP + field.0 / 64] |= 1 << (field.0 % 64);
        self
    }

    /// The same without a field: it has its value, which is not marked as valid.
    pub fn without(mut self, field: Field) -> Page {
        self.words[VALID_BITMAP + field.0 / 64] &= !(1 << (field.0 % 64));
        self
    }

    /// The same for another usage than 0.
    pub fn usage(mut self, usage: u32) -> Page {
        self.words[VERSION_AND_USAGE] |= u64::from(usage) << 32;
        self
    }

    /// The same with these words in the buffer, from byte `offset` of the page on.
    pub fn with_words(mut self, offset: u64, words: &[u64]) -> Page {
        let at = offset as usize / 8;
        self.words[at..at + words.len()].copy_from_slice(words);
        self
    }

    /// The value of a field.
    pub fn get(&self, field: Field) -> u64 {
        self.words[field.0]
    }

    /// SW_EXITINFO1 and 2.
    pub fn answer(&self) -> (u64, u64) {
        (self.get(Field::EXIT_INFO_1), self.get(Field::EXIT_INFO_2))
    }

    /// Word `index` of the buffer.
    pub fn buffer(&self, index: usize) -> u64 {
        self.words[BUFFER + index]
    }
}

/// Where the GPA of the buffer of the GHCB of vCPU `vcpu` is.
pub fn buffer(vcpu: usize) -> Gpa {
    ghcb(vcpu) + BUFFER as u64 * 8
}

/// The way by which one vCPU makes requests: through page `page` of a range's shared memory.
pub struct Requests<'a> {
    guest: &'a Guest,
    vcpu: usize,
    range: &'a TestRange,
    page: u64,
}

impl<'a> Requests<'a> {
    /// Of vCPU `vcpu`, by page `page` of `range`.
    pub fn new(guest: &'a Guest, vcpu: usize, range: &'a TestRange, page: u64) -> Self {
        Self { guest, vcpu, range, page }
    }

    /// The guest makes the request.
    ///
    /// # Errors
    /// As [`GuestVcpu::start`](crate::guest_vcpu::GuestVcpu::start).
    pub fn start(&self, request: &Page) -> Outcome<Running<'a>> {
        self.start_at(request, ghcb(self.vcpu))
    }

    /// The guest makes the request, with another GPA than its GHCB's in the GHCB MSR.
    ///
    /// # Errors
    /// As above.
    pub fn start_at(&self, request: &Page, gpa: Gpa) -> Outcome<Running<'a>> {
        let bytes: Vec<u8> = request.words.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.range.host().write(self.page * PAGE_SIZE, &bytes)?;
        let page = self.range.shared_gva(self.page).0;
        self.guest.vcpu(self.vcpu).start(Op::VmgexitPage { msr: gpa.0, page })
    }

    /// What is in the GHCB once a request has ended.
    ///
    /// # Errors
    /// As [`Running::done`].
    pub fn answer(&self, running: Running<'_>) -> Outcome<Page> {
        running.done()?;
        let mut page = Page { words: Box::new([0; WORDS]) };
        for (index, word) in page.words.iter_mut().enumerate() {
            *word = self.range.host().read_u64(self.page * PAGE_SIZE + index as u64 * 8)?;
        }
        Ok(page)
    }

    /// A request that ends without an exit: what is in the GHCB afterwards.
    ///
    /// # Errors
    /// As above.
    pub fn call(&self, request: &Page) -> Outcome<Page> {
        self.answer(self.start(request)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_valid_by_the_bit_of_its_word() {
        let page = Page::request(0x7c, 1, 0).with(Field::RCX, 0x10);
        let valid = [Field::RCX, Field::EXIT_CODE, Field::EXIT_INFO_1, Field::EXIT_INFO_2];
        assert_eq!(page.words[VALID_BITMAP], 0);
        assert_eq!(page.words[VALID_BITMAP + 1], valid.iter().map(|field| 1 << (field.0 - 64)).sum::<u64>());
        assert_eq!(page.get(Field::RCX), 0x10);
        assert_eq!(page.clone().without(Field::RCX).words[VALID_BITMAP + 1], page.words[VALID_BITMAP + 1] & !(1 << 33));
    }
}
