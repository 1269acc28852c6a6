//! The guest's root file system: one program that says that it runs, and ends the machine.

use std::io::{self, Write};

use iced_x86::IcedError;
use iced_x86::code_asm::{CodeAssembler, eax, edi, edx, esi};

/// What the guest's first process says.
pub(crate) const HELLO: &str = "hello from the first process of a guest";

const LOAD_ADDRESS: u64 = 0x40_0000;
const ELF_HEADERS: u64 = 64 + 56;
const TEXT: u64 = LOAD_ADDRESS + 0x800;

const WRITE: u32 = 1;
const OPEN: u32 = 2;
const REBOOT: u32 = 169;
const WRITE_ONLY: u32 = 1;
/// What is written there is a line of the console of its own: no other processor's message comes in its middle.
const KERNEL_LOG: &str = "/dev/kmsg\0";
/// LINUX_REBOOT_MAGIC1 and 2, LINUX_REBOOT_CMD_RESTART.
const RESTART: [u32; 3] = [0xfee1_dead, 672_274_793, 0x0123_4567];

fn program() -> Result<Vec<u8>, IcedError> {
    let text = format!("{HELLO}\n");
    let path = TEXT + text.len() as u64;
    let mut code = CodeAssembler::new(64)?;
    let mut call = |number: u32, arguments: &[u32]| -> Result<(), IcedError> {
        for (register, value) in [esi, edx, edi].into_iter().zip(arguments) {
            code.mov(register, *value)?;
        }
        code.mov(eax, number)?;
        code.syscall()
    };
    call(OPEN, &[WRITE_ONLY, 0, path as u32])?;
    // It is the first file that the process has, beside the three that the kernel gives it.
    call(WRITE, &[TEXT as u32, text.len() as u32, 3])?;
    let [magic, magic_2, command] = RESTART;
    call(REBOOT, &[magic_2, command, magic])?;
    let mut bytes = code.assemble(LOAD_ADDRESS + ELF_HEADERS)?;
    bytes.resize((TEXT - LOAD_ADDRESS - ELF_HEADERS) as usize, 0);
    bytes.extend(text.bytes());
    bytes.extend(KERNEL_LOG.bytes());
    Ok(bytes)
}

/// A static executable for x86-64 with one segment, readable and executable.
fn executable() -> Result<Vec<u8>, IcedError> {
    let program = program()?;
    let size = ELF_HEADERS + program.len() as u64;
    let mut elf = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    elf.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    for word in [LOAD_ADDRESS + ELF_HEADERS, 64, 0] {
        elf.extend(u64::to_le_bytes(word));
    }
    elf.extend([0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    elf.extend([1, 0, 0, 0, 5, 0, 0, 0]);
    for word in [0, LOAD_ADDRESS, LOAD_ADDRESS, size, size, 0x1000] {
        elf.extend(u64::to_le_bytes(word));
    }
    elf.extend(program);
    Ok(elf)
}

/// The archive: the program, and the kernel's log for it to write to.
///
/// # Errors
/// If the program does not assemble.
pub(crate) fn initramfs() -> Result<Vec<u8>, IcedError> {
    const DIRECTORY: u32 = 0o040_755;
    const CHARACTER_DEVICE: u32 = 0o020_600;
    const EXECUTABLE: u32 = 0o100_755;
    let mut archive = Vec::new();
    let entry = cpio::NewcBuilder::new;
    let entries = [
        (entry("dev").mode(DIRECTORY), Vec::new()),
        (entry("dev/kmsg").mode(CHARACTER_DEVICE).rdev_major(1).rdev_minor(11), Vec::new()),
        (entry("init").mode(EXECUTABLE), executable()?),
    ];
    let written: io::Result<()> = entries.into_iter().try_for_each(|(builder, bytes)| {
        let mut writer = builder.write(&mut archive, bytes.len() as u32);
        writer.write_all(&bytes)?;
        writer.finish().map(drop)
    });
    written.and_then(|()| cpio::newc::trailer(&mut archive).map(drop)).expect("a vector takes everything");
    Ok(archive)
}
