//! Memory encryption: whose key a page of memory is encrypted with.
//!
//! With AMD's, what lies in DRAM is ciphertext under the key of the last writer, and each access decrypts with a key of its
//! own (APM volume 2, 15.34.1). Here a page of RAM carries a tag, the key for which its bytes are plain, and is
//! re-encrypted only when somebody comes with another key. That cannot be told apart, whole blocks and partial
//! writes included, and costs nothing as long as one owner uses a page.
//!
//! Intel's memory encryption has the same tags; there, memory notices who wrote it (`integrity.rs`).

mod access;
mod cipher;
mod integrity;
mod memory;
mod pages;

pub use access::{GuestMode, guest_access_is_private};
pub use integrity::LINE;
pub use memory::KeyedMemory;
pub use pages::{EncryptedPages, Key, PAGE_SIZE};
