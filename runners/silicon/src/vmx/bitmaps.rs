//! The I/O and MSR bitmaps (SDM volume 3, 25.6.4 and 25.6.9): a set bit exits.

use crate::memory::{PhysicalMemory, read_array};

/// Whether one of the bitmaps A (ports 0 to 7FFFh) and B exits for an access of `size` bytes to `port`, or the access
/// wraps around.
pub(super) fn exits_on_port(
    memory: &mut (impl PhysicalMemory + ?Sized),
    bitmaps: [u64; 2],
    port: u16,
    size: u8,
) -> bool {
    (0..u16::from(size)).any(|byte| match port.checked_add(byte) {
        None => true,
        Some(port) => {
            let at = bitmaps[usize::from(port >> 15)] + u64::from(port & 0x7fff) / 8;
            let [bits] = read_array(memory, at);
            bits >> (port & 7) & 1 != 0
        }
    })
}

/// Whether the bitmap exits for RDMSR, or WRMSR if `write`. MSRs outside of its ranges always do.
pub(super) fn exits_on_msr(memory: &mut (impl PhysicalMemory + ?Sized), bitmap: u64, index: u32, write: bool) -> bool {
    let range = match index {
        0..0x2000 => 0,
        0xc000_0000..0xc000_2000 => 0x400,
        _ => return true,
    };
    let number = u64::from(index & 0x1fff);
    let [bits] = read_array(memory, bitmap + range + if write { 0x800 } else { 0 } + number / 8);
    bits >> (number & 7) & 1 != 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_board::TestBoard;

    #[test]
    fn each_byte_of_a_port_access_counts() {
        let mut board = TestBoard::new();
        board.write(0x1000 + 0x3f8 / 8 + 1, &[1]);
        let mut exits = |port, size| exits_on_port(&mut board, [0x1000, 0x2000], port, size);
        assert_eq!([exits(0x400, 1), exits(0x3ff, 1), exits(0x3ff, 2), exits(0x3fc, 4)], [true, false, true, false]);
    }

    #[test]
    fn ports_of_the_upper_half_are_in_the_second_map() {
        let mut board = TestBoard::new();
        board.write(0x2000, &[1]);
        let mut exits = |port, size| exits_on_port(&mut board, [0x1000, 0x2000], port, size);
        assert_eq!([exits(0x8000, 1), exits(0x7fff, 1), exits(0x7fff, 2), exits(0, 1)], [true, false, true, false]);
        assert_eq!([exits(0xffff, 1), exits(0xffff, 2)], [false, true], "an access that wraps around");
    }

    #[test]
    fn msrs_have_a_page_of_four_parts() {
        for (index, write, at) in
            [(0x174, false, 0x2e), (0x174, true, 0x82e), (0xc000_0080, false, 0x410), (0xc000_0080, true, 0xc10)]
        {
            let mut board = TestBoard::new();
            board.write(0x4000 + at, &[1 << (index & 7)]);
            assert!(exits_on_msr(&mut board, 0x4000, index, write), "{index:#x}");
            assert!(!exits_on_msr(&mut board, 0x4000, index, !write), "{index:#x}");
            assert!(!exits_on_msr(&mut board, 0x4000, index ^ 1, write), "{index:#x}");
        }
        let mut board = TestBoard::new();
        for index in [0x2000, 0x4000_0000, 0xbfff_ffff, 0xc000_2000, 0xc001_0000, u32::MAX] {
            assert!(exits_on_msr(&mut board, 0x4000, index, false), "{index:#x}");
        }
    }
}
