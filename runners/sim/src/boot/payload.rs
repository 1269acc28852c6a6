//! The compressed kernel in a bzImage, unpacked outside of the machine: inside it would take most of a boot.

use std::io::{self, Read};

/// Unpacks what a bzImage's decompressor would (kernel: `lib/decompress.c` names the formats by their first bytes).
///
/// `None` for a format that is left to the kernel's own decompressor: LZO, bzip2, or none that is known.
///
/// # Errors
/// If the payload is damaged.
pub(super) fn unpack(payload: &[u8]) -> io::Result<Option<Vec<u8>>> {
    let mut unpacked = Vec::new();
    match payload {
        [0x1f, 0x8b, ..] => flate2::read::GzDecoder::new(payload).read_to_end(&mut unpacked)?,
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => {
            lzma_rust2::XzReader::new(payload, false).read_to_end(&mut unpacked)?
        }
        [0x5d, 0, 0, ..] => {
            const ANY_SIZE: u32 = u32::MAX;
            lzma_rust2::LzmaReader::new_mem_limit(payload, ANY_SIZE, None)?.read_to_end(&mut unpacked)?
        }
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            let decoder = ruzstd::decoding::StreamingDecoder::new(payload).map_err(io::Error::other)?;
            { decoder }.read_to_end(&mut unpacked)?
        }
        [0x02, 0x21, 0x4c, 0x18, ..] => lz4_flex::frame::FrameDecoder::new(payload).read_to_end(&mut unpacked)?,
        _ => return Ok(None),
    };
    Ok(Some(unpacked))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn gzip_is_unpacked_and_what_follows_it_ignored() {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(b"vmlinux").unwrap();
        let mut payload = encoder.finish().unwrap();
        payload.extend([7, 0, 0, 0]);
        assert_eq!(unpack(&payload).unwrap().unwrap(), b"vmlinux");
    }

    #[test]
    fn a_damaged_payload_is_an_error_and_an_unknown_one_is_left_alone() {
        assert!(unpack(&[0x1f, 0x8b, 8, 0, 1, 2, 3, 4, 5, 6, 7]).is_err());
        assert_eq!(unpack(b"BZh9").unwrap(), None);
        assert_eq!(unpack(b"").unwrap(), None);
    }
}
