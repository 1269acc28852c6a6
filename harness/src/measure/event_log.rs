//! What a launch has given to the secure processor to measure, in order: the digest is made of nothing else.

use super::sev::SevDigest;
use super::snp::SnpDigest;
use super::tdx::Mrtd;
use super::vmsa::{SevFeatures, VcpuState};
use crate::launch::Part;
use crate::sev::PageType;
use crate::units::{Gpa, PAGE_SIZE};

/// How the secure processor measures.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Method {
    /// SEV and SEV-ES: SHA-256 over all content.
    Sha256,
    /// SEV-SNP: a chain of SHA-384 over type, place and content of each page.
    Sha384,
    /// TDX: SHA-384 over place and content of each page.
    Mrtd,
}

/// One thing that was measured.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Event {
    /// Where the guest has it; None for the state of a vCPU.
    pub gpa: Option<Gpa>,
    /// Of SEV and SEV-ES guests [`PageType::Normal`], or [`PageType::Vmsa`].
    pub page_type: PageType,
    /// All of it, whether it counts or not: whole pages, except that SEV takes any bytes.
    pub content: Vec<u8>,
    /// What it is of a guest's own memory, if it is a part of that.
    pub part: Option<Part>,
}

/// All that was measured of one guest.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EventLog {
    method: Method,
    features: SevFeatures,
    events: Vec<Event>,
}

impl EventLog {
    /// Of a guest with these features, before anything is measured.
    pub fn new(method: Method, features: SevFeatures) -> EventLog {
        EventLog { method, features, events: Vec::new() }
    }

    /// Takes in bytes of one type from `gpa` on.
    pub fn add(&mut self, page_type: PageType, gpa: Gpa, content: Vec<u8>, part: Option<Part>) {
        self.events.push(Event { gpa: Some(gpa), page_type, content, part });
    }

    /// Takes in the state of a vCPU.
    pub fn add_vcpu(&mut self, state: &VcpuState) {
        let content = state.vmsa(self.features).to_vec();
        self.events.push(Event { gpa: None, page_type: PageType::Vmsa, content, part: None });
    }

    /// How it is measured.
    pub fn method(&self) -> Method {
        self.method
    }

    /// All of it, in order.
    pub fn events(&self) -> &[Event] {
        &self.events
    }

    /// The digest: 32 bytes of [`Method::Sha256`], 48 of [`Method::Sha384`] and [`Method::Mrtd`].
    pub fn digest(&self) -> Vec<u8> {
        match self.method {
            Method::Sha256 => self.sev().bytes().to_vec(),
            Method::Sha384 => self.snp().bytes().to_vec(),
            Method::Mrtd => self.mrtd().bytes().to_vec(),
        }
    }

    /// The digest as SEV and SEV-ES guests have it.
    pub(crate) fn sev(&self) -> SevDigest {
        let mut digest = SevDigest::new();
        self.events.iter().for_each(|event| digest.update(&event.content));
        digest
    }

    /// The digest as TDs have it. The state of vCPUs is no part of it.
    pub(crate) fn mrtd(&self) -> Mrtd {
        let mut digest = Mrtd::new();
        for Event { gpa, page_type, content, .. } in &self.events {
            if let Some(gpa) = gpa {
                digest.update(*gpa, content, page_type.is_measured());
            }
        }
        digest
    }

    /// The digest as SNP guests have it.
    ///
    /// # Panics
    /// If something is no whole pages.
    pub(crate) fn snp(&self) -> SnpDigest {
        let mut digest = SnpDigest::EMPTY;
        for Event { gpa, page_type, content, .. } in &self.events {
            match gpa {
                Some(gpa) => digest.update(*page_type, *gpa, content),
                None => digest.vmsa(content.first_chunk::<{ PAGE_SIZE as usize }>().expect("a save area is a page")),
            }
        }
        digest
    }
}
