//! The nodes of a Cluster: a connection to each, and what each of them is like.
//!
//! A node that hangs costs what it has, and nothing else: its requests end by their
//! own time, after a few of them it is left alone for a while, and nobody waits for
//! it to find out about the others. (The client library's own connection to a
//! Cluster does: whenever it looks for who has what, all requests wait until it has
//! heard from each node or given it up. With one of three nodes stopped, 0 of 2,520
//! values on the other two were found.)

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared, join_all};
use futures_util::stream::{FuturesUnordered, StreamExt};
use redis::aio::MultiplexedConnection;
use redis::{Cmd, Pipeline, Value, cmd};
use tokio::time::{sleep, timeout};

use super::driver::why;
use super::slots::{Address, COUNT, Elsewhere, elsewhere, key_of, slot_of, view};
use super::wire::{Servers, inline};
use crate::core::clock::{Clock, Nanos, nanos_from_duration};
use crate::core::sync::Mutex;
use crate::runtime::notices::Notices;
use crate::runtime::outage::{Kind, Outages};
use crate::runtime::tier::TierError;

/// So often at most a request is sent elsewhere.
const REDIRECTS: usize = 8;

/// Before it is sent to the same node again, which is about to give the key away.
const AGAIN: Duration = Duration::from_millis(20);

/// So many nodes are asked at once who has what.
const ASKED: usize = 8;

/// After the first answer, those that know of more get so long.
const OTHERS: Duration = Duration::from_millis(50);

/// Between two such questions.
const RENEWED: Nanos = 250_000_000;

/// All that are known.
pub(super) struct Nodes {
    servers: Servers,
    notices: Arc<Notices>,
    map: Mutex<Map>,
    /// When it may next be asked who has what.
    renew_at: AtomicU64,
    turn: AtomicUsize,
}

#[derive(Default)]
struct Map {
    nodes: Vec<Arc<Node>>,
    /// By slots, where in `nodes` its master is; empty at first.
    masters: Vec<Option<usize>>,
}

type Opening = Shared<BoxFuture<'static, Result<MultiplexedConnection, TierError>>>;

enum Link {
    None,
    /// Since when.
    Opening(Opening, Nanos),
    Open(MultiplexedConnection),
}

struct Node {
    address: Address,
    link: Mutex<Link>,
    outages: Outages,
    replied: AtomicU64,
}

fn now() -> Nanos {
    Clock::System.now()
}

impl Nodes {
    pub(super) fn new(servers: Servers, notices: Arc<Notices>) -> Self {
        let (map, renew_at, turn) = (Mutex::default(), AtomicU64::new(0), AtomicUsize::new(0));
        Self { servers, notices, map, renew_at, turn }
    }

    /// Waits until it is known who has what.
    pub(super) async fn ready(&self) -> Result<(), TierError> {
        if self.map.lock().masters.is_empty() { self.look().await } else { Ok(()) }
    }

    /// The replies to all commands, errors of the nodes among them.
    pub(super) async fn send(
        self: &Arc<Self>,
        commands: Vec<Cmd>,
    ) -> Result<Vec<Value>, TierError> {
        // All of them to their end, so that each tells what its node is like.
        let replies = join_all(commands.iter().map(|command| self.ask(command))).await;
        replies.into_iter().collect()
    }

    async fn ask(self: &Arc<Self>, command: &Cmd) -> Result<Value, TierError> {
        let slot = slot_of(key_of(command));
        let mut asking = None;
        let mut last = Value::Nil;
        for _ in 0..REDIRECTS {
            let once = asking.is_some();
            let Some(node) = asking.take().or_else(|| self.master(slot)) else {
                self.renew();
                return Err(TierError::Part("no node has the key".into()));
            };
            let reply = self.ask_node(&node, command, once).await;
            if reply.is_err() {
                // Perhaps another one has its place by now.
                self.renew();
            }
            last = reply?;
            match elsewhere(&last, &node.address) {
                None => break,
                Some(Elsewhere::Moved(there)) => {
                    self.moved(slot, there);
                    self.renew();
                }
                Some(Elsewhere::Ask(there)) => asking = Some(self.node(there)),
                Some(Elsewhere::Again) => sleep(AGAIN).await,
                Some(Elsewhere::Unknown) => {
                    self.renew();
                    break;
                }
            }
        }
        Ok(last)
    }

