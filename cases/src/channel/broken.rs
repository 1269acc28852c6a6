//! Guests that fail, mailboxes that hold nonsense, and entries without a request: named, never believed.

use std::sync::atomic::Ordering::{Acquire, Release};

use privet_harness::case::Case;
use privet_harness::guest::Guest;
use privet_harness::guest_vcpu::GuestVcpu;
use privet_harness::outcome::{Outcome, Stop};
use privet_harness::test_range::{Backing, RangeSpec};
use privet_protocol::{
    Failure, FailureKind, Fault, MAGIC_WORD, OP, Op, REPLY_SEQ, REQUEST_SEQ, Refusal, Reply, STATUS, TEXT_LEN, VALUES,
};

use super::{expect_error, mailbox, ring, words};
use crate::expect::{expect_eq, expect_that};
use crate::row::Row;
use crate::types::Types;

const FAILURES: &str = "payloads/runtime: failure";
const DECODING: &str = "payloads/protocol: HostMailbox::reply, Reply::decode";
const SERVING: &str = "payloads/runtime: serve";

/// The file whose code panics and asserts when it is asked to.
const FILE: &str = "general/src/lib.rs";
const UNDEFINED_OPCODE: u64 = 6;

pub(super) fn rows() -> Vec<Row> {
    vec![
        Row::new(
            "channel.panic_arrives_whole",
            Types::ALL,
            "A panic in the guest is an error with its message, file and line, and with the operation.",
            panic_arrives,
        )
        .basis(&[FAILURES]),
        Row::new(
            "channel.assertion_arrives_with_operands",
            Types::ALL,
            "A failed assertion in the guest is an error with the expression, both operands, file and line.",
            assertion_arrives,
        )
        .guests(2)
        .basis(&[FAILURES]),
        Row::new(
            "channel.exception_arrives_with_its_place",
            Types::ALL,
            "An exception that nobody expects is an error with vector, error code, RIP and the function there.",
            exception_arrives,
        )
        .basis(&[FAILURES]),
        Row::new(
            "channel.failed_guest_only_rings",
            Types::ALL,
            "A vCPU that has failed answers nothing more, but leaves each time it is entered, with its failure \
             untouched; the other vCPU goes on.",
            failed_guest_only_rings,
        )
        .basis(&[FAILURES]),
        Row::new(
            "channel.corrupted_answer",
            Types::ALL,
            "Nonsense in any field of an answer is an error with the name of the field and what it holds, and the \
             next call works.",
            corrupted_answer,
        )
        .basis(&[DECODING]),
        Row::new(
            "channel.corrupted_request",
            Types::ALL,
            "The guest refuses a request that means nothing, with the word that it cannot read, and serves the \
             next one.",
            corrupted_request,
        )
        .basis(&[SERVING]),
        Row::new(
            "channel.entered_without_request",
            Types::ALL,
            "Entered without a new request, or with a number that does not follow, the guest refuses and does \
             nothing twice.",
            entered_without_request,
        )
        .basis(&[SERVING]),
    ]
}

/// Makes the guest fail, expects the harness' line to have all of `fragments`, and returns the failure with its
/// two texts.
fn fail(g: &Guest, op: Op, fragments: &[&str]) -> Outcome<(Failure, String, String)> {
    let v = g.vcpu(0);
    expect_error("the failure", v.attempt(op), fragments)?;
    let mailbox = mailbox(v)?;
    let number = words(v)?[REQUEST_SEQ].load(Acquire);
    let failure = match mailbox.reply(number) {
        Ok(Reply::Failed(failure)) => failure,
        other => return Err(Stop::Fail(format!("the mailbox has {other:?}, expected a failure"))),
    };
    let (message, file) = mailbox.texts().map_err(|error| Stop::Fail(error.to_string()))?;
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).map_err(|error| Stop::Fail(format!("no text: {error}")));
    Ok((failure, text(message.collect())?, text(file.collect())?))
}

const NO_FAULT: Fault = Fault { vector: 0, error_code: 0, rip: 0, cr2: 0 };

