//! Host and guest over one mailbox, and garbage in it.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use privet_protocol::*;
use proptest::prelude::*;

fn page() -> Box<Words> {
    Box::new([const { AtomicU64::new(0) }; WORDS])
}

fn told(hypercall: HypercallInstruction) -> Start {
    Start {
        hypercall,
        doorbell: Doorbell::Ghcb { gpa: 0x20_4000 },
        aliases: AliasBits { private: 1 << 51, shared: 1 << 47 },
        conversion: Conversion::PageStateChange,
        cpuid: 0x1f_f000,
    }
}

#[test]
fn a_request_is_answered() {
    let page = page();
    let (host, guest) = (HostMailbox::new(&page), GuestMailbox::new(&page));
    host.init(told(HypercallInstruction::Vmmcall));
    assert!(guest.is_ready());
    assert_eq!(guest.start(), Ok(told(HypercallInstruction::Vmmcall)));

    let op = Op::Write { gva: 0x1_0000_0ffd, width: Width::B8, value: 7 };
    let sequence = host.send(op, &[]);
    assert_eq!(host.reply(sequence), Err(DecodeError { field: Field::ReplySequence, word: 0 }));
    assert_eq!(guest.request(sequence - 1), Ok(op));
    let fault = Fault { vector: 14, error_code: 2, rip: 0x10_0123, cr2: 0x1_0000_1000 };
    guest.answer(sequence, Reply::Fault(fault));
    assert_eq!(host.reply(sequence), Ok(Reply::Fault(fault)));
}

#[test]
fn a_guest_that_is_entered_without_a_request_sees_it() {
    let page = page();
    let (host, guest) = (HostMailbox::new(&page), GuestMailbox::new(&page));
    host.init(told(HypercallInstruction::Vmcall));
    let sequence = host.send(Op::Nop, &[]);
    assert_eq!(guest.request(sequence), Err(DecodeError { field: Field::RequestSequence, word: sequence }));
}

#[test]
fn the_reply_to_an_older_request_is_not_taken_for_the_answer() {
    let page = page();
    let (host, guest) = (HostMailbox::new(&page), GuestMailbox::new(&page));
    host.init(told(HypercallInstruction::Vmcall));
    let first = host.send(Op::Nop, &[]);
    guest.answer(first, Reply::Done(Values::default()));
    let second = host.send(Op::Nop, &[]);
    guest.answer(first, Reply::Done(Values::default()));
    assert_eq!(host.reply(second), Err(DecodeError { field: Field::ReplySequence, word: first }));
}

#[test]
fn bytes_travel_both_ways() {
    let page = page();
    let (host, guest) = (HostMailbox::new(&page), GuestMailbox::new(&page));
    host.init(told(HypercallInstruction::Vmcall));
    let code: Vec<u8> = (0..Length::MAX.0).map(|i| (i * 7) as u8).collect();
    host.send(Op::WriteBytes { gva: 0, len: Length(code.len() as u64) }, &code);
    let seen: Vec<u8> = (0..code.len()).map(|i| guest.byte(i)).collect();
    assert_eq!(seen, code);
    for (i, byte) in code.iter().rev().enumerate() {
        guest.set_byte(i, *byte);
    }
    guest.set_text_len(code.len());
    let (back, file) = host.texts().unwrap();
    assert!(back.eq(code.iter().rev().copied()));
    assert_eq!(file.count(), 0);
}

fn fail_with(guest: GuestMailbox<'_>, message: &[u8], file: &[u8]) {
    for (index, byte) in message.iter().enumerate() {
        guest.set_byte(index, *byte);
    }
    guest.set_failure_texts(message.len(), file);
}