    async fn ask_node(&self, node: &Node, command: &Cmd, once: bool) -> Result<Value, TierError> {
        if node.outages.may_ask(Kind::Read, now()).is_err() {
            let (host, port) = &node.address;
            return Err(TierError::Part(format!("{host}:{port} is left alone after failures")));
        }
        let asked = Asked { nodes: self, node, begun: now(), over: false };
        let outcome = match self.connection(node).await {
            Ok(mut connection) => {
                let reply = if once {
                    let mut both = Pipeline::with_capacity(2);
                    both.cmd("ASKING").add_command(command.clone());
                    let replies = connection.send_packed_commands(&both, 1, 1).await;
                    replies.map(|mut replies| replies.pop().unwrap_or(Value::Nil))
                } else {
                    connection.send_packed_command(command).await
                };
                inline(reply).map_err(|error| why(&error))
            }
            Err(error) => Err(error),
        };
        asked.ends(&outcome);
        outcome
    }

    async fn connection(&self, node: &Node) -> Result<MultiplexedConnection, TierError> {
        let opening = {
            let mut link = node.link.lock();
            let patience = nanos_from_duration(self.servers.timeout);
            match &*link {
                Link::Open(connection) => return Ok(connection.clone()),
                Link::Opening(opening, since) if now().saturating_sub(*since) < patience => {
                    opening.clone()
                }
                _ => {
                    let opening = self.opening(node.address.clone());
                    *link = Link::Opening(opening.clone(), now());
                    opening
                }
            }
        };
        let opened = opening.clone().await;
        let mut link = node.link.lock();
        if matches!(&*link, Link::Opening(other, _) if other.ptr_eq(&opening)) {
            *link = match &opened {
                Ok(connection) => Link::Open(connection.clone()),
                Err(_) => Link::None,
            };
        }
        opened
    }

    /// Goes on for as long as anybody waits for it.
    fn opening(&self, address: Address) -> Opening {
        let servers = self.servers.clone();
        let opening = async move {
            match timeout(servers.timeout, servers.open_node(&address)).await {
                Ok(opened) => opened.map_err(|error| why(&error)),
                Err(_) => Err(TierError::Late),
            }
        };
        opening.boxed().shared()
    }

    /// The master of a slot.
    fn master(&self, slot: u16) -> Option<Arc<Node>> {
        let map = self.map.lock();
        let at = map.masters.get(usize::from(slot)).copied().flatten()?;
        map.nodes.get(at).map(Arc::clone)
    }

    fn node(&self, address: Address) -> Arc<Node> {
        let mut map = self.map.lock();
        let at = map.place(address);
        Arc::clone(&map.nodes[at])
    }

    fn moved(&self, slot: u16, address: Address) {
        let mut map = self.map.lock();
        let at = map.place(address);
        if let Some(master) = map.masters.get_mut(usize::from(slot)) {
            *master = Some(at);
        }
    }

    /// Finds out who has what, unless that was done a moment ago; nobody waits for it.
    fn renew(self: &Arc<Self>) {
        let (now, at) = (now(), &self.renew_at);
        let due = at.load(Ordering::Acquire);
        let next = now.saturating_add(RENEWED);
        if now < due || at.compare_exchange(due, next, Ordering::AcqRel, Ordering::Acquire).is_err()
        {
            return;
        }
        let nodes = Arc::clone(self);
        tokio::spawn(async move {
            let _ = timeout(nodes.servers.timeout, nodes.look()).await;
        });
    }

