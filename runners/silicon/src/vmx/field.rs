//! The fields of a VMCS (SDM volume 3, appendix B): their encodings, and which of them a processor has.

use super::features::Features;

/// A field that some processor has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Field {
    encoding: u16,
    /// Its number among all fields, which says where it is kept.
    index: u16,
}

/// How much of a field an access is about (appendix B, bit 0 of the encoding).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Full,
    /// The upper half of a field of 64 bits.
    High,
}

macro_rules! fields {
    ($($name:ident = $encoding:literal,)*) => {
        #[expect(non_camel_case_types, clippy::upper_case_acronyms, reason = "numbers the constants of these names")]
        enum Index { $($name,)* }
        $(pub(crate) const $name: Field = Field { encoding: $encoding, index: Index::$name as u16 };)*
        /// All of them, by their encodings.
        pub(crate) const ALL: &[Field] = &[$($name,)*];
    };
}

#[rustfmt::skip]
fields! {
    VPID = 0x0000, POSTED_VECTOR = 0x0002, GUEST_ES = 0x0800, GUEST_CS = 0x0802, GUEST_SS = 0x0804,
    GUEST_DS = 0x0806, GUEST_FS = 0x0808, GUEST_GS = 0x080a, GUEST_LDTR = 0x080c, GUEST_TR = 0x080e,
    GUEST_INTERRUPT_STATUS = 0x0810, PML_INDEX = 0x0812, HOST_ES = 0x0c00, HOST_CS = 0x0c02, HOST_SS = 0x0c04,
    HOST_DS = 0x0c06, HOST_FS = 0x0c08, HOST_GS = 0x0c0a, HOST_TR = 0x0c0c, IO_BITMAP_A = 0x2000,
    IO_BITMAP_B = 0x2002, MSR_BITMAP = 0x2004, EXIT_MSR_STORE = 0x2006, EXIT_MSR_LOAD = 0x2008,
    ENTRY_MSR_LOAD = 0x200a, EXECUTIVE_VMCS = 0x200c, PML_ADDRESS = 0x200e, TSC_OFFSET = 0x2010,
    VIRTUAL_APIC = 0x2012, APIC_ACCESS = 0x2014, POSTED_DESCRIPTOR = 0x2016, EPTP = 0x201a, EOI_EXIT_0 = 0x201c,
    EOI_EXIT_1 = 0x201e, EOI_EXIT_2 = 0x2020, EOI_EXIT_3 = 0x2022, XSS_EXITING = 0x202c, TSC_MULTIPLIER = 0x2032,
    GUEST_PHYSICAL_ADDRESS = 0x2400, LINK = 0x2800, GUEST_DEBUGCTL = 0x2802, GUEST_PAT = 0x2804,
    GUEST_EFER = 0x2806, GUEST_PDPTE_0 = 0x280a, GUEST_PDPTE_1 = 0x280c, GUEST_PDPTE_2 = 0x280e,
    GUEST_PDPTE_3 = 0x2810, HOST_PAT = 0x2c00, HOST_EFER = 0x2c02, PIN = 0x4000, PROC = 0x4002,
    EXCEPTION_BITMAP = 0x4004, PF_MASK = 0x4006, PF_MATCH = 0x4008, CR3_TARGETS = 0x400a, EXIT = 0x400c,
    EXIT_MSR_STORE_COUNT = 0x400e, EXIT_MSR_LOAD_COUNT = 0x4010, ENTRY = 0x4012, ENTRY_MSR_LOAD_COUNT = 0x4014,
    ENTRY_EVENT = 0x4016, ENTRY_ERROR = 0x4018, ENTRY_LENGTH = 0x401a, TPR_THRESHOLD = 0x401c, PROC2 = 0x401e,
    INSTRUCTION_ERROR = 0x4400, EXIT_REASON = 0x4402, EXIT_EVENT = 0x4404, EXIT_ERROR = 0x4406,
    VECTORING_EVENT = 0x4408, VECTORING_ERROR = 0x440a, INSTRUCTION_LENGTH = 0x440c,
    INSTRUCTION_INFORMATION = 0x440e, ES_LIMIT = 0x4800, CS_LIMIT = 0x4802, SS_LIMIT = 0x4804, DS_LIMIT = 0x4806,
    FS_LIMIT = 0x4808, GS_LIMIT = 0x480a, LDTR_LIMIT = 0x480c, TR_LIMIT = 0x480e, GDTR_LIMIT = 0x4810,
    IDTR_LIMIT = 0x4812, ES_RIGHTS = 0x4814, CS_RIGHTS = 0x4816, SS_RIGHTS = 0x4818, DS_RIGHTS = 0x481a,
    FS_RIGHTS = 0x481c, GS_RIGHTS = 0x481e, LDTR_RIGHTS = 0x4820, TR_RIGHTS = 0x4822, INTERRUPTIBILITY = 0x4824,
    ACTIVITY = 0x4826, SMBASE = 0x4828, GUEST_SYSENTER_CS = 0x482a, PREEMPTION_TIMER = 0x482e,
    HOST_SYSENTER_CS = 0x4c00, CR0_MASK = 0x6000, CR4_MASK = 0x6002, CR0_SHADOW = 0x6004, CR4_SHADOW = 0x6006,
    CR3_TARGET_0 = 0x6008, CR3_TARGET_1 = 0x600a, CR3_TARGET_2 = 0x600c, CR3_TARGET_3 = 0x600e,
    QUALIFICATION = 0x6400, IO_RCX = 0x6402, IO_RSI = 0x6404, IO_RDI = 0x6406, IO_RIP = 0x6408,
    GUEST_LINEAR_ADDRESS = 0x640a, GUEST_CR0 = 0x6800, GUEST_CR3 = 0x6802, GUEST_CR4 = 0x6804, ES_BASE = 0x6806,
    CS_BASE = 0x6808, SS_BASE = 0x680a, DS_BASE = 0x680c, FS_BASE = 0x680e, GS_BASE = 0x6810, LDTR_BASE = 0x6812,
    TR_BASE = 0x6814, GDTR_BASE = 0x6816, IDTR_BASE = 0x6818, GUEST_DR7 = 0x681a, GUEST_RSP = 0x681c,
    GUEST_RIP = 0x681e, GUEST_RFLAGS = 0x6820, PENDING_DEBUG = 0x6822, GUEST_SYSENTER_ESP = 0x6824,
    GUEST_SYSENTER_EIP = 0x6826, HOST_CR0 = 0x6c00, HOST_CR3 = 0x6c02, HOST_CR4 = 0x6c04, HOST_FS_BASE = 0x6c06,
    HOST_GS_BASE = 0x6c08, HOST_TR_BASE = 0x6c0a, HOST_GDTR_BASE = 0x6c0c, HOST_IDTR_BASE = 0x6c0e,
    HOST_SYSENTER_ESP = 0x6c10, HOST_SYSENTER_EIP = 0x6c12, HOST_RSP = 0x6c14, HOST_RIP = 0x6c16,
}

