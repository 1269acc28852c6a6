//! Group `slots`: which memslots KVM makes, changes and refuses, and which pages of which file they have.

mod binding;
mod changes;
mod creation;
mod deletion;
mod dirty_log;
mod dirty_ring;
mod huge_attributes;
mod huge_pages;
mod manual_dirty_log;
mod parts;
mod races;

use privet_harness::need::Need;

use crate::row::Row;

/// The rows of this group.
pub(crate) fn rows() -> Vec<Row> {
    let guest_rows = [binding::guest_rows(), changes::guest_rows(), deletion::guest_rows()].into_iter().flatten();
    let mut rows: Vec<Row> = guest_rows.map(|row| row.needs(Need::GuestCode)).collect();
    rows.extend([creation::rows(), changes::rows(), binding::rows(), races::rows()].into_iter().flatten());
    let of_pages = [dirty_log::rows(), manual_dirty_log::rows(), dirty_ring::rows(), huge_pages::rows()];
    rows.extend(huge_attributes::rows());
    rows.extend(of_pages.into_iter().flatten());
    rows.into_iter().map(|row| row.needs(Need::GuestMemfd)).collect()
}
