//! What the table says of rows, as results carry it.

use privet_cases::Entry;
use privet_results::run_file::{Counterpart, RowFacts};

/// What the table says of this row.
pub fn row_facts(row: &Entry) -> RowFacts {
    RowFacts {
        id: row.id.clone(),
        about: row.about.to_owned(),
        basis: row.basis.iter().map(ToString::to_string).collect(),
        needs: row.needs.iter().map(ToString::to_string).collect(),
        upstream: row
            .upstream
            .iter()
            .map(|of| Counterpart {
                test: of.test.to_owned(),
                function: of.function.to_owned(),
                exceeded: of.is_exceeded,
            })
            .collect(),
    }
}

/// What the table says of all rows, in its order.
pub fn all_row_facts() -> Vec<RowFacts> {
    privet_cases::table().iter().map(row_facts).collect()
}
