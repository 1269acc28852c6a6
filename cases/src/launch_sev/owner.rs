//! The guest's owner: sessions, the measurement as the owner reads it, and secrets.

use privet_harness::case::Case;
use privet_harness::mapping::Mapping;
use privet_harness::measure::SevDigest;
use privet_harness::outcome::Outcome;
use privet_harness::sev::{Firmware, Memory, Offer, Owner, Packet, Refused, Secret, SevPolicy};
use privet_harness::units::PAGE_SIZE;

use super::session::{with_bit_changed, with_session};
use super::vm::{SevVm, bytes_of};
use crate::expect::{expect_done, expect_eq, expect_refused_by_firmware};
use crate::random::Random;
use crate::row::Row;
use crate::types::Types;

const START: &str = "arch/x86/kvm/svm/sev.c: sev_launch_start";
const SECRET: &str = "arch/x86/kvm/svm/sev.c: sev_launch_secret";
const SESSION: &str = "SEV API, 2.1 and LAUNCH_START";
const MEASURE: &str = "SEV API, LAUNCH_MEASURE";
const PACKET: &str = "SEV API, LAUNCH_SECRET";

/// What the owner sends: a block of the cipher more than one.
const TEXT: &[u8; 32] = b"only the guest and its owner see";
/// Where it goes in the guest's page.
const PLACE: u64 = 0x120;

pub(super) fn rows() -> Vec<Row> {
    vec![
        Row::new(
            "launch.owner.measurement",
            Types::SEV_AND_ES,
            "In a session, LAUNCH_MEASURE's MAC is the one that the owner computes from the firmware's version, the policy, \
             the digest of what was encrypted in its order, and the nonce; of other content it is another one.",
            measurement,
        )
        .basis(&[START, MEASURE]),
        Row::new(
            "launch.owner.session_is_checked",
            Types::SEV_AND_ES,
            "A session for another policy, or with one bit changed in any of its parts, is BAD_MEASUREMENT; a certificate \
             whose key is on no curve is INVALID_CERTIFICATE, another platform's session BAD_MEASUREMENT. The guest can \
             be launched afterwards, with the session as it was.",
            session_is_checked,
        )
        .basis(&[START, SESSION]),
        Row::new(
            "launch.owner.secret",
            Types::SEV_AND_ES,
            "A secret that was sealed for the measurement is plain in the guest's memory, and nothing beside it has \
             changed; the host sees neither.",
            secret,
        )
        .basis(&[SECRET, PACKET]),
        Row::new(
            "launch.owner.secret.for_one_measurement",
            Types::SEV_AND_ES,
            "A secret that was sealed for another measurement, or of which one bit was changed on the way, is \
             BAD_MEASUREMENT, and the guest's memory is as before.",
            for_one_measurement,
        )
        .basis(&[SECRET, PACKET]),
        Row::new(
            "launch.owner.secret.states",
            Types::SEV_AND_ES,
            "Before LAUNCH_MEASURE and after LAUNCH_FINISH a secret is INVALID_GUEST_STATE; between them one may follow \
             the other.",
            states,
        )
        .basis(&[SECRET, "SEV API, guest state machine"]),
        Row::new(
            "launch.owner.secret.blocks",
            Types::SEV_AND_ES,
            "A secret goes where a block of 16 bytes begins, INVALID_ADDRESS otherwise, and has whole blocks; its header \
             has 52 bytes, and as much arrives as was sent: INVALID_LEN otherwise.",
            blocks,
        )
        .basis(&[SECRET, PACKET]),
    ]
}

/// A guest with a page of random bytes whose owner has a session.
struct Owned {
    sev: SevVm,
    owner: Owner,
    page: Mapping,
    plain: Vec<u8>,
}

impl Owned {
    fn new(t: &Case) -> Outcome<Owned> {
        let sev = SevVm::initialized(t)?;
        let (owner, offer) = Owner::offer(&sev.device.diffie_hellman_certificate()?, sev.policy(), t.seed())?;
        expect_done("LAUNCH_START with a session", start(&sev, sev.policy(), &offer)?)?;
        let page = Mapping::anonymous(PAGE_SIZE)?;
        let mut random = Random::new(t.seed());
        let plain: Vec<u8> = (0..PAGE_SIZE).map(|_| random.below(256) as u8).collect();
        page.write(0, &plain)?;
        let result = sev.commands().launch_update_data(Memory::In(&page, 0), PAGE_SIZE as u32);
        expect_done("LAUNCH_UPDATE_DATA", result)?;
        Ok(Owned { sev, owner, page, plain })
    }

