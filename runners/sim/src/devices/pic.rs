//! The pair of 8259A interrupt controllers of a PC (Intel 8259A data sheet), as far as an operating system looks at
//! them that has an I/O APIC: initialization, masks and reads. Devices are wired to the I/O APIC only, so their
//! requests are never seen here.

use serde::{Deserialize, Serialize};

/// What the next write to the data port is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Expects {
    Mask,
    Vector,
    Cascade { fourth: bool },
    Fourth,
}

/// One of the two.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Pic {
    expects: Expects,
    with_fourth: bool,
    vector: u8,
    mask: u8,
    /// Edge or level for each input: the ELCR of later chip sets.
    levels: u8,
}

impl Pic {
    pub(crate) fn new() -> Pic {
        Pic { expects: Expects::Mask, with_fourth: false, vector: 0, mask: 0xff, levels: 0 }
    }

    /// Reads the command port: nothing is requested, nothing is in service.
    pub(crate) fn read_command(&self) -> u8 {
        0
    }

    pub(crate) fn read_data(&self) -> u8 {
        self.mask
    }

    /// ICW1 starts an initialization; OCW2 and OCW3 end and choose what is not there.
    pub(crate) fn write_command(&mut self, value: u8) {
        if value & 1 << 4 != 0 {
            self.mask = 0;
            self.with_fourth = value & 1 != 0;
            self.expects = Expects::Vector;
        }
    }

    pub(crate) fn write_data(&mut self, value: u8) {
        self.expects = match self.expects {
            Expects::Mask => {
                self.mask = value;
                Expects::Mask
            }
            Expects::Vector => {
                self.vector = value & 0xf8;
                Expects::Cascade { fourth: self.with_fourth }
            }
            Expects::Cascade { fourth: true } => Expects::Fourth,
            Expects::Cascade { fourth: false } | Expects::Fourth => Expects::Mask,
        };
    }

    pub(crate) fn levels(&self) -> u8 {
        self.levels
    }

    pub(crate) fn set_levels(&mut self, value: u8) {
        self.levels = value;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn four_words_initialize_and_the_next_is_the_mask() {
        let mut pic = Pic::new();
        pic.write_command(0x11);
        for word in [0x30, 4, 1, 0xfb] {
            pic.write_data(word);
        }
        assert_eq!((pic.read_data(), pic.vector), (0xfb, 0x30));
        pic.write_command(0x20);
        assert_eq!((pic.read_command(), pic.read_data()), (0, 0xfb));
    }

    #[test]
    fn without_icw4_there_are_three() {
        let mut pic = Pic::new();
        pic.write_command(0x10);
        for word in [0x08, 4, 0x55] {
            pic.write_data(word);
        }
        assert_eq!(pic.read_data(), 0x55);
    }
}
