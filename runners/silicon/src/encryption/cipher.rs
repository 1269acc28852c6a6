//! The cipher between a processor and DRAM: AES-128 in XEX mode, the tweak being the system-physical address.
//!
//! AMD names AES with a physical address based tweak and no more. What can be seen of it holds here: a block of
//! 16 bytes is garbled as a whole, and differs for every key and every address.

use aes::Aes128;
use aes::cipher::{Array, BlockCipherDecrypt, BlockCipherEncrypt, KeyInit};

use super::pages::{Key, PAGE_SIZE};

const BLOCK: usize = 16;
const BLOCKS: usize = PAGE_SIZE / BLOCK;

type Block = aes::Block;

/// The blocks that mask those of the page before and after AES.
fn tweaks(cipher: &Aes128, address: u64) -> [Block; BLOCKS] {
    let mut tweaks: [Block; BLOCKS] =
        std::array::from_fn(|index| Array::from(u128::from(address + (index * BLOCK) as u64).to_le_bytes()));
    cipher.encrypt_blocks(&mut tweaks);
    tweaks
}

fn mask(blocks: &mut [Block], tweaks: &[Block]) {
    for (block, tweak) in blocks.iter_mut().zip(tweaks) {
        let masked = u128::from_ne_bytes((*block).into()) ^ u128::from_ne_bytes((*tweak).into());
        *block = Array::from(masked.to_ne_bytes());
    }
}

/// The key's AES key. Keys are told apart by number and none comes twice; nobody outside of the machine is kept out.
fn cipher(key: Key) -> Aes128 {
    Aes128::new(&Array::from((u128::from(key.number()) << 64 | 0x7072_6976_6574).to_le_bytes()))
}

/// Plain bytes of `key`'s owner to what lies in DRAM. With [`Key::PLAIN`] those are the same.
pub(super) fn encrypt(page: &mut [u8; PAGE_SIZE], key: Key, address: u64) {
    if key != Key::PLAIN {
        let cipher = cipher(key);
        let tweaks = tweaks(&cipher, address);
        let blocks = Block::slice_as_chunks_mut(page).0;
        mask(blocks, &tweaks);
        cipher.encrypt_blocks(blocks);
        mask(blocks, &tweaks);
    }
}

/// What lies in DRAM to the bytes that an access with `key` sees.
pub(super) fn decrypt(page: &mut [u8; PAGE_SIZE], key: Key, address: u64) {
    if key != Key::PLAIN {
        let cipher = cipher(key);
        let tweaks = tweaks(&cipher, address);
        let blocks = Block::slice_as_chunks_mut(page).0;
        mask(blocks, &tweaks);
        cipher.decrypt_blocks(blocks);
        mask(blocks, &tweaks);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encrypted(mut page: [u8; PAGE_SIZE], key: u32, address: u64) -> [u8; PAGE_SIZE] {
        encrypt(&mut page, Key::numbered(key), address);
        page
    }

    #[test]
    fn decryption_undoes_encryption() {
        let plain: [u8; PAGE_SIZE] = std::array::from_fn(|index| (index * 7) as u8);
        let mut page = encrypted(plain, 3, 0x5000);
        assert_ne!(page, plain);
        decrypt(&mut page, Key::numbered(3), 0x5000);
        assert_eq!(page, plain);
    }

    #[test]
    fn one_byte_garbles_its_block_and_no_other() {
        let plain = [0; PAGE_SIZE];
        let mut other = plain;
        other[0x123] = 1;
        let (one, two) = (encrypted(plain, 1, 0), encrypted(other, 1, 0));
        let differing: Vec<usize> = (0..PAGE_SIZE).filter(|&at| one[at] != two[at]).collect();
        assert!(differing.len() >= 12, "{differing:x?}");
        assert!(differing.iter().all(|at| (0x120..0x130).contains(at)), "{differing:x?}");
    }

    #[test]
    fn ciphertext_differs_for_every_key_and_address() {
        let seen: std::collections::HashSet<_> = [(1, 0), (2, 0), (1, 0x1000), (2, 0x1000)]
            .into_iter()
            .flat_map(|(key, address)| {
                encrypted([0; PAGE_SIZE], key, address).chunks(BLOCK).map(<[u8]>::to_vec).collect::<Vec<_>>()
            })
            .collect();
        assert_eq!(seen.len(), 4 * BLOCKS);
    }

    #[test]
    fn no_key_leaves_the_page_alone() {
        let mut page = [7; PAGE_SIZE];
        encrypt(&mut page, Key::PLAIN, 0x1000);
        decrypt(&mut page, Key::PLAIN, 0x2000);
        assert_eq!(page, [7; PAGE_SIZE]);
    }
}
