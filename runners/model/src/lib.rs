//! `libprivet_model.so`: a KVM in user space for any dynamically linked program.
//!
//! Preloaded into a program (`LD_PRELOAD`), it stands in for `/dev/kvm`, the descriptors that come from it, and
//! `/sys/module/kvm*`; everything else the program does is passed on. The machine behind it is
//! [`privet_machine`], described by environment variables: see [`privet_machine::options`].

mod interpose;
