//! Group `transition`: a load that strays into a page in the middle of its conversion.
//!
//! Linux's `load_unaligned_zeropad()` reads a word that may reach into the next page, whatever that is, and pads
//! with zeros if it gets a #PF there. So page Q, which is being converted, has to be not present until all of
//! it is over; else a load from page P before it strays into the window.

mod encrypted;

use std::thread;

use nix::errno::Errno;
use privet_harness::case::Case;
use privet_harness::conversion::{Backed, conversion_exits, convert_op, expect_answer, grant};
use privet_harness::exit::Exit;
use privet_harness::guest::Guest;
use privet_harness::guest_vcpu::{GuestVcpu, Running};
use privet_harness::need::Need;
use privet_harness::outcome::{Outcome, Stop};
use privet_harness::test_range::{RangeSpec, TEST_SLOT};
use privet_harness::units::Gva;
use privet_protocol::{Op, Order, Pattern, Sharing, Values};

use crate::expect::{expect_eq, expect_no_exit_but, expect_that};
use crate::row::Row;
use crate::types::Types;

/// The pages: P, and Q after it.
const P: u64 = 0;
const Q: u64 = 1;

/// What P holds, what Q holds where the host sees it, and what it holds where the host does not.
const IN_P: Pattern = Pattern(0xaa);
const SHARED: Pattern = Pattern(0xbb);
const PRIVATE: Pattern = Pattern(0xc3);

const PAGE_FAULT: u64 = 14;
/// A load, in ring 0, of a page that is not present.
const NOT_PRESENT_READ: u64 = 0;

const PROTOCOL: &str = "arch/x86/hyperv/ivm.c: hv_vtom_clear_present, hv_vtom_set_host_visibility";
const ZEROPAD: &str = "arch/x86/mm/extable.c: ex_handler_zeropad";
const SERIES: &str = "x86/coco: Mark CoCo VM pages not present when changing encrypted state (Kelley, 2024)";
const ATTRIBUTES: &str = "virt/kvm/kvm_main.c: kvm_vm_set_mem_attributes";

