//! Binary statistics of a VM or a vCPU: `KVM_GET_STATS_FD`.
//!
//! The file is a header, descriptors with names, and values; layout in `Documentation/virt/kvm/api.rst`
//! section 4.133. Values are read without a lock, so take them while the vCPU is outside of KVM_RUN.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::outcome::{Outcome, Stop};

/// Header: flags, name_size, num_desc, id_offset, desc_offset, data_offset.
const HEADER_LEN: usize = 24;
/// A descriptor without its name: flags, exponent and size, offset, bucket_size.
const DESCRIPTOR_LEN: usize = 16;
/// More than any kernel has: larger numbers are not statistics.
const MOST_DESCRIPTORS: u32 = 4096;
const LONGEST_NAME: u32 = 256;
const MOST_DATA: usize = 1 << 20;

/// Where a statistic is in the block of values.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Place {
    offset: u32,
    values: u16,
}

/// What the file's start says, which does not change while the file is open.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Layout {
    id: String,
    data_offset: u64,
    data_len: usize,
    places: HashMap<String, Place>,
}

impl Layout {
    /// Understands the header and the descriptors in `bytes`, the start of a statistics file.
    ///
    /// # Errors
    /// What is malformed.
    pub fn parse(bytes: &[u8]) -> Result<Layout, Malformed> {
        let [_flags, name_size, count, id_offset, desc_offset, data_offset] = header(bytes)?;
        let text = |offset: usize| -> Result<String, Malformed> {
            let name = slice(bytes, offset, name_size as usize)?;
            let name = name.split(|&byte| byte == 0).next().unwrap_or_default();
            std::str::from_utf8(name).map(str::to_owned).map_err(|_| Malformed("a name is not text"))
        };
        let mut places = HashMap::with_capacity(count as usize);
        let mut data_len = 0;
        for index in 0..count as usize {
            let start = desc_offset as usize + index * (DESCRIPTOR_LEN + name_size as usize);
            let descriptor = slice(bytes, start, DESCRIPTOR_LEN)?;
            let values = u16::from_le_bytes([descriptor[6], descriptor[7]]);
            let place = Place { offset: u32_at(descriptor, 8)?, values };
            if values == 0 || !place.offset.is_multiple_of(8) {
                return Err(Malformed("a descriptor has no values, or they are not aligned"));
            }
            data_len = data_len.max(place.offset as usize + 8 * usize::from(values));
            places.insert(text(start + DESCRIPTOR_LEN)?, place);
        }
        if data_len > MOST_DATA {
            return Err(Malformed("values lie implausibly far into the file"));
        }
        Ok(Layout { id: text(id_offset as usize)?, data_offset: data_offset.into(), data_len, places })
    }
}

