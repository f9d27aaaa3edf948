//! What the file is told late.

use super::*;
use crate::runtime::owed::{Debt, Moment, Noted};
use crate::runtime::sqlite::commit::{Terms, forget};

#[test]
fn a_value_from_before_the_log_of_changes_is_not_taken_for_younger() {
    let folder = Folder::new();
    let one = side(&folder.file());
    one.set("kept", "1", None, &[]);
    one.set("late", "1", None, &[]);
    let mut file = Connection::open(folder.file()).unwrap();
    let second: i64 = file.query_row("SELECT max(seq) FROM changes", [], |row| row.get(0)).unwrap();
    for number in 0..5 {
        one.set(&number.to_string(), "1", None, &[]);
    }
    // As if so much had been written since: all that is left is younger than the debt.
    file.execute("DELETE FROM changes WHERE seq < ?1", [second]).unwrap();
    file.execute("UPDATE state SET dropped = ?1 - 1", [second]).unwrap();
    let noted = Some(Noted { since: 0, moment: Moment::default() });
    let debts = ["kept", "late"].map(|key| Debt { request: Request::Delete(place(key)), noted });
    let terms = || Terms {
        max_bytes: 1 << 30,
        max_entries: 1 << 20,
        lease: 1_000,
        now: 2_000_000,
        owner: 7,
    };
    assert!(!forget(&mut file, terms, &debts).unwrap());
    assert_eq!(one.get("kept"), None, "nobody knows when it was written");
    assert_eq!(one.get("late").as_deref(), Some("1"));
}
