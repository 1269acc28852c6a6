//! `privet list`: the rows, without asking any host.

use std::io::Write;

use privet_cases::Entry;
use serde::Serialize;

use super::show::show;
use super::{list_defects, list_upstream};
use crate::args::{List, ListFormat};
use crate::exit::{Early, Status};
use crate::selection::select;

/// A row as `--format json` shows it.
#[derive(Serialize)]
struct Listed<'a> {
    id: &'a str,
    vm: &'static str,
    about: &'a str,
    basis: &'a [&'a str],
    upstream: Vec<String>,
    needs: Vec<String>,
}

/// Writes the selected rows to `out`.
///
/// # Errors
/// If a filter matches nothing.
pub fn list(args: &List, out: impl Write) -> Result<Status, Early> {
    if args.upstream {
        return list_upstream::list(args, out);
    }
    if args.defects {
        return list_defects::list(args, out);
    }
    let table = privet_cases::table();
    let selected = select(&table, &args.selection)?;
    let rows = || table.iter().filter(|row| selected.contains(&row.id));
    let width = rows().map(|row| row.id.len()).max().unwrap_or_default();
    let mut text = String::new();
    for row in rows() {
        text += &match args.format {
            ListFormat::Pretty => format!("{:width$}  {}\n", row.id, row.about),
            ListFormat::Json => format!("{}\n", json(row)),
        };
    }
    show(&text, out)
}

fn json(row: &Entry) -> serde_json::Value {
    let needs = row.needs.iter().map(ToString::to_string).collect();
    let upstream = row.upstream.iter().map(ToString::to_string).collect();
    let listed = Listed { id: &row.id, vm: row.vm.name(), about: row.about, basis: row.basis, upstream, needs };
    serde_json::json!(listed)
}
