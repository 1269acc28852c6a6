//! Segment registers as a VMCS keeps them (SDM volume 3, 25.4.1).

use privet_cpu::Segment;

use super::field::SegmentFields;
use super::vmcs::Vmcs;

const UNUSABLE: u64 = 1 << 16;

/// A segment register of the guest.
pub(super) fn segment(vmcs: &Vmcs, fields: SegmentFields) -> Segment {
    let rights = vmcs.get(fields.rights);
    let bit = |number: u32| rights >> number & 1 != 0;
    Segment {
        selector: vmcs.get(fields.selector) as u16,
        base: vmcs.get(fields.base),
        limit: vmcs.get(fields.limit) as u32,
        kind: (rights & 0xf) as u8,
        code_or_data: bit(4),
        dpl: (rights >> 5 & 3) as u8,
        present: bit(7),
        available: bit(12),
        long: bit(13),
        db: bit(14),
        granularity: bit(15),
        unusable: rights & UNUSABLE != 0,
    }
}

pub(super) fn set_segment(vmcs: &mut Vmcs, fields: SegmentFields, segment: &Segment) {
    let bit = |set: bool, number: u32| u64::from(set) << number;
    let rights = u64::from(segment.kind & 0xf)
        | bit(segment.code_or_data, 4)
        | u64::from(segment.dpl & 3) << 5
        | bit(segment.present, 7)
        | bit(segment.available, 12)
        | bit(segment.long, 13)
        | bit(segment.db, 14)
        | bit(segment.granularity, 15)
        | bit(segment.unusable, 16);
    vmcs.set(fields.selector, segment.selector.into());
    vmcs.set(fields.base, segment.base);
    vmcs.set(fields.limit, segment.limit.into());
    vmcs.set(fields.rights, rights);
}

/// Whether a bit is set in access rights that has to be zero.
pub(super) fn reserved_rights(rights: u64) -> bool {
    rights >> 8 & 0xf != 0 || rights >> 17 != 0
}