/// The rows of this group.
pub(crate) fn rows() -> Vec<Row> {
    use Sharing::{Private, Shared};
    let mut rows = vec![
        Row::new(
            "transition.present_shared",
            Types::UPM,
            "Q is shared and present: a load that strays into it gets P's tail and the host's view of Q.",
            |t| at_rest(t, Shared, true),
        ),
        Row::new(
            "transition.present_private",
            Types::UPM,
            "Q is private and present: a load that strays into it gets P's tail and Q's private content.",
            |t| at_rest(t, Private, true),
        ),
        Row::new(
            "transition.not_present_shared",
            Types::UPM,
            "Q is shared and not present: a load that strays into it takes a #PF at Q's first byte and is padded \
             with zeros.",
            |t| at_rest(t, Shared, false),
        ),
        Row::new(
            "transition.not_present_private",
            Types::UPM,
            "Q is private and not present: a load that strays into it takes a #PF at Q's first byte and is padded \
             with zeros.",
            |t| at_rest(t, Private, false),
        ),
        Row::new(
            "transition.not_present_without_a_slot",
            Types::UPM,
            "Q is private and has no slot: not present, it is as safe as any; present, the stray load is a \
             KVM_EXIT_MEMORY_FAULT for Q.",
            without_a_slot,
        ),
        Row::new(
            "transition.alias_left_behind",
            Types::UPM,
            "A second mapping of Q that nobody made not present shows the other backing as soon as the host has \
             changed the attribute: this is why aliases are dropped first.",
            alias_left_behind,
        ),
        Row::new(
            "transition.alias_dropped_first",
            Types::UPM,
            "With every alias of Q dropped before its conversion, no load sees anything but padding until the end.",
            alias_dropped_first,
        ),
        Row::new(
            "transition.hammered",
            Types::UPM,
            "One vCPU strays into Q all the time while another converts it to private and back 35 times: it sees the \
             old backing, the new one or padding, and no other fault or exit.",
            |t| hammered(t, Order::NotPresentFirst),
        ),
        Row::new(
            "transition.hammered_in_place",
            Types::UPM,
            "The same without ever clearing PRESENT: the stray loads see the one backing or the other, and none is \
             padded; some may end in a KVM_EXIT_MEMORY_FAULT for Q, which a new attempt mends.",
            |t| hammered(t, Order::InPlace),
        ),
    ];
    for (name, to) in [("to_private", Private), ("to_shared", Shared)] {
        rows.extend([
            Row::new(
                format!("transition.pending.{name}"),
                Types::UPM,
                "While the conversion waits for the host, and after each step that the host does, stray loads of \
                 another vCPU are padded; afterwards they see the new backing.",
                move |t| pending(t, to),
            ),
            Row::new(
                format!("transition.in_place.{name}"),
                Types::UPM,
                "Without clearing PRESENT, stray loads of another vCPU see the old backing until the host changes the \
                 attribute and the new one from then on, in the middle of the guest's conversion.",
                move |t| in_place(t, to),
            ),
        ]);
        for errno in [Errno::EINVAL, Errno::EAGAIN] {
            rows.push(Row::new(
                format!("transition.refused.{name}.{}", format!("{errno:?}").to_lowercase()),
                Types::UPM,
                "The host changes the attribute, changes it back and refuses: the guest makes Q present again, and \
                 stray loads see the old content; the next attempt is granted.",
                move |t| refused(t, to, errno),
            ));
        }
    }
    let basis = |row: Row| row.basis(&[PROTOCOL, ZEROPAD, SERIES, ATTRIBUTES]);
    rows.into_iter()
        .map(basis)
        .chain(encrypted::rows())
        .map(|row| row.needs(Need::GuestCode).needs(Need::Hypercall))
        .collect()
}

fn other(sharing: Sharing) -> Sharing {
    match sharing {
        Sharing::Private => Sharing::Shared,
        Sharing::Shared => Sharing::Private,
    }
}

/// What Q holds, as `sharing` has it.
fn content(sharing: Sharing) -> Pattern {
    match sharing {
        Sharing::Private => PRIVATE,
        Sharing::Shared => SHARED,
    }
}

/// A guest with P, and with Q in both backings, at first as `sharing` says.
fn guest(t: &Case, sharing: Sharing) -> Outcome<Guest> {
    let g = t.guest().vcpus(2).range(RangeSpec::new(2)).boot()?;
    let (v, range) = (g.vcpu(0), g.range(0));
    range.host_fill(P..P + 1, IN_P)?;
    range.host_fill(Q..Q + 1, SHARED)?;
    range.set_private(g.vm(), Q..Q + 1)?;
    v.fill(range.private_gva(Q), 1, PRIVATE, Q)?;
    if sharing == Sharing::Shared {
        range.set_shared(g.vm(), Q..Q + 1)?;
    }
    Ok(g)
}

/// The guest's mapping of Q that its conversion protects.
fn mapping(g: &Guest) -> Gva {
    g.range(0).private_gva(Q)
}

/// What a load gives of which `before` bytes are in P and the rest in Q; None pads.
fn straddling(before: u64, in_q: Option<Pattern>) -> u64 {
    let q = in_q.map_or(0, |pattern| pattern.word(Q));
    IN_P.word(P) >> (8 * (8 - before)) | q << (8 * before)
}

/// Expects every load that strays into Q, which is mapped at `q`, to give exactly this; None is padding.
fn expect_loads(v: &GuestVcpu, q: Gva, in_q: Option<Pattern>) -> Outcome {
    for before in 1..8 {
        let [value, vector, error_code, cr2, ..] = v.call(Op::LoadZeropad { gva: q.0 - before })?;
        let fault = match in_q {
            Some(_) => (Op::NO_FAULT, 0, 0),
            None => (PAGE_FAULT, NOT_PRESENT_READ, q.0),
        };
        expect_eq(
            &format!("value, vector, error code and CR2 of a load with {before} bytes before the page"),
            &(value, (vector, error_code, cr2)),
            &(straddling(before, in_q), fault),
        )?;
    }
    Ok(())
}

