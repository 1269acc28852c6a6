//! A first process in machine code: it says hello over the port, repeats the answer on the console, and switches off.

use std::io::Write;

use iced_x86::code_asm::{CodeAssembler, eax, edi, edx, esi, r8d, r10d};

/// What it says first.
pub(crate) const HELLO: &[u8] = b"hello from init\r\n";

const LOAD_ADDRESS: u64 = 0x40_0000;
const ELF_HEADERS: u64 = 64 + 56;
/// Strings and a buffer, behind the code.
const DATA: u64 = LOAD_ADDRESS + 0x800;
const BUFFER: u32 = LOAD_ADDRESS as u32 + 0x1000;
const MEMORY_BYTES: u64 = 0x2000;

mod call {
    pub(super) const READ: u32 = 0;
    pub(super) const WRITE: u32 = 1;
    pub(super) const OPEN: u32 = 2;
    pub(super) const MOUNT: u32 = 165;
    pub(super) const REBOOT: u32 = 169;
}

const STRINGS: [&[u8]; 5] = [b"devtmpfs\0", b"/dev\0", b"/dev/ttyS1\0", b"hello from init\n", b"init got: "];
const CONSOLE: u32 = 1;
/// The first descriptor that is free.
const PORT: u32 = 3;
const READ_WRITE: u32 = 2;
const POWER_OFF: [u32; 3] = [0xfee1_dead, 672_274_793, 0x4321_fedc];

/// Address and length of a string.
fn string(index: usize) -> [u32; 2] {
    let before: usize = STRINGS[..index].iter().map(|string| string.len()).sum();
    [DATA as u32 + before as u32, STRINGS[index].len() as u32]
}

fn program() -> Vec<u8> {
    let mut code = CodeAssembler::new(64).expect("64 bits are known");
    let mut system_call = |number: u32, arguments: &[u32]| {
        for (register, value) in [edi, esi, edx, r10d, r8d].into_iter().zip(arguments) {
            code.mov(register, *value).expect("it encodes");
        }
        code.mov(eax, number).expect("it encodes");
        code.syscall().expect("it encodes");
    };
    let [devtmpfs, dev, port, hello, got] = [0, 1, 2, 3, 4].map(string);
    system_call(call::MOUNT, &[devtmpfs[0], dev[0], devtmpfs[0], 0, 0]);
    system_call(call::OPEN, &[port[0], READ_WRITE, 0]);
    system_call(call::WRITE, &[PORT, hello[0], hello[1]]);
    system_call(call::READ, &[PORT, BUFFER, b"answer\n".len() as u32]);
    system_call(call::WRITE, &[CONSOLE, got[0], got[1]]);
    system_call(call::WRITE, &[CONSOLE, BUFFER, b"answer\n".len() as u32]);
    system_call(call::REBOOT, &POWER_OFF);
    let mut bytes = code.assemble(LOAD_ADDRESS + ELF_HEADERS).expect("it assembles");
    bytes.resize((DATA - LOAD_ADDRESS - ELF_HEADERS) as usize, 0);
    bytes.extend(STRINGS.concat());
    bytes
}

/// A static executable with one segment.
fn executable() -> Vec<u8> {
    let program = program();
    let size = ELF_HEADERS + program.len() as u64;
    let mut elf = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    // An executable for x86-64.
    elf.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    for word in [LOAD_ADDRESS + ELF_HEADERS, 64, 0] {
        elf.extend(u64::to_le_bytes(word));
    }
    elf.extend([0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    // One loadable segment, readable, writable and executable.
    elf.extend([1, 0, 0, 0, 7, 0, 0, 0]);
    for word in [0, LOAD_ADDRESS, LOAD_ADDRESS, size, MEMORY_BYTES, 0x1000] {
        elf.extend(u64::to_le_bytes(word));
    }
    elf.extend(program);
    elf
}

/// An initramfs with nothing but this program and a console.
pub(crate) fn initramfs() -> Vec<u8> {
    const DIRECTORY: u32 = 0o040_755;
    const CHARACTER_DEVICE: u32 = 0o020_600;
    const EXECUTABLE: u32 = 0o100_755;
    let mut archive = Vec::new();
    let mut add = |builder: cpio::NewcBuilder, mode: u32, bytes: &[u8]| {
        let mut writer = builder.mode(mode).write(&mut archive, bytes.len() as u32);
        writer.write_all(bytes).expect("a vector takes everything");
        writer.finish().expect("a vector takes everything");
    };
    let entry = cpio::NewcBuilder::new;
    add(entry("dev"), DIRECTORY, &[]);
    add(entry("dev/console").rdev_major(5).rdev_minor(1), CHARACTER_DEVICE, &[]);
    add(entry("init"), EXECUTABLE, &executable());
    cpio::newc::trailer(&mut archive).expect("a vector takes everything");
    archive
}
