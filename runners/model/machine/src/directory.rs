//! Directory streams over `/sys/module` and the model's modules in it.
#![expect(unsafe_code, reason = "directory entries in the C library's form")]

use std::collections::HashMap;
use std::ffi::{CStr, c_char};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::options::Options;
use crate::paths::{self, Node};
use crate::real;

/// A stream that `opendir` has returned: the entry that `readdir` gave last, and those to come.
struct Stream {
    current: Box<libc::dirent64>,
    left: Vec<(Vec<u8>, u8)>,
}

/// The streams, by the address that the program has.
static STREAMS: Mutex<Option<HashMap<usize, Stream>>> = Mutex::new(None);

fn streams() -> MutexGuard<'static, Option<HashMap<usize, Stream>>> {
    STREAMS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `opendir` of a node of the model; None if it is no directory.
pub fn open(node: &Node, options: &Options) -> Option<*mut libc::DIR> {
    let mut left: Vec<(Vec<u8>, u8)> = match node {
        Node::Directory(names) => {
            let kind = if names == &["parameters"] { libc::DT_DIR } else { libc::DT_REG };
            names.iter().map(|name| (name.as_bytes().to_vec(), kind)).collect()
        }
        Node::Modules => {
            let mut names = others();
            names.extend(paths::modules(options).map(|name| name.as_bytes().to_vec()));
            names.into_iter().map(|name| (name, libc::DT_DIR)).collect()
        }
        _ => return None,
    };
    left.reverse();
    left.extend([(b"..".to_vec(), libc::DT_DIR), (b".".to_vec(), libc::DT_DIR)]);
    // SAFETY: integers and an array of them.
    let current: Box<libc::dirent64> = Box::new(unsafe { std::mem::zeroed() });
    let address = &raw const *current as usize;
    streams().get_or_insert_default().insert(address, Stream { current, left });
    Some(address as *mut libc::DIR)
}

/// The modules of the machine that the model leaves as they are.
fn others() -> Vec<Vec<u8>> {
    let mut names = Vec::new();
    // SAFETY: a C string; the stream is closed below; entries are read before the next call.
    unsafe {
        let stream = real::opendir(c"/sys/module".as_ptr());
        while !stream.is_null() {
            let entry = real::readdir(stream);
            if entry.is_null() {
                real::closedir(stream);
                break;
            }
            let name = CStr::from_ptr((&raw const (*entry).d_name).cast::<c_char>()).to_bytes();
            if !name.starts_with(b".") && !paths::is_kvm_module(name) {
                names.push(name.to_vec());
            }
        }
    }
    names
}

/// Whether a stream is the model's.
pub fn is_ours(stream: *mut libc::DIR) -> bool {
    streams().as_ref().is_some_and(|streams| streams.contains_key(&(stream as usize)))
}

/// `readdir`: null at the end.
pub fn read(stream: *mut libc::DIR) -> *mut libc::dirent64 {
    let mut guard = streams();
    let Some(stream) = guard.as_mut().and_then(|streams| streams.get_mut(&(stream as usize))) else {
        return std::ptr::null_mut();
    };
    let Some((name, kind)) = stream.left.pop() else { return std::ptr::null_mut() };
    let entry = &mut *stream.current;
    entry.d_ino = 1 + stream.left.len() as u64;
    entry.d_type = kind;
    entry.d_reclen = size_of::<libc::dirent64>() as u16;
    entry.d_name.fill(0);
    let room = entry.d_name.len() - 1;
    for (to, from) in entry.d_name.iter_mut().zip(name.iter().take(room)) {
        *to = *from as c_char;
    }
    &raw mut *entry
}

/// `closedir`.
pub fn close(stream: *mut libc::DIR) {
    if let Some(streams) = streams().as_mut() {
        streams.remove(&(stream as usize));
    }
}
