//! Whether a value is still good: its generations against those of today.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use redis::{Cmd, Value, cmd};

use super::generations::Knowledge;
use super::plan::{Next, Plan, text};
use super::shared::Shared;
use super::stamp::{Stamp, holds};

/// What a value can be invalidated by.
pub(super) type Tags = Arc<[Box<str>]>;
/// Gets the tags of a value that is good, or `None` for one that is outdated.
type Verdict = Box<dyn FnOnce(&Shared, Option<Tags>) -> Next + Send>;

/// What is known of the generation of a value's namespace.
pub(super) enum Seen {
    /// Nothing.
    Never,
    /// It was so when it was last read.
    Before(Arc<str>),
    /// It was just read.
    Now(Option<String>),
}

impl Seen {
    pub(super) fn now(shared: &Shared, name: &str, ticket: u64, reply: Option<Value>) -> Self {
        let generation = reply.and_then(text);
        if let Some(generation) = &generation {
            shared.generations.learn(name, ticket, generation);
        }
        Self::Now(generation)
    }
}

/// Whether the generations that a value carries are still those of today.
pub(super) fn confirm(
    shared: &Shared,
    stamp: Option<Stamp<'_>>,
    space: String,
    seen: Seen,
    verdict: impl FnOnce(&Shared, Option<Tags>) -> Next + Send + 'static,
) -> Next {
    let Some(stamp) = stamp else { return verdict(shared, None) };
    let good = |today: &str, carried: &str| holds(today, carried, stamp.born);
    let mut doubts: Vec<(String, String)> = Vec::new();
    match seen {
        Seen::Now(Some(today)) if good(&today, stamp.ns) => {}
        Seen::Now(_) => return verdict(shared, None),
        Seen::Before(known) if good(&known, stamp.ns) => {}
        Seen::Before(_) => doubts.push((space, stamp.ns.to_owned())),
        Seen::Never => match shared.generations.get(&space) {
            Knowledge::Known(known) if good(&known, stamp.ns) => {}
            _ => doubts.push((space, stamp.ns.to_owned())),
        },
    }
    for (tag, generation) in &stamp.tags {
        let name = shared.names.tag(tag);
        match shared.generations.get(&name) {
            Knowledge::Known(known) if good(&known, generation) => {}
            _ => doubts.push((name, (*generation).to_owned())),
        }
    }
    let tags: Tags = stamp.tags.iter().map(|(tag, _)| Box::from(*tag)).collect();
    if doubts.is_empty() {
        return verdict(shared, Some(tags));
    }
    Next::More(resolve(shared, doubts, stamp.born, tags, Box::new(verdict)))
}

fn resolve(
    shared: &Shared,
    doubts: Vec<(String, String)>,
    born: u64,
    tags: Tags,
    verdict: Verdict,
) -> Plan {
    let tickets: Vec<u64> = doubts.iter().map(|(name, _)| shared.generations.ask(name)).collect();
    let commands = doubts.iter().map(|(name, _)| ask(name)).collect();
    Plan::new(commands, move |shared, values| {
        let mut good = true;
        for (((name, expected), ticket), value) in doubts.iter().zip(tickets).zip(values) {
            match Seen::now(shared, name, ticket, Some(value)) {
                Seen::Now(Some(today)) if holds(&today, expected, born) => {}
                _ => good = false,
            }
        }
        if !good {
            shared.figures.outdated.fetch_add(1, Ordering::Relaxed);
        }
        verdict(shared, good.then_some(tags))
    })
}

/// Asks for a generation.
pub(super) fn ask(name: &str) -> Cmd {
    let mut command = cmd("GET");
    command.arg(name);
    command
}
