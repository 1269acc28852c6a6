//! The CPU from outside: programs, differential runs against the processor underneath, exits, kicks.

mod board;
mod descriptor_tables;
mod differential;
mod exceptions;
mod exits;
mod extended_state;
mod forms;
mod garbage;
mod generate;
mod kick;
mod machine;
mod modes;
mod native;
mod programs;
mod protected;
mod repeatability;
