//! What a request takes: commands, and what to make of their replies.
//!
//! A plan is free of I/O, so that the driver can send many of them in one go.

use std::sync::Arc;
use std::time::Duration;

use redis::{Cmd, Value, cmd};

use super::generations::Knowledge;
use super::judge::{Seen, Tags, ask, confirm};
use super::names::{self, Names};
use super::scripts;
use super::shared::{Ask, Shared};
use super::stamp::{Stamp, write};
use super::waits::Waiter;
use crate::runtime::near::Cut;
use crate::runtime::place::Place;
use crate::runtime::tier::{Done, Found, Lease, Outcome, Parcel, Payload, Reply, Request};

/// A waiter looks again after so long, whatever it has heard.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Nobody waits for the end of more: such a value has no TTL, as `volatile-*` policies know it.
const FOREVER: Duration = Duration::from_hours(100 * 365 * 24);

/// Shortest TTL that can be stored.
const SHORTEST: Duration = Duration::from_millis(1);

pub(super) type Then = Box<dyn FnOnce(&Shared, Vec<Value>) -> Next + Send>;
/// Commands, in this order, and what to make of their replies.
pub(super) struct Plan {
    pub(super) commands: Vec<Cmd>,
    pub(super) then: Then,
    /// The lease that they may bring: its token, its key.
    pub(super) lease: Option<(u64, String)>,
}

/// How it goes on.
pub(super) enum Next {
    /// It is over.
    Done(Outcome),
    /// It takes more.
    More(Plan),
    /// It is over once the waiter is rung, or after so long.
    Park(Arc<Waiter>, Duration),
}

impl Plan {
    pub(super) fn new(
        commands: Vec<Cmd>,
        then: impl FnOnce(&Shared, Vec<Value>) -> Next + Send + 'static,
    ) -> Self {
        Self { commands, then: Box::new(then), lease: None }
    }
}

pub(super) fn done(reply: Reply) -> Next {
    Next::Done(Ok(reply))
}

/// The plan of a request.
pub(super) fn plan(shared: &Shared, request: &Request) -> Plan {
    match request {
        Request::Get(place) => get(shared, place),
        Request::Set { place, parcel, ttl, tags, lease } => {
            set(shared, place, parcel, *ttl, tags, *lease)
        }
        Request::Delete(place) => delete(shared, place),
        Request::Exists(place) => exists(shared, place),
        Request::InvalidateNamespace(ns) => outdate(shared, Cut::Namespace, ns),
        Request::InvalidateTag(tag) => outdate(shared, Cut::Tag, tag),
        Request::Lease { place, tags, anew } => lease(shared, place, tags, *anew),
        Request::Release(place, lease) => release(shared, place, *lease),
        Request::Await(place, longest) => wait(shared, place, *longest),
        Request::Ping => {
            let mut command = cmd("SET");
            command.arg(shared.names.probe()).arg(1).arg("PX").arg(1000);
            Plan::new(vec![command], |_, _| done(Reply::Done))
        }
    }
}

/// Keeps a lease.
pub(super) fn renew(shared: &Shared, token: u64, name: &str) -> Plan {
    let mut command = shared.call(&scripts::RENEW, &[name]);
    command.arg(shared.token(token)).arg(millis(shared.config.lease));
    Plan::new(vec![command], move |shared, values| {
        if matches!(values.first(), Some(Value::Int(0))) {
            shared.leases.lock().remove(&token);
        }
        done(Reply::Done)
    })
}

fn get(shared: &Shared, place: &Place) -> Plan {
    let name = shared.names.value(place);
    let (mut held, mut life) = (cmd("HMGET"), cmd("PTTL"));
    held.arg(&name).arg("v").arg("g");
    life.arg(&name);
    let mut commands = vec![held, life];
    let space = shared.names.namespace(&place.ns);
    let known = shared.generations.get(&space);
    if let Knowledge::Ask(_) = known {
        commands.push(ask(&space));
    }
    // Else nobody but a set would read them, and they would be evicted first. Apart from the value,
    // which may be on another node, and may be read where this is not allowed.
    for name in shared.generations.idle() {
        shared.enqueue(Ask::Touch(name), Done::new(drop));
    }
    Plan::new(commands, move |shared, values| {
        let mut values = values.into_iter();
        let (held, life) = (values.next(), values.next());
        let seen = match known {
            Knowledge::Known(known) => Seen::Before(known),
            Knowledge::Ask(ticket) => Seen::now(shared, &space, ticket, values.next()),
        };
        let Some((body, stamp)) = pair(held) else { return done(Reply::Missing) };
        let Ok(remaining) = remaining(life) else { return done(Reply::Missing) };
        let read = Stamp::read(&stamp);
        let outdated = read.is_some().then(|| stamp.clone());
        confirm(shared, read, space, seen, move |shared, tags| {
            if let (None, Some(stamp)) = (&tags, outdated) {
                shared.enqueue(Ask::Discard(name, stamp), Done::new(drop));
            }
            done(tags.map_or(Reply::Missing, |tags| found(body, remaining, tags)))
        })
    })
}