/// A statistics file that cannot be understood.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("malformed KVM statistics: {0}")]
pub struct Malformed(&'static str);

fn slice(bytes: &[u8], offset: usize, len: usize) -> Result<&[u8], Malformed> {
    let end = offset.checked_add(len).ok_or(Malformed("an offset wraps"))?;
    bytes.get(offset..end).ok_or(Malformed("it ends early"))
}

fn u32_at(bytes: &[u8], offset: usize) -> Result<u32, Malformed> {
    let field = slice(bytes, offset, 4)?;
    Ok(u32::from_le_bytes([field[0], field[1], field[2], field[3]]))
}

fn header(bytes: &[u8]) -> Result<[u32; 6], Malformed> {
    let mut fields = [0; 6];
    for (index, field) in fields.iter_mut().enumerate() {
        *field = u32_at(bytes, 4 * index)?;
    }
    if fields[1] == 0 || fields[1] > LONGEST_NAME || fields[2] > MOST_DESCRIPTORS {
        return Err(Malformed("the header's numbers are implausible"));
    }
    Ok(fields)
}

/// The open statistics of a VM or a vCPU. The descriptor keeps the VM alive in the kernel.
#[derive(Debug)]
pub struct Stats {
    file: File,
    layout: Layout,
}

impl Stats {
    /// Reads the layout of `file`, a descriptor of `KVM_GET_STATS_FD`.
    ///
    /// # Errors
    /// `Stop::Error`: the file cannot be read or is malformed.
    pub fn new(file: File) -> Outcome<Stats> {
        let layout = || -> Result<Layout, String> {
            let mut start = [0; HEADER_LEN];
            file.read_exact_at(&mut start, 0).map_err(|error| format!("cannot read KVM statistics: {error}"))?;
            let [_, name_size, count, id_offset, desc_offset, _] = header(&start).map_err(|error| error.to_string())?;
            let after_id = u64::from(id_offset) + u64::from(name_size);
            let after_descriptors =
                u64::from(desc_offset) + u64::from(count) * (DESCRIPTOR_LEN as u64 + u64::from(name_size));
            let len = after_id.max(after_descriptors);
            if len > u64::from(MOST_DESCRIPTORS) * (DESCRIPTOR_LEN as u64 + u64::from(LONGEST_NAME)) {
                return Err(Malformed("descriptors lie implausibly far into the file").to_string());
            }
            let mut bytes = vec![0; len as usize];
            file.read_exact_at(&mut bytes, 0).map_err(|error| format!("cannot read KVM statistics: {error}"))?;
            Layout::parse(&bytes).map_err(|error| error.to_string())
        };
        let layout = layout().map_err(Stop::Error)?;
        Ok(Stats { file, layout })
    }

    /// The file's own name for what it describes: `kvm-<pid>` or `kvm-<pid>/vcpu-<id>`.
    pub fn id(&self) -> &str {
        &self.layout.id
    }

    /// All values, as they are now.
    ///
    /// # Errors
    /// `Stop::Error` if they cannot be read.
    pub fn snapshot(&self) -> Outcome<Snapshot<'_>> {
        let mut data = vec![0; self.layout.data_len];
        self.file
            .read_exact_at(&mut data, self.layout.data_offset)
            .map_err(|error| Stop::Error(format!("cannot read KVM statistics of {}: {error}", self.id())))?;
        Ok(Snapshot { layout: &self.layout, data })
    }

    /// The value of one statistic now; None if this kernel does not have it.
    ///
    /// # Errors
    /// `Stop::Error` if it cannot be read.
    pub fn get(&self, name: &str) -> Outcome<Option<u64>> {
        let Some(place) = self.layout.places.get(name) else { return Ok(None) };
        let mut value = [0; 8];
        self.file
            .read_exact_at(&mut value, self.layout.data_offset + u64::from(place.offset))
            .map_err(|error| Stop::Error(format!("cannot read KVM statistic {name} of {}: {error}", self.id())))?;
        Ok(Some(u64::from_le_bytes(value)))
    }

    /// The names of all statistics, sorted.
    pub fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.layout.places.keys().map(String::as_str).collect();
        names.sort_unstable();
        names
    }
}

/// All values of a [`Stats`] at one time.
#[derive(Clone, Debug)]
pub struct Snapshot<'a> {
    layout: &'a Layout,
    data: Vec<u8>,
}

