//! What a host has to offer, in words that schedulers know.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use nix::sys::utsname::uname;
use serde::Serialize;

/// A host.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Node {
    /// Its name, as in `uname -n`.
    pub name: String,
    /// The release of its kernel, as in `uname -r`.
    pub kernel: String,
    /// Its processors.
    pub cpus: usize,
    /// Its memory in MiB.
    pub memory_mib: u64,
    /// Who made the processors, as /proc/cpuinfo has it: `AuthenticAMD`, `GenuineIntel`.
    pub vendor_id: String,
    /// Their family, as in /proc/cpuinfo.
    pub family: u32,
    /// Their model, as in /proc/cpuinfo.
    pub model: u32,
    /// The VM types that run on it, by the names that rows have: `plain`, `upm`, `snp` ...
    pub vm_types: Vec<String>,
    /// How many key ids there are, by the names of the misc cgroup: `sev`, `sev_es` (which SEV-SNP guests have, too),
    /// `tdx` (Documentation/admin-guide/cgroup-v2.rst, "Misc").
    pub key_ids: BTreeMap<String, u64>,
}

impl Node {
    /// This machine, of which these VM types were seen to run.
    pub fn here(vm_types: Vec<String>) -> Self {
        let text = |path: &str| fs::read_to_string(Path::new(path)).unwrap_or_default();
        Self {
            vm_types,
            ..Self::read(&text("/proc/cpuinfo"), &text("/proc/meminfo"), &text("/sys/fs/cgroup/misc.capacity"))
        }
        .named()
    }

    fn named(self) -> Self {
        let Ok(names) = uname() else { return self };
        let text = |name: &std::ffi::OsStr| name.to_string_lossy().into_owned();
        Self { name: text(names.nodename()), kernel: text(names.release()), ..self }
    }

    /// What these files say; what they do not say is empty or 0.
    fn read(cpuinfo: &str, meminfo: &str, capacity: &str) -> Self {
        let field = |name: &str| {
            let of_line = |line: &str| {
                let (key, value) = line.split_once(':')?;
                (key.trim() == name).then(|| value.trim().to_owned())
            };
            cpuinfo.lines().find_map(of_line).unwrap_or_default()
        };
        let kib =
            meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:")?.split_whitespace().next()?.parse().ok());
        let key_ids = capacity.lines().filter_map(|line| {
            let (name, count) = line.split_once(' ')?;
            Some((name.to_owned(), count.trim().parse().ok()?))
        });
        Self {
            cpus: cpuinfo.lines().filter(|line| line.starts_with("processor")).count(),
            memory_mib: kib.unwrap_or(0_u64) / 1024,
            vendor_id: field("vendor_id"),
            family: field("cpu family").parse().unwrap_or_default(),
            model: field("model").parse().unwrap_or_default(),
            key_ids: key_ids.collect(),
            ..Self::default()
        }
    }

