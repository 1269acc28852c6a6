//! x87, SSE and AVX registers, and their image in memory (FXSAVE, XSAVE).

use serde::{Deserialize, Serialize};

/// XCR0 bit of the x87 state.
pub const XCR0_X87: u64 = 1 << 0;
/// XCR0 bit of XMM and MXCSR.
pub const XCR0_SSE: u64 = 1 << 1;
/// XCR0 bit of the upper halves of YMM.
pub const XCR0_AVX: u64 = 1 << 2;
/// XCR0 bit of PKRU.
pub const XCR0_PKRU: u64 = 1 << 9;

/// The components that this CPU has.
pub const XCR0_KNOWN: u64 = XCR0_X87 | XCR0_SSE | XCR0_AVX | XCR0_PKRU;

/// The bits of MXCSR that exist.
pub const MXCSR_MASK: u32 = 0xffff;
/// MXCSR after reset: all exceptions masked.
pub const MXCSR_RESET: u32 = 0x1f80;

/// Bits of the x87 status word.
#[expect(missing_docs, reason = "the names of the bits say it")]
pub mod status {
    pub const IE: u16 = 1 << 0;
    pub const DE: u16 = 1 << 1;
    pub const ZE: u16 = 1 << 2;
    pub const OE: u16 = 1 << 3;
    pub const UE: u16 = 1 << 4;
    pub const PE: u16 = 1 << 5;
    /// The exceptions, which the control word masks at the same places.
    pub const EXCEPTIONS: u16 = IE | DE | ZE | OE | UE | PE;
    /// An exception that is not masked is pending: the summary bit and its copy, B.
    pub const PENDING: u16 = 1 << 7 | 1 << 15;
}

/// Offset of the XSAVE header, behind the 512 bytes of FXSAVE.
pub const XSAVE_HEADER: usize = 512;
/// Offset of the AVX component in the standard format (CPUID 0xD.2 EBX): right behind the header.
pub const XSAVE_AVX: usize = 576;
/// Offset of PKRU in the standard format. AMD's and Intel's differ; this is Intel's (CPUID 0xD.9 EBX).
pub const XSAVE_PKRU: usize = 2688;
/// XCOMP_BV bit of the compacted format.
pub const COMPACTED: u64 = 1 << 63;

/// A component behind the header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Component {
    /// Its bit in XCR0.
    pub bit: u64,
    /// Where it is in the standard format (CPUID 0xD.n EBX).
    pub offset: usize,
    /// Its size in bytes (CPUID 0xD.n EAX); it is not aligned in the compacted format (ECX bit 1).
    pub size: usize,
}

/// The components behind the header, in order.
pub const EXTENDED: [Component; 2] = [
    Component { bit: XCR0_AVX, offset: XSAVE_AVX, size: 256 },
    Component { bit: XCR0_PKRU, offset: XSAVE_PKRU, size: 8 },
];

/// Where the components of an image are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// Each at its fixed place.
    Standard,
    /// One after the other, of these components.
    Compacted(u64),
}

impl Layout {
    /// Where an extended component starts.
    #[must_use]
    pub fn offset(self, component: &Component) -> usize {
        match self {
            Layout::Standard => component.offset,
            Layout::Compacted(components) => compacted_size(components & (component.bit - 1)),
        }
    }
}

/// Size of an image with these components in the standard format (CPUID 0xD.0 EBX and ECX).
#[must_use]
pub fn standard_size(components: u64) -> usize {
    let has = |component: &&Component| components & component.bit != 0;
    EXTENDED.iter().filter(has).map(|component| component.offset + component.size).max().unwrap_or(XSAVE_AVX)
}

/// Size of an image with these components in the compacted format (CPUID 0xD.1 EBX).
#[must_use]
pub fn compacted_size(components: u64) -> usize {
    let has = |component: &&Component| components & component.bit != 0;
    XSAVE_AVX + EXTENDED.iter().filter(has).map(|component| component.size).sum::<usize>()
}

/// Size of the image, with room as KVM_GET_XSAVE has it.
pub const XSAVE_SIZE: usize = 4096;

