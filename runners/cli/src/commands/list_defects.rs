//! `privet list --defects`: the bugs that the model can have.

use std::io::Write;

use privet_machine::Defect;

use super::show::show;
use crate::args::{List, ListFormat};
use crate::exit::{Early, Status};
use crate::selection::{names_among, no_such};

/// Writes the selected defects to `out`.
///
/// # Errors
/// If a filter matches nothing.
pub fn list(args: &List, out: impl Write) -> Result<Status, Early> {
    let names: Vec<String> = Defect::ALL.iter().map(|defect| defect.name().to_owned()).collect();
    let selection = &args.selection;
    let selected = names_among(&names, &selection.filters, selection.exact)
        .map_err(|filter| no_such("no defect has the name", &names, filter, "privet list --defects"))?;
    let mut text = String::new();
    for defect in Defect::ALL.iter().filter(|defect| selected.iter().any(|name| name == defect.name())) {
        let (name, summary, explanation) = (defect.name(), defect.summary(), defect.explanation());
        text += &match args.format {
            ListFormat::Pretty => format!("{name}: {summary}\n    {explanation}\n"),
            ListFormat::Json => {
                format!("{}\n", serde_json::json!({ "name": name, "summary": summary, "explanation": explanation }))
            }
        };
    }
    show(&text, out)
}