    /// `amd` or `intel`; nothing for others.
    fn vendor(&self) -> Option<&'static str> {
        match self.vendor_id.as_str() {
            "AuthenticAMD" => Some("amd"),
            "GenuineIntel" => Some("intel"),
            _ => None,
        }
    }

    /// The name of the processors' generation, of those that have confidential VMs (arch/x86/include/asm/intel-family.h
    /// and arch/x86/kernel/cpu/amd.c have the numbers).
    pub fn generation(&self) -> Option<&'static str> {
        match (self.vendor()?, self.family, self.model) {
            ("amd", 0x17, 0x00..=0x0f) => Some("naples"),
            ("amd", 0x17, 0x30..=0x3f) => Some("rome"),
            ("amd", 0x19, 0x00..=0x0f) => Some("milan"),
            ("amd", 0x19, 0x10..=0x1f | 0xa0..=0xaf) => Some("genoa"),
            ("amd", 0x1a, 0x00..=0x1f) => Some("turin"),
            ("intel", 6, 0x8f) => Some("spr"),
            ("intel", 6, 0xcf) => Some("emr"),
            ("intel", 6, 0xad) => Some("gnr"),
            ("intel", 6, 0xaf) => Some("srf"),
            _ => None,
        }
    }

    /// Its features, as jobs ask for them: vendor, generation, VM types.
    pub fn features(&self) -> Vec<&str> {
        let cpu = self.vendor().into_iter().chain(self.generation());
        cpu.chain(self.vm_types.iter().map(String::as_str)).collect()
    }

    /// Its line of slurm.conf, and as comments what it adds to the cluster's licences, which are of a whole cluster, so
    /// that somebody has to add them up, or what it has of generic resources, which gres.conf names with
    /// `Flags=CountOnly`.
    pub fn slurm_conf(&self) -> String {
        let Self { name, cpus, memory_mib, key_ids, .. } = self;
        let mut text =
            format!("NodeName={name} CPUs={cpus} RealMemory={memory_mib} Features={}\n", self.features().join(","));
        if !key_ids.is_empty() {
            let licences: Vec<String> =
                key_ids.iter().map(|(name, count)| format!("{}:{count}", licence(name))).collect();
            text += &format!("# of {name}, to be added up over all nodes: Licenses={}\n", licences.join(","));
            text += &format!("# or, with --key-ids gres, on the line above: Gres={}\n", licences.join(","));
        }
        text
    }

    /// Its labels in the vocabulary of Node Feature Discovery, one a line, as its source `local` reads them from
    /// features.d. What NFD finds out itself has the names that NFD gives it.
    pub fn nfd_labels(&self) -> String {
        let vendor = match self.vendor() {
            Some("amd") => "AMD",
            Some(_) => "Intel",
            None => self.vendor_id.as_str(),
        };
        let mut labels = vec![
            ("cpu-model.vendor_id".to_owned(), vendor.to_owned()),
            ("cpu-model.family".to_owned(), self.family.to_string()),
            ("cpu-model.id".to_owned(), self.model.to_string()),
            ("kernel-version.full".to_owned(), self.kernel.clone()),
        ];
        for vm_type in &self.vm_types {
            let name = match vm_type.as_str() {
                "sev" => "cpu-security.sev.enabled".to_owned(),
                "sev_es" => "cpu-security.sev.es.enabled".to_owned(),
                "snp" => "cpu-security.sev.snp.enabled".to_owned(),
                "tdx" => "cpu-security.tdx.enabled".to_owned(),
                other => format!("privet.{other}"),
            };
            labels.push((name, "true".to_owned()));
        }
        for (name, count) in &self.key_ids {
            let name = match name.as_str() {
                "sev" => "cpu-security.sev.asids".to_owned(),
                "sev_es" => "cpu-security.sev.encrypted_state_ids".to_owned(),
                "tdx" => "cpu-security.tdx.total_keys".to_owned(),
                other => format!("privet.key_ids.{other}"),
            };
            labels.push((name, count.to_string()));
        }
        labels.iter().map(|(name, value)| format!("{name}={value}\n")).collect()
    }

    /// All of it as JSON.
    pub fn json(&self) -> String {
        let mut value = serde_json::json!(self);
        value["generation"] = self.generation().into();
        value["features"] = self.features().into();
        format!("{value:#}\n")
    }
}

/// The licence that stands for a key id, by its name in the misc cgroup.
pub(crate) fn licence(name: &str) -> String {
    match name {
        "tdx" => "tdx_hkid".to_owned(),
        name => format!("{name}_asid"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn genoa() -> Node {
        let cpuinfo = "processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel\t\t: 17\nmodel name\t: AMD EPYC\n\nprocessor\t: 1\n";
        let node = Node::read(cpuinfo, "MemTotal:       16384000 kB\n", "sev 99\nsev_es 410\n");
        let vm_types = ["plain", "sev", "sev_es", "snp"].map(String::from).to_vec();
        Node { name: "genoa1".into(), kernel: "7.3.4".into(), vm_types, ..node }
    }

    #[test]
    fn a_node_is_told_in_slurms_words() {
        assert_eq!(
            genoa().slurm_conf(),
            "NodeName=genoa1 CPUs=2 RealMemory=16000 Features=amd,genoa,plain,sev,sev_es,snp\n\
             # of genoa1, to be added up over all nodes: Licenses=sev_asid:99,sev_es_asid:410\n\
             # or, with --key-ids gres, on the line above: Gres=sev_asid:99,sev_es_asid:410\n"
        );
    }

    #[test]
    fn a_node_is_told_in_nfds_words() {
        let labels = genoa().nfd_labels();
        for label in [
            "cpu-model.vendor_id=AMD\n",
            "cpu-model.family=25\n",
            "cpu-security.sev.snp.enabled=true\n",
            "cpu-security.sev.encrypted_state_ids=410\n",
            "privet.plain=true\n",
            "kernel-version.full=7.3.4\n",
        ] {
            assert!(labels.contains(label), "{labels}");
        }
    }

    #[test]
    fn what_a_machine_does_not_say_is_not_invented() {
        let node = Node::read("", "", "garbage\nsev x\n");
        assert_eq!(node, Node::default());
        assert!(node.features().is_empty() && node.generation().is_none());
        assert!(!node.slurm_conf().contains("Licenses"));
    }

    #[test]
    fn json_has_all_of_it() {
        let value: serde_json::Value = serde_json::from_str(&genoa().json()).unwrap();
        assert_eq!((&value["generation"], &value["key_ids"]["sev_es"]), (&"genoa".into(), &410.into()));
    }
}
