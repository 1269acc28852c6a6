//! The machine as a program sees it, by ioctl numbers and bytes, without the C library in between.

mod driver;
mod files;
mod garbage;
mod running;
mod slots;
