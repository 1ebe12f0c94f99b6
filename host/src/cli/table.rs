//! Tables as every verb prints them.

use comfy_table::{CellAlignment, Table, presets};

/// An empty table with these headers; the columns named in `right` hold numbers.
pub fn plain(headers: &[&str], right: &[usize]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY);
    table.set_header(headers.to_vec());
    for (_, column) in table.column_iter_mut().enumerate().filter(|(i, _)| right.contains(i)) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}
