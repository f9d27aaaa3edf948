//! Looking values up; any number of connections may at once.

use std::sync::Arc;
use std::time::Duration;

use rusqlite::{Connection, Result, types::ValueRef};

use crate::runtime::place::Place;
pub(super) use crate::runtime::tier::BETWEEN;
use crate::runtime::tier::Found;

const FIND: &str = "
SELECT e.deadline, e.used, e.seq, e.tags, e.ns, e.key, c.seq, e.value
FROM entries e LEFT JOIN cuts c ON c.name = ?2 WHERE e.id = ?1";

const CUT_OF: &str = "SELECT seq FROM cuts WHERE name = ?1";

/// The row of a place. Two places in one row are possible and harmless: the later one is there.
pub(super) fn row_of(place: &Place) -> i64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&place.id()[..8]);
    i64::from_le_bytes(bytes) & i64::MAX
}

/// The name of a namespace among the cuts.
pub(super) fn cut_of_namespace(ns: &str) -> String {
    format!("n{ns}")
}

/// The name of a tag among the cuts.
pub(super) fn cut_of_tag(tag: &str) -> String {
    format!("t{tag}")
}

/// A living value.
pub(super) struct Living {
    pub(super) found: Found,
    /// When it was last known to be used, in milliseconds.
    pub(super) used: i64,
}

/// The living value at a place at `now`, in milliseconds.
pub(super) fn find(connection: &Connection, place: &Place, now: i64) -> Result<Option<Living>> {
    let mut statement = connection.prepare_cached(FIND)?;
    let mut rows = statement.query((row_of(place), cut_of_namespace(&place.ns)))?;
    let Some(row) = rows.next()? else { return Ok(None) };
    let deadline: Option<i64> = row.get(0)?;
    if deadline.is_some_and(|deadline| deadline <= now) {
        return Ok(None);
    }
    let (ns, key) = (row.get_ref(4)?, row.get_ref(5)?);
    if ns != ValueRef::Text(place.ns.as_bytes()) || key != ValueRef::Text(place.key.as_bytes()) {
        return Ok(None);
    }
    let seq: i64 = row.get(2)?;
    if row.get::<_, Option<i64>>(6)?.is_some_and(|cut| seq <= cut) {
        return Ok(None);
    }
    let tags = tags_of(row.get(3)?);
    for tag in &*tags {
        if is_cut(connection, &cut_of_tag(tag), seq)? {
            return Ok(None);
        }
    }
    let ValueRef::Blob(value) = row.get_ref(7)? else { return Ok(None) };
    let remaining = deadline.map(|deadline| Duration::from_millis((deadline - now) as u64));
    let found = Found { payload: value.into(), remaining, tags };
    Ok(Some(Living { found, used: row.get(1)? }))
}

/// Whether a namespace or a tag was outdated at or after the change `seq`.
pub(super) fn is_cut(connection: &Connection, name: &str, seq: i64) -> Result<bool> {
    let mut statement = connection.prepare_cached(CUT_OF)?;
    let mut rows = statement.query([name])?;
    Ok(match rows.next()? {
        Some(row) => seq <= row.get::<_, i64>(0)?,
        None => false,
    })
}

/// Tags as they stand in a row.
pub(super) fn tags_of(text: Option<String>) -> Arc<[Box<str>]> {
    text.iter().flat_map(|text| text.split(BETWEEN)).map(Box::from).collect()
}
