//! Port accesses, which are exits in every VM, on whatever way they get there.

use privet_harness::exit::{Direction, Exit};
use privet_protocol::{Op, Width};

use crate::expect::expect_eq;
use crate::row::Row;
use crate::types::Types;

pub(super) fn rows() -> Vec<Row> {
    vec![
        Row::new(
            "exits.port_out",
            Types::ALL,
            "OUT of 1, 2 and 4 bytes is one exit with its port, its size and its bytes.",
            |t| {
                let g = t.guest().boot()?;
                for width in [Width::B1, Width::B2, Width::B4] {
                    let running = g.vcpu(0).start(Op::PortWrite { port: 0x2f8, width, value: 0x8877_6655_4433_2211 })?;
                    let data = 0x4433_2211_u32.to_le_bytes()[..width.bytes() as usize].to_vec();
                    running.expect_exit(&port_exit(Direction::Out, width.bytes() as u8, data))?;
                    running.resume()?;
                    running.done()?;
                }
                Ok(())
            },
        )
        .basis(&["arch/x86/kvm/x86.c: kvm_fast_pio", "arch/x86/kvm/svm/svm.c: io_interception"]),
        Row::new(
            "exits.port_in",
            Types::ALL,
            "IN of 1, 2 and 4 bytes is one exit, and as many bytes of userspace's answer as it is wide are what the guest \
             reads.",
            |t| {
                let g = t.guest().boot()?;
                for width in [Width::B1, Width::B2, Width::B4] {
                    let running = g.vcpu(0).start(Op::PortRead { port: 0x2f8, width })?;
                    running.expect_exit(&port_exit(Direction::In, width.bytes() as u8, Vec::new()))?;
                    g.vcpu(0).kvm().set_io_in_data(&0x4433_2211_u32.to_le_bytes()[..width.bytes() as usize])?;
                    running.resume()?;
                    expect_eq("what was read", &running.done()?[0], &width.truncate(0x4433_2211))?;
                }
                Ok(())
            },
        )
        .basis(&["arch/x86/kvm/x86.c: kvm_fast_pio", "arch/x86/kvm/svm/svm.c: io_interception"]),
    ]
}

fn port_exit(direction: Direction, size: u8, data: Vec<u8>) -> Exit {
    Exit::Io { port: 0x2f8, direction, size, count: 1, data }
}
