//! The intercept words of a VMCB and the exit code of each bit (APM volume 2, table B-1 and appendix C).

use serde::{Deserialize, Serialize};

/// What a VMCB intercepts: six words of bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Intercepts([u32; 6]);

impl Intercepts {
    pub(crate) fn new(words: [u32; 6]) -> Intercepts {
        Intercepts(words)
    }

    /// Whether the intercept with this exit code is set.
    ///
    /// Codes 0 to 0xBF number the bits of the words one after the other, which is no accident of this code: it is
    /// how appendix C and appendix B go together.
    #[inline(always)]
    pub(crate) fn has(self, code: Code) -> bool {
        self.0[usize::from(code.0 >> 5)] >> (code.0 & 31) & 1 != 0
    }

    #[cfg(test)]
    pub(crate) fn set(&mut self, code: Code) {
        self.0[usize::from(code.0 >> 5)] |= 1 << (code.0 & 31);
    }
}

/// An exit code that an intercept bit stands for, less than 0xC0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Code(u8);

macro_rules! codes {
    ($($name:ident = $code:literal,)*) => { $(pub(crate) const $name: Code = Code($code);)* };
}

#[rustfmt::skip]
impl Code {
    codes! {
        INTR = 0x60, NMI = 0x61, SMI = 0x62, INIT = 0x63, VINTR = 0x64, CR0_SELECTIVE = 0x65,
        SIDT = 0x66, SGDT = 0x67, SLDT = 0x68, STR = 0x69, LIDT = 0x6a, LGDT = 0x6b, LLDT = 0x6c, LTR = 0x6d,
        RDTSC = 0x6e, RDPMC = 0x6f, PUSHF = 0x70, POPF = 0x71, CPUID = 0x72, RSM = 0x73, IRET = 0x74, INT_N = 0x75,
        INVD = 0x76, PAUSE = 0x77, HLT = 0x78, INVLPG = 0x79, INVLPGA = 0x7a, IOIO = 0x7b, MSR = 0x7c,
        SHUTDOWN = 0x7f,
        VMRUN = 0x80, VMMCALL = 0x81, VMLOAD = 0x82, VMSAVE = 0x83, STGI = 0x84, CLGI = 0x85, SKINIT = 0x86,
        RDTSCP = 0x87, ICEBP = 0x88, WBINVD = 0x89, MONITOR = 0x8a, MWAIT = 0x8b, XSETBV = 0x8d, EFER_WRITE_TRAP = 0x8f,
        INVPCID = 0xa2,
    }

    /// The number that #VMEXIT stores.
    pub(crate) const fn number(self) -> u64 {
        self.0 as u64
    }

    /// MOV from control register `n`, 0 to 15.
    pub(crate) fn read_cr(n: u8) -> Code {
        Code(n & 15)
    }

    /// MOV to control register `n`, 0 to 15.
    pub(crate) fn write_cr(n: u8) -> Code {
        Code(0x10 | n & 15)
    }

    /// A write of control register `n`, 0 to 15, told afterwards.
    pub(crate) fn cr_write_trap(n: u8) -> Code {
        Code(0x90 | n & 15)
    }

    /// MOV from debug register `n`, 0 to 15.
    pub(crate) fn read_dr(n: u8) -> Code {
        Code(0x20 | n & 15)
    }

    /// MOV to debug register `n`, 0 to 15.
    pub(crate) fn write_dr(n: u8) -> Code {
        Code(0x30 | n & 15)
    }

    /// Exception `vector`, 0 to 31.
    pub(crate) fn exception(vector: u8) -> Code {
        Code(0x40 | vector & 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_bits_of_the_words_that_the_appendix_names() {
        let places = [
            (Code::read_cr(3), 0, 3),
            (Code::write_cr(8), 0, 24),
            (Code::read_dr(7), 1, 7),
            (Code::write_dr(7), 1, 23),
            (Code::exception(14), 2, 14),
            (Code::INTR, 3, 0),
            (Code::SHUTDOWN, 3, 31),
            (Code::VMRUN, 4, 0),
            (Code::XSETBV, 4, 13),
            (Code::INVPCID, 5, 2),
        ];
        for (code, word, bit) in places {
            let mut words = [0; 6];
            words[word] = 1 << bit;
            assert!(Intercepts::new(words).has(code), "{code:?}");
            assert!(!Intercepts::new(words.map(|bits: u32| !bits)).has(code), "{code:?}");
        }
    }
}
