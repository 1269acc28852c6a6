//! The table of CPUID that an SNP guest is launched with (arch/x86/include/asm/sev.h: struct snp_cpuid_table).

use crate::outcome::{Outcome, Stop};
use crate::units::PAGE_SIZE;

/// What CPUID answers for one function.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CpuidFunction {
    /// EAX and ECX before.
    pub function: [u32; 2],
    /// EAX, EBX, ECX and EDX afterwards.
    pub answer: [u32; 4],
}

/// How many functions a table can have.
const MOST: usize = 64;
/// Where the first one is, and how long each is, bytes.
const FIRST: usize = 16;
const LENGTH: usize = 48;
/// Where the answer of a function is in it, bytes.
const ANSWER: usize = 24;

/// A page with these functions.
///
/// # Errors
/// [`Stop::Error`] if they are too many.
pub(crate) fn cpuid_page(functions: &[CpuidFunction]) -> Outcome<Vec<u8>> {
    if functions.len() > MOST {
        return Err(Stop::Error(format!("{} functions of CPUID, and a table has {MOST}", functions.len())));
    }
    let mut page = vec![0; PAGE_SIZE as usize];
    page[..4].copy_from_slice(&(functions.len() as u32).to_le_bytes());
    for (index, CpuidFunction { function, answer }) in functions.iter().enumerate() {
        let at = FIRST + index * LENGTH;
        put(&mut page[at..], function);
        put(&mut page[at + ANSWER..], answer);
    }
    Ok(page)
}

fn put(bytes: &mut [u8], words: &[u32]) {
    for (place, word) in bytes.chunks_exact_mut(4).zip(words) {
        place.copy_from_slice(&word.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_where_linux_looks_for_them() {
        let one = CpuidFunction { function: [7, 1], answer: [2, 3, 4, 5] };
        let page = cpuid_page(&[CpuidFunction { function: [0, 0], answer: [0; 4] }, one]).unwrap();
        let word = |at: usize| u32::from_le_bytes(page[at..at + 4].try_into().unwrap());
        assert_eq!([0, 64, 68, 88, 92, 96, 100].map(word), [2, 7, 1, 2, 3, 4, 5]);
        assert!(cpuid_page(&[one; MOST + 1]).is_err());
    }
}
