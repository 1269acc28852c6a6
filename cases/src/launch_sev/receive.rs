//! RECEIVE_START to RECEIVE_FINISH: a guest that comes from elsewhere. Who sends it here is its owner.

use nix::errno::Errno;
use privet_harness::case::Case;
use privet_harness::mapping::{Access, Mapping};
use privet_harness::outcome::Outcome;
use privet_harness::sev::{Firmware, Memory, Offer, Owner, Packet, Recipient, Refused, Secret, Session, SevPolicy};
use privet_harness::units::PAGE_SIZE;

use super::session::{with_bit_changed, with_session};
use super::vm::{SevVm, bytes_of};
use crate::expect::{expect_done, expect_eq, expect_refused, expect_refused_by_firmware, expect_refused_by_kvm};
use crate::random::Random;
use crate::row::Row;
use crate::types::Types;

const START: &str = "arch/x86/kvm/svm/sev.c: sev_receive_start";
const DATA: &str = "arch/x86/kvm/svm/sev.c: sev_receive_update_data";
const API: &str = "SEV API, RECEIVE_START, RECEIVE_UPDATE_DATA, RECEIVE_FINISH";

/// What GUEST_STATUS says of a guest that runs.
const RUNNING: u32 = 3;
/// KVM sets the C-bit in the address of the guest's memory, and the driver of the firmware, which has to hand over the page
/// where SNP is there, takes that for a part of it (drivers/crypto/ccp/sev-dev.c: rmp_mark_pages_firmware: __sme_clr of a
/// host that has SME off).
const C_BIT_IS_NO_PAGE: &str =
    "with SNP on the host, RECEIVE_UPDATE_DATA never gets to the firmware: the C-bit is in the way";
const SEEN: &str = "RECEIVE_UPDATE_DATA of a page: KVM_SEV_RECEIVE_UPDATE_DATA: EFAULT, firmware not asked";
/// Bytes of a packet's header.
const HEADER: u32 = 52;

pub(super) fn rows() -> Vec<Row> {
    vec![
        Row::new(
            "launch.receive.memory",
            Types::SEV_AND_ES,
            "A guest whose memory comes in packets, whole pages and parts of one, has just that, and runs once that is \
             finished.",
            memory,
        )
        .basis(&[START, DATA, API])
        .open_bug(C_BIT_IS_NO_PAGE, SEEN),
        Row::new(
            "launch.receive.session_is_checked",
            Types::SEV_AND_ES,
            "A session for another policy, or with a bit changed, is BAD_MEASUREMENT; the guest can be received afterwards, \
             with the session as it was.",
            session_is_checked,
        )
        .basis(&[START, API]),
        Row::new(
            "launch.receive.packets_are_checked",
            Types::SEV_AND_ES,
            "A packet of which a bit was changed on the way, or that is a secret's, is BAD_MEASUREMENT, and the guest's \
             memory is as before.",
            packets_are_checked,
        )
        .basis(&[DATA, API])
        .open_bug(C_BIT_IS_NO_PAGE, SEEN),
        Row::new(
            "launch.receive.order",
            Types::SEV_AND_ES,
            "Memory comes after RECEIVE_START and before RECEIVE_FINISH, which comes once: EBADF where no guest has been \
             begun, INVALID_GUEST_STATE where it is not being received, or is launched here.",
            order,
        )
        .basis(&[START, DATA, API])
        .open_bug(C_BIT_IS_NO_PAGE, SEEN),
        Row::new(
            "launch.receive.malformed",
            Types::SEV_AND_ES,
            "A session or packet without a part of it is EINVAL, and so is memory over the end of a page. What cannot be read \
             is EFAULT, and memory that is not there ENOMEM.",
            malformed,
        )
        .basis(&[START, DATA]),
        Row::new(
            "launch.command.unwritable_answer",
            Types::SEV_AND_ES,
            "A command whose answer cannot be written is EFAULT, whatever the firmware said. A guest that its program could \
             not be told of is none, and its ASID, which it has given up, is not clean: the next one is DFFLUSH_REQUIRED.",
            unwritable_answer,
        )
        .basis(&[START, "arch/x86/kvm/svm/sev.c: sev_guest_status, sev_launch_start, sev_send_start"]),
    ]
}