/// Has a generation count as used.
pub(super) fn touch(name: &str) -> Plan {
    let mut command = cmd("TOUCH");
    command.arg(name);
    Plan::new(vec![command], |_, _| done(Reply::Done))
}

/// Removes a value that was found outdated, unless there is another one by now.
pub(super) fn discard(shared: &Shared, name: &str, stamp: &[u8]) -> Plan {
    let mut command = shared.call(&scripts::DISCARD, &[name]);
    command.arg(stamp);
    Plan::new(vec![command], |_, _| done(Reply::Done))
}

fn exists(shared: &Shared, place: &Place) -> Plan {
    let (mut held, space) = (cmd("HGET"), shared.names.namespace(&place.ns));
    held.arg(shared.names.value(place)).arg("g");
    Plan::new(vec![held], move |shared, values| was(shared, values.into_iter().next(), space))
}

fn delete(shared: &Shared, place: &Place) -> Plan {
    let (name, space) = (shared.names.value(place), shared.names.namespace(&place.ns));
    let mut command = shared.call(&scripts::DELETE, &[&name, &Names::lease(&name)]);
    command.arg(shared.names.channel()).arg(shared.message('v', &name));
    Plan::new(vec![command], move |shared, values| {
        let Some(Value::Array(both)) = values.into_iter().next() else {
            return done(Reply::Was(false));
        };
        shared.heed(both.get(1));
        was(shared, both.into_iter().next(), space)
    })
}

fn was(shared: &Shared, stamp: Option<Value>, space: String) -> Next {
    let Some(Value::BulkString(stamp)) = stamp else { return done(Reply::Was(false)) };
    let seen = Seen::Never;
    confirm(shared, Stamp::read(&stamp), space, seen, |_, tags| done(Reply::Was(tags.is_some())))
}

fn set(
    shared: &Shared,
    place: &Place,
    parcel: &Parcel,
    ttl: Option<Duration>,
    tags: &Tags,
    lease: Option<Lease>,
) -> Plan {
    let name = shared.names.value(place);
    let mut generations = vec![shared.names.namespace(&place.ns)];
    generations.extend(tags.iter().map(|tag| shared.names.tag(tag)));
    let ttl = ttl.filter(|ttl| *ttl < FOREVER).map_or(0, millis);
    let body = parcel.pack();
    if shared.is_cluster() {
        return set_on_a_cluster(shared, name, generations, body, ttl, Arc::clone(tags), lease);
    }
    let lease_name = Names::lease(&name);
    let mut keys = vec![name.as_str(), lease_name.as_str()];
    keys.extend(generations.iter().map(String::as_str));
    let mut command = shared.call(&scripts::SET, &keys);
    let token = lease.map(|lease| shared.token(lease.token)).unwrap_or_default();
    command.arg(&*body).arg(ttl).arg(token).arg(shared.fresh()).arg(shared.names.channel());
    command.arg(shared.message('v', &name)).arg(shared.message('r', &name));
    sign(shared, &mut command, lease);
    for tag in &**tags {
        command.arg(&**tag);
    }
    Plan::new(vec![command], move |shared, values| stored(shared, lease, values.first()))
}

/// Who writes, and since when it was so: what was loaded is as old as its lease.
fn sign(shared: &Shared, command: &mut Cmd, lease: Option<Lease>) {
    match lease {
        Some(lease) => {
            command.arg(shared.number(lease.token)).arg(lease.since);
        }
        None => {
            command.arg(shared.fresh()).arg("");
        }
    }
}

fn stored(shared: &Shared, lease: Option<Lease>, reply: Option<&Value>) -> Next {
    if let Some(lease) = lease {
        shared.leases.lock().remove(&lease.token);
    }
    shared.heed(reply);
    done(if matches!(reply, Some(Value::Int(1 | 2))) { Reply::Done } else { Reply::Refused })
}