    /// Asks several nodes who has what; who knows of most is believed.
    async fn look(&self) -> Result<(), TierError> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let mut asked: Vec<Arc<Node>> = self.map.lock().nodes.clone();
        let count = asked.len();
        if count > 0 {
            asked.rotate_left(turn % count);
            asked.sort_by_key(|node| node.outages.is_away());
            asked.truncate(ASKED / 2);
        }
        let first = turn % self.servers.nodes.len();
        for address in self.servers.nodes.iter().cycle().skip(first).take(self.servers.nodes.len())
        {
            if asked.len() < ASKED && !asked.iter().any(|node| node.address == *address) {
                asked.push(self.known(address));
            }
        }
        let question = cmd("CLUSTER").arg("SLOTS").take();
        let mut views: FuturesUnordered<_> = asked
            .iter()
            .map(|node| async {
                let reply = self.ask_node(node, &question, false).await?;
                if let Value::ServerError(error) = &reply {
                    return Err(TierError::Away(error.to_string()));
                }
                Ok(view(reply, &node.address))
            })
            .collect();
        let mut error = TierError::Away("no node knows of a Cluster".into());
        let mut best = Vec::new();
        loop {
            // One that was left by the others knows of its own slots only.
            let next = views.next();
            let answer = if best.is_empty() {
                next.await
            } else {
                timeout(OTHERS, next).await.unwrap_or(None)
            };
            match answer {
                None => break,
                Some(Ok(ranges)) if slots_in(&ranges) > slots_in(&best) => best = ranges,
                Some(Ok(_) | Err(TierError::Part(_))) => {}
                Some(Err(other)) => error = other,
            }
            if slots_in(&best) == u32::from(COUNT) {
                break;
            }
        }
        if best.is_empty() {
            return Err(error);
        }
        self.map.lock().renew(&best, &asked);
        Ok(())
    }

    /// A node that is known, or one that is not yet among them.
    fn known(&self, address: &Address) -> Arc<Node> {
        let map = self.map.lock();
        let known = map.nodes.iter().find(|node| node.address == *address);
        known.map_or_else(|| Arc::new(Node::new(address.clone())), Arc::clone)
    }

    /// A master to listen to, another one in each turn.
    pub(super) async fn ear(&self, turn: usize) -> Result<Address, TierError> {
        if turn > 0 || self.map.lock().masters.is_empty() {
            // The last one may have left.
            self.look().await?;
        }
        let map = self.map.lock();
        let mut masters = map.owners();
        if masters.iter().any(|node| !node.outages.is_away()) {
            masters.retain(|node| !node.outages.is_away());
        }
        let from = turn + self.turn.load(Ordering::Relaxed);
        let one = masters.get(from % masters.len().max(1));
        one.map(|node| node.address.clone()).ok_or(TierError::Late)
    }

    /// Publishes by another master than that one, if there is another that answers: what then
    /// comes has come from node to node, as changes do.
    pub(super) async fn publish(self: &Arc<Self>, ear: &Address, command: &Cmd) -> bool {
        let mut others = self.map.lock().owners();
        others.retain(|node| node.address != *ear && !node.outages.is_away());
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let node = match others.get(turn % others.len().max(1)) {
            Some(node) => Arc::clone(node),
            None => self.known(ear),
        };
        let reply = self.ask_node(&node, command, false).await;
        if reply.is_err() {
            self.renew();
        }
        matches!(reply, Ok(Value::Int(_)))
    }

    /// A failure, which is one of the Cluster only if none of its nodes answers.
    pub(super) fn partly(&self, error: &TierError) -> TierError {
        let some = || self.map.lock().owners().iter().any(|node| !node.outages.is_away());
        match error {
            TierError::Late if some() => TierError::Part("a node did not answer in time".into()),
            TierError::Away(why) if some() => TierError::Part(why.clone()),
            error => error.clone(),
        }
    }

    /// How many connections there are.
    pub(super) fn connections(&self) -> usize {
        let map = self.map.lock();
        map.nodes.iter().filter(|node| matches!(&*node.link.lock(), Link::Open(_))).count()
    }

    /// Closes all connections.
    pub(super) fn clear(&self) {
        let map = std::mem::take(&mut *self.map.lock());
        drop(map);
        self.renew_at.store(0, Ordering::Release);
    }

    /// In a forked child they are the parent's, and cannot even be dropped.
    pub(super) fn forget(&self) {
        std::mem::forget(std::mem::take(&mut *self.map.lock()));
        self.renew_at.store(0, Ordering::Release);
    }
}

