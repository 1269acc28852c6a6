//! A VMM for Linux, made of the harness: it launches the guest, and is its platform as far as processors, one serial port
//! and no disk go.

mod acpi;
mod amd;
mod boot;
mod cpuid;
mod initramfs;
mod launch;
mod loader;
mod td;
mod td_loader;
mod unfilled;

use std::fs;
use std::io::{self, Write};
use std::ops::Range;
use std::path::Path;
use std::sync::Mutex;
use std::thread::ScopedJoinHandle;
use std::time::Duration;

use privet_harness::exit::{Direction, Exit};
use privet_harness::host::Host;
use privet_harness::outcome::{Outcome, Stop};
use privet_harness::uapi::HC_MAP_GPA_RANGE;
use privet_harness::units::{Gpa, PageCount};
use privet_harness::vcpu::Vcpu;
use privet_harness::vm::Vm;
use privet_harness::vm_type::VmType;
use vm_superio::{Serial, Trigger};

use self::boot::Boot;
pub(crate) use self::initramfs::HELLO;

const COMMAND_LINE: &str = "console=ttyS0 panic=-1 reboot=k tsc=nowatchdog swiotlb=512";

/// What page tables map at once.
const LARGE_PAGE: u64 = 2 << 20;

/// COM1, and its interrupt.
const SERIAL: Range<u16> = 0x3f8..0x400;
const SERIAL_IRQ: u32 = 4;
/// The keyboard controller's command port, and what resets the machine there.
const KEYBOARD: u16 = 0x64;
const RESET: u8 = 0xfe;
/// The data of the clock: no battery, no update in progress.
const CLOCK_DATA: u16 = 0x71;

/// Bit 4 of the third argument of KVM_HC_MAP_GPA_RANGE: the pages shall be private.
const ENCRYPTED: u64 = 1 << 4;
/// Nothing that a guest does between two exits takes so long.
const LIMIT: Duration = Duration::from_secs(120);

/// Runs the kernel at `path` as a guest of this type until it resets its machine. Standard output is its console.
///
/// # Errors
/// What KVM refuses, and any exit that no such guest should have.
pub(crate) fn run(vm_type: VmType, path: &Path) -> Outcome {
    let image = fs::read(path).map_err(|error| broken(&error))?;
    let initramfs = initramfs::initramfs().map_err(|error| broken(&error))?;
    // Without firmware nothing tells an SEV-ES guest how further processors start (GHCB specification 56421, 4.3).
    let processors = if vm_type == VmType::SevEs { 1 } else { 2 };
    let boot = Boot::new(&image, initramfs, COMMAND_LINE, processors, vm_type)?;
    let host = Host::open().map_err(|error| broken(&error))?;
    let vm = Vm::create(&host, vm_type)?;
    vm.enable_map_gpa_range_exit()?;
    let launched = match vm_type {
        VmType::Snp | VmType::SevEs => amd::start(&host, &vm, boot, processors, vm_type == VmType::Snp)?,
        VmType::Tdx => td::start(&host, &vm, boot, processors)?,
        other => return Err(Stop::Error(format!("Linux is not launched as a guest of type {other}"))),
    };
    // KVM has no interrupt controller of a TD that a line could lead to.
    let line = Line((vm_type != VmType::Tdx).then_some(&vm));
    let platform = Platform { vm: &vm, serial: Serial::new(line, io::stdout()), over: false };
    serve(&launched.vcpus, &Mutex::new(platform))
}

fn broken(error: &dyn std::fmt::Display) -> Stop {
    Stop::Error(error.to_string())
}

/// Lets all processors run until one of them resets the machine.
fn serve(vcpus: &[Vcpu], platform: &Mutex<Platform<'_>>) -> Outcome {
    std::thread::scope(|scope| {
        let threads: Vec<_> = vcpus.iter().map(|vcpu| scope.spawn(|| follow(vcpu, platform))).collect();
        while !threads.iter().all(ScopedJoinHandle::is_finished) {
            std::thread::sleep(Duration::from_millis(1));
            if threads.iter().any(ScopedJoinHandle::is_finished) {
                // What one of them has ended ends for the others, too, in KVM or on their way there.
                vcpus.iter().try_for_each(Vcpu::kick)?;
            }
        }
        threads.into_iter().try_for_each(|thread| thread.join().expect("it does not panic"))
    })
}