fn expect_place(failure: &Failure, file: &str) -> Outcome {
    expect_that(file.ends_with(FILE) && failure.line > 0 && failure.column > 0, || {
        format!("the place is {file}:{}:{}, expected a line and a column of {FILE}", failure.line, failure.column)
    })
}

fn panic_arrives(t: &Case) -> Outcome {
    let g = t.guest().boot()?;
    let argument = 18_364_758_544_493_064_720_u64;
    let op = Op::Panic { argument };
    let expected = format!("{}{argument}", Op::PANIC_ARGUMENT_PREFIX);
    let (failure, message, file) = fail(&g, op, &["vCPU 0", "panicked", &expected, FILE, "operation code 20"])?;
    expect_eq("the message", &message, &expected)?;
    expect_eq("the kind", &failure.kind, &FailureKind::Panic)?;
    expect_eq(
        "operands, exception and operation",
        &(failure.left, failure.right, failure.fault, failure.op),
        &(0, 0, NO_FAULT, op.encode().0),
    )?;
    expect_place(&failure, &file)
}

fn assertion_arrives(t: &Case) -> Outcome {
    let g = t.guest().boot()?;
    let (left, right) = (0x8000_0000_0000_0001, 0x1234_5678);
    let op = Op::AssertEqual { left, right };
    let fragments = ["assertion", "left == right", "0x8000000000000001", "0x12345678", FILE];
    let (failure, expression, file) = fail(&g, op, &fragments)?;
    expect_eq("the expression", &expression.as_str(), &"left == right")?;
    expect_eq("the kind", &failure.kind, &FailureKind::Assertion)?;
    expect_eq(
        "operands, exception and operation",
        &(failure.left, failure.right, failure.fault, failure.op),
        &(left, right, NO_FAULT, op.encode().0),
    )?;
    expect_place(&failure, &file)?;
    // An assertion that holds is no failure; on a guest that is whole.
    let g = t.guest().boot()?;
    g.vcpu(0).call(Op::AssertEqual { left, right: left }).map(drop)
}

fn exception_arrives(t: &Case) -> Outcome {
    let g = t.guest().boot()?;
    let fragments = ["exception #UD", "error code 0x0", "undefined_instruction+0x"];
    let (failure, message, file) = fail(&g, Op::Crash, &fragments)?;
    expect_eq("the kind", &failure.kind, &FailureKind::Exception)?;
    expect_eq("vector and error code", &(failure.fault.vector, failure.fault.error_code), &(UNDEFINED_OPCODE, 0))?;
    expect_eq("the texts", &(message.as_str(), file.as_str()), &("", ""))?;
    expect_eq("the operation", &failure.op, &Op::Crash.encode().0)
}

fn failed_guest_only_rings(t: &Case) -> Outcome {
    let g = t.guest().vcpus(2).boot()?;
    let v = g.vcpu(0);
    fail(&g, Op::Panic { argument: 1 }, &["panic with 1"])?;
    let snapshot = || Ok::<_, Stop>(words(v)?.iter().map(|word| word.load(Acquire)).collect::<Vec<_>>());
    let before = snapshot()?;
    for _ in 0..3 {
        ring(t, v)?;
        let changed = snapshot()?.iter().zip(&before).position(|(now, then)| now != then);
        expect_eq("the first word of the mailbox that has changed", &changed, &None)?;
    }
    expect_error("a call to the failed vCPU", v.attempt(Op::Nop), &["ReplySequence"])?;
    expect_error("another call to the failed vCPU", v.attempt(Op::Crash), &["ReplySequence"])?;
    g.vcpu(1).call(Op::Nop).map(drop)
}

/// Calls the guest, puts `value` into a word of its answer, and returns what the harness makes of it.
fn answer_with(v: &GuestVcpu, op: Op, word: usize, value: u64) -> Outcome<Outcome> {
    let running = v.start(op)?;
    let exit = running.exit()?;
    words(v)?[word].store(value, Release);
    Ok(running.finish(&exit).map(drop))
}

