//! The paths that the model stands in for, and what is there.

use std::ffi::CString;
use std::os::fd::RawFd;

use nix::errno::Errno;

use crate::descriptors::{Object, hand_out, new_memfd};
use crate::options::Options;
use crate::personality::Personality;
use crate::real;

/// Something at a path.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Node {
    /// `/dev/kvm`.
    Kvm,
    /// `/sys/module`: the real one, with the model's kvm modules in place of those of the machine.
    Modules,
    /// A directory of the model's, with the names in it.
    Directory(Vec<&'static str>),
    /// A file such as a module parameter, and what it holds.
    Parameter(&'static str),
    /// Where the real machine may have something and the model's has not.
    Nothing,
}

/// The model's CPU, of which all that matters is that it hands the instructions to be emulated over: the model fetches
/// none from memory.
const CPU: &str = "processor\t: 0\nmodel name\t: privet's model\nflags\t\t: decodeassists\n";

/// The release of Linux whose KVM the model is written after: that of the machine under it says nothing about the model.
const RELEASE: &str = "7.3-privet-model\n";

/// Whether a module is one that the model replaces.
pub(crate) fn is_kvm_module(name: &[u8]) -> bool {
    name == b"kvm" || name.starts_with(b"kvm_")
}

/// The modules of the machine.
pub(crate) fn modules(options: &Options) -> [&'static str; 2] {
    ["kvm", options.personality.module()]
}

/// The parameters of a module.
fn parameters(module: &str, options: &Options) -> Option<Vec<(&'static str, &'static str)>> {
    let truth = |on: bool| if on { "Y\n" } else { "N\n" };
    let vendor = options.personality;
    Some(match module {
        "kvm" => vec![
            ("mmio_caching", truth(options.mmio_caching)),
            ("tdp_mmu", truth(options.tdp_mmu)),
            ("nx_huge_pages", "N\n"),
            // No eager_page_split: nothing is huge here once a slot is logged.
            ("ignore_msrs", "N\n"),
            ("report_ignored_msrs", "Y\n"),
            ("enable_pmu", "N\n"),
            ("enable_vmware_backdoor", "N\n"),
            ("force_emulation_prefix", "0\n"),
        ],
        "kvm_amd" if vendor != Personality::Intel => vec![
            ("npt", "Y\n"),
            ("nested", "0\n"),
            ("nrips", if options.knows_next_rip() { "1\n" } else { "0\n" }),
            ("avic", "N\n"),
            ("sev", "N\n"),
            ("sev_es", "N\n"),
            ("sev_snp", "N\n"),
        ],
        "kvm_intel" if vendor == Personality::Intel => {
            vec![("ept", "Y\n"), ("eptad", "Y\n"), ("nested", "N\n"), ("enable_apicv", "N\n"), ("tdx", "N\n")]
        }
        _ => return None,
    })
}

/// What the model has at a path; None if the path is not the model's business.
pub(crate) fn lookup(path: &[u8], options: &Options) -> Option<Node> {
    match path {
        b"/dev/kvm" => return Some(Node::Kvm),
        b"/sys/module" | b"/sys/module/" => return Some(Node::Modules),
        b"/proc/cpuinfo" => return Some(Node::Parameter(CPU)),
        b"/proc/sys/kernel/osrelease" => return Some(Node::Parameter(RELEASE)),
        _ => {}
    }
    let mut parts = path.strip_prefix(b"/sys/module/")?.split(|&byte| byte == b'/').filter(|part| !part.is_empty());
    let module = parts.next().filter(|module| is_kvm_module(module))?;
    let known = str::from_utf8(module).ok().and_then(|module| parameters(module, options));
    let Some(known) = known else { return Some(Node::Nothing) };
    Some(match (parts.next(), parts.next(), parts.next()) {
        (None, ..) => Node::Directory(vec!["parameters"]),
        (Some(b"parameters"), None, _) => Node::Directory(known.iter().map(|(name, _)| *name).collect()),
        (Some(b"parameters"), Some(name), None) => match known.iter().find(|(known, _)| known.as_bytes() == name) {
            Some((_, value)) => Node::Parameter(value),
            None => Node::Nothing,
        },
        _ => Node::Nothing,
    })
}

/// A path whose `stat` answers as that of the node would.
pub fn stand_in(node: &Node) -> CString {
    let path = match node {
        Node::Kvm => c"/dev/null",
        Node::Modules | Node::Directory(_) => c"/sys/module",
        Node::Parameter(_) => c"/proc/version",
        Node::Nothing => c"/sys/module/kvm/no such file",
    };
    path.to_owned()
}

/// `open(2)` of a node.
///
/// # Errors
/// ENOENT, EACCES for writing to a parameter, EISDIR, EMFILE.
pub fn open(node: &Node, flags: i32) -> Result<RawFd, Errno> {
    let memfd_flags = if flags & libc::O_CLOEXEC != 0 { libc::MFD_CLOEXEC } else { 0 };
    let writes = flags & libc::O_ACCMODE != libc::O_RDONLY;
    match node {
        Node::Kvm => hand_out(c"kvm", 0, memfd_flags, Object::System),
        Node::Parameter(_) if writes => Err(Errno::EACCES),
        Node::Parameter(value) => {
            let fd = new_memfd(c"parameter", 0, memfd_flags)?;
            write_whole(fd, value.as_bytes());
            Ok(fd)
        }
        Node::Modules | Node::Directory(_) if writes => Err(Errno::EISDIR),
        // Listed through opendir, which the model answers itself.
        Node::Modules | Node::Directory(_) | Node::Nothing => Err(Errno::ENOENT),
    }
}

#[expect(unsafe_code, reason = "write and lseek on a descriptor of ours")]
fn write_whole(fd: RawFd, bytes: &[u8]) {
    // SAFETY: the bytes are ours; a memfd takes a few bytes whole.
    unsafe {
        real::write(fd, bytes.as_ptr().cast(), bytes.len());
        real::lseek(fd, 0, libc::SEEK_SET);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_modules_are_those_of_the_personality() {
        let amd = Options { personality: Personality::Amd, mmio_caching: false, ..Options::default() };
        assert_eq!(lookup(b"/dev/kvm", &amd), Some(Node::Kvm));
        assert_eq!(lookup(b"/sys/module/kvm/parameters/mmio_caching", &amd), Some(Node::Parameter("N\n")));
        assert_eq!(lookup(b"/sys/module/kvm_amd/parameters/npt", &amd), Some(Node::Parameter("Y\n")));
        assert_eq!(lookup(b"/sys/module/kvm_intel/parameters/ept", &amd), Some(Node::Nothing));
        assert_eq!(lookup(b"/sys/module/kvm_pvm", &amd), Some(Node::Nothing));
        assert_eq!(lookup(b"/sys/module/kvm_amd", &amd), Some(Node::Directory(vec!["parameters"])));
        assert_eq!(lookup(b"/sys/module/ext4/parameters/x", &amd), None);
        assert!(matches!(lookup(b"/proc/cpuinfo", &amd), Some(Node::Parameter(cpu)) if cpu.contains("decodeassists")));
        assert_eq!(lookup(b"/dev/null", &amd), None);
    }
}
