//! What stands in the file.
//!
//! | table | what |
//! |---|---|
//! | `budgets` | each name's calendar, how many accounts it has, and up to when some were forgotten |
//! | `accounts` | what each key has spent in each period; money in billionths of a dollar, times in milliseconds since 1970 |

use rusqlite::{Connection, OptionalExtension, Result, Row, params};

use super::owed::{Owed, Paid};
use super::{Away, Config, Holder};
use crate::core::budget::{Account, Cell, Millis, PERIODS, Terms};
use crate::runtime::sqlite::OpenError;
use crate::runtime::sqlite::commit::fresh_token;

pub(super) const TABLES: &str = "
CREATE TABLE budgets(
    id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, timezone TEXT NOT NULL,
    keys INTEGER NOT NULL, forgotten INTEGER NOT NULL);
CREATE TABLE accounts(
    id BLOB PRIMARY KEY, budget INTEGER NOT NULL, key TEXT NOT NULL, born INTEGER NOT NULL,
    until INTEGER NOT NULL,
    hour_start INTEGER NOT NULL, hour_end INTEGER NOT NULL,
    hour_used INTEGER NOT NULL, hour_told INTEGER NOT NULL,
    day_start INTEGER NOT NULL, day_end INTEGER NOT NULL,
    day_used INTEGER NOT NULL, day_told INTEGER NOT NULL,
    week_start INTEGER NOT NULL, week_end INTEGER NOT NULL,
    week_used INTEGER NOT NULL, week_told INTEGER NOT NULL,
    month_start INTEGER NOT NULL, month_end INTEGER NOT NULL,
    month_used INTEGER NOT NULL, month_told INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX due ON accounts(budget, until);
";

const SELECT: &str = "
SELECT hour_start, hour_end, hour_used, hour_told, day_start, day_end, day_used, day_told,
    week_start, week_end, week_used, week_told, month_start, month_end, month_used, month_told,
    born, until
FROM accounts WHERE id = ?1";

const INSERT: &str = "
INSERT INTO accounts VALUES (?18, ?19, ?20, ?17, ?21, ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10,
    ?11, ?12, ?13, ?14, ?15, ?16)";

/// What changes with every request; no index has it.
const COUNT: &str = "
UPDATE accounts SET hour_used = ?2, hour_told = ?3, day_used = ?4, day_told = ?5,
    week_used = ?6, week_told = ?7, month_used = ?8, month_told = ?9
WHERE id = ?1";

/// What changes with a period.
const TURN: &str = "
UPDATE accounts SET hour_start = ?1, hour_end = ?2, hour_used = ?3, hour_told = ?4,
    day_start = ?5, day_end = ?6, day_used = ?7, day_told = ?8,
    week_start = ?9, week_end = ?10, week_used = ?11, week_told = ?12,
    month_start = ?13, month_end = ?14, month_used = ?15, month_told = ?16, until = ?17
WHERE id = ?18";

/// Accounts that are forgotten with each new one, so that there is always room where it can be.
const FORGET: &str = "
DELETE FROM accounts WHERE id IN
    (SELECT id FROM accounts WHERE budget = ?1 AND until <= ?2 ORDER BY until LIMIT 64)";

/// Whether all of it can be read: what has been spent is in every page.
pub(super) fn check(connection: &Connection) -> std::result::Result<(), OpenError> {
    let found: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    if found == "ok" { Ok(()) } else { Err(OpenError::Broken(found)) }
}

/// The row of the budget, made if it is new.
pub(super) fn register(
    connection: &mut Connection,
    config: &Config,
) -> std::result::Result<i64, OpenError> {
    let Config { budget, timezone, path, .. } = config;
    let find = |on: &Connection| {
        on.query_row("SELECT id, timezone FROM budgets WHERE name = ?1", [budget], |row| {
            Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?))
        })
        .optional()
    };
    if find(connection)?.is_none() {
        connection.execute(
            "INSERT OR IGNORE INTO budgets(name, timezone, keys, forgotten) VALUES (?1, ?2, 0, ?3)",
            (budget, timezone, Millis::MIN),
        )?;
    }
    match find(connection)? {
        Some((id, known)) if known == *timezone => Ok(id),
        Some((_, known)) => Err(OpenError::Unfit(format!(
            "the budget {budget:?} in {} resets by the time zone {known}, not {timezone}: all who \
             share it need the same; give timezone={known:?}, or another name",
            path.display()
        ))),
        None => Err(OpenError::Io(format!("{} keeps no new budget", path.display()))),
    }
}

/// An account, and when its row says that it can be forgotten.
pub(super) fn find(on: &Connection, holder: &Holder) -> Result<Option<(Account, Millis)>> {
    on.prepare_cached(SELECT)?.query_row([&holder.id[..]], read).optional()
}

fn read(row: &Row<'_>) -> Result<(Account, Millis)> {
    let mut account = Account::default();
    for (number, cell) in account.cells.iter_mut().enumerate() {
        let at = number * PERIODS;
        *cell = Cell {
            start: row.get(at)?,
            end: row.get(at + 1)?,
            used: row.get::<_, i64>(at + 2)?.max(0) as u64,
            told: row.get(at + 3)?,
        };
    }
    account.born = row.get::<_, i64>(16)? as u64;
    Ok((account, row.get(17)?))
}

pub(super) fn keys(on: &Connection, budget: i64) -> Result<u64> {
    on.prepare_cached("SELECT keys FROM budgets WHERE id = ?1")?
        .query_row([budget], |row| row.get::<_, i64>(0))
        .map(|keys| keys.max(0) as u64)
}

