//! Which rows a command line means.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use privet_cases::Entry;

use crate::args::Selection;
use crate::exit::Early;

/// The ids of the rows of `table` that `selection` means, in the order of the table: those that meet one of the
/// filters, if there are any, and one of the expressions, if there are any, and whose id no `--skip` is about.
///
/// # Errors
/// If a part of the selection is about nothing: a run that silently leaves something out proves less than it seems
/// to.
pub fn select(table: &[Entry], selection: &Selection) -> Result<Vec<String>, Early> {
    let Selection { filters, filtersets, skip, exact } = selection;
    if *exact && filters.is_empty() && skip.is_empty() {
        return Err(Early::usage("--exact is about FILTER and --skip: give an id"));
    }
    let ids: Vec<String> = table.iter().map(|row| row.id.clone()).collect();
    let mut selected = names_among(&ids, filters, *exact).map_err(|filter| no_such_row(&ids, filter, *exact))?;
    if !skip.is_empty() {
        let skipped = names_among(&ids, skip, *exact).map_err(|filter| no_such_row(&ids, filter, *exact))?;
        selected.retain(|id| !skipped.contains(id));
    }
    if !filtersets.is_empty() {
        if let Some(unknown) = filtersets.iter().find_map(|filterset| filterset.unknown(table)) {
            return Err(no_such("no row has what the expression names,", &ids, unknown, "privet list"));
        }
        let meets = |row: &&Entry| filtersets.iter().any(|filterset| filterset.matches(row));
        let met: BTreeSet<&str> = table.iter().filter(meets).map(|row| row.id.as_str()).collect();
        selected.retain(|id| met.contains(id.as_str()));
    }
    if selected.is_empty() {
        return Err(Early::usage(
            "no row meets the whole selection: `privet list` takes the same options and shows them",
        ));
    }
    Ok(selected)
}

/// The names among `names` that contain one of `filters`, or equal one of them if `exact`; all without a filter.
///
/// # Errors
/// The first filter that selects nothing.
pub fn names_among<'a>(names: &[String], filters: &'a [String], exact: bool) -> Result<Vec<String>, &'a str> {
    let matches = |name: &str, filter: &str| if exact { name == filter } else { name.contains(filter) };
    if let Some(filter) = filters.iter().find(|filter| !names.iter().any(|name| matches(name, filter))) {
        return Err(filter);
    }
    let selected = |name: &&String| filters.is_empty() || filters.iter().any(|filter| matches(name, filter));
    Ok(names.iter().filter(selected).cloned().collect())
}

/// The error for a filter or an id that no row matches.
pub fn no_such_row(ids: &[String], wanted: &str, exact: bool) -> Early {
    let what = if exact { "no row has the id" } else { "no row matches the filter" };
    no_such(what, ids, wanted, "privet list")
}

/// The error for a name that is not among `names`, which `shown_by` shows.
pub fn no_such(what: &str, names: &[String], wanted: &str, shown_by: &str) -> Early {
    let hint = match closest(names, wanted) {
        near if near.is_empty() => format!("`{shown_by}` shows all of them"),
        near => format!("did you mean {}? `{shown_by}` shows all of them", near.join(" or ")),
    };
    Early::usage(format!("{what} \"{}\": {hint}", wanted.escape_debug()))
}

/// Up to three ids that look like `wanted`.
fn closest<'a>(ids: &'a [String], wanted: &str) -> Vec<&'a str> {
    // Below this, Jaro-Winkler finds likeness between strangers.
    const ALIKE: f64 = 0.8;
    let mut near: Vec<(f64, &str)> = ids
        .iter()
        .map(|id| {
            // A filter is usually a piece of an id, so that its pieces are worth a look, too.
            let pieces = id.split('.').chain([id.as_str()]);
            let likeness = pieces.map(|piece| strsim::jaro_winkler(piece, wanted)).fold(0.0, f64::max);
            (likeness, id.as_str())
        })
        .filter(|(likeness, _)| *likeness >= ALIKE)
        .collect();
    near.sort_by(|a, b| b.0.total_cmp(&a.0));
    near.into_iter().take(3).map(|(_, id)| id).collect()
}

/// One of `of` slices of the selected rows: every `of`-th row, from the `number`-th on, so that slow
/// groups spread over the slices.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Partition {
    number: usize,
    of: usize,
}

impl Partition {
    /// What is in this slice of all.
    pub fn slice<T>(self, all: Vec<T>) -> Vec<T> {
        all.into_iter().skip(self.number - 1).step_by(self.of).collect()
    }
}

impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.number, self.of)
    }
}

impl FromStr for Partition {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "give it as M/N with 1 <= M <= N, for instance 2/3".to_owned();
        let (number, of) = text.split_once('/').ok_or_else(wrong)?;
        let number = number.parse().map_err(|_| wrong())?;
        let of = of.parse().map_err(|_| wrong())?;
        if number < 1 || number > of {
            return Err(wrong());
        }
        Ok(Self { number, of })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids() -> Vec<String> {
        ["plain.mmio.read", "upm.mmio.read", "upm.mmio.read.4", "upm.slots.toggle"].map(String::from).to_vec()
    }

    fn selected(filters: &[&str], exact: bool) -> Result<Vec<String>, String> {
        let filters: Vec<String> = filters.iter().map(|f| f.to_string()).collect();
        names_among(&ids(), &filters, exact).map_err(|filter| no_such_row(&ids(), filter, exact).message)
    }

    #[test]
    fn filters_add_up_and_exact_means_the_whole_id() {
        assert_eq!(selected(&[], false).unwrap().len(), 4);
        assert_eq!(selected(&["plain", "slots"], false).unwrap(), ["plain.mmio.read", "upm.slots.toggle"]);
        assert_eq!(selected(&["upm.mmio.read"], false).unwrap().len(), 2);
        assert_eq!(selected(&["upm.mmio.read"], true).unwrap(), ["upm.mmio.read"]);
    }

    #[test]
    fn a_filter_without_a_match_is_refused_with_what_is_near() {
        let error = selected(&["plain", "upm.slots.togle"], true).unwrap_err();
        assert!(error.contains("\"plain\"") && error.contains("privet list"), "{error}");
        let error = selected(&["togle"], false).unwrap_err();
        assert!(error.contains("upm.slots.toggle"), "{error}");
        assert!(!selected(&["q\nq"], false).unwrap_err().contains('\n'));
    }

    #[test]
    fn partitions_have_bounds() {
        for bad in ["", "1", "0/2", "3/2", "1/0", "-1/2", "1/2/3", "a/b", "1/ 2"] {
            assert!(bad.parse::<Partition>().is_err(), "{bad:?}");
        }
        assert_eq!("2/3".parse::<Partition>().unwrap().slice(ids()), ["upm.mmio.read"]);
        assert_eq!("9/9".parse::<Partition>().unwrap().slice(ids()), [] as [String; 0]);
    }
}
