//! What the near cache takes in, serves and forgets.

use super::*;
use crate::core::clock::{ManualClock, NEVER, SECOND};

fn place(key: &str) -> Place {
    Place::new("ns".into(), key)
}

fn body(text: &str) -> Body {
    Body::of(text.as_bytes().into())
}

fn tags(of: &[&str]) -> Arc<[Box<str>]> {
    of.iter().map(|tag| Box::from(*tag)).collect()
}

#[test]
fn values_live_until_their_deadline() {
    let manual = ManualClock::default();
    let near = Near::new(1 << 20, Clock::Manual(manual.clone()));
    assert!(near.put(&place("a"), body("1"), 10 * SECOND, tags(&[])).is_some());
    assert_eq!(near.find(place("a").id()).unwrap().body.bytes(), b"1");
    manual.advance(10 * SECOND);
    assert!(near.find(place("a").id()).is_none());
    assert!(!near.remove(place("a").id()));
}

#[test]
fn a_cut_reaches_what_is_older_and_nothing_else() {
    let near = Near::new(1 << 20, Clock::System);
    near.put(&place("a"), body("1"), NEVER, tags(&["t", "u"]));
    near.put(&place("b"), body("2"), NEVER, tags(&["v"]));
    near.cut(Cut::Tag, "u");
    assert!(near.find(place("a").id()).is_none());
    assert!(near.find(place("b").id()).is_some());
    near.cut(Cut::Namespace, "u");
    assert!(near.find(place("b").id()).is_some());
    near.cut(Cut::Namespace, "ns");
    assert!(near.find(place("b").id()).is_none());
    near.put(&place("b"), body("3"), NEVER, tags(&["u"]));
    assert!(near.find(place("b").id()).is_some());
    near.flush();
    assert!(near.find(place("b").id()).is_none());
}

#[test]
fn a_load_is_outdated_by_what_concerns_it_and_nothing_else() {
    let near = Near::new(1 << 24, Clock::System);
    let offer = |since| near.offer_loaded(since, &place("a"), body("1"), NEVER, tags(&["t"]));
    assert!(!offer(near.present()), "nobody said that it began");
    let all: [(bool, &dyn Fn()); 6] = [
        (true, &|| {
            for number in 0..1_000 {
                near.put(&place(&number.to_string()), body("x"), NEVER, tags(&["u"]));
                near.remove(place(&number.to_string()).id());
            }
            near.cut(Cut::Tag, "u");
        }),
        (false, &|| {
            near.remove(place("a").id());
        }),
        (false, &|| {
            near.put(&place("a"), body("2"), NEVER, tags(&[]));
        }),
        (false, &|| near.cut(Cut::Namespace, "ns")),
        (false, &|| near.cut(Cut::Tag, "t")),
        (false, &|| near.flush()),
    ];
    for (taken, change) in all {
        let since = near.present();
        near.begin_load(place("a").id());
        change();
        assert_eq!(offer(since), taken);
        // Of two loads the first one to come is kept.
        assert!(!taken || !offer(since));
        near.end_load(place("a").id());
    }
    assert!(near.shards.iter().all(|shard| shard.lock().loads.is_empty()));
}

#[test]
fn only_what_the_store_has_last_stays() {
    let near = Near::new(1 << 20, Clock::System);
    let none = || tags(&[]);
    let one = near.put(&place("a"), body("1"), NEVER, none());
    let two = near.put(&place("a"), body("2"), NEVER, none());
    near.confirm(&place("a"), two);
    assert!(near.find(place("a").id()).is_some());
    // The store has the first one last.
    near.confirm(&place("a"), one);
    assert!(near.find(place("a").id()).is_none());
    // Evicted, read anew before the commit, and offered before or after it.
    let three = near.put(&place("a"), body("3"), NEVER, none());
    near.map.invalidate(place("a").id());
    let read = near.present();
    assert!(near.offer(read, &place("a"), body("old"), NEVER, none()));
    near.confirm(&place("a"), three);
    assert!(near.find(place("a").id()).is_none());
    assert!(!near.offer(read, &place("a"), body("old"), NEVER, none()));
}

#[test]
fn what_nobody_watches_is_not_served() {
    let manual = ManualClock::starting_at(SECOND);
    let near = Near::new(1 << 20, Clock::Manual(manual.clone()));
    near.put(&place("a"), body("1"), NEVER, tags(&[]));
    near.watched_until(3 * SECOND);
    manual.advance(2 * SECOND);
    assert!(near.find(place("a").id()).is_some());
    manual.advance(1);
    assert!(near.find(place("a").id()).is_none());
    near.watched_until(9 * SECOND);
    assert!(near.find(place("a").id()).is_some());
}

#[test]
fn a_read_that_a_change_overtook_is_not_taken_in() {
    let near = Near::new(1 << 20, Clock::System);
    let all: [&dyn Fn(); 5] = [
        &|| {
            near.remove(place("a").id());
        },
        &|| {
            near.put(&place("a"), body("new"), NEVER, tags(&[]));
        },
        &|| near.cut(Cut::Namespace, "ns"),
        &|| near.cut(Cut::Tag, "t"),
        &|| near.flush(),
    ];
    for change in all {
        let read = near.present();
        change();
        assert!(!near.offer(read, &place("a"), body("old"), NEVER, tags(&["t"])));
        assert!(near.offer(near.present(), &place("b"), body("now"), NEVER, tags(&["t"])));
        assert!(near.find(place("b").id()).is_some());
    }
}

#[test]
fn bytes_are_bounded_also_over_very_many_cuts() {
    let near = Near::new(20_000, Clock::System);
    for number in 0..1_000 {
        near.put(&place(&number.to_string()), body(&"x".repeat(500)), NEVER, tags(&[]));
    }
    let (entries, bytes, evictions) = near.size();
    assert!(bytes <= 20_000 && entries > 10 && evictions > 900, "{entries} {bytes}");
    assert_eq!(near.put(&place("large"), body(&"x".repeat(30_000)), NEVER, tags(&[])), None);
    for number in 0..3 * MAX_CUTS {
        near.cut(Cut::Tag, &number.to_string());
    }
    assert!(near.cuts.lock().tags.len() <= MAX_CUTS);
}

#[test]
fn forgetting_cuts_forgets_nothing_else() {
    let near = Near::new(1 << 24, Clock::System);
    near.put(&place("kept"), body("1"), NEVER, tags(&["mine"]));
    near.put(&place("cut"), body("2"), NEVER, tags(&["0"]));
    let (read, loaded) = (near.present(), near.present());
    near.begin_load(place("loaded").id());
    for number in 0..=MAX_CUTS {
        near.cut(Cut::Tag, &number.to_string());
    }
    assert!(near.cuts.lock().tags.len() < 10);
    assert!(near.find(place("kept").id()).is_some());
    assert!(near.find(place("cut").id()).is_none());
    // Of what began before it is not known any more what concerns it.
    assert!(!near.offer(read, &place("read"), body("old"), NEVER, tags(&["0"])));
    assert!(!near.offer_loaded(loaded, &place("loaded"), body("old"), NEVER, tags(&["0"])));
    assert!(near.offer(near.present(), &place("read"), body("new"), NEVER, tags(&["0"])));
}