fn slots_in(ranges: &[(u16, u16, Address)]) -> u32 {
    ranges.iter().map(|(first, last, _)| u32::from(last - first) + 1).sum()
}

impl Map {
    fn place(&mut self, address: Address) -> usize {
        let known = self.nodes.iter().position(|node| node.address == address);
        known.unwrap_or_else(|| {
            self.nodes.push(Arc::new(Node::new(address)));
            self.nodes.len() - 1
        })
    }

    fn renew(&mut self, ranges: &[(u16, u16, Address)], asked: &[Arc<Node>]) {
        let mut known: HashMap<Address, Arc<Node>> = HashMap::new();
        for node in self.nodes.drain(..).chain(asked.iter().map(Arc::clone)) {
            known.entry(node.address.clone()).or_insert(node);
        }
        self.masters = vec![None; usize::from(COUNT)];
        for (first, last, address) in ranges {
            if let Some(node) = known.remove(address) {
                self.nodes.push(node);
            }
            let at = self.place(address.clone());
            self.masters[usize::from(*first)..=usize::from(*last)].fill(Some(at));
        }
    }

    /// Those that have slots.
    fn owners(&self) -> Vec<Arc<Node>> {
        let mut owns = vec![false; self.nodes.len()];
        for at in self.masters.iter().flatten() {
            if let Some(owns) = owns.get_mut(*at) {
                *owns = true;
            }
        }
        self.nodes
            .iter()
            .zip(owns)
            .filter(|(_, owns)| *owns)
            .map(|(node, _)| node.clone())
            .collect()
    }
}

impl Node {
    fn new(address: Address) -> Self {
        let (link, outages) = (Mutex::new(Link::None), Outages::default());
        Self { address, link, outages, replied: AtomicU64::new(0) }
    }
}

/// A question on its way to a node.
struct Asked<'a> {
    nodes: &'a Nodes,
    node: &'a Node,
    begun: Nanos,
    over: bool,
}

impl Asked<'_> {
    fn ends(mut self, outcome: &Result<Value, TierError>) {
        self.over = true;
        let node = self.node;
        match outcome {
            Ok(_) => {
                node.replied.store(now(), Ordering::Release);
                if node.outages.recovered(Kind::Read).is_some() {
                    self.say("answers again");
                }
            }
            Err(error) => {
                self.hang_up();
                self.failed(error);
            }
        }
    }

    /// What is on its way on it would hold up what comes next.
    fn hang_up(&self) {
        let mut link = self.node.link.lock();
        if let Link::Open(_) = &*link {
            *link = Link::None;
        }
    }

    fn failed(&self, error: &TierError) {
        if self.node.outages.failed(Kind::Read, error, now()).is_some() {
            self.say("does not answer: what it has is missed");
        }
    }

    fn say(&self, what: &str) {
        let (host, port) = &self.node.address;
        self.nodes.notices.add(format!("the node {host}:{port} of the Cluster {what}"));
    }
}

impl Drop for Asked<'_> {
    /// Nobody waits any more. That says something of the node if it had some time, and has said
    /// nothing to anybody else.
    fn drop(&mut self) {
        let waited = now().saturating_sub(self.begun);
        let fair = nanos_from_duration(self.nodes.servers.timeout) / 2;
        let silent = self.node.replied.load(Ordering::Acquire) < self.begun;
        if !self.over && silent && waited >= fair {
            self.hang_up();
            self.failed(&TierError::Late);
        }
    }
}
