//! The I/O and MSR permission maps (APM volume 2, 15.10 and 15.11): a set bit intercepts.

use crate::memory::{PhysicalMemory, read_array, read_u16};

/// Size of the I/O permission map: a bit a port, and room for the last port's neighbours.
pub(crate) const IOPM_BYTES: u64 = 3 * 4096;

/// Size of the MSR permission map: two bits an MSR, three ranges of 8192 MSRs and a reserved one.
pub(crate) const MSRPM_BYTES: u64 = 2 * 4096;

/// Whether the map at `iopm` intercepts an access of `size` bytes to `port`: one bit of any of its bytes suffices.
pub(crate) fn intercepts_port(memory: &mut (impl PhysicalMemory + ?Sized), iopm: u64, port: u16, size: u8) -> bool {
    let bits = read_u16(memory, (iopm & !0xfff) + u64::from(port >> 3));
    bits >> (port & 7) & ((1 << size) - 1) != 0
}

/// Whether the map at `msrpm` intercepts RDMSR, or WRMSR if `write`, of an MSR. MSRs outside the map's ranges always
/// are.
pub(crate) fn intercepts_msr(memory: &mut (impl PhysicalMemory + ?Sized), msrpm: u64, index: u32, write: bool) -> bool {
    let range = match index >> 13 {
        0 => 0,
        0x6_0000 => 0x800,
        0x6_0008 => 0x1000,
        _ => return true,
    };
    let number = index & 0x1fff;
    let [byte] = read_array(memory, (msrpm & !0xfff) + range + u64::from(number >> 2));
    byte >> ((number & 3) * 2 + u32::from(write)) & 1 != 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::svm::tests::board::TestBoard;

    #[test]
    fn each_byte_of_a_port_access_counts() {
        let mut board = TestBoard::new();
        board.write(0x1000 + 0x3f8 / 8 + 1, &[1]);
        assert!(intercepts_port(&mut board, 0x1000, 0x400, 1));
        assert!(!intercepts_port(&mut board, 0x1000, 0x3ff, 1));
        assert!(intercepts_port(&mut board, 0x1000, 0x3ff, 2), "0x3FF and 0x400");
        assert!(intercepts_port(&mut board, 0x1000, 0x3fd, 4));
        assert!(!intercepts_port(&mut board, 0x1000, 0x3fc, 4));
        assert!(intercepts_port(&mut board, 0x1fff, 0x400, 1), "low bits of the map's address are ignored");
    }

    #[test]
    fn the_last_port_reaches_into_the_third_page() {
        let mut board = TestBoard::new();
        board.write(0x1000 + 0x2000, &[1]);
        assert!(intercepts_port(&mut board, 0x1000, 0xffff, 2));
        assert!(!intercepts_port(&mut board, 0x1000, 0xffff, 1));
    }

    #[test]
    fn msrs_have_a_bit_for_reads_and_one_for_writes() {
        for (index, at) in [(0x174, 0x5d), (0xc000_0080, 0x820), (0xc001_0015, 0x1005)] {
            for write in [false, true] {
                let mut board = TestBoard::new();
                let shift = (index & 3) * 2 + u32::from(write);
                board.write(0x4000 + at, &[1 << shift]);
                assert!(intercepts_msr(&mut board, 0x4000, index, write), "{index:#x}");
                assert!(!intercepts_msr(&mut board, 0x4000, index, !write), "{index:#x}");
                assert!(!intercepts_msr(&mut board, 0x4000, index ^ 1, write), "{index:#x}");
            }
        }
    }

    #[test]
    fn msrs_without_a_bit_are_intercepted() {
        let mut board = TestBoard::new();
        for index in [0x2000, 0x4000_0000, 0xbfff_ffff, 0xc000_2000, 0xc001_2000, u32::MAX] {
            assert!(intercepts_msr(&mut board, 0x4000, index, false), "{index:#x}");
        }
        for index in [0, 0x1fff, 0xc000_0000, 0xc000_1fff, 0xc001_0000, 0xc001_1fff] {
            assert!(!intercepts_msr(&mut board, 0x4000, index, false), "{index:#x}");
        }
    }
}
