//! Keeping the file within its bounds: expiry, eviction, sweeping, shrinking. A little at a time.

use rusqlite::{Connection, Result};

use super::commit::{State, Terms, fresh_token};
use super::read::{cut_of_namespace, cut_of_tag, is_cut, tags_of};

/// Expired entries removed at a time: more than what is inserted between two looks is never needed
/// for long, and a thousand would be felt.
const EXPIRED_PER_LOOK: i64 = 32;

/// Entries looked at to find old ones, and how many of them go.
const SAMPLE: i64 = 32;
const OLDEST: usize = 8;

/// Entries looked at in one step of a sweep.
const SWEPT: i64 = 256;

/// Pages given back to the file system at a time: 1 MB, some 2 ms.
const PAGES: i64 = 256;

/// Removes expired entries if it `looks` for them, and evicts until the bounds hold: approximately the least recently
/// used ones, as Redis does it. Row numbers are hashes, so any stretch of them is a sample.
pub(super) fn make_room(
    on: &Connection,
    terms: Terms,
    state: &mut State,
    looks: bool,
) -> Result<(u64, u64)> {
    let is_full =
        |state: &State| state.bytes > terms.max_bytes || state.entries > terms.max_entries;
    let mut expired = 0;
    if looks || is_full(state) {
        expired = remove_expired(on, terms.now, EXPIRED_PER_LOOK, state)?;
    }
    let mut evicted = 0;
    while state.entries > 0 && is_full(state) {
        let gone = evict_some(on, terms, state)?;
        if gone == 0 {
            break;
        }
        evicted += gone;
    }
    Ok((evicted, expired))
}

fn remove_expired(on: &Connection, now: i64, most: i64, state: &mut State) -> Result<u64> {
    let mut due: Vec<(i64, i64, Option<i64>)> = Vec::new();
    {
        let mut statement = on.prepare_cached(
            "SELECT id, size, deadline FROM entries WHERE due <= ?1 ORDER BY due LIMIT ?2",
        )?;
        let mut rows = statement.query((now, most))?;
        while let Some(row) = rows.next()? {
            due.push((row.get(0)?, row.get(1)?, row.get(2)?));
        }
    }
    let mut removed = 0;
    for (id, size, deadline) in due {
        if deadline.is_some_and(|deadline| deadline <= now) {
            on.prepare_cached("DELETE FROM entries WHERE id = ?1")?.execute([id])?;
            state.entries -= 1;
            state.bytes -= size;
            removed += 1;
        } else {
            // It was overwritten in the meantime.
            on.prepare_cached("UPDATE entries SET due = deadline WHERE id = ?1")?.execute([id])?;
        }
    }
    Ok(removed)
}

fn evict_some(on: &Connection, terms: Terms, state: &mut State) -> Result<u64> {
    let mut sample: Vec<(i64, i64, i64)> = Vec::with_capacity(SAMPLE as usize);
    let mut from = fresh_token();
    for _ in 0..2 {
        let missing = SAMPLE - sample.len() as i64;
        let mut statement = on.prepare_cached(
            "SELECT used, id, size FROM entries WHERE id >= ?1 ORDER BY id LIMIT ?2",
        )?;
        let mut rows = statement.query((from, missing))?;
        while let Some(row) = rows.next()? {
            let one = (row.get(0)?, row.get(1)?, row.get(2)?);
            if !sample.contains(&one) {
                sample.push(one);
            }
        }
        if sample.len() as i64 >= SAMPLE {
            break;
        }
        // Past the last row: the others are at the beginning.
        from = 0;
    }
    sample.sort_unstable();
    let mut evicted = 0;
    for (_, id, size) in sample.into_iter().take(OLDEST) {
        if state.bytes <= terms.max_bytes && state.entries <= terms.max_entries {
            break;
        }
        on.prepare_cached("DELETE FROM entries WHERE id = ?1")?.execute([id])?;
        state.entries -= 1;
        state.bytes -= size;
        evicted += 1;
    }
    Ok(evicted)
}

/// Whether anything may have expired that is still there.
pub(super) fn has_due(on: &Connection, now: i64) -> Result<bool> {
    on.prepare_cached("SELECT 1 FROM entries WHERE due <= ?1 LIMIT 1")?.exists([now])
}

/// A sweep through all entries for those that a cut has outdated; ends with the cuts that
/// were there when it began, which nothing refers to any more then.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sweep {
    at: i64,
    until: i64,
}

impl Sweep {
    /// Begins one, if there is anything to sweep for; leases of processes that died go at once.
    pub(super) fn begin(on: &Connection, now: i64) -> Result<Option<Self>> {
        // Not just run out: whoever was only slow may still store.
        on.prepare_cached("DELETE FROM leases WHERE deadline + term <= ?1")?.execute([now])?;
        let newest: Option<i64> =
            on.prepare_cached("SELECT max(seq) FROM cuts")?.query_row([], |row| row.get(0))?;
        Ok(newest.map(|until| Self { at: 0, until }))
    }

    /// One step; true when it is through.
    pub(super) fn step(&mut self, on: &Connection, state: &mut State) -> Result<bool> {
        let (mut seen, mut dead) = (0, Vec::new());
        {
            let mut statement = on.prepare_cached(
                "SELECT id, seq, size, ns, tags FROM entries WHERE id >= ?1 ORDER BY id LIMIT ?2",
            )?;
            let mut rows = statement.query((self.at, SWEPT))?;
            while let Some(row) = rows.next()? {
                seen += 1;
                let (id, seq): (i64, i64) = (row.get(0)?, row.get(1)?);
                self.at = id.saturating_add(1);
                let mut is_dead = is_cut(on, &cut_of_namespace(row.get_ref(3)?.as_str()?), seq)?;
                for tag in &*tags_of(row.get(4)?) {
                    is_dead = is_dead || is_cut(on, &cut_of_tag(tag), seq)?;
                }
                if is_dead {
                    dead.push((id, row.get::<_, i64>(2)?));
                }
            }
        }
        for (id, size) in dead {
            on.prepare_cached("DELETE FROM entries WHERE id = ?1")?.execute([id])?;
            state.entries -= 1;
            state.bytes -= size;
        }
        if seen == SWEPT {
            return Ok(false);
        }
        // What is loading under a lease is still to be compared with the cuts since.
        on.prepare_cached(
            "DELETE FROM cuts WHERE seq <= ?1 AND seq < coalesce((SELECT min(seq) FROM leases), ?1 + 1)",
        )?
        .execute([self.until])?;
        Ok(true)
    }
}

/// Gives some free pages back to the file system if a quarter of the file is free.
pub(super) fn shrink(on: &Connection) -> Result<bool> {
    let value = |name: &str| on.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    let (free, all) = (value("freelist_count")?, value("page_count")?);
    if free < PAGES || free * 4 < all {
        return Ok(false);
    }
    let mut statement = on.prepare(&format!("PRAGMA incremental_vacuum({PAGES})"))?;
    let mut rows = statement.query([])?;
    while rows.next()?.is_some() {}
    Ok(true)
}
