//! What a row leaves behind in its process: descriptors (of VMs, vCPUs, guest_memfds), memory of theirs that is still
//! mapped, and children.
#![expect(unsafe_code, reason = "waitid(2) into a siginfo")]

use std::collections::BTreeMap;
use std::fs;

/// What a process holds at one moment.
#[derive(Debug)]
pub struct Holdings {
    /// Descriptors and what they lead to.
    descriptors: BTreeMap<String, String>,
    has_children: bool,
}

impl Holdings {
    /// Those of this process now.
    pub fn now() -> Holdings {
        let links = fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
        let named = links.filter_map(|entry| {
            let link = fs::read_link(entry.path()).ok()?.to_string_lossy().into_owned();
            // The directory that is being read has a descriptor, too.
            (!link.starts_with("/proc/")).then(|| (entry.file_name().to_string_lossy().into_owned(), link))
        });
        Holdings { descriptors: named.collect(), has_children: has_children() }
    }

    /// What this process holds beyond that now, in words. Of KVM's files it held no mappings when it began.
    pub fn more_now(&self) -> Option<String> {
        let now = Holdings::now();
        let is_new = |(number, link): &(&String, &String)| self.descriptors.get(*number) != Some(*link);
        let descriptors = now.descriptors.iter().filter(is_new);
        let mut more: Vec<String> = descriptors.map(|(number, link)| format!("descriptor {number} ({link})")).collect();
        let mappings = mappings_of_kvm();
        if mappings > 0 {
            more.push(format!("{mappings} mappings of KVM's files"));
        }
        if now.has_children && !self.has_children {
            more.push("a child process".to_owned());
        }
        (!more.is_empty()).then(|| more.join(", "))
    }
}

/// How many mappings there are of files of KVM's: kvm_run pages, guest_memfds.
fn mappings_of_kvm() -> usize {
    let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
    maps.lines().filter(|line| line.contains("kvm-vcpu") || line.contains("kvm-gmem")).count()
}

/// Whether there is a child, alive or not yet waited for; it stays as it is.
fn has_children() -> bool {
    // SAFETY: a siginfo of zeros is valid, waitid writes to it alone.
    unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        libc::waitid(libc::P_ALL, 0, &raw mut info, libc::WEXITED | libc::WNOHANG | libc::WNOWAIT) == 0
    }
}