/// The fields of a segment register of the guest.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SegmentFields {
    pub(crate) selector: Field,
    pub(crate) base: Field,
    pub(crate) limit: Field,
    pub(crate) rights: Field,
}

macro_rules! segment {
    ($selector:ident, $base:ident, $limit:ident, $rights:ident) => {
        SegmentFields { selector: $selector, base: $base, limit: $limit, rights: $rights }
    };
}

/// Those of ES, CS, SS, DS, FS and GS.
pub(crate) const SEGMENTS: [SegmentFields; 6] = [
    segment!(GUEST_ES, ES_BASE, ES_LIMIT, ES_RIGHTS),
    segment!(GUEST_CS, CS_BASE, CS_LIMIT, CS_RIGHTS),
    segment!(GUEST_SS, SS_BASE, SS_LIMIT, SS_RIGHTS),
    segment!(GUEST_DS, DS_BASE, DS_LIMIT, DS_RIGHTS),
    segment!(GUEST_FS, FS_BASE, FS_LIMIT, FS_RIGHTS),
    segment!(GUEST_GS, GS_BASE, GS_LIMIT, GS_RIGHTS),
];
pub(crate) const LDTR: SegmentFields = segment!(GUEST_LDTR, LDTR_BASE, LDTR_LIMIT, LDTR_RIGHTS);
pub(crate) const TR: SegmentFields = segment!(GUEST_TR, TR_BASE, TR_LIMIT, TR_RIGHTS);
pub(crate) const HOST_SELECTORS: [Field; 6] = [HOST_ES, HOST_CS, HOST_SS, HOST_DS, HOST_FS, HOST_GS];
pub(crate) const GUEST_PDPTES: [Field; 4] = [GUEST_PDPTE_0, GUEST_PDPTE_1, GUEST_PDPTE_2, GUEST_PDPTE_3];
pub(crate) const EOI_EXIT: [Field; 4] = [EOI_EXIT_0, EOI_EXIT_1, EOI_EXIT_2, EOI_EXIT_3];
pub(crate) const CR3_TARGET_VALUES: [Field; 4] = [CR3_TARGET_0, CR3_TARGET_1, CR3_TARGET_2, CR3_TARGET_3];

