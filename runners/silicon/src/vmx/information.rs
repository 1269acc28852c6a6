//! The VM-exit instruction information (SDM volume 3, 28.2.5): an instruction's operands, so that nobody has to decode.

use privet_cpu::{MemoryOperand, OperandPlace, Operands, Seg};

const NO_INDEX: u32 = 1 << 22;
const NO_BASE: u32 = 1 << 27;
const REGISTER_FORM: u32 = 1 << 10;

/// The information about an instruction with these operands, and the displacement that is its exit qualification
/// (tables 28-9 to 28-14, which agree where they say something).
pub(super) fn of_operands(operands: Operands) -> (u32, u64) {
    let register = u32::from(operands.register) << 28;
    match operands.place {
        OperandPlace::Nothing => (0, 0),
        OperandPlace::Register(place) => (u32::from(place) << 3 | REGISTER_FORM | register, 0),
        OperandPlace::Memory(memory) => (of_memory(memory) | register, memory.displacement),
    }
}

/// The information about INS and OUTS (table 28-8).
pub(super) fn of_string(address_size: u8, segment: Seg) -> u32 {
    address(address_size) << 7 | (segment as u32) << 15
}

fn of_memory(memory: MemoryOperand) -> u32 {
    u32::from(memory.scale)
        | address(memory.address_size) << 7
        | (memory.segment as u32) << 15
        | memory.index.map_or(NO_INDEX, |index| u32::from(index) << 18)
        | memory.base.map_or(NO_BASE, |base| u32::from(base) << 23)
}

/// 0 for addresses of 16 bits, 1 for 32, 2 for 64.
fn address(bytes: u8) -> u32 {
    u32::from(bytes).trailing_zeros().saturating_sub(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_operands_are_told_part_by_part() {
        let memory = MemoryOperand {
            base: Some(5),
            index: None,
            scale: 0,
            displacement: u64::MAX - 7,
            address_size: 8,
            segment: Seg::Ss,
        };
        let operands = Operands { register: 9, place: OperandPlace::Memory(memory) };
        assert_eq!(of_operands(operands), (9 << 28 | 5 << 23 | NO_INDEX | 2 << 15 | 2 << 7, u64::MAX - 7));
        let memory = MemoryOperand { base: None, index: Some(12), scale: 3, address_size: 4, ..memory };
        let operands = Operands { register: 0, place: OperandPlace::Memory(memory) };
        assert_eq!(of_operands(operands).0, NO_BASE | 12 << 18 | 2 << 15 | 1 << 7 | 3);
    }

    #[test]
    fn register_operands_are_two() {
        let operands = Operands { register: 3, place: OperandPlace::Register(11) };
        assert_eq!(of_operands(operands), (3 << 28 | 11 << 3 | 1 << 10, 0));
    }

    #[test]
    fn strings_have_a_width_and_a_segment() {
        assert_eq!(
            [of_string(2, Seg::Es), of_string(4, Seg::Fs), of_string(8, Seg::Ds)],
            [0, 1 << 7 | 4 << 15, 2 << 7 | 3 << 15]
        );
    }
}
