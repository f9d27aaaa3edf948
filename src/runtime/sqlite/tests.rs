//! The tier on real files, without Python: what it answers, keeps and tells the others.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use rusqlite::Connection;

use super::{Config, OpenError, SqliteTier};
use crate::core::clock::{Clock, ManualClock, NEVER, SECOND};
use crate::runtime::frame::{Body, Codec};
use crate::runtime::lifecycle::Tenant;
use crate::runtime::near::{Cut, Near};
use crate::runtime::notices::Notices;
use crate::runtime::place::Place;
use crate::runtime::tier::{Done, Lease, Outcome, Parcel, Reply, Request, Tier, TierError};

mod debts;
mod expiry;
mod files;

/// Longer than anything here takes; a test that meets it has failed.
const LONG: Duration = Duration::from_mins(1);

/// A directory of its own, gone with it.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("ferrogate-sqlite-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn file(&self) -> PathBuf {
        self.0.join("cache.db")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// One process's end of a file, as far as the tier can tell.
struct Side {
    tier: SqliteTier,
    near: Arc<Near>,
    clock: ManualClock,
    notices: Arc<Notices>,
}

fn config(path: &Path) -> Config {
    Config {
        path: path.to_owned(),
        max_bytes: 1 << 30,
        max_entries: 1_000_000,
        lease: Duration::from_secs(10),
        busy: Duration::from_secs(20),
        readers: 2,
    }
}

fn try_side(config: Config, clock: ManualClock) -> Result<Side, OpenError> {
    let notices = Arc::new(Notices::default());
    let near = Arc::new(Near::new(1 << 20, Clock::Manual(clock.clone())));
    let its = (Arc::clone(&near), Clock::Manual(clock.clone()), Arc::clone(&notices));
    let tier = SqliteTier::new(config, its.0, its.1, its.2, Arc::default()).unwrap();
    tier.open()?;
    Ok(Side { tier, near, clock, notices })
}

fn side(path: &Path) -> Side {
    try_side(config(path), ManualClock::starting_at(1_000 * SECOND)).unwrap()
}

impl Side {
    fn ask(&self, request: Request) -> Outcome {
        self.begin(request).recv_timeout(LONG).expect("an answer")
    }

    fn begin(&self, request: Request) -> mpsc::Receiver<Outcome> {
        let (sender, receiver) = mpsc::channel();
        self.tier.submit(request, Done::new(move |outcome| drop(sender.send(outcome))));
        receiver
    }

    fn set(&self, key: &str, value: &str, ttl: Option<u64>, tags: &[&str]) {
        let outcome = self.ask(set(key, value, ttl, tags, None));
        assert!(matches!(outcome, Ok(Reply::Done)), "{outcome:?}");
    }

    /// Twice: by a thread of the tier, and in place.
    fn get(&self, key: &str) -> Option<String> {
        let there = text(self.ask(Request::Get(place(key))));
        assert!(self.tier.enter(&Request::Get(place(key))).is_some());
        let here = text(self.tier.answer_here(&Request::Get(place(key))));
        self.tier.leave();
        assert_eq!(there, here);
        there
    }

    fn lease(&self, key: &str, tags: &[&str]) -> Reply {
        self.ask(Request::Lease { place: place(key), tags: boxed(tags), anew: false }).unwrap()
    }

    fn leased(&self, key: &str, tags: &[&str]) -> Lease {
        match self.lease(key, tags) {
            Reply::Leased(lease) => lease,
            other => panic!("{other:?}"),
        }
    }

    fn figure(&self, name: &str) -> u64 {
        self.tier.figures().into_iter().find(|(known, _)| *known == name).unwrap().1
    }
}

fn place(key: &str) -> Place {
    Place::new("ns".into(), key)
}

fn boxed(tags: &[&str]) -> Arc<[Box<str>]> {
    tags.iter().copied().map(Box::from).collect()
}

fn set(key: &str, value: &str, ttl: Option<u64>, tags: &[&str], lease: Option<Lease>) -> Request {
    let body = Body::of(value.as_bytes().into());
    let parcel = Parcel { codec: Codec::Json, body, threshold: None, near: None };
    let (place, ttl, tags) = (place(key), ttl.map(Duration::from_secs), boxed(tags));
    Request::Set { place, parcel, ttl, tags, lease }
}

fn text(outcome: Outcome) -> Option<String> {
    match outcome.unwrap() {
        Reply::Value(found) => Some(String::from_utf8(found.payload.to_vec()).unwrap()),
        Reply::Missing => None,
        other => panic!("{other:?}"),
    }
}

