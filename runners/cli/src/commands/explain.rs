//! `privet explain ID`: all that the table says about a row. `privet explain --truth-table`: how KVM classifies accesses.

use std::io::Write;

use privet_cases::Counterpart;

use crate::args::Explain;
use crate::exit::{Early, Status};
use crate::selection::no_such_row;

/// Writes what is known about the row, or the truth tables, to `out`.
///
/// # Errors
/// If there is no such row.
pub fn explain(args: &Explain, mut out: impl Write) -> Result<Status, Early> {
    let text = match &args.id {
        Some(id) => row(id)?,
        None => privet_cases::truth_table(),
    };
    out.write_all(text.as_bytes())
        .map_err(|error| Early::usage(format!("cannot write to standard output: {error}")))?;
    Ok(Status::Passed)
}

/// What is known about a row.
fn row(id: &str) -> Result<String, Early> {
    let table = privet_cases::table();
    let Some(row) = table.iter().find(|row| row.id == id) else {
        let ids: Vec<String> = table.iter().map(|row| row.id.clone()).collect();
        return Err(no_such_row(&ids, id, true));
    };
    let mut needs = vec![format!("VM type {}", row.vm)];
    needs.extend(row.needs.iter().map(ToString::to_string));
    let mut basis: Vec<String> = row.basis.iter().map(ToString::to_string).collect();
    basis.extend(row.bug.map(|bug| match bug.fixed_in {
        Some((major, minor)) => format!("a bug fixed in Linux {major}.{minor}: {}", bug.title),
        None => format!("a bug that has no fix so far: {}", bug.title),
    }));
    let mut upstream: Vec<String> = row.upstream.iter().map(in_words).collect();
    if upstream.is_empty() {
        upstream.push("nothing of the kind".to_owned());
    }
    let mut text = format!("{}\n    {}\n", row.id, row.about);
    for (title, lines) in [("needs", needs), ("based on", basis), ("upstream has", upstream)] {
        for (i, line) in lines.iter().enumerate() {
            text += &format!("{:<14}{line}\n", if i == 0 { title } else { "" });
        }
    }
    text += &format!("{:<14}privet run --exact {}\n", "run it", row.id);
    Ok(text)
}

fn in_words(counterpart: &Counterpart) -> String {
    let more = if counterpart.is_exceeded { " (which checks less)" } else { "" };
    format!("{counterpart}{more}")
}