/// The extended registers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FpuState {
    /// x87 control word.
    pub fcw: u16,
    /// x87 status word; its TOP field says which of `st` is ST(0).
    pub fsw: u16,
    /// Abridged tag word: bit n set when physical register n is not empty.
    pub ftw: u8,
    /// Last x87 opcode.
    pub fop: u16,
    /// Last x87 instruction pointer.
    pub fip: u64,
    /// Last x87 data pointer.
    pub fdp: u64,
    /// ST(0) to ST(7) in stack order, 80 bits each; MMX registers are aliases of the *physical* ones.
    pub st: [u128; 8],
    /// SSE control and status.
    pub mxcsr: u32,
    /// XMM0 to XMM15: low halves of YMM.
    pub xmm: [u128; 16],
    /// Upper halves of YMM.
    pub ymm_high: [u128; 16],
    /// Protection keys.
    pub pkru: u32,
}

impl Default for FpuState {
    fn default() -> FpuState {
        FpuState {
            fcw: 0x37f,
            fsw: 0,
            ftw: 0,
            fop: 0,
            fip: 0,
            fdp: 0,
            st: [0; 8],
            mxcsr: MXCSR_RESET,
            xmm: [0; 16],
            ymm_high: [0; 16],
            pkru: 0,
        }
    }
}

/// A value that the processor refuses to load (#GP): reserved bits of MXCSR or of the XSAVE header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadImage;

impl FpuState {
    /// The 512-byte image of FXSAVE64 (SDM volume 1, table 10-2); bytes 464 to 511 are the software's.
    #[must_use]
    pub fn fxsave(&self) -> [u8; 512] {
        let mut image = [0; 512];
        image[0..2].copy_from_slice(&self.fcw.to_le_bytes());
        image[2..4].copy_from_slice(&self.fsw.to_le_bytes());
        image[4] = self.ftw;
        image[6..8].copy_from_slice(&self.fop.to_le_bytes());
        image[8..16].copy_from_slice(&self.fip.to_le_bytes());
        image[16..24].copy_from_slice(&self.fdp.to_le_bytes());
        image[24..28].copy_from_slice(&self.mxcsr.to_le_bytes());
        image[28..32].copy_from_slice(&MXCSR_MASK.to_le_bytes());
        for (st, slot) in self.st.iter().zip(image[32..160].chunks_exact_mut(16)) {
            slot[..10].copy_from_slice(&st.to_le_bytes()[..10]);
        }
        for (xmm, slot) in self.xmm.iter().zip(image[160..416].chunks_exact_mut(16)) {
            slot.copy_from_slice(&xmm.to_le_bytes());
        }
        image
    }

    /// Whether an x87 exception that is not masked waits for the next x87 instruction to report it.
    #[must_use]
    pub fn exception_pending(&self) -> bool {
        self.fsw & !self.fcw & status::EXCEPTIONS != 0
    }

    /// Loads x87 state from an FXSAVE image.
    pub fn load_x87(&mut self, image: &[u8; 512]) {
        self.fcw = u16::from_le_bytes([image[0], image[1]]);
        self.fsw = u16::from_le_bytes([image[2], image[3]]);
        self.ftw = image[4];
        self.fop = u16::from_le_bytes([image[6], image[7]]) & 0x7ff;
        self.fip = word(image, 8);
        self.fdp = word(image, 16);
        for (st, slot) in self.st.iter_mut().zip(image[32..160].chunks_exact(16)) {
            let mut bytes = [0; 16];
            bytes[..10].copy_from_slice(&slot[..10]);
            *st = u128::from_le_bytes(bytes);
        }
    }

    /// Loads XMM registers from an FXSAVE image.
    pub fn load_xmm(&mut self, image: &[u8; 512]) {
        for (xmm, slot) in self.xmm.iter_mut().zip(image[160..416].chunks_exact(16)) {
            *xmm = wide(slot);
        }
    }

