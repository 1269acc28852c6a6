//! Explicit conversion of pages between private and shared.

use privet_protocol::{AliasBits, Conversion, Convert, Fault, Order, Refusal, Reply, Sharing, Start};

use crate::hypercall::{attributes, map_gpa_range};
use crate::paging::{PAGE_SIZE, Range, Refused};
use crate::snp::{Validated, change_page_state, validate};
use crate::tdx::{accept, map_gpa};
use crate::tlb;
use crate::vcpu::Vcpu;

/// Converts a range, in one of two orders.
///
/// Not-present-first is Linux's protocol against stray accesses such as `load_unaligned_zeropad()`: clear
/// PRESENT, flush the TLBs, ask the host, set PRESENT again. Aliases have to be dropped before, by
/// `Op::SetPresent`. The mapping itself needs no change between: in a UPM VM no bit of it says private, and elsewhere the
/// range has an alias of each kind. In-place is the older order, in which the pages stay mapped all the time.
///
/// In an SNP guest the range is the private alias, and PVALIDATE comes where it is mapped: before all else for pages that
/// become shared, after all else for those that become private.
///
/// In a TD it is the private alias, too; pages that become private are accepted after all else.
///
/// Whatever the host answers, and if the hypercall itself faults, every entry is as it was before, and so is what
/// PVALIDATE has done.
///
/// Values of the reply: the host's answer; pages that are present afterwards; pages that PVALIDATE found in the wanted
/// state; its EAX if that is not 0.
pub fn convert(start: Start, request: Convert) -> Reply {
    if !request.gpa.is_multiple_of(PAGE_SIZE) {
        return Reply::Refused(Refusal::Unaligned, request.gpa);
    }
    match Range::current(start.aliases, request.gva, request.pages).map(|range| convert_range(start, request, range)) {
        Ok(Ok(values)) => Reply::done(values),
        Ok(Err(fault)) => Reply::Fault(fault),
        Err((refusal, word)) => Reply::Refused(refusal, word),
    }
}

fn convert_range(start: Start, request: Convert, range: Range) -> Result<[u64; 4], Fault> {
    let validate_if = |wanted: bool, validated: bool| match start.conversion {
        Conversion::PageStateChange if wanted => validate(request.gva, request.pages, validated),
        // What is to be shared was not accepted less before, whatever the host answers.
        Conversion::MapGpa if wanted && request.to == Sharing::Private => Ok(accept(request.gpa, request.pages)),
        _ => Ok(Validated::default()),
    };
    let to_private = request.to == Sharing::Private;
    let rescinded = validate_if(!to_private, false)?;
    let answer = ask_in_order(start, request, range)?;
    let validated = if answer == 0 { validate_if(to_private, true)? } else { validate_if(!to_private, true)? };
    let pvalidate = if to_private { validated } else { rescinded };
    Ok([answer, range.present(), pvalidate.unchanged, pvalidate.code])
}

fn ask_in_order(start: Start, request: Convert, range: Range) -> Result<u64, Fault> {
    match request.order {
        Order::InPlace => ask(start, request),
        Order::NotPresentFirst => {
            range.hide();
            tlb::flush_everywhere();
            let answer = ask(start, request);
            // Making an entry present needs no flush: what is not present is not cached.
            range.restore();
            answer
        }
    }
}

fn ask(start: Start, request: Convert) -> Result<u64, Fault> {
    let Convert { gpa, pages, to, .. } = request;
    match (start.conversion, Vcpu::current().ghcb()) {
        (Conversion::MapGpa, _) => Ok(map_gpa(gpa, pages, start.aliases.shared, to)),
        (Conversion::PageStateChange, Some(ghcb)) => Ok(change_page_state(ghcb, gpa, pages, to)),
        _ => map_gpa_range(start.hypercall, gpa, pages, attributes(to)),
    }
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
