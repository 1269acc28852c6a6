//! `privet completions` and `privet man`: what a package installs beside the program.

use std::io::Write;

use clap::CommandFactory;
use clap_mangen::Man;

use super::show::show_bytes;
use crate::args;
use crate::exit::{Early, Status};

/// Writes the script for a shell.
///
/// # Errors
/// If `out` cannot be written.
pub fn completions(args: &args::Completions, out: impl Write) -> Result<Status, Early> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut args::Cli::command(), "privet", &mut script);
    show_bytes(&script, out)
}

/// Writes the manual page of a command.
///
/// # Errors
/// If there is no such command, or `out` cannot be written.
pub fn man(args: &args::Man, out: impl Write) -> Result<Status, Early> {
    let mut command = args::Cli::command();
    // Gives the commands below their whole names.
    command.build();
    for name in &args.command {
        let below = command.get_subcommands().find(|below| below.get_name() == name).cloned();
        command = below
            .ok_or_else(|| Early::usage(format!("there is no command {}: see `privet help`", name.escape_debug())))?;
    }
    let name = command.get_bin_name().unwrap_or("privet").replace(' ', "-");
    let mut page = Vec::new();
    let rendered = Man::new(command.display_name(name)).render(&mut page);
    rendered.map_err(|error| Early::usage(format!("cannot render the page: {error}")))?;
    show_bytes(&page, out)
}