impl Snapshot<'_> {
    /// The (first) value of a statistic; None if this kernel does not have it.
    pub fn get(&self, name: &str) -> Option<u64> {
        let offset = self.layout.places.get(name)?.offset as usize;
        let value = self.data.get(offset..offset + 8)?;
        Some(u64::from_le_bytes(value.try_into().ok()?))
    }

    /// How much a statistic grew from `earlier` to this snapshot; None if this kernel does not have it.
    pub fn since(&self, earlier: &Snapshot<'_>, name: &str) -> Option<i64> {
        Some(self.get(name)?.wrapping_sub(earlier.get(name)?) as i64)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;

    /// A file with the statistics `names`, whose values are 100, 101 and so on.
    fn file(names: &[&str]) -> Vec<u8> {
        let count = names.len() as u32;
        let desc_offset = 24 + 48;
        let mut bytes: Vec<u8> = [0, 48, count, 24, desc_offset, desc_offset + 64 * count]
            .iter()
            .flat_map(|field| field.to_le_bytes())
            .collect();
        let name = |text: &str| {
            let mut name = [0; 48];
            name[..text.len()].copy_from_slice(text.as_bytes());
            name
        };
        bytes.extend(name("kvm-1/vcpu-0"));
        for (index, text) in names.iter().enumerate() {
            let (flags, exponent, values, bucket) = (0u32, 0i16, 1u16, 0u32);
            bytes.extend(flags.to_le_bytes());
            bytes.extend(exponent.to_le_bytes());
            bytes.extend(values.to_le_bytes());
            bytes.extend((8 * index as u32).to_le_bytes());
            bytes.extend(bucket.to_le_bytes());
            bytes.extend(name(text));
        }
        bytes.extend((100..).take(names.len()).flat_map(|value: u64| value.to_le_bytes()));
        bytes
    }

    fn open(bytes: &[u8]) -> Outcome<Stats> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        Stats::new(file)
    }

    #[test]
    fn values_are_found_by_name_and_compared() {
        let stats = open(&file(&["exits", "pf_taken"])).unwrap();
        assert_eq!((stats.id(), stats.names()), ("kvm-1/vcpu-0", vec!["exits", "pf_taken"]));
        assert_eq!(stats.get("pf_taken"), Ok(Some(101)));
        let before = stats.snapshot().unwrap();
        stats.file.write_all_at(&7u64.to_le_bytes(), stats.layout.data_offset).unwrap();
        let after = stats.snapshot().unwrap();
        assert_eq!(after.since(&before, "exits"), Some(7 - 100), "instant values may shrink");
        assert_eq!(after.since(&before, "pf_taken"), Some(0));
        assert_eq!(after.since(&before, "absent"), None);
    }

    #[test]
    fn a_file_cut_anywhere_is_an_error_and_not_a_wrong_value() {
        let whole = file(&["exits", "pf_taken"]);
        for len in 0..whole.len() {
            let read = open(&whole[..len]).and_then(|stats| stats.snapshot().map(|snapshot| snapshot.get("pf_taken")));
            assert!(matches!(read, Err(Stop::Error(_))), "{len} bytes: {read:?}");
        }
    }

    #[test]
    fn implausible_numbers_are_refused() {
        for (offset, what) in [(4, "name_size"), (8, "num_desc"), (16, "desc_offset"), (72 + 8, "offset of values")] {
            let mut bytes = file(&["exits"]);
            bytes[offset..offset + 4].copy_from_slice(&[0xF8, 0xFF, 0xFF, 0xFF]);
            assert!(matches!(open(&bytes), Err(Stop::Error(_))), "{what}");
        }
    }

    #[test]
    fn values_that_are_not_words_are_refused() {
        let descriptor = 24 + 48;
        for (offset, value) in [(descriptor + 6, 0), (descriptor + 8, 4)] {
            let mut bytes = file(&["exits"]);
            bytes[offset] = value;
            assert!(matches!(open(&bytes), Err(Stop::Error(_))), "{value} at {offset}");
        }
    }

    proptest! {
        #[test]
        fn garbage_is_an_error_or_harmless(noise in proptest::collection::vec((0..200usize, any::<u8>()), 0..20)) {
            let mut bytes = file(&["exits", "pf_taken"]);
            for (at, byte) in noise {
                bytes[at % 200] = byte;
            }
            if let Ok(stats) = open(&bytes) {
                for name in stats.names() {
                    if let Ok(snapshot) = stats.snapshot() {
                        prop_assert_eq!(stats.get(name).unwrap(), snapshot.get(name));
                    }
                }
            }
        }
    }
}