fn corrupted_answer(t: &Case) -> Outcome {
    let g = t.guest().range(RangeSpec::new(1).backing(Backing::HostOnly)).boot()?;
    let (v, ram) = (g.vcpu(0), g.range(0).shared_gva(0));
    let number = words(v)?[REQUEST_SEQ].load(Acquire);
    let magic = words(v)?[MAGIC_WORD].load(Acquire);
    for (name, word, value, line) in [
        ("the magic", MAGIC_WORD, 0xbad, "field Magic holds 0xbad"),
        ("the magic cleared", MAGIC_WORD, 0, "field Magic holds 0x0"),
        ("the status", STATUS, 99, "field Status holds 0x63"),
        ("the status cleared", STATUS, 0, "field Status holds 0x0"),
        ("an old number", REPLY_SEQ, number, &format!("field ReplySequence holds {number:#x}")),
        ("a wild number", REPLY_SEQ, u64::MAX, "field ReplySequence holds 0xffffffffffffffff"),
    ] {
        expect_error(name, answer_with(v, Op::Nop, word, value)?, &["vCPU 0", line, "damaged"])?;
        words(v)?[MAGIC_WORD].store(magic, Release);
        v.call(Op::Nop)?;
    }
    // The answer `refused` has a reason, which can be nonsense too.
    let refusal = answer_with(v, Op::SetPresent { gva: ram.0 + 1, pages: 1, present: true }, VALUES, 77)?;
    expect_error("the reason of a refusal", refusal, &["field Refusal holds 0x4d"])?;
    // The length of a text counts when the text is read: after a failure.
    let failure = answer_with(v, Op::Panic { argument: 3 }, TEXT_LEN, u64::MAX)?;
    expect_error("the length of a message", failure, &["field TextLength holds 0xffffffffffffffff"])
}

fn corrupted_request(t: &Case) -> Outcome {
    let g = t.guest().boot()?;
    let v = g.vcpu(0);
    let [width_of_read, ..] = [privet_protocol::ARGS + 1];
    for (op, word, value) in [
        (Op::Nop, OP, 0),
        (Op::Nop, OP, u64::MAX),
        (Op::Read { gva: 0x10_0000, width: privet_protocol::Width::B8 }, width_of_read, 3),
        (Op::ReadMsr { msr: 0 }, privet_protocol::ARGS, 1 << 32),
    ] {
        let number = mailbox(v)?.send(op, &[]);
        words(v)?[word].store(value, Release);
        ring(t, v)?;
        let refused = Ok(Reply::Refused(Refusal::BadRequest, value));
        expect_eq(
            &format!("the answer to {op:x?} with {value:#x} in word {word}"),
            &mailbox(v)?.reply(number),
            &refused,
        )?;
        v.call(Op::Nop)?;
    }
    Ok(())
}

fn entered_without_request(t: &Case) -> Outcome {
    let g = t.guest().range(RangeSpec::new(1).backing(Backing::HostOnly)).boot()?;
    let (v, counter) = (g.vcpu(0), g.range(0).shared_gva(0));
    let count = Op::HammerAdd { gva: counter.0, pages: 1, limit: 1 };
    v.call(count)?;
    let number = words(v)?[REQUEST_SEQ].load(Acquire);
    for skipped in [0, 0, 2, u64::MAX] {
        let wrong = number.wrapping_add(skipped);
        words(v)?[REQUEST_SEQ].store(wrong, Release);
        ring(t, v)?;
        let refused = Ok(Reply::Refused(Refusal::BadRequest, wrong));
        expect_eq(&format!("the answer to request {wrong:#x} after {number:#x}"), &mailbox(v)?.reply(wrong), &refused)?;
    }
    expect_eq("how often the request was executed", &g.range(0).host().read_u64(0)?, &1)?;
    words(v)?[REQUEST_SEQ].store(number, Release);
    v.call(count)?;
    expect_eq("how often both requests were executed", &g.range(0).host().read_u64(0)?, &2)
}