/// A VM for a guest of which its owner has the memory.
struct Arriving {
    sev: SevVm,
    owner: Owner,
    offer: Offer,
    page: Mapping,
}

impl Arriving {
    fn new(t: &Case) -> Outcome<Arriving> {
        let sev = SevVm::initialized(t)?;
        let (owner, offer) = Owner::offer(&sev.device.diffie_hellman_certificate()?, sev.policy(), t.seed())?;
        let page = Mapping::anonymous(PAGE_SIZE)?;
        page.fill(0, PAGE_SIZE, 0)?;
        Ok(Arriving { sev, owner, offer, page })
    }

    /// After `RECEIVE_START`.
    fn started(t: &Case) -> Outcome<Arriving> {
        let guest = Self::new(t)?;
        expect_done("RECEIVE_START", guest.start(guest.sev.policy(), &guest.offer)?)?;
        Ok(guest)
    }

    fn start(&self, policy: SevPolicy, offer: &Offer) -> Outcome<Result<u32, Refused>> {
        with_session(offer, |session| self.sev.commands().receive_start(policy, session))
    }

    /// `RECEIVE_UPDATE_DATA` of a packet to this place in the page. Behind either part of it nothing can be read.
    fn take(&self, packet: &Packet, place: u64) -> Outcome<Result<(), Refused>> {
        let blobs = Mapping::anonymous(4 * PAGE_SIZE)?;
        let ends_at = |end: u64, part: &[u8]| -> Outcome<(Memory<'_>, u32)> {
            blobs.set_access(end, PAGE_SIZE, Access::None)?;
            blobs.write(end - part.len() as u64, part)?;
            Ok((Memory::In(&blobs, end - part.len() as u64), part.len() as u32))
        };
        let (header, transport) = (ends_at(PAGE_SIZE, &packet.header)?, ends_at(3 * PAGE_SIZE, &packet.bytes)?);
        let guest = (Memory::In(&self.page, place), transport.1);
        Ok(self.sev.commands().receive_update_data(Secret { header, guest, transport }))
    }

    /// What the guest has in its page.
    fn decrypted(&self) -> Outcome<Vec<u8>> {
        let to = Mapping::anonymous(PAGE_SIZE)?;
        let (page, to_page) = (Memory::In(&self.page, 0), Memory::In(&to, 0));
        expect_done("DBG_DECRYPT", self.sev.commands().dbg_decrypt(page, to_page, PAGE_SIZE as u32))?;
        bytes_of(&to, 0, PAGE_SIZE as usize)
    }
}

fn random_page(t: &Case) -> Vec<u8> {
    let mut random = Random::new(t.seed());
    (0..PAGE_SIZE).map(|_| random.below(256) as u8).collect()
}

fn memory(t: &Case) -> Outcome {
    let guest = Arriving::started(t)?;
    let mut expected = random_page(t);
    expect_done("RECEIVE_UPDATE_DATA of a page", guest.take(&guest.owner.send(&expected, t.seed()), 0)?)?;
    expect_eq("whether the guest has the page", &(guest.decrypted()? == expected), &true)?;
    for (place, text) in [(0x10, b"sixteen bytes..!"), (PAGE_SIZE - 16, b"and the last one")] {
        let packet = guest.owner.send(text, t.seed() ^ place);
        expect_done(&format!("RECEIVE_UPDATE_DATA at {place:#x}"), guest.take(&packet, place)?)?;
        expected[place as usize..][..text.len()].copy_from_slice(text);
        let first = guest.decrypted()?.iter().zip(&expected).position(|(seen, expected)| seen != expected);
        expect_eq("the first byte that is not as it was sent", &first, &None)?;
    }
    expect_eq("whether the host sees it", &(bytes_of(&guest.page, 0, PAGE_SIZE as usize)? == expected), &false)?;
    expect_done("RECEIVE_FINISH", guest.sev.commands().receive_finish())?;
    let status = expect_done("GUEST_STATUS", guest.sev.commands().guest_status())?;
    expect_eq("state and policy", &(status.state, status.policy), &(RUNNING, guest.sev.policy().0))?;
    expect_eq("whether the guest still has it", &(guest.decrypted()? == expected), &true)
}