fn eventually(condition: impl Fn() -> bool) {
    for _ in 0..60_000 {
        if condition() {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("did not come true in time");
}

#[test]
fn values_are_kept_until_they_are_not() {
    let folder = Folder::new();
    let one = side(&folder.file());
    assert_eq!(one.get("a"), None);
    one.set("a", "1", None, &["t"]);
    one.set("b", "2", Some(10), &["u"]);
    one.set("c", "3", None, &[]);
    assert_eq!(one.get("a").as_deref(), Some("1"));
    assert!(matches!(one.ask(Request::Exists(place("b"))), Ok(Reply::Was(true))));
    one.clock.advance(10 * SECOND);
    assert_eq!(one.get("b"), None, "at its deadline");
    assert!(matches!(one.ask(Request::InvalidateTag("t".into())), Ok(Reply::Done)));
    assert_eq!(one.get("a"), None);
    assert_eq!(one.get("c").as_deref(), Some("3"));
    assert!(matches!(one.ask(Request::Delete(place("c"))), Ok(Reply::Was(true))));
    assert!(matches!(one.ask(Request::Delete(place("c"))), Ok(Reply::Was(false))));
    one.set("a", "4", None, &["t"]);
    assert_eq!(one.get("a").as_deref(), Some("4"), "written after the tag was invalidated");
    assert!(matches!(one.ask(Request::InvalidateNamespace("ns".into())), Ok(Reply::Done)));
    assert_eq!(one.get("a"), None);
    eventually(|| one.figure("size") == 0);
    assert_eq!(one.figure("store_bytes"), 0);
}

#[test]
fn the_others_are_told() {
    let folder = Folder::new();
    let (one, other) = (side(&folder.file()), side(&folder.file()));
    let all: [(&str, &dyn Fn()); 4] = [
        ("written", &|| one.set("a", "2", None, &["t"])),
        ("deleted", &|| drop(one.ask(Request::Delete(place("a"))))),
        ("by tag", &|| drop(one.ask(Request::InvalidateTag("t".into())))),
        ("by namespace", &|| drop(one.ask(Request::InvalidateNamespace("ns".into())))),
    ];
    for (how, change) in all {
        one.set("a", "1", None, &["t"]);
        assert_eq!(other.get("a").as_deref(), Some("1"), "{how}");
        eventually(|| {
            // Its own watcher may only just be hearing of what was set here.
            let body = Body::of(b"1"[..].into());
            other.near.put(&place("a"), body, NEVER, boxed(&["t"]));
            other.near.find(place("a").id()).is_some()
        });
        change();
        eventually(|| other.near.find(place("a").id()).is_none());
    }
    // What another namespace or key is told does not matter here.
    other.near.put(&Place::new("mine".into(), "a"), Body::of(b"1"[..].into()), NEVER, boxed(&[]));
    one.set("b", "1", None, &[]);
    eventually(|| other.figure("foreign_changes") >= 9);
    assert!(other.near.find(Place::new("mine".into(), "a").id()).is_some());
}

#[test]
fn who_reads_in_place_only_is_told_as_well() {
    let folder = Folder::new();
    let (one, other) = (side(&folder.file()), side(&folder.file()));
    one.set("a", "1", None, &[]);
    assert!(other.tier.enter(&Request::Get(place("a"))).is_some());
    assert_eq!(text(other.tier.answer_here(&Request::Get(place("a")))).as_deref(), Some("1"));
    other.tier.leave();
    other.near.put(&place("a"), Body::of(b"1"[..].into()), NEVER, boxed(&[]));
    one.set("a", "2", None, &[]);
    eventually(|| other.near.find(place("a").id()).is_none());
}

#[test]
fn one_side_loads_and_the_other_waits() {
    let folder = Folder::new();
    let (one, other) = (side(&folder.file()), side(&folder.file()));
    let lease = one.leased("a", &[]);
    let Reply::Busy(left) = other.lease("a", &[]) else { panic!() };
    assert!(left <= Duration::from_secs(10));
    let waiting = other.begin(Request::Await(place("a"), left));
    assert!(matches!(one.ask(set("a", "1", None, &[], Some(lease))), Ok(Reply::Done)));
    assert!(matches!(waiting.recv_timeout(LONG), Ok(Ok(Reply::Done))));
    assert!(matches!(other.lease("a", &[]), Reply::Value(_)));
    // A second use of it is none.
    assert!(matches!(one.ask(set("a", "2", None, &[], Some(lease))), Ok(Reply::Refused)));

    let lease = one.leased("b", &[]);
    let waiting = other.begin(Request::Await(place("b"), LONG));
    assert!(matches!(one.ask(Request::Release(place("b"), lease)), Ok(Reply::Done)));
    assert!(matches!(waiting.recv_timeout(LONG), Ok(Ok(Reply::Done))));
    other.leased("b", &[]);
}

#[test]
fn a_lease_ends_with_its_holder() {
    let folder = Folder::new();
    let (one, other) = (side(&folder.file()), side(&folder.file()));
    let lease = one.leased("a", &[]);
    // Alive: renewed by its own clock.
    one.clock.advance(9 * SECOND);
    other.clock.advance(9 * SECOND);
    eventually(|| matches!(other.lease("a", &[]), Reply::Busy(left) if left.as_secs() >= 5));
    // Dead, as its clock stands still.
    other.clock.advance(11 * SECOND);
    let taken = other.leased("a", &[]);
    assert_ne!(lease.token, taken.token);
    assert!(matches!(one.ask(set("a", "late", None, &[], Some(lease))), Ok(Reply::Refused)));
    assert!(matches!(other.ask(set("a", "1", None, &[], Some(taken))), Ok(Reply::Done)));
    assert_eq!(one.get("a").as_deref(), Some("1"));
}

#[test]
fn a_clock_that_was_set_back_does_not_make_a_lease_longer() {
    let folder = Folder::new();
    let clock = ManualClock::starting_at(500 * SECOND);
    let (one, other) = (side(&folder.file()), try_side(config(&folder.file()), clock).unwrap());
    one.leased("a", &[]);
    other.leased("a", &[]);
}

#[test]
fn what_is_outdated_while_it_loads_is_not_stored() {
    let folder = Folder::new();
    let (one, other) = (side(&folder.file()), side(&folder.file()));
    let all: [&dyn Fn(); 4] = [
        &|| other.set("a", "newer", None, &[]),
        &|| drop(other.ask(Request::Delete(place("a")))),
        &|| drop(other.ask(Request::InvalidateTag("t".into()))),
        &|| drop(other.ask(Request::InvalidateNamespace("ns".into()))),
    ];
    for change in all {
        one.ask(Request::Delete(place("a"))).unwrap();
        let lease = one.leased("a", &["t"]);
        change();
        let before = one.get("a");
        assert!(matches!(one.ask(set("a", "old", None, &["t"], Some(lease))), Ok(Reply::Refused)));
        assert_eq!(one.get("a"), before);
    }
    // Whoever asks after an invalidation does not wait for what was asked before.
    one.ask(Request::Delete(place("a"))).unwrap();
    one.leased("a", &["t"]);
    other.ask(Request::InvalidateTag("t".into())).unwrap();
    other.leased("a", &["t"]);
}

#[test]
fn bounds_hold_after_every_commit() {
    let folder = Folder::new();
    let bounds = Config { max_entries: 50, max_bytes: 20_000, ..config(&folder.file()) };
    let one = try_side(bounds, ManualClock::starting_at(SECOND)).unwrap();
    for number in 0..500 {
        one.set(&number.to_string(), &"x".repeat(number), None, &[]);
        assert!(one.figure("size") <= 50 && one.figure("store_bytes") <= 20_000);
    }
    assert!(one.figure("size") >= 20);
    // What is too large is refused, and what it was to replace is outdated.
    one.set("k", "1", None, &[]);
    let outcome = one.ask(set("k", &"x".repeat(30_000), None, &[], None));
    assert!(matches!(outcome, Ok(Reply::Refused)), "{outcome:?}");
    assert_eq!(one.get("k"), None);
}

#[test]
fn the_log_of_changes_is_bounded_whatever_the_size_of_commits() {
    let folder = Folder::new();
    let one = side(&folder.file());
    let writers: Vec<_> = (0..64).map(|number| number.to_string()).collect();
    for _ in 0..200 {
        let waiting: Vec<_> =
            writers.iter().map(|key| one.begin(set(key, "1", None, &[], None))).collect();
        for one in waiting {
            one.recv_timeout(LONG).unwrap().unwrap();
        }
    }
    let (query, rows) = (Connection::open(folder.file()).unwrap(), "SELECT count(*) FROM changes");
    let count: i64 = query.query_row(rows, [], |row| row.get(0)).unwrap();
    assert!(count <= 4096 + 64, "{count}");
}

#[test]
fn who_was_away_for_longer_than_the_log_starts_anew() {
    let folder = Folder::new();
    let (one, other) = (side(&folder.file()), side(&folder.file()));
    one.set("a", "1", None, &[]);
    assert_eq!(other.get("a").as_deref(), Some("1"));
    eventually(|| other.figure("foreign_changes") >= 1);
    other.near.put(&place("a"), Body::of(b"1"[..].into()), NEVER, boxed(&[]));
    Tenant::quiesce(&other.tier);
    // As if it had written all that.
    let query = Connection::open(folder.file()).unwrap();
    query
        .execute_batch(
            "INSERT INTO changes SELECT max(seq) + 20, 0, at, entries, bytes, 0, x'' FROM changes;
             DELETE FROM changes WHERE seq < (SELECT max(seq) FROM changes);
             UPDATE state SET dropped = (SELECT max(seq) - 10 FROM changes);",
        )
        .unwrap();
    drop(query);
    Tenant::resume(&other.tier);
    eventually(|| other.near.find(place("a").id()).is_none());
}

#[test]
fn a_quiet_tier_goes_on_with_what_was_queued() {
    let folder = Folder::new();
    let one = side(&folder.file());
    for turn in 0..20 {
        let waiting: Vec<_> = (0..50)
            .map(|key| one.begin(set(&key.to_string(), &turn.to_string(), None, &[], None)))
            .collect();
        Tenant::quiesce(&one.tier);
        let late = one.begin(Request::Get(place("0")));
        Tenant::resume(&one.tier);
        for one in waiting {
            assert!(matches!(one.recv_timeout(LONG), Ok(Ok(Reply::Done))));
        }
        drop(late.recv_timeout(LONG).unwrap().unwrap());
        assert_eq!(one.get("7"), Some(turn.to_string()));
    }
}

#[test]
fn closing_writes_what_was_queued_and_then_refuses() {
    let folder = Folder::new();
    let one = side(&folder.file());
    let waiting: Vec<_> =
        (0..500).map(|key| one.begin(set(&key.to_string(), "1", None, &[], None))).collect();
    Tenant::close(&one.tier, LONG);
    Tenant::close(&one.tier, LONG);
    for one in waiting {
        assert!(matches!(one.recv_timeout(LONG), Ok(Ok(Reply::Done))));
    }
    assert_eq!(one.ask(Request::Ping).unwrap_err(), TierError::Ended);
    assert_eq!(one.tier.enter(&Request::Ping), None);
    assert_eq!(side(&folder.file()).get("499").as_deref(), Some("1"));
}

#[test]
fn a_tier_that_is_dropped_finishes() {
    let folder = Folder::new();
    let one = side(&folder.file());
    let waiting = one.begin(set("a", "1", None, &[], None));
    drop(one);
    assert!(matches!(waiting.recv_timeout(LONG), Ok(Ok(Reply::Done))));
}

#[test]
fn a_thread_that_fails_is_begun_again_and_what_it_was_at_is_answered() {
    static TURNS: AtomicU32 = AtomicU32::new(0);
    let folder = Folder::new();
    let one = side(&folder.file());
    super::shared::unfailing(&one.tier.0, |_| {
        assert!(TURNS.fetch_add(1, Ordering::Relaxed) > 0, "on purpose");
    });
    assert_eq!((TURNS.load(Ordering::Relaxed), one.notices.take().len()), (2, 1));
    let (sender, receiver) = mpsc::channel();
    drop(Done::new(move |outcome| drop(sender.send(outcome))));
    assert_eq!(receiver.recv().unwrap().unwrap_err(), TierError::Lost);
}

#[test]
fn many_threads_ask_at_once() {
    let folder = Folder::new();
    let one = side(&folder.file());
    let failures = AtomicU32::new(0);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (one, failures) = (&one, &failures);
            scope.spawn(move || {
                for turn in 0..100 {
                    let key = format!("{thread}:{turn}");
                    let request = set(&key, &key, None, &[], None);
                    let (sender, receiver) = mpsc::channel();
                    let done = Done::new(move |outcome| drop(sender.send(outcome)));
                    assert!(one.tier.enter(&request).is_some());
                    one.tier.submit_helped(request, done);
                    one.tier.help();
                    one.tier.leave();
                    let outcome = receiver.recv_timeout(LONG).unwrap();
                    if outcome.is_err() || one.get(&key).as_deref() != Some(&key) {
                        failures.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    assert_eq!(failures.into_inner(), 0);
    assert_eq!(one.figure("size"), 400);
    one.near.cut(Cut::Namespace, "ns");
}