fn set_present(v: &GuestVcpu, q: Gva, present: bool) -> Outcome {
    v.call(Op::SetPresent { gva: q.0, pages: 1, present }).map(drop)
}

/// Expects P and both backings of Q to hold what they did at first; leaves Q as `sharing` says.
fn expect_contents(g: &Guest, sharing: Sharing) -> Outcome {
    let (v, range) = (g.vcpu(0), g.range(0));
    v.expect(range.private_gva(P), 1, IN_P, P)?;
    range.host_expect(Q..Q + 1, SHARED)?;
    v.expect(range.private_gva(Q), 1, content(sharing), Q)?;
    match other(sharing) {
        Sharing::Private => range.set_private(g.vm(), Q..Q + 1)?,
        Sharing::Shared => range.set_shared(g.vm(), Q..Q + 1)?,
    }
    v.expect(range.private_gva(Q), 1, content(other(sharing)), Q)?;
    match sharing {
        Sharing::Private => range.set_private(g.vm(), Q..Q + 1),
        Sharing::Shared => range.set_shared(g.vm(), Q..Q + 1),
    }
}

fn at_rest(t: &Case, sharing: Sharing, present: bool) -> Outcome {
    let g = guest(t, sharing)?;
    let exits = t.trace().exits();
    set_present(g.vcpu(0), mapping(&g), present)?;
    expect_loads(g.vcpu(0), mapping(&g), present.then(|| content(sharing)))?;
    set_present(g.vcpu(0), mapping(&g), true)?;
    expect_no_exit_but(t, exits, 1 + 7 + 1)?;
    expect_contents(&g, sharing)
}

fn without_a_slot(t: &Case) -> Outcome {
    let g = t.guest().range(RangeSpec::new(2).slots(2)).boot()?;
    let (v, range) = (g.vcpu(0), g.range(0));
    range.host_fill(P..P + 1, IN_P)?;
    range.set_private(g.vm(), Q..Q + 1)?;
    v.fill(range.private_gva(Q), 1, PRIVATE, Q)?;
    g.vm().delete_slot(TEST_SLOT + 1)?;
    set_present(v, mapping(&g), false)?;
    expect_loads(v, mapping(&g), None)?;
    set_present(v, mapping(&g), true)?;
    let running = v.start(Op::LoadZeropad { gva: mapping(&g).0 - 3 })?;
    running.expect_exit(&Exit::memory_fault(range.gpa(Q), true))?;
    g.vm().add_slot(range.slots()[1].clone())?;
    running.resume()?;
    let [value, vector, ..] = running.done()?;
    expect_eq("the load after the slot is back", &(value, vector), &(straddling(3, Some(PRIVATE)), Op::NO_FAULT))
}

/// The guest's vCPU 0 begins to convert Q and now waits for the host.
fn ask(g: &Guest, to: Sharing, order: Order) -> Outcome<Running<'_>> {
    let running = g.vcpu(0).start(convert_op(g.range(0), Q..Q + 1, to, order))?;
    for (_, exit) in conversion_exits(g.platform(), g.range(0), Q..Q + 1, to) {
        running.expect_exit(&exit)?;
    }
    Ok(running)
}

/// The host answers a conversion, and the guest, which is told this of it, ends it.
fn answer(g: &Guest, running: Running<'_>, ret: u64, told: u64) -> Outcome {
    g.vcpu(0).kvm().set_hypercall_ret(ret)?;
    running.resume()?;
    expect_answer(running, told, 1)
}