    /// Loads MXCSR from an FXSAVE image.
    ///
    /// # Errors
    /// A reserved bit is set.
    pub fn load_mxcsr(&mut self, image: &[u8; 512]) -> Result<(), BadImage> {
        let mxcsr = word(image, 24) as u32;
        if mxcsr & !MXCSR_MASK != 0 {
            return Err(BadImage);
        }
        self.mxcsr = mxcsr;
        Ok(())
    }

    /// The components that are not in their initial state (XINUSE), of those that the CPU has.
    #[must_use]
    pub fn in_use(&self) -> u64 {
        let init = FpuState::default();
        let x87 = (self.fcw, self.fsw, self.ftw, self.fop, self.fip, self.fdp, &self.st)
            != (init.fcw, init.fsw, init.ftw, init.fop, init.fip, init.fdp, &init.st);
        let mut in_use = 0;
        for (bit, used) in [
            (XCR0_X87, x87),
            (XCR0_SSE, self.xmm != init.xmm || self.mxcsr != init.mxcsr),
            (XCR0_AVX, self.ymm_high != init.ymm_high),
            (XCR0_PKRU, self.pkru != 0),
        ] {
            if used {
                in_use |= bit;
            }
        }
        in_use
    }

    /// The XSAVE image in the standard format, with the components of `components` that are in use;
    /// XSTATE_BV says which.
    #[must_use]
    pub fn xsave(&self, components: u64) -> Box<[u8; XSAVE_SIZE]> {
        let mut image = Box::new([0; XSAVE_SIZE]);
        image[..512].copy_from_slice(&self.fxsave());
        let saved = components & self.in_use();
        image[XSAVE_HEADER..XSAVE_HEADER + 8].copy_from_slice(&saved.to_le_bytes());
        for (ymm, slot) in self.ymm_high.iter().zip(image[XSAVE_AVX..XSAVE_AVX + 256].chunks_exact_mut(16)) {
            slot.copy_from_slice(&ymm.to_le_bytes());
        }
        image[XSAVE_PKRU..XSAVE_PKRU + 4].copy_from_slice(&self.pkru.to_le_bytes());
        image
    }

    /// Loads the components of `components` from an XSAVE image in the standard format; those that
    /// XSTATE_BV leaves out get their initial state.
    ///
    /// # Errors
    /// Reserved bits of the header or of MXCSR are set, or the image is compacted; nothing is loaded.
    pub fn load_xsave(&mut self, image: &[u8; XSAVE_SIZE], components: u64) -> Result<(), BadImage> {
        let saved = word(image, XSAVE_HEADER);
        let legacy: &[u8; 512] = image[..512].try_into().expect("512 bytes of 4096");
        if saved & !XCR0_KNOWN != 0 || image[XSAVE_HEADER + 8..XSAVE_HEADER + 24].iter().any(|&byte| byte != 0) {
            return Err(BadImage);
        }
        let init = FpuState::default();
        if components & (XCR0_SSE | XCR0_AVX) != 0 {
            self.load_mxcsr(legacy)?;
        }
        if components & XCR0_X87 != 0 {
            if saved & XCR0_X87 != 0 {
                self.load_x87(legacy);
            } else {
                *self = FpuState {
                    mxcsr: self.mxcsr,
                    xmm: self.xmm,
                    ymm_high: self.ymm_high,
                    pkru: self.pkru,
                    ..init.clone()
                };
            }
        }
        if components & XCR0_SSE != 0 {
            if saved & XCR0_SSE != 0 {
                self.load_xmm(legacy);
            } else {
                self.xmm = init.xmm;
            }
        }
        if components & XCR0_AVX != 0 {
            for (ymm, slot) in self.ymm_high.iter_mut().zip(image[XSAVE_AVX..].chunks_exact(16)) {
                *ymm = if saved & XCR0_AVX != 0 { wide(slot) } else { 0 };
            }
        }
        if components & XCR0_PKRU != 0 {
            self.pkru = if saved & XCR0_PKRU != 0 { word(image, XSAVE_PKRU) as u32 } else { 0 };
        }
        Ok(())
    }
}

fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"))
}

fn wide(bytes: &[u8]) -> u128 {
    u128::from_le_bytes(bytes.try_into().expect("16 bytes"))
}
