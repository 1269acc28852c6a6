//! Kernels to boot: an image and its modules, named by the caller or found in a cache that is filled once per
//! user.
//!
//! [`build`] compiles one from a Debian package or any source, [`fetch`] takes one that Debian has built, a [`BuildTree`]
//! keeps what a build leaves, and an [`ImageRoom`] links that again with one object changed. What a build needs (a cache
//! with one build at a time, programs that are watched and can be interrupted, the source itself) is here for others who
//! build from a kernel source, too.

mod apt_sources;
pub mod build_cache;
pub mod build_tools;
mod build_tree;
pub mod command;
pub mod debian_package;
mod error;
mod image_room;
mod kernel;
mod kernel_build;
mod kernel_config;
mod kernel_fetch;
mod kernel_make;
pub mod kernel_source;
mod module;

pub use build_tree::BuildTree;
pub use error::KernelError;
pub use image_room::ImageRoom;
pub use kernel::{Kernel, cache_dir};
pub use kernel_build::{BuildRequest, Built, build};
pub use kernel_fetch::{FetchRequest, Fetched, fetch};
pub use module::{Module, strip_debug_info};
