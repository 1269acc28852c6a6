//! `privet report`: the page that people look at.

use std::io::Write;

use privet_results::page::page;
use privet_results::truth_table::tables_in;

use super::collect::{collected, status};
use super::show::show;
use crate::args::Report;
use crate::exit::{Early, Status};
use crate::output::Output;

/// Writes the page: the exit status is that of `privet collect`.
///
/// # Errors
/// If a result cannot be read, or the page cannot be written.
pub fn report(args: &Report, out: impl Write) -> Result<Status, Early> {
    let mut document = collected(&args.results.results)?;
    if document.truth_tables.is_empty() {
        document.truth_tables = tables_in(&privet_cases::truth_table());
    }
    let mut output = Output::create(&args.output, "--output")?;
    let written = output.write_all(page(&document).as_bytes()).and_then(|()| output.finish());
    let path = args.output.display();
    written.map_err(|error| Early::usage(format!("cannot write {path}: {error}")))?;
    show(&format!("{path}: {}\n", document.in_words()), out)?;
    Ok(status(&document))
}
