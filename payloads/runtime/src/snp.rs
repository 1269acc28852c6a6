//! What an SEV-SNP guest says of its own pages: PVALIDATE and RMPADJUST (APM volume 3), and page state changes through
//! the GHCB (GHCB specification 56421, 4.1.6).
#![expect(unsafe_code, reason = "instructions without a name in Rust")]

use core::arch::asm;
use core::sync::atomic::Ordering::Relaxed;

use privet_protocol::Sharing;

use crate::ghcb::{Answer, BUFFER_BYTES, Ghcb, SCRATCH};
use crate::paging::PAGE_SIZE;
use crate::probe::{Probed, probe};
use crate::vcpu::Vcpu;

const PAGE_STATE_CHANGE: u64 = 0x8000_0010;
/// Entries after a header of 8 bytes.
const ENTRIES: u64 = BUFFER_BYTES / 8 - 1;
/// Bits 55:52 of an entry.
const OPERATION_SHIFT: u32 = 52;
/// The operation that makes a page private; 2 makes it shared.
const TO_PRIVATE: u64 = 1;
const TO_SHARED: u64 = 2;

/// What PVALIDATE has done to a number of pages.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Validated {
    /// EAX of the one that failed, or 0.
    pub code: u64,
    /// Pages before that.
    pub done: u64,
    /// Those of them that were in the wanted state already.
    pub unchanged: u64,
}

/// PVALIDATE of pages of 4 KiB, one after the other until one fails.
///
/// # Errors
/// The fault of an instruction, which may be #PF, #GP or #VC.
pub fn validate(gva: u64, pages: u64, validated: bool) -> Probed<Validated> {
    let mut all = Validated::default();
    for page in 0..pages {
        let (code, unchanged) = pvalidate(gva.wrapping_add(page * PAGE_SIZE), SMALL, validated)?;
        if code != 0 {
            return Ok(Validated { code, ..all });
        }
        all.done += 1;
        all.unchanged += u64::from(unchanged);
    }
    Ok(all)
}

/// Page sizes, as PVALIDATE is told them.
const SMALL: u32 = 0;
/// 2 MiB.
pub const LARGE: u32 = 1;

/// PVALIDATE of one page: EAX, and CF.
///
/// # Errors
/// As [`validate`].
pub fn pvalidate(gva: u64, size: u32, validated: bool) -> Probed<(u64, bool)> {
    let (code, unchanged): (u64, u8);
    probe!(
        [".byte 0xf2, 0x0f, 0x01, 0xff", "setc {unchanged}"],
        inout("rax") gva => code,
        inout("ecx") size => _,
        in("edx") u32::from(validated),
        unchanged = out(reg_byte) unchanged,
    )?;
    Ok((code & 0xffff_ffff, unchanged != 0))
}

/// RMPADJUST of a page of 4 KiB: EAX.
///
/// # Errors
/// The fault of the instruction.
pub fn adjust_rmp(gva: u64, attributes: u64) -> Probed<u64> {
    let code: u64;
    probe!(
        [".byte 0xf3, 0x0f, 0x01, 0xfe"],
        inout("rax") gva => code,
        in("rcx") 0,
        in("rdx") attributes,
    )?;
    Ok(code & 0xffff_ffff)
}

/// Asks the host for a change of the state of pages, in as few requests as there can be: what it answers, 0 if all is
/// done.
pub fn change_page_state(ghcb: Ghcb, gpa: u64, pages: u64, to: Sharing) -> u64 {
    let operation = match to {
        Sharing::Private => TO_PRIVATE,
        Sharing::Shared => TO_SHARED,
    };
    let mut done = 0;
    while done < pages {
        let count = (pages - done).min(ENTRIES);
        // The first entry is 0, the last is in bits 31:16.
        ghcb.buffer_word(0).store((count - 1) << 16, Relaxed);
        for entry in 0..count {
            let page = gpa + (done + entry) * PAGE_SIZE;
            ghcb.buffer_word(1 + entry as usize).store(operation << OPERATION_SHIFT | page, Relaxed);
        }
        match ghcb.request(PAGE_STATE_CHANGE, [0, 0], &[(SCRATCH, ghcb.buffer())]) {
            Answer::Done(0) => done += count,
            Answer::Done(code) => return code,
            Answer::Raise(vector, error_code) => crate::failure::refused(PAGE_STATE_CHANGE, vector, error_code),
            Answer::Refused(info_1, info_2) => crate::failure::refused(PAGE_STATE_CHANGE, info_1, info_2),
        }
    }
    0
}