#[test]
fn a_failure_arrives_whole_and_out_of_turn() {
    let page = page();
    let (host, guest) = (HostMailbox::new(&page), GuestMailbox::new(&page));
    host.init(told(HypercallInstruction::Vmcall));
    let sequence = host.send(Op::Crash, &[]);
    let failure = Failure {
        kind: FailureKind::Panic,
        line: 12,
        column: 5,
        left: 0,
        right: 0,
        fault: Fault { vector: 0, error_code: 0, rip: 0, cr2: 0 },
        op: 22,
    };
    fail_with(guest, b"a message", b"payloads/general/src/main.rs");
    guest.answer(sequence.wrapping_sub(1), Reply::Failed(failure));
    assert_eq!(host.reply(sequence), Ok(Reply::Failed(failure)));
    let (message, file) = host.texts().unwrap();
    assert_eq!(message.collect::<Vec<_>>(), b"a message");
    assert_eq!(file.collect::<Vec<_>>(), b"payloads/general/src/main.rs");
}

#[test]
fn long_texts_are_cut_and_still_readable() {
    let page = page();
    let (host, guest) = (HostMailbox::new(&page), GuestMailbox::new(&page));
    fail_with(guest, &[b'm'; MAX_MESSAGE], &[b'f'; 9000]);
    let (message, file) = host.texts().unwrap();
    let (message, file) = (message.collect::<Vec<_>>(), file.collect::<Vec<_>>());
    assert!(message.len() > 2048 && message.iter().all(|b| *b == b'm'));
    assert!(file.len() > 256 && file.iter().all(|b| *b == b'f'));
}

#[test]
fn no_page_of_a_pattern_equals_a_page_of_another() {
    for index in 0..2048 {
        assert_ne!(Pattern(0x11).word(index), Pattern(0x22).word(index));
        assert_ne!(Pattern(0x11).word(index), Pattern(0x11).word(index + 1));
        assert_ne!(Pattern(0x11).word(index), 0);
        assert_eq!(Pattern::ZERO.word(index), 0);
    }
}

proptest! {
    #[test]
    fn what_decodes_encodes_to_itself(code in 0u64..40, args: [u64; 9], small in prop::array::uniform9(0u64..9)) {
        for args in [args, small] {
            if let Ok(op) = Op::decode(code, args) {
                let (code2, args2) = op.encode();
                prop_assert_eq!(code, code2);
                prop_assert_eq!(Op::decode(code2, args2), Ok(op));
            }
        }
    }

    #[test]
    fn garbage_is_an_error_or_a_reply_never_a_panic(words in prop::collection::vec(any::<u64>(), WORDS), magic: bool, sequence: u64) {
        let page = page();
        for (word, value) in page.iter().zip(words) {
            word.store(value, Relaxed);
        }
        if magic {
            page[0].store(MAGIC, Relaxed);
        }
        let host = HostMailbox::new(&page);
        let reply = host.reply(sequence);
        prop_assert!(magic || reply.is_err());
        if let Ok((first, second)) = host.texts() {
            prop_assert!(first.count() + second.count() <= TEXT_BYTES);
        }
        // A guest on the same garbage.
        let _ = GuestMailbox::new(&page).request(sequence);
    }
}

#[test]
fn an_operation_is_told_by_name_and_arguments() {
    let op = Op::Fill { gva: 0x1_0000_1000, pages: 1, pattern: Pattern(0xaa), first: 0 };
    assert_eq!(op.to_string(), "Fill 0x100001000 0x1 0xaa 0x0");
    assert_eq!(Op::Nop.to_string(), "Nop");
}

#[test]
fn alias_bits_are_no_address() {
    let aliases = told(HypercallInstruction::Vmcall).aliases;
    assert_eq!(aliases.address_mask(), 0x0007_7fff_ffff_f000);
    assert_eq!(AliasBits::NONE.address_mask(), 0x000f_ffff_ffff_f000);
}

#[test]
fn a_descriptor_says_what_it_was_made_of() {
    let bytes = Descriptor::encode("general");
    assert_eq!(Descriptor::decode(&bytes), Ok(Descriptor { version: VERSION, name: "general" }));
    assert_eq!(Descriptor::decode(&bytes[1..]), Err(DescriptorField::Size));
    for (at, field) in [(0, DescriptorField::Magic), (13, DescriptorField::Name), (16, DescriptorField::Name)] {
        let mut broken = bytes;
        broken[at] = 0xff;
        assert_eq!(Descriptor::decode(&broken), Err(field), "byte {at}");
    }
}
