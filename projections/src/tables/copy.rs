//! Rows for `COPY … (FORMAT binary)`: the fast way into a table that nobody reads yet. The format is
//! PostgreSQL's own: a signature, then per row the number of fields, and each field with its length.

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::PgConnection;
use uuid::Uuid;

/// Seconds from 1970 to 2000, where PostgreSQL counts from.
const EPOCH_SECONDS: i64 = 946_684_800;

/// A row that can be copied in.
pub trait CopyRow {
    /// The statement.
    const COPY: &'static str;
    /// Adds the row's fields, in the order of the statement's columns.
    fn fields(&self, fields: &mut Fields<'_>);
}

/// Encoded rows of one table.
pub struct CopyBuffer(Vec<u8>);

/// Adds the fields of one row.
pub struct Fields<'a> {
    bytes: &'a mut Vec<u8>,
    count: i16,
}

impl Default for CopyBuffer {
    fn default() -> Self {
        let mut bytes = b"PGCOPY\n\xff\r\n\0".to_vec();
        bytes.extend_from_slice(&[0; 8]);
        Self(bytes)
    }
}

impl CopyBuffer {
    /// Returns the encoded rows.
    pub fn of<'a, R: CopyRow + 'a>(rows: impl IntoIterator<Item = &'a R>) -> Self {
        let mut buffer = Self::default();
        for row in rows {
            let at = buffer.0.len();
            buffer.0.extend_from_slice(&[0; 2]);
            let mut fields = Fields { bytes: &mut buffer.0, count: 0 };
            row.fields(&mut fields);
            let count = fields.count.to_be_bytes();
            buffer.0[at..at + 2].copy_from_slice(&count);
        }
        buffer
    }

    /// Copies them into the table.
    pub async fn copy<R: CopyRow>(mut self, connection: &mut PgConnection) -> Result<u64, sqlx::Error> {
        self.0.extend_from_slice(&(-1_i16).to_be_bytes());
        let mut copying = connection.copy_in_raw(R::COPY).await?;
        copying.send(self.0).await?;
        copying.finish().await
    }
}

impl Fields<'_> {
    fn put(&mut self, value: Option<&[u8]>) {
        self.count += 1;
        match value {
            None => self.bytes.extend_from_slice(&(-1_i32).to_be_bytes()),
            Some(value) => {
                let length = i32::try_from(value.len()).expect("a field is bounded far below 2 GiB");
                self.bytes.extend_from_slice(&length.to_be_bytes());
                self.bytes.extend_from_slice(value);
            }
        }
    }

    /// Adds a `uuid`.
    pub fn uuid(&mut self, value: Option<Uuid>) {
        self.put(value.as_ref().map(|value| value.as_bytes().as_slice()));
    }

    /// Adds a `text` or `varchar`.
    pub fn text(&mut self, value: Option<&str>) {
        self.put(value.map(str::as_bytes));
    }

    /// Adds an `integer`.
    pub fn integer(&mut self, value: Option<i32>) {
        self.put(value.map(i32::to_be_bytes).as_ref().map(<[u8; 4]>::as_slice));
    }

    /// Adds a `bigint`.
    pub fn bigint(&mut self, value: Option<i64>) {
        self.put(value.map(i64::to_be_bytes).as_ref().map(<[u8; 8]>::as_slice));
    }

    /// Adds a `float8`.
    pub fn float(&mut self, value: Option<f64>) {
        self.put(value.map(f64::to_be_bytes).as_ref().map(<[u8; 8]>::as_slice));
    }

    /// Adds a `timestamptz`.
    pub fn timestamp(&mut self, value: Option<DateTime<Utc>>) {
        self.bigint(value.map(|value| value.timestamp_micros() - EPOCH_SECONDS * 1_000_000));
    }

    /// Adds a `jsonb`.
    pub fn jsonb(&mut self, value: Option<&impl Serialize>) {
        let bytes = value.map(|value| {
            // The format's version comes first.
            let mut bytes = vec![1];
            serde_json::to_writer(&mut bytes, value).expect("values have string keys and serialize");
            bytes
        });
        self.put(bytes.as_deref());
    }
}