fn session_is_checked(t: &Case) -> Outcome {
    let guest = Arriving::new(t)?;
    let policy = guest.sev.policy();
    let bad = |what: &str, policy, offer: &Offer| {
        expect_refused_by_firmware(what, guest.start(policy, offer)?, Firmware::BAD_MEASUREMENT)
    };
    bad("RECEIVE_START with another policy", policy | SevPolicy::NO_DEBUG, &guest.offer)?;
    for (part, at) in [("wrapped key", 16), ("MAC of the policy", 127)] {
        let changed = Offer { session: with_bit_changed(&guest.offer.session, at), ..guest.offer.clone() };
        bad(&format!("RECEIVE_START with a changed {part}"), policy, &changed)?;
    }
    let handle = expect_done("RECEIVE_START with the session as it was", guest.start(policy, &guest.offer)?)?;
    let status = expect_done("GUEST_STATUS", guest.sev.commands().guest_status())?;
    expect_eq("the handle that was told", &handle, &status.handle)
}

fn packets_are_checked(t: &Case) -> Outcome {
    let guest = Arriving::started(t)?;
    let page = random_page(t);
    let good = guest.owner.send(&page, t.seed());
    expect_done("RECEIVE_UPDATE_DATA of a page", guest.take(&good, 0)?)?;
    let bad = [
        ("a changed IV", Packet { header: with_bit_changed(&good.header, 4), ..good.clone() }),
        ("a changed MAC", Packet { header: with_bit_changed(&good.header, 51), ..good.clone() }),
        ("a changed byte", Packet { bytes: with_bit_changed(&good.bytes, 4095), ..good.clone() }),
        ("a secret's packet", guest.owner.seal([0; 32], &page[..16], t.seed())),
    ];
    for (what, packet) in &bad {
        expect_refused_by_firmware(what, guest.take(packet, 0)?, Firmware::BAD_MEASUREMENT)?;
        expect_eq(&format!("whether the page is as before, after {what}"), &(guest.decrypted()? == page), &true)?;
    }
    Ok(())
}

fn order(t: &Case) -> Outcome {
    let guest = Arriving::new(t)?;
    let packet = guest.owner.send(&[7; 16], t.seed());
    expect_refused_by_kvm("RECEIVE_UPDATE_DATA of no guest", guest.take(&packet, 0)?, Errno::EBADF)?;
    let finish = || guest.sev.commands().receive_finish();
    expect_refused_by_kvm("RECEIVE_FINISH of no guest", finish(), Errno::EBADF)?;
    expect_done("RECEIVE_START", guest.start(guest.sev.policy(), &guest.offer)?)?;
    expect_done("RECEIVE_UPDATE_DATA of a page", guest.take(&packet, 0)?)?;
    let measured = guest.sev.commands().launch_finish();
    expect_refused_by_firmware("LAUNCH_FINISH of a guest that arrives", measured, Firmware::INVALID_GUEST_STATE)?;
    expect_done("RECEIVE_FINISH", finish())?;
    expect_refused_by_firmware("RECEIVE_FINISH again", finish(), Firmware::INVALID_GUEST_STATE)?;
    expect_refused_by_firmware("RECEIVE_UPDATE_DATA after it", guest.take(&packet, 0)?, Firmware::INVALID_GUEST_STATE)?;

    let launched = Arriving { sev: SevVm::started(t)?, ..guest };
    let result = launched.take(&packet, 0)?;
    expect_refused_by_firmware("RECEIVE_UPDATE_DATA of a guest that is launched", result, Firmware::INVALID_GUEST_STATE)
}