    /// `LAUNCH_MEASURE`: the MAC and the nonce.
    fn measured(&self) -> Outcome<([u8; 32], [u8; 16])> {
        let measurement = self.sev.measure()?;
        let (mac, nonce) = measurement.split_at(32);
        Ok((std::array::from_fn(|index| mac[index]), std::array::from_fn(|index| nonce[index])))
    }

    /// `LAUNCH_SECRET` of a packet to [`PLACE`].
    fn inject(&self, packet: &Packet) -> Outcome<Result<(), Refused>> {
        self.inject_at(packet, PLACE, packet.bytes.len() as u32, packet.header.len() as u32)
    }

    fn inject_at(&self, packet: &Packet, place: u64, length: u32, header_length: u32) -> Outcome<Result<(), Refused>> {
        let blobs = Mapping::anonymous(2 * PAGE_SIZE)?;
        blobs.write(0, &packet.header)?;
        blobs.write(PAGE_SIZE, &packet.bytes)?;
        let secret = Secret {
            header: (Memory::In(&blobs, 0), header_length),
            guest: (Memory::In(&self.page, place), length),
            transport: (Memory::In(&blobs, PAGE_SIZE), packet.bytes.len() as u32),
        };
        Ok(self.sev.commands().launch_secret(secret))
    }

    /// What the guest has in its page.
    fn decrypted(&self) -> Outcome<Vec<u8>> {
        let to = Mapping::anonymous(PAGE_SIZE)?;
        let (page, to_page) = (Memory::In(&self.page, 0), Memory::In(&to, 0));
        expect_done("DBG_DECRYPT", self.sev.commands().dbg_decrypt(page, to_page, PAGE_SIZE as u32))?;
        bytes_of(&to, 0, PAGE_SIZE as usize)
    }

    fn expect_unchanged(&self, after: &str) -> Outcome {
        expect_eq(&format!("whether the page is as before, after {after}"), &(self.decrypted()? == self.plain), &true)
    }
}

/// `LAUNCH_START` with what an owner offers.
fn start(sev: &SevVm, policy: SevPolicy, offer: &Offer) -> Outcome<Result<(), Refused>> {
    with_session(offer, |session| sev.commands().launch_start(0, policy, Some(session)).map(drop))
}

fn measurement(t: &Case) -> Outcome {
    let guest = Owned::new(t)?;
    let second = Mapping::anonymous(PAGE_SIZE)?;
    second.write(0, TEXT)?;
    let result = guest.sev.commands().launch_update_data(Memory::In(&second, 0), TEXT.len() as u32);
    expect_done("LAUNCH_UPDATE_DATA of 32 bytes", result)?;
    let (seen, nonce) = guest.measured()?;
    let version = guest.sev.device.version()?;
    let of = |parts: &[&[u8]]| {
        let mut digest = SevDigest::new();
        parts.iter().for_each(|part| digest.update(part));
        guest.owner.measurement(version, digest.bytes(), nonce)
    };
    expect_eq("the MAC", &seen, &of(&[&guest.plain, TEXT]))?;
    expect_eq("whether other content has the same MAC", &(seen == of(&[TEXT, &guest.plain])), &false)?;
    expect_done("LAUNCH_FINISH", guest.sev.commands().launch_finish())
}

fn session_is_checked(t: &Case) -> Outcome {
    let sev = SevVm::initialized(t)?;
    let platform = sev.device.diffie_hellman_certificate()?;
    let (_, offer) = Owner::offer(&platform, sev.policy(), t.seed())?;
    let bad = |what: &str, policy, offer: &Offer, status| {
        expect_refused_by_firmware(&format!("LAUNCH_START with {what}"), start(&sev, policy, offer)?, status)
    };
    let stricter = sev.policy() | SevPolicy::NO_DEBUG;
    bad("another policy than the session's", stricter, &offer, Firmware::BAD_MEASUREMENT)?;
    for (part, at) in
        [("nonce", 0), ("TEK", 16), ("TIK", 32), ("IV", 48), ("MAC of the keys", 64), ("MAC of the policy", 96)]
    {
        let changed = Offer { session: with_bit_changed(&offer.session, at), ..offer.clone() };
        bad(&format!("a changed {part}"), sev.policy(), &changed, Firmware::BAD_MEASUREMENT)?;
    }
    const X: usize = 20;
    let changed = Offer { certificate: with_bit_changed(&offer.certificate, X), ..offer.clone() };
    bad("a key on no curve", sev.policy(), &changed, Firmware::INVALID_CERTIFICATE)?;
    // For the platform whose key the owner's own is.
    let (_, elsewhere) = Owner::offer(&offer.certificate, sev.policy(), t.seed() ^ 1)?;
    bad("a session of another platform's", sev.policy(), &elsewhere, Firmware::BAD_MEASUREMENT)?;
    expect_done("LAUNCH_START with the session as it was", start(&sev, sev.policy(), &offer)?)
}

