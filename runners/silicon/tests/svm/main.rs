//! A guest in a host on a real [`privet_cpu::Cpu`]: what SVM's specification promises about instructions, faults and
//! events that the processor itself finds.

mod events;
mod faults;
mod instructions;
mod large_pages;
mod machine;
