//! `privet diff`: what is different between two results.

use std::io::Write;
use std::slice;

use privet_results::difference::Difference;

use super::collect::collected;
use super::show::show;
use crate::args::{Diff, DiffFormat};
use crate::exit::{Early, Status};

/// Tells what is different: `Failed` if it has become worse, `NothingRan` if nothing is in both.
///
/// # Errors
/// If a result cannot be read.
pub fn difference(args: &Diff, out: impl Write) -> Result<Status, Early> {
    let (before, now) = (collected(slice::from_ref(&args.before))?, collected(slice::from_ref(&args.now))?);
    let difference = Difference::between(&before, &now);
    let text = match args.format {
        DiffFormat::Pretty => difference.in_words(),
        DiffFormat::Json => format!("{:#}\n", serde_json::json!(difference)),
    };
    show(&text, out)?;
    Ok(match () {
        () if difference.is_worse() => Status::Failed,
        () if difference.compared == 0 => Status::NothingRan,
        () => Status::Passed,
    })
}
