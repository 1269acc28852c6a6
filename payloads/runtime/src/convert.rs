//! Explicit conversion of pages between private and shared.

use privet_protocol::{AliasBits, Convert, Fault, HypercallInstruction, Order, Refusal, Reply, Start};

use crate::hypercall::{attributes, map_gpa_range};
use crate::paging::{PAGE_SIZE, Range, Refused};
use crate::tlb;

/// Converts a range, in one of two orders.
///
/// Not-present-first is Linux's protocol against stray accesses such as `load_unaligned_zeropad()`: clear
/// PRESENT, flush the TLBs, ask the host, set PRESENT again. Aliases have to be dropped before, by
/// `Op::SetPresent`. The mapping itself needs no change between: in a UPM VM no bit of it says private.
/// In-place is the older order, in which the pages stay mapped all the time.
///
/// Whatever the host answers, and if the hypercall itself faults, every entry is as it was before.
///
/// Values of the reply: RAX of the hypercall; pages that are present afterwards.
pub fn convert(start: Start, request: Convert) -> Reply {
    if !request.gpa.is_multiple_of(PAGE_SIZE) {
        return Reply::Refused(Refusal::Unaligned, request.gpa);
    }
    match Range::current(start.aliases, request.gva, request.pages)
        .map(|range| convert_range(start.hypercall, request, range))
    {
        Ok(Ok([rax, present])) => Reply::done([rax, present]),
        Ok(Err(fault)) => Reply::Fault(fault),
        Err((refusal, word)) => Reply::Refused(refusal, word),
    }
}

fn convert_range(instruction: HypercallInstruction, request: Convert, range: Range) -> Result<[u64; 2], Fault> {
    let ask = || map_gpa_range(instruction, request.gpa, request.pages, attributes(request.to));
    let answer = match request.order {
        Order::InPlace => ask(),
        Order::NotPresentFirst => {
            range.hide();
            tlb::flush_everywhere();
            let answer = ask();
            // Making an entry present needs no flush: what is not present is not cached.
            range.restore();
            answer
        }
    };
    Ok([answer?, range.present()])
}

/// One step of the protocol alone: sets or clears PRESENT in a range, and flushes.
///
/// # Errors
/// As [`Range::current`].
pub fn set_present(aliases: AliasBits, gva: u64, pages: u64, present: bool) -> Result<[u64; 0], Refused> {
    Range::current(aliases, gva, pages)?.set_present(present);
    tlb::flush_everywhere();
    Ok([])
}

/// The page-table entry of a page.
///
/// # Errors
/// As [`Range::current`].
pub fn read_entry(aliases: AliasBits, gva: u64) -> Result<[u64; 1], Refused> {
    Ok([Range::current(aliases, gva, 1)?.first()])
}

/// Writes the page-table entry of a page, and flushes.
///
/// # Errors
/// As [`Range::current`].
pub fn write_entry(aliases: AliasBits, gva: u64, entry: u64) -> Result<[u64; 0], Refused> {
    Range::current(aliases, gva, 1)?.set_first(entry);
    tlb::flush_everywhere();
    Ok([])
}
