//! Instructions that load or store what is no memory, by their bytes: exactly as this runtime and the code that rows send
//! emit them.

/// A load into RAX or a store of it, through RDI alone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Move {
    pub(crate) write: bool,
    /// Bytes that are moved.
    pub(crate) size: u64,
    /// Bytes of the instruction; 0 of REP STOSQ, which is executed one element at a time.
    pub(crate) length: u64,
}

/// The instruction that begins with these bytes, if it is one of those.
pub(crate) fn decode(bytes: [u8; 3]) -> Option<Move> {
    let (write, size, length) = match bytes {
        [0x8a, 0x07, _] => (false, 1, 2),
        [0x66, 0x8b, 0x07] => (false, 2, 3),
        [0x8b, 0x07, _] => (false, 4, 2),
        [0x48, 0x8b, 0x07] => (false, 8, 3),
        [0x88, 0x07, _] => (true, 1, 2),
        [0x66, 0x89, 0x07] => (true, 2, 3),
        [0x89, 0x07, _] => (true, 4, 2),
        [0x48, 0x89, 0x07] => (true, 8, 3),
        // REP STOSQ.
        [0xf3, 0x48, 0xab] => (true, 8, 0),
        _ => return None,
    };
    Some(Move { write, size, length })
}

/// What a register holds after `bytes` bytes were loaded into it: narrow loads leave the rest, those of 4 bytes clear it.
pub(crate) const fn merged(old: u64, loaded: u64, bytes: u64) -> u64 {
    match bytes {
        8 => loaded,
        4 => loaded & 0xffff_ffff,
        _ => {
            let mask = (1 << (bytes * 8)) - 1;
            old & !mask | loaded & mask
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn narrow_loads_leave_the_rest_of_a_register() {
        let (old, loaded) = (0x1111_1111_1111_1111, 0x8877_6655_4433_2211);
        assert_eq!(merged(old, loaded, 1), 0x1111_1111_1111_1111);
        assert_eq!(merged(0, loaded, 2), 0x2211);
        assert_eq!(merged(old, loaded, 2), 0x1111_1111_1111_2211);
        assert_eq!(merged(old, loaded, 4), 0x4433_2211);
        assert_eq!(merged(old, loaded, 8), loaded);
    }

    #[test]
    fn only_the_runtimes_own_instructions_are_known() {
        assert_eq!(decode([0x66, 0x89, 0x07]), Some(Move { write: true, size: 2, length: 3 }));
        assert_eq!(decode([0x48, 0x8b, 0x06]), None, "through RSI");
    }
}
