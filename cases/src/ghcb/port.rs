//! Ports by a request: strings of bytes, and no bytes.

use nix::errno::Errno;
use privet_harness::case::Case;
use privet_harness::exit::{Direction, Exit};
use privet_harness::ghcb::{Field, Page, buffer};
use privet_harness::outcome::Outcome;
use privet_protocol::Op;

use super::{INSTRUCTIONS, IOIO, PAGE_PROTOCOL, ram, requests};
use crate::expect::{expect_eq, expect_no_exit_but};
use crate::malformed::{INVALID_SCRATCH_AREA, MALFORMED};
use crate::row::Row;
use crate::types::Types;

pub(super) fn rows() -> Vec<Row> {
    vec![
        Row::new(
            "ghcb.port_without_size",
            Types::ES_AND_SNP,
            "A port access of no size is done at once, without an exit.",
            |t| {
                let g = t.guest().range(ram(1)).boot()?;
                let exits = t.trace().exits();
                let request = Page::request(IOIO, 0x80 << 16, 0).with(Field::RAX, 7);
                expect_eq("the answer", &requests(&g).call(&request)?.answer(), &(0, 0))?;
                expect_no_exit_but(t, exits, 1)
            },
        )
        .basis(&[PAGE_PROTOCOL]),
        Row::new(
            "ghcb.port_string_out",
            Types::ES_AND_SNP,
            "REP OUTSB is one exit with all of its bytes, as many as the guest puts into one request.",
            port_string_out,
        )
        .basis(&[PAGE_PROTOCOL, INSTRUCTIONS, "arch/x86/kvm/svm/sev.c: sev_es_string_io"])
        .exceeds("x86/sev_es_ghcb_ucall: ghcb_ioio_ucall"),
        Row::new(
            "ghcb.port_string_in",
            Types::ES_AND_SNP,
            "REP INSB is one exit, and the guest gets all of userspace's bytes.",
            port_string_in,
        )
        .basis(&[PAGE_PROTOCOL, INSTRUCTIONS, "arch/x86/kvm/svm/sev.c: sev_es_string_io"]),
        Row::new(
            "ghcb.port_string_limits",
            Types::ES_AND_SNP,
            "A string may be as long as the GHCB's buffer; of one byte more the buffer is not good, and of up to 2^31 - 1, and \
             for more KVM_RUN is EINVAL.",
            port_string_limits,
        )
        .basis(&["arch/x86/kvm/svm/sev.c: sev_es_string_io, setup_vmgexit_scratch"]),
    ]
}

fn port_exit(direction: Direction, count: u32, data: Vec<u8>) -> Exit {
    Exit::Io { port: 0x2f8, direction, size: 1, count, data }
}

/// Bytes of which none is like its neighbour.
fn bytes(count: u64) -> Vec<u8> {
    (0..count).map(|index| (index * 7 + 3) as u8).collect()
}

fn port_string_out(t: &Case) -> Outcome {
    let g = t.guest().range(ram(1)).boot()?;
    let (v, gva) = (g.vcpu(0), g.range(0).shared_gva(0));
    for count in [1, 8, 100] {
        v.write_bytes(gva, &bytes(count))?;
        let running = v.start(Op::PortWriteBytes { port: 0x2f8, gva: gva.0, count })?;
        running.expect_exit(&port_exit(Direction::Out, count as u32, bytes(count)))?;
        running.resume()?;
        expect_eq("RCX afterwards", &running.done()?[0], &0)?;
    }
    Ok(())
}

fn port_string_limits(t: &Case) -> Outcome {
    /// Where the GHCB's buffer is, and what it holds.
    const BUFFER: u64 = 0x800;
    const BYTES: u64 = 0x7f0;
    /// REP OUTSB.
    const OUT: u64 = 0x2f8 << 16 | 1 << 4 | 1 << 3 | 1 << 2;
    let g = t.guest().range(ram(1)).boot()?;
    let all = bytes(BYTES);
    let words: Vec<u64> = all.as_chunks().0.iter().map(|word| u64::from_le_bytes(*word)).collect();
    let string = |count| Page::request(IOIO, OUT, count).with(Field::SCRATCH, buffer(0).0).with_words(BUFFER, &words);
    let asking = requests(&g).start(&string(BYTES))?;
    asking.expect_exit(&port_exit(Direction::Out, BYTES as u32, all))?;
    asking.resume()?;
    expect_eq("the answer", &requests(&g).answer(asking)?.answer(), &(0, 0))?;
    for count in [BYTES + 1, i32::MAX as u64] {
        let answer = requests(&g).call(&string(count))?.answer();
        expect_eq(&format!("the answer to {count:#x} bytes"), &answer, &(MALFORMED, INVALID_SCRATCH_AREA))?;
    }
    requests(&g).start(&string(1 << 31))?.expect_exit(&Exit::Failed { errno: Errno::EINVAL, reason: 0 })
}

fn port_string_in(t: &Case) -> Outcome {
    let g = t.guest().range(ram(1)).boot()?;
    let (v, gva) = (g.vcpu(0), g.range(0).shared_gva(0));
    for count in [1, 8, 100] {
        let running = v.start(Op::PortReadBytes { port: 0x2f8, gva: gva.0, count })?;
        running.expect_exit(&port_exit(Direction::In, count as u32, Vec::new()))?;
        v.kvm().set_io_in_data(&bytes(count))?;
        running.resume()?;
        expect_eq("RCX afterwards", &running.done()?[0], &0)?;
        expect_eq("the bytes", &v.read_bytes(gva, count as usize)?, &bytes(count))?;
    }
    Ok(())
}