/// Generations live on other nodes there: they are read first, and what is outdated in between
/// is outdated with them.
fn set_on_a_cluster(
    shared: &Shared,
    name: String,
    generations: Vec<String>,
    body: Payload,
    ttl: u64,
    tags: Tags,
    lease: Option<Lease>,
) -> Plan {
    let commands = generations.iter().map(|generation| make(shared, generation, ttl)).collect();
    Plan::new(commands, move |shared, values| {
        let all: Option<Vec<String>> = values.into_iter().map(text).collect();
        let Some(all) = all else { return done(Reply::Refused) };
        let mut command = shared.call(&scripts::STORE, &[&name, &Names::lease(&name)]);
        let token = lease.map(|lease| shared.token(lease.token)).unwrap_or_default();
        command.arg(&*body).arg(ttl).arg(token).arg(stamp_of(&all, &tags));
        command.arg(shared.names.channel()).arg(shared.message('v', &name));
        command.arg(shared.message('r', &name));
        sign(shared, &mut command, lease);
        Next::More(Plan::new(vec![command], move |shared, values| {
            stored(shared, lease, values.first())
        }))
    })
}

fn outdate(shared: &Shared, what: Cut, name: &str) -> Plan {
    let (key, kind) = match what {
        Cut::Namespace => (shared.names.namespace(name), 'n'),
        Cut::Tag => (shared.names.tag(name), 't'),
    };
    shared.generations.forget(&key);
    let mut command = shared.call(&scripts::OUTDATE, &[&key]);
    command.arg(shared.fresh()).arg(shared.names.channel()).arg(shared.message(kind, name));
    Plan::new(vec![command], move |shared, values| {
        shared.heed(values.first());
        shared.generations.forget(&key);
        done(Reply::Done)
    })
}

fn lease(shared: &Shared, place: &Place, tags: &Tags, anew: bool) -> Plan {
    let mut names = vec![shared.names.namespace(&place.ns)];
    names.extend(tags.iter().map(|tag| shared.names.tag(tag)));
    let known = names.iter().map(|name| match shared.generations.get(name) {
        Knowledge::Known(generation) => Some(generation.to_string()),
        Knowledge::Ask(_) => None,
    });
    let (place, tags) = (place.clone(), Arc::clone(tags));
    if let Some(known) = known.collect::<Option<Vec<_>>>() {
        let wish = Wish { place, stamp: stamp_of(&known, &tags), anew };
        return take_lease(shared, wish, "");
    }
    let tickets: Vec<u64> = names.iter().map(|name| shared.generations.ask(name)).collect();
    let life = millis(shared.config.lease);
    let commands = names.iter().map(|name| make(shared, name, life)).collect();
    Plan::new(commands, move |shared, values| {
        let all: Option<Vec<String>> = values.into_iter().map(text).collect();
        let Some(all) = all else { return done(Reply::Missing) };
        for ((name, ticket), generation) in names.iter().zip(tickets).zip(&all) {
            shared.generations.learn(name, ticket, generation);
        }
        let wish = Wish { place, stamp: stamp_of(&all, &tags), anew };
        Next::More(take_lease(shared, wish, ""))
    })
}

/// What a lease is asked for.
struct Wish {
    place: Place,
    /// The generations that the load sees.
    stamp: String,
    /// Whether the value that stands there is to be replaced.
    anew: bool,
}

/// Takes a lease, also from one who has it as `void`.
fn take_lease(shared: &Shared, wish: Wish, void: &str) -> Plan {
    let (name, token) = (shared.names.value(&wish.place), shared.count());
    let lease_name = Names::lease(&name);
    let mut command = shared.call(&scripts::LEASE, &[&name, &lease_name]);
    command.arg(shared.token(token)).arg(&wish.stamp).arg(millis(shared.config.lease)).arg(void);
    let (space, key) = (shared.names.namespace(&wish.place.ns), lease_name.clone());
    let then = move |shared: &Shared, values: Vec<Value>| {
        let Some(Value::Array(all)) = values.into_iter().next() else {
            return done(Reply::Missing);
        };
        let mut all = all.into_iter();
        let given = matches!(all.next(), Some(Value::Int(1)));
        let holder = all.next().and_then(text).unwrap_or_default();
        let left = remaining(all.next()).ok().flatten().unwrap_or(SHORTEST * 50);
        let held = pair(all.next().zip(all.next()).map(|(v, g)| Value::Array(vec![v, g])));
        let life = remaining(all.next());
        let since = all.next().and_then(text).and_then(|now| now.parse().ok()).unwrap_or(1);
        if given {
            shared.leases.lock().insert(token, key);
        }
        let lease = Lease { token, since };
        let anew = wish.anew;
        let decide = move |shared: &Shared, good: Option<Reply>| match good {
            Some(value) if given => and_then(release(shared, &wish.place, lease), value),
            Some(value) => done(value),
            None if given => done(Reply::Leased(lease)),
            None => wait_for(shared, wish, holder, left),
        };
        let (Some((body, written)), Ok(life), false) = (held, life, anew) else {
            return decide(shared, None);
        };
        confirm(shared, Stamp::read(&written), space, Seen::Never, move |shared, tags| {
            decide(shared, tags.map(|tags| found(body, life, tags)))
        })
    };
    Plan { lease: Some((token, lease_name)), ..Plan::new(vec![command], then) }
}