fn secret(t: &Case) -> Outcome {
    let guest = Owned::new(t)?;
    let (measurement, _) = guest.measured()?;
    expect_done("LAUNCH_SECRET", guest.inject(&guest.owner.seal(measurement, TEXT, t.seed()))?)?;
    let mut expected = guest.plain.clone();
    expected[PLACE as usize..][..TEXT.len()].copy_from_slice(TEXT);
    let first = guest.decrypted()?.iter().zip(&expected).position(|(seen, expected)| seen != expected);
    expect_eq("the first byte that is not as expected", &first, &None)?;
    let host = bytes_of(&guest.page, PLACE, TEXT.len())?;
    expect_eq("whether the host sees the secret", &(host == TEXT), &false)?;
    expect_done("LAUNCH_FINISH", guest.sev.commands().launch_finish())
}

fn for_one_measurement(t: &Case) -> Outcome {
    let guest = Owned::new(t)?;
    let (measurement, _) = guest.measured()?;
    let good = guest.owner.seal(measurement, TEXT, t.seed());
    let elsewhere: [u8; 32] = std::array::from_fn(|index| measurement[index] ^ u8::from(index == 31));
    let mut bad = vec![("another measurement's secret", guest.owner.seal(elsewhere, TEXT, t.seed()))];
    for (what, at) in [("a changed IV", 4), ("a changed MAC", 20), ("the last byte of the MAC changed", 51)] {
        bad.push((what, Packet { header: with_bit_changed(&good.header, at), ..good.clone() }));
    }
    bad.push(("a changed secret", Packet { bytes: with_bit_changed(&good.bytes, 31), ..good.clone() }));
    for (what, packet) in &bad {
        expect_refused_by_firmware(what, guest.inject(packet)?, Firmware::BAD_MEASUREMENT)?;
        guest.expect_unchanged(what)?;
    }
    expect_done("LAUNCH_SECRET as it was sealed", guest.inject(&good)?)
}

fn states(t: &Case) -> Outcome {
    let guest = Owned::new(t)?;
    let early = guest.owner.seal([0; 32], TEXT, t.seed());
    let out_of_place = |when: &str, packet: &Packet| {
        expect_refused_by_firmware(when, guest.inject(packet)?, Firmware::INVALID_GUEST_STATE)
    };
    out_of_place("LAUNCH_SECRET before LAUNCH_MEASURE", &early)?;
    guest.expect_unchanged("a secret that came too early")?;
    let (measurement, _) = guest.measured()?;
    for (round, text) in [TEXT, b"the second one takes its place.."].into_iter().enumerate() {
        let packet = guest.owner.seal(measurement, text, t.seed() ^ round as u64);
        expect_done(&format!("LAUNCH_SECRET {round}"), guest.inject(&packet)?)?;
        let seen = guest.decrypted()?[PLACE as usize..][..text.len()].to_vec();
        expect_eq(&format!("the secret of round {round}"), &seen, &text.to_vec())?;
    }
    expect_done("LAUNCH_FINISH", guest.sev.commands().launch_finish())?;
    out_of_place("LAUNCH_SECRET after LAUNCH_FINISH", &guest.owner.seal(measurement, TEXT, t.seed()))
}

fn blocks(t: &Case) -> Outcome {
    let guest = Owned::new(t)?;
    let (measurement, _) = guest.measured()?;
    let packet = |bytes: &[u8]| guest.owner.seal(measurement, bytes, t.seed());
    let whole = packet(TEXT);
    let (length, header) = (TEXT.len() as u32, whole.header.len() as u32);
    for (what, packet, place, length, header, status) in [
        ("a place between blocks", &whole, PLACE + 8, length, header, Firmware::INVALID_ADDRESS),
        ("half a block", &packet(&TEXT[..24]), PLACE, 24, header, Firmware::INVALID_LEN),
        ("a short header", &whole, PLACE, length, header - 1, Firmware::INVALID_LEN),
        ("a long header", &whole, PLACE, length, header + 1, Firmware::INVALID_LEN),
        ("room for a part of it", &whole, PLACE, 16, header, Firmware::INVALID_LEN),
        ("room for more", &whole, PLACE, 48, header, Firmware::INVALID_LEN),
    ] {
        let result = guest.inject_at(packet, place, length, header)?;
        expect_refused_by_firmware(&format!("LAUNCH_SECRET: {what}"), result, status)?;
        guest.expect_unchanged(what)?;
    }
    expect_done("LAUNCH_SECRET of whole blocks", guest.inject(&whole)?)
}