pub(super) fn reset(on: &Connection, budget: i64, holder: Option<&Holder>) -> Result<bool> {
    let gone = match holder {
        Some(holder) => on.execute("DELETE FROM accounts WHERE id = ?1", [&holder.id[..]])?,
        None => on.execute("DELETE FROM accounts WHERE budget = ?1", [budget])?,
    };
    on.execute("UPDATE budgets SET keys = keys - ?2 WHERE id = ?1", (budget, gone as i64))?;
    if holder.is_none() {
        on.execute("UPDATE budgets SET forgotten = ?2 WHERE id = ?1", (budget, Millis::MIN))?;
    }
    Ok(gone > 0)
}

/// The accounts of a budget, within a transaction.
pub(super) struct Books<'a> {
    pub(super) on: &'a Connection,
    pub(super) budget: i64,
    pub(super) max_keys: u64,
    pub(super) now: Millis,
    pub(super) terms: &'a Terms,
}

impl Books<'_> {
    /// Does something with an account; says also whether that has changed it.
    pub(super) fn with<T>(
        &self,
        holder: &Holder,
        act: impl FnOnce(&mut Account) -> T,
    ) -> std::result::Result<(T, bool), Away> {
        let known = find(self.on, holder)?;
        let mut account = if let Some((account, _)) = known {
            account
        } else {
            self.make_room()?;
            Account::new(fresh_token() as u64)
        };
        let before = account;
        let done = act(&mut account);
        let changed = account != before;
        if changed {
            match known {
                Some((_, until)) => self.update(holder, &before, &account, until)?,
                // Who has spent nothing takes no room.
                None if account.until() == Millis::MIN => {}
                None => self.insert(holder, &account)?,
            }
        }
        Ok((done, changed))
    }

    /// Tells what was owed.
    pub(super) fn pay(&self, owed: &Owed) -> std::result::Result<Paid, Away> {
        let mut news = Vec::new();
        for (holder, amount) in owed.over() {
            let act = |account: &mut Account| account.spend(self.terms, *amount, &mut news);
            match self.with(holder, act) {
                // It spends nothing any more, or it was forgotten and others came.
                Ok(_) | Err(Away::Full(_)) => {}
                Err(away) => return Err(away),
            }
        }
        for (holder, entry, actual) in owed.under() {
            if find(self.on, holder)?.is_some() {
                self.with(holder, |account| {
                    account.settle(self.terms, entry, *actual, &mut news);
                })?;
            }
        }
        Ok(Paid { over: owed.over().count(), under: owed.under().len() })
    }

    fn make_room(&self) -> std::result::Result<(), Away> {
        let (mut keys, forgotten): (i64, Millis) = self
            .on
            .prepare_cached("SELECT keys, forgotten FROM budgets WHERE id = ?1")?
            .query_row([self.budget], |row| Ok((row.get(0)?, row.get(1)?)))?;
        if forgotten > self.now && self.now > Millis::MIN {
            return Err(Away::Behind(forgotten));
        }
        let gone = self.on.prepare_cached(FORGET)?.execute((self.budget, self.now))? as i64;
        if gone > 0 {
            keys -= gone;
            self.on
                .prepare_cached(
                    "UPDATE budgets SET keys = ?2, forgotten = max(forgotten, ?3) WHERE id = ?1",
                )?
                .execute((self.budget, keys, self.now))?;
        }
        if keys.max(0) as u64 >= self.max_keys {
            let until = self
                .on
                .prepare_cached("SELECT min(until) FROM accounts WHERE budget = ?1")?
                .query_row([self.budget], |row| row.get(0))?;
            return Err(Away::Full(until));
        }
        Ok(())
    }

    fn insert(&self, holder: &Holder, account: &Account) -> Result<()> {
        let [hour, day, week, month] = account.cells;
        self.on.prepare_cached(INSERT)?.execute(params![
            hour.start,
            hour.end,
            hour.used as i64,
            hour.told,
            day.start,
            day.end,
            day.used as i64,
            day.told,
            week.start,
            week.end,
            week.used as i64,
            week.told,
            month.start,
            month.end,
            month.used as i64,
            month.told,
            account.born as i64,
            &holder.id[..],
            self.budget,
            &*holder.label,
            account.until()
        ])?;
        self.on
            .prepare_cached("UPDATE budgets SET keys = keys + 1 WHERE id = ?1")?
            .execute([self.budget])
            .map(drop)
    }

    fn update(
        &self,
        holder: &Holder,
        before: &Account,
        account: &Account,
        until: Millis,
    ) -> Result<()> {
        let [hour, day, week, month] = account.cells;
        let starts = |account: &Account| account.cells.map(|cell| cell.start);
        let id = &holder.id[..];
        if starts(before) == starts(account) && account.until() == until {
            let figures = params![
                id,
                hour.used as i64,
                hour.told,
                day.used as i64,
                day.told,
                week.used as i64,
                week.told,
                month.used as i64,
                month.told
            ];
            return self.on.prepare_cached(COUNT)?.execute(figures).map(drop);
        }
        self.on
            .prepare_cached(TURN)?
            .execute(params![
                hour.start,
                hour.end,
                hour.used as i64,
                hour.told,
                day.start,
                day.end,
                day.used as i64,
                day.told,
                week.start,
                week.end,
                week.used as i64,
                week.told,
                month.start,
                month.end,
                month.used as i64,
                month.told,
                account.until(),
                id
            ])
            .map(drop)
    }
}