/// What the host does to Q when it grants its conversion: nothing where there are no attributes.
fn host_converts(g: &Guest, to: Sharing) -> Outcome {
    if !g.platform().has_private_memory() {
        return Ok(());
    }
    grant(g.vm(), g.range(0), Q..Q + 1, to, Backed::Leave)
}

fn pending(t: &Case, to: Sharing) -> Outcome {
    let g = guest(t, other(to))?;
    let (v, q) = (g.vcpu(1), mapping(&g));
    expect_loads(v, q, Some(content(other(to))))?;
    let running = ask(&g, to, Order::NotPresentFirst)?;
    expect_loads(v, q, None)?;
    host_converts(&g, to)?;
    expect_loads(v, q, None)?;
    // What a VMM does with the guest_memfd comes after the attribute, and is a step of its own.
    let new = match to {
        Sharing::Private => {
            g.range(0).allocate(Q..Q + 1)?;
            PRIVATE
        }
        Sharing::Shared => {
            g.range(0).punch(Q..Q + 1)?;
            SHARED
        }
    };
    expect_loads(v, q, None)?;
    answer(&g, running, 0, 0)?;
    expect_loads(v, q, Some(new))
}

fn in_place(t: &Case, to: Sharing) -> Outcome {
    let g = guest(t, other(to))?;
    let (v, q) = (g.vcpu(1), mapping(&g));
    let running = ask(&g, to, Order::InPlace)?;
    expect_loads(v, q, Some(content(other(to))))?;
    host_converts(&g, to)?;
    expect_loads(v, q, Some(content(to)))?;
    answer(&g, running, 0, 0)?;
    expect_loads(v, q, Some(content(to)))?;
    expect_contents(&g, to)
}

fn refused(t: &Case, to: Sharing, errno: Errno) -> Outcome {
    let g = guest(t, other(to))?;
    let (v, q) = (g.vcpu(1), mapping(&g));
    let entry = v.read_entry(q)?;
    let running = ask(&g, to, Order::NotPresentFirst)?;
    host_converts(&g, to)?;
    expect_loads(v, q, None)?;
    host_converts(&g, other(to))?;
    expect_loads(v, q, None)?;
    answer(&g, running, errno as u64, errno as u64)?;
    expect_eq("Q's page-table entry", &v.read_entry(q)?, &entry)?;
    expect_loads(v, q, Some(content(other(to))))?;
    expect_contents(&g, other(to))?;

    let running = ask(&g, to, Order::NotPresentFirst)?;
    host_converts(&g, to)?;
    answer(&g, running, 0, 0)?;
    expect_loads(v, q, Some(content(to)))
}

fn alias_left_behind(t: &Case) -> Outcome {
    let g = guest(t, Sharing::Shared)?;
    let (v, q, alias) = (g.vcpu(1), mapping(&g), g.range(0).shared_gva(Q));
    let running = ask(&g, Sharing::Private, Order::NotPresentFirst)?;
    expect_loads(v, q, None)?;
    expect_loads(v, alias, Some(SHARED))?;
    host_converts(&g, Sharing::Private)?;
    expect_loads(v, q, None)?;
    expect_loads(v, alias, Some(PRIVATE))?;
    answer(&g, running, 0, 0)
}

fn alias_dropped_first(t: &Case) -> Outcome {
    let g = guest(t, Sharing::Shared)?;
    let (v, q, alias) = (g.vcpu(1), mapping(&g), g.range(0).shared_gva(Q));
    set_present(g.vcpu(0), alias, false)?;
    let running = ask(&g, Sharing::Private, Order::NotPresentFirst)?;
    expect_loads(v, q, None)?;
    expect_loads(v, alias, None)?;
    host_converts(&g, Sharing::Private)?;
    expect_loads(v, q, None)?;
    expect_loads(v, alias, None)?;
    answer(&g, running, 0, 0)?;
    expect_loads(v, q, Some(PRIVATE))?;
    expect_loads(v, alias, None)
}

/// Conversions to private and back for each number of bytes that a load has before Q.
const ROUND_TRIPS: u64 = 5;