/// Lets one processor run, until one of them ends it all.
fn follow(vcpu: &Vcpu, platform: &Mutex<Platform<'_>>) -> Outcome {
    loop {
        let exit = vcpu.run(LIMIT);
        let mut platform =
            platform.lock().map_err(|_| Stop::Error("another processor's thread has panicked".into()))?;
        let served = if platform.over { Ok(()) } else { exit.and_then(|exit| platform.serve(vcpu, exit)) };
        platform.over |= served.is_err();
        if platform.over {
            return served;
        }
    }
}

/// What of `all` is in none of `parts`.
fn rest_of(all: Range<u64>, mut parts: Vec<Range<u64>>) -> Vec<Range<u64>> {
    parts.sort_by_key(|part| part.start);
    let mut rest = Vec::new();
    let mut from = all.start;
    for part in parts.into_iter().chain(std::iter::once(all.end..all.end)) {
        if from < part.start {
            rest.push(from..part.start);
        }
        from = from.max(part.end);
    }
    rest
}

/// The interrupt line of the serial port, if it leads anywhere.
struct Line<'a>(Option<&'a Vm>);

impl Trigger for Line<'_> {
    type E = kvm_ioctls::Error;

    fn trigger(&self) -> Result<(), kvm_ioctls::Error> {
        let Some(vm) = self.0 else { return Ok(()) };
        [true, false].into_iter().try_for_each(|level| vm.kvm().set_irq_line(SERIAL_IRQ, level))
    }
}

/// What is outside of the guest's processors and memory.
struct Platform<'a> {
    vm: &'a Vm,
    serial: Serial<Line<'a>, vm_superio::serial::NoEvents, io::Stdout>,
    /// The machine is reset, or cannot go on.
    over: bool,
}

impl Platform<'_> {
    /// Does what a processor has left KVM for.
    fn serve(&mut self, vcpu: &Vcpu, exit: Exit) -> Outcome {
        match exit {
            Exit::Io { port: KEYBOARD, direction: Direction::Out, data, .. } if data == [RESET] => self.over = true,
            Exit::Io { port, direction: Direction::Out, data, size: 1, .. } if SERIAL.contains(&port) => {
                for byte in data {
                    self.serial
                        .write((port - SERIAL.start) as u8, byte)
                        .map_err(|error| Stop::Error(format!("the serial port: {error:?}")))?;
                }
                io::stdout().flush().map_err(|error| Stop::Error(error.to_string()))?;
            }
            Exit::Io { direction: Direction::Out, .. } => {}
            Exit::Io { port, direction: Direction::In, size, count, .. } => {
                let byte = match port {
                    CLOCK_DATA => 0,
                    _ if acpi::FIXED_HARDWARE.contains(&port) => 0,
                    _ if SERIAL.contains(&port) => self.serial.read((port - SERIAL.start) as u8),
                    _ => 0xff,
                };
                vcpu.set_io_in_data(&vec![byte; usize::from(size) * count as usize])?;
            }
            Exit::Mmio { write: None, .. } => vcpu.set_mmio_data(u64::MAX)?,
            Exit::Mmio { .. } => {}
            Exit::Hypercall { nr: HC_MAP_GPA_RANGE, args: [gpa, pages, attributes], .. } => {
                let (gpa, pages) = (Gpa(gpa), PageCount(pages));
                match attributes & ENCRYPTED {
                    0 => self.vm.set_shared(gpa, pages)?,
                    _ => self.vm.set_private(gpa, pages)?,
                }
                vcpu.set_hypercall_ret(0)?;
            }
            other => return Err(Stop::Fail(format!("the guest's processor {}: {other}", vcpu.id()))),
        }
        Ok(())
    }
}