/// Another process loads, unless what it loads is outdated already.
fn wait_for(shared: &Shared, wish: Wish, holder: String, left: Duration) -> Next {
    let Some((_, seen)) = holder.split_once('@') else { return done(Reply::Busy(left)) };
    // Another's generations that are not ours are either older or newer.
    if seen == wish.stamp {
        return done(Reply::Busy(left));
    }
    let (seen, space) = (seen.to_owned(), shared.names.namespace(&wish.place.ns));
    confirm(shared, Stamp::of_lease(&seen), space, Seen::Never, move |shared, good| match good {
        Some(_) => done(Reply::Busy(left)),
        None => Next::More(take_lease(shared, wish, &holder)),
    })
}

/// The reply, once the plan is carried out.
fn and_then(plan: Plan, reply: Reply) -> Next {
    Next::More(Plan::new(plan.commands, move |shared, values| {
        (plan.then)(shared, values);
        done(reply)
    }))
}

fn release(shared: &Shared, place: &Place, lease: Lease) -> Plan {
    let name = shared.names.value(place);
    let mut command = shared.call(&scripts::RELEASE, &[&Names::lease(&name)]);
    command.arg(shared.token(lease.token)).arg(shared.names.channel());
    command.arg(shared.message('r', &name));
    shared.leases.lock().remove(&lease.token);
    Plan::new(vec![command], |_, _| done(Reply::Done))
}

/// Ends a lease, if it was given at all.
pub(super) fn disown(shared: &Shared, token: u64, name: &str) -> Plan {
    let mut command = shared.call(&scripts::RELEASE, &[name]);
    let value = name.strip_suffix(names::LEASE).unwrap_or(name);
    command.arg(shared.token(token)).arg(shared.names.channel());
    command.arg(shared.message('r', value));
    Plan::new(vec![command], move |shared, values| {
        if matches!(values.first(), Some(Value::Int(1 | 2))) {
            shared.orphans.ended(token);
        }
        done(Reply::Done)
    })
}

fn wait(shared: &Shared, place: &Place, longest: Duration) -> Plan {
    // First the ear, then the look: what ends in between is heard.
    let Some(waiter) = shared.waits.register(place.id()) else {
        return Plan::new(Vec::new(), |_, _| done(Reply::Was(false)));
    };
    let mut command = cmd("EXISTS");
    command.arg(Names::lease(&shared.names.value(place)));
    Plan::new(vec![command], move |_, values| match values.first() {
        Some(Value::Int(1)) => Next::Park(waiter, longest.min(LOOK_AGAIN)),
        _ => done(Reply::Done),
    })
}

/// A generation, made if need be, that lives longer than so many milliseconds.
fn make(shared: &Shared, name: &str, life: u64) -> Cmd {
    let mut command = shared.call(&scripts::GENERATION, &[name]);
    command.arg(shared.fresh()).arg(life);
    command
}

/// What a value carries.
fn stamp_of(generations: &[String], tags: &[Box<str>]) -> String {
    let mut parts: Vec<&str> = generations.first().map(String::as_str).into_iter().collect();
    for (tag, generation) in tags.iter().zip(generations.iter().skip(1)) {
        parts.extend([&**tag, generation.as_str()]);
    }
    write(parts)
}

fn found(body: Vec<u8>, remaining: Option<Duration>, tags: Tags) -> Reply {
    Reply::Value(Found { payload: body.into(), remaining, tags })
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.max(SHORTEST).as_millis()).unwrap_or(u64::MAX / 4)
}

/// How long a key still lives, `None` for ever; an error if it does not.
fn remaining(reply: Option<Value>) -> Result<Option<Duration>, ()> {
    match reply {
        Some(Value::Int(-1)) => Ok(None),
        Some(Value::Int(left)) if left >= 0 => Ok(Some(Duration::from_millis(left as u64))),
        _ => Err(()),
    }
}

fn pair(reply: Option<Value>) -> Option<(Vec<u8>, Vec<u8>)> {
    match reply {
        Some(Value::Array(mut both)) if both.len() == 2 => match (both.pop(), both.pop()) {
            (Some(Value::BulkString(stamp)), Some(Value::BulkString(body))) => Some((body, stamp)),
            _ => None,
        },
        _ => None,
    }
}

pub(super) fn text(reply: Value) -> Option<String> {
    match reply {
        Value::BulkString(bytes) => String::from_utf8(bytes).ok(),
        Value::SimpleString(text) => Some(text),
        _ => None,
    }
}