fn hammered(t: &Case, order: Order) -> Outcome {
    let g = guest(t, Sharing::Shared)?;
    let mut padded = 0;
    for before in 1..8 {
        let pads = match order {
            Order::NotPresentFirst => hammer_while_converting(t, &g, before)?,
            Order::InPlace => hammer_in_place(&g, before)?,
        };
        padded += pads;
    }
    match order {
        Order::NotPresentFirst => expect_that(padded > 0, || "no load ever met Q in the middle".into())?,
        Order::InPlace => expect_eq("padded loads", &padded, &0)?,
    }
    expect_contents(&g, Sharing::Shared)
}

/// vCPU 1 begins to load from `before` bytes before Q, which is mapped at `q`, without end, and has begun when this returns.
fn hammer(g: &Guest, q: Gva, before: u64, allowed: [Option<Pattern>; 3]) -> Outcome<Running<'_>> {
    let allowed = allowed.map(|in_q| straddling(before, in_q));
    g.vcpu(1).hammer(Op::HammerZeropad { gva: q.0 - before, limit: 0, allowed })
}

/// Converts Q to private and back, again and again.
fn convert_repeatedly(g: &Guest, order: Order) -> Outcome {
    for _ in 0..ROUND_TRIPS {
        for to in [Sharing::Private, Sharing::Shared] {
            g.convert_in_order(0, Q..Q + 1, to, Backed::Leave, order)?;
        }
    }
    Ok(())
}

/// How many loads were padded, if no load gave anything that it must not.
fn expect_harmless(values: Values, least: u64) -> Outcome<u64> {
    let [loads, padded, other_faults, wrong, value, ..] = values;
    expect_that(loads >= least, || format!("vCPU 1 did {loads} loads, expected {least} or more"))?;
    expect_eq("faults other than #PF in Q", &other_faults, &0)?;
    expect_eq("values that are neither backing nor padding, and the last of them", &(wrong, value), &(0, 0))?;
    Ok(padded)
}

fn hammer_while_converting(t: &Case, g: &Guest, before: u64) -> Outcome<u64> {
    let exits = t.trace().exits();
    let hammer = hammer(g, mapping(g), before, [Some(SHARED), Some(PRIVATE), None])?;
    convert_repeatedly(g, Order::NotPresentFirst)?;
    g.vcpu(1).stop()?;
    // Each conversion waits until vCPU 1 has flushed its TLB, which it does after each load.
    let padded = expect_harmless(hammer.done()?, 2 * ROUND_TRIPS)?;
    // A hypercall and a doorbell for each conversion, and the doorbell of vCPU 1.
    expect_no_exit_but(t, exits, 2 * 2 * ROUND_TRIPS + 1)?;
    Ok(padded)
}

/// KVM takes the kind of a fault from the attribute and later compares it with the attribute again. If the host
/// has changed that meanwhile, the stray load is a KVM_EXIT_MEMORY_FAULT, even in a UPM VM.
fn hammer_in_place(g: &Guest, before: u64) -> Outcome<u64> {
    let hammer = hammer(g, mapping(g), before, [Some(SHARED), Some(PRIVATE), Some(SHARED)])?;
    let faults = [true, false].map(|private| Exit::memory_fault(g.range(0).gpa(Q), private));
    thread::scope(|scope| {
        let strays = scope.spawn(move || {
            loop {
                let exit = hammer.exit()?;
                if !faults.contains(&exit) {
                    return hammer.finish(&exit)?.map_err(|fault| Stop::Fail(format!("vCPU 1 ended with {fault:x?}")));
                }
                hammer.resume()?;
            }
        });
        let converted = convert_repeatedly(g, Order::InPlace);
        g.vcpu(1).stop()?;
        let strays = strays.join().unwrap_or_else(|_| Err(Stop::Error("the thread of vCPU 1 panicked".into())))?;
        converted?;
        expect_harmless(strays, 1)
    })
}
