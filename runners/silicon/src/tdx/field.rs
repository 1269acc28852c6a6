//! Identifiers of metadata fields (TDX module ABI, "Metadata Field Identifiers").
//!
//! Linux does not fill in the size and the context of all identifiers that it passes. The module reads one element at a
//! time, so class and code are all that it needs, and those are all that is looked at.

/// Class and code of a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Field {
    pub(super) class: u8,
    pub(super) code: u32,
}

impl Field {
    /// Of an identifier: class in bits 61:56, code in bits 23:0.
    pub(super) fn of(id: u64) -> Field {
        Field { class: (id >> 56 & 0x3F) as u8, code: (id & 0xFF_FFFF) as u32 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn size_context_and_the_marker_of_non_architectural_fields_do_not_matter() {
        let field = Field { class: 0x11, code: 0x16 };
        assert_eq!(Field::of(0x1110_0003_0000_0016), field);
        assert_eq!(Field::of(0x9100_0000_0000_0016), field);
        assert_ne!(Field::of(0x1110_0003_0000_0017), field);
    }
}
