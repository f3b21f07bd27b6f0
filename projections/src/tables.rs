//! The tables: each file has its row, and reads and writes it set by set. Statements name no schema: the
//! connection's `search_path` says which generation is meant.

pub mod artifacts;
pub mod cache;
pub mod checkpoint;
pub mod files;
pub mod meetings;
pub mod speakers;
pub mod user_profiles;

/// Turns rows into the columns that `UNNEST` takes.
macro_rules! column {
    ($rows:expr, $row:ident => $value:expr) => {
        $rows.iter().map(|$row| $value).collect::<Vec<_>>()
    };
}
pub(crate) use column;