impl Field {
    /// The field that VMREAD and VMWRITE know by this encoding, and what of it they mean, on a processor with these
    /// features; `None` if it has none.
    pub(crate) fn named(encoding: u64, features: &Features) -> Option<(Field, Part)> {
        let encoding = u16::try_from(encoding).ok()?;
        let found = ALL.binary_search_by_key(&(encoding & !1), |field| field.encoding).ok()?;
        let field = ALL[found];
        let part = if encoding & 1 != 0 { Part::High } else { Part::Full };
        let known = part == Part::Full || field.width() == Width::Bits64;
        (known && field.exists(features)).then_some((field, part))
    }

    /// Where in the order of all fields it is.
    pub(crate) fn index(self) -> usize {
        usize::from(self.index)
    }

    /// Whether VMWRITE may not change it: type 1 holds what VM exits tell.
    pub(crate) fn is_read_only(self) -> bool {
        self.encoding >> 10 & 3 == 1
    }

    /// The bits that it has.
    pub(crate) fn mask(self) -> u64 {
        match self.width() {
            Width::Bits16 => 0xffff,
            Width::Bits32 => 0xffff_ffff,
            Width::Bits64 | Width::Natural => u64::MAX,
        }
    }

    fn width(self) -> Width {
        match self.encoding >> 13 & 3 {
            0 => Width::Bits16,
            1 => Width::Bits64,
            2 => Width::Bits32,
            _ => Width::Natural,
        }
    }

    /// The notes of appendix B: "this field exists only on processors that support the 1-setting of ...".
    fn exists(self, features: &Features) -> bool {
        match self {
            VPID => features.vpid,
            POSTED_VECTOR | POSTED_DESCRIPTOR => features.posted_interrupts(),
            GUEST_INTERRUPT_STATUS | EOI_EXIT_0 | EOI_EXIT_1 | EOI_EXIT_2 | EOI_EXIT_3 => features.virtual_interrupts(),
            PML_INDEX | PML_ADDRESS => features.pml(),
            VIRTUAL_APIC | TPR_THRESHOLD => features.tpr_shadow,
            APIC_ACCESS => features.apic_accesses(),
            EPTP | GUEST_PHYSICAL_ADDRESS | GUEST_PDPTE_0 | GUEST_PDPTE_1 | GUEST_PDPTE_2 | GUEST_PDPTE_3 => {
                features.ept
            }
            XSS_EXITING => features.xsaves,
            TSC_MULTIPLIER => features.tsc_scaling,
            PREEMPTION_TIMER => features.preemption_timer,
            _ => true,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Width {
    Bits16,
    Bits32,
    Bits64,
    Natural,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_their_encodings() {
        let features = Features::current();
        for field in ALL {
            let found = Field::named(field.encoding.into(), &features);
            assert_eq!(found, Some((*field, Part::Full)), "{:#x}", field.encoding);
        }
        assert!(ALL.is_sorted_by_key(|field| field.encoding));
        assert_eq!(Field::named(0x2011, &features), Some((TSC_OFFSET, Part::High)));
        for unknown in [0x4001, 0x0001, 0x2018, 0x6c18, 0x1_0000, 1 << 32, u64::MAX] {
            assert_eq!(Field::named(unknown, &features), None, "{unknown:#x}");
        }
    }

    #[test]
    fn a_field_goes_with_its_feature() {
        let features = Features { ept: false, vpid: false, ..Features::current() };
        for (field, there) in [(EPTP, false), (VPID, false), (PML_INDEX, false), (TSC_OFFSET, true)] {
            assert_eq!(Field::named(field.encoding.into(), &features).is_some(), there, "{field:?}");
        }
    }

    #[test]
    fn what_exits_tell_is_read_only() {
        assert!(EXIT_REASON.is_read_only() && QUALIFICATION.is_read_only() && GUEST_PHYSICAL_ADDRESS.is_read_only());
        assert!(!ENTRY_EVENT.is_read_only() && !GUEST_RIP.is_read_only() && !HOST_RIP.is_read_only());
        assert_eq!((GUEST_ES.mask(), EXIT_REASON.mask(), LINK.mask()), (0xffff, 0xffff_ffff, u64::MAX));
    }
}
