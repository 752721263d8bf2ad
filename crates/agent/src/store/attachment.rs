//! Which ssd is promised to which guest.

use super::{StoreError, json, note, to_json};
use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::{Deserialize, Serialize};

/// A promise as it is kept. Fields are added, never renamed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AttachmentRow {
    pub(crate) ssd: String,
    pub(crate) guest: String,
    pub(crate) created_ms: u64,
}

fn of(row: &Row<'_>) -> rusqlite::Result<AttachmentRow> {
    json(&row.get::<_, String>("spec")?)
}

pub(crate) fn attachment(sqlite: &Connection, ssd: &str) -> Result<Option<AttachmentRow>, StoreError> {
    Ok(sqlite.query_row("SELECT spec FROM attachments WHERE ssd = ?1", [ssd], of).optional()?)
}

pub(crate) fn attachments(sqlite: &Connection) -> Result<Vec<AttachmentRow>, StoreError> {
    let mut query = sqlite.prepare("SELECT spec FROM attachments ORDER BY ssd")?;
    Ok(query.query_map([], of)?.collect::<Result<_, _>>()?)
}

pub(crate) fn put_attachment(sqlite: &Connection, row: &AttachmentRow) -> Result<(), StoreError> {
    sqlite.execute(
        "INSERT INTO attachments (ssd, spec) VALUES (?1, ?2) ON CONFLICT (ssd) DO UPDATE SET spec = ?2",
        params![row.ssd, to_json(row)?],
    )?;
    Ok(note(sqlite, "attachment", &row.ssd, false)?)
}

/// One that is not there is removed.
pub(crate) fn remove_attachment(sqlite: &Connection, ssd: &str) -> Result<(), StoreError> {
    if sqlite.execute("DELETE FROM attachments WHERE ssd = ?1", [ssd])? > 0 {
        note(sqlite, "attachment", ssd, true)?;
    }
    Ok(())
}
