//! What firmware and a boot loader do before the kernel runs: tables and images in memory, and the first processor's
//! registers.

mod acpi;
mod kernel_image;
mod payload;
mod protocol;

pub(crate) use protocol::{Hardware, Images, load};