fn malformed(t: &Case) -> Outcome {
    let guest = Arriving::new(t)?;
    let (commands, policy) = (guest.sev.commands(), guest.sev.policy());
    let blobs = Mapping::anonymous(4 * PAGE_SIZE)?;
    let at = |page: u64| Memory::In(&blobs, page * PAGE_SIZE);
    let whole = Session { dh_certificate: (at(0), 2084), keys: (at(1), Offer::SESSION as u32) };
    for (what, session) in [
        ("no certificate", Session { dh_certificate: (Memory::NONE, 2084), ..whole }),
        ("a certificate of no bytes", Session { dh_certificate: (at(0), 0), ..whole }),
        ("no session", Session { keys: (Memory::NONE, 128), ..whole }),
        ("a session of no bytes", Session { keys: (at(1), 0), ..whole }),
    ] {
        expect_refused_by_kvm(
            &format!("RECEIVE_START: {what}"),
            commands.receive_start(policy, session),
            Errno::EINVAL,
        )?;
    }
    expect_done("RECEIVE_START", guest.start(policy, &guest.offer)?)?;
    let whole = Secret { header: (at(0), HEADER), guest: (at(1), 16), transport: (at(3), 16) };
    let inside = |offset: u64, length| Secret { guest: (Memory::In(&blobs, PAGE_SIZE + offset), length), ..whole };
    for (what, data) in [
        ("no header", Secret { header: (Memory::NONE, HEADER), ..whole }),
        ("a header of no bytes", Secret { header: (at(0), 0), ..whole }),
        ("no memory", Secret { guest: (Memory::NONE, 16), ..whole }),
        ("memory of no bytes", inside(0, 0)),
        ("no packet", Secret { transport: (Memory::NONE, 16), ..whole }),
        ("a packet of no bytes", Secret { transport: (at(3), 0), ..whole }),
        ("memory over the end of a page", inside(PAGE_SIZE - 16, 32)),
        ("memory a byte over the end of a page", inside(PAGE_SIZE - 16, 17)),
        ("a byte more than a page", inside(0, PAGE_SIZE as u32 + 1)),
    ] {
        let result = commands.receive_update_data(data);
        expect_refused_by_kvm(&format!("RECEIVE_UPDATE_DATA: {what}"), result, Errno::EINVAL)?;
    }
    let nowhere = Memory::Nowhere(PAGE_SIZE);
    for (what, data, errno) in [
        ("a header that cannot be read", Secret { header: (nowhere, HEADER), ..whole }, Errno::EFAULT),
        ("a packet that cannot be read", Secret { transport: (nowhere, 16), ..whole }, Errno::EFAULT),
        ("memory that is not there", Secret { guest: (nowhere, 16), ..whole }, Errno::ENOMEM),
    ] {
        expect_refused_by_kvm(&format!("RECEIVE_UPDATE_DATA: {what}"), commands.receive_update_data(data), errno)?;
    }
    Ok(())
}

fn unwritable_answer(t: &Case) -> Outcome {
    let fails =
        |what: &str, result: Result<(), Refused>| expect_refused(what, result, Errno::EFAULT, Firmware::SUCCESS);
    let unclean = |what: &str, result: Result<u32, Refused>| {
        expect_refused_by_firmware(&format!("{what} again"), result, Firmware::DFFLUSH_REQUIRED)
    };
    let launched = SevVm::initialized(t)?;
    let (commands, policy) = (launched.commands(), launched.policy());
    fails("LAUNCH_START", commands.without_answers().launch_start(0, policy, None).map(drop))?;
    unclean("LAUNCH_START", commands.launch_start(0, policy, None))?;

    let received = Arriving::new(t)?;
    let nowhere = received.sev.commands().without_answers();
    fails("RECEIVE_START", with_session(&received.offer, |session| nowhere.receive_start(policy, session).map(drop))?)?;
    unclean("RECEIVE_START", received.start(policy, &received.offer)?)?;

    let guest = SevVm::started(t)?;
    fails("GUEST_STATUS", guest.commands().without_answers().guest_status().map(drop))?;
    guest.finish()?;
    let blobs = Mapping::anonymous(4 * PAGE_SIZE)?;
    blobs.write(0, &guest.device.diffie_hellman_certificate()?)?;
    let zeros = (Memory::In(&blobs, PAGE_SIZE), 2084);
    let to = Recipient { certificate: (Memory::In(&blobs, 0), 2084), chain: zeros, amd: zeros };
    let sent = guest.commands().without_answers().send_start(to, (Memory::In(&blobs, 2 * PAGE_SIZE), 128));
    expect_refused("SEND_START to nobody", sent, Errno::EFAULT, Firmware::INVALID_LEN)
}
