//! What has expired leaves the file, whatever the value's TTL was before.

use super::*;
use crate::core::random::Random;

/// So many changes, and what is due has been looked at.
fn look(one: &Side) {
    for _ in 0..8 {
        one.set("look", "x", None, &[]);
    }
}

/// What the file holds beside the last change's counts, which have to be the same.
fn held(folder: &Folder) -> Vec<(String, Option<i64>, Option<i64>)> {
    let file = Connection::open(folder.file()).unwrap();
    let counted: (i64, i64) = file
        .query_row("SELECT count(*), coalesce(sum(size), 0) FROM entries", [], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })
        .unwrap();
    let noted: (i64, i64) = file
        .query_row("SELECT entries, bytes FROM changes ORDER BY seq DESC LIMIT 1", [], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })
        .unwrap();
    assert_eq!(noted, counted);
    let mut statement = file
        .prepare("SELECT key, deadline, due FROM entries WHERE key <> 'look' ORDER BY key")
        .unwrap();
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).unwrap();
    rows.map(Result::unwrap).collect()
}

#[test]
fn an_overwritten_value_keeps_its_place_in_the_index_while_that_is_early_enough() {
    let folder = Folder::new();
    let one = side(&folder.file());
    one.set("k", "1", Some(10), &[]);
    let due = held(&folder)[0].2;
    one.clock.advance(5 * SECOND);
    one.set("k", "2", Some(10), &[]);
    let (_, deadline, kept) = held(&folder)[0].clone();
    assert_eq!((kept, deadline), (due, due.map(|due| due + 5_000)));
    // Due, but not dead: it is looked at again when it is.
    one.clock.advance(6 * SECOND);
    look(&one);
    assert_eq!(held(&folder), [("k".into(), deadline, deadline)]);
    assert_eq!(one.get("k").as_deref(), Some("2"));
    one.clock.advance(4 * SECOND);
    assert_eq!(one.get("k"), None);
    look(&one);
    assert_eq!(held(&folder), []);
    assert_eq!(one.figure("expirations"), 1);
    // Shorter than before, and then for ever.
    one.set("k", "3", Some(100), &[]);
    one.set("k", "4", Some(1), &[]);
    let (_, deadline, due) = held(&folder)[0].clone();
    assert_eq!(due, deadline);
    one.set("k", "5", None, &[]);
    one.clock.advance(1_000 * SECOND);
    look(&one);
    assert_eq!(held(&folder), [("k".into(), None, None)]);
    assert_eq!(one.get("k").as_deref(), Some("5"));
}

#[test]
fn any_order_of_ttls_ends_with_what_is_alive() {
    let random = Random::seeded(7);
    let below = |most: u64| (random.draw() * most as f64) as u64;
    let folder = Folder::new();
    let one = side(&folder.file());
    let keys = ["a", "b", "c", "d", "e", "f"];
    let mut alive: Vec<Option<Option<u64>>> = vec![None; keys.len()];
    let mut now = 0;
    for turn in 0..600 {
        let which = below(keys.len() as u64) as usize;
        match below(8) {
            0 => {
                drop(one.ask(Request::Delete(place(keys[which]))));
                alive[which] = None;
            }
            1 => {
                one.set(keys[which], "for ever", None, &[]);
                alive[which] = Some(None);
            }
            2..6 => {
                let ttl = 1 + below(20);
                one.set(keys[which], "a while", Some(ttl), &[]);
                alive[which] = Some(Some(now + ttl));
            }
            _ => {
                let later = 1 + below(8);
                one.clock.advance(later * SECOND);
                now += later;
            }
        }
        for state in &mut alive {
            if state.flatten().is_some_and(|deadline| deadline <= now) {
                *state = None;
            }
        }
        if turn % 10 == 9 {
            look(&one);
            let expected = keys.iter().zip(&alive).filter(|(_, state)| state.is_some());
            let found = held(&folder);
            let names = found.iter().map(|(key, ..)| key.as_str());
            assert!(names.eq(expected.map(|(key, _)| *key)), "{turn}: {found:?}");
            for (_, deadline, due) in found {
                assert!(deadline.is_none() || due.is_some_and(|due| Some(due) <= deadline));
            }
        }
    }
}
