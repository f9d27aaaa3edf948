//! Sends what is queued: many requests in one write, over few connections.
//!
//! While a connection has [`DEPTH`] batches under way, requests gather; so the
//! batches grow with the load, and a lone request goes out at once.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};
use redis::{RedisError, ServerError, Value};
use tokio::sync::watch;
use tokio::time::timeout;

use super::debts;
use super::plan::{Next, Plan, Then, discard, disown, plan, renew, touch};
use super::shared::{Ask, Job, Shared, Stage};
use super::wire::Wire;
use crate::core::clock::Nanos;
use crate::runtime::queue::Bounds;
use crate::runtime::tier::{Request, TierError};

/// Requests in one batch, and bytes of values.
const BATCH: Bounds = Bounds { items: 256, bytes: 4 << 20 };

/// Batches under way on one connection: while one is on the wire, the next one is parsed.
const DEPTH: usize = 2;

/// On a Cluster every request goes its own way; so many at once.
const CLUSTER_DEPTH: usize = 1024;

/// With more requests left behind, another connection is opened.
const GROW_AT: usize = 512;

/// After a failed attempt, the next one may take so long to begin.
const PAUSE: Duration = Duration::from_millis(20);

struct Connection {
    wire: Wire,
    /// Which server of those one after the other it was opened to.
    server: u64,
    broken: Arc<AtomicBool>,
    busy: Arc<()>,
}

impl Connection {
    fn depth(&self) -> usize {
        Arc::strong_count(&self.busy) - 1
    }
}

/// Runs until it is told to stop.
pub(super) async fn drive(shared: Arc<Shared>, mut stage: watch::Receiver<Stage>) {
    let mut pool: Vec<Connection> = Vec::new();
    let mut batches = FuturesUnordered::new();
    let mut connecting = FuturesUnordered::new();
    // One of them listens for changes, and one may be the line.
    let others = 1 + usize::from(shared.has_line());
    let most = shared.config.max_connections.saturating_sub(others).max(1);
    let depth = if shared.is_cluster() { CLUSTER_DEPTH } else { DEPTH };
    loop {
        let servers = shared.servers.load(Ordering::Acquire);
        pool.retain(|one| one.server == servers);
        pool.retain(|one| !one.broken.load(Ordering::Acquire));
        let connections = shared.nodes.as_ref().map_or(pool.len(), |nodes| nodes.connections());
        shared.figures.connections.store(connections as u64, Ordering::Relaxed);
        shared.idle.store(batches.is_empty(), Ordering::Release);
        let now = *stage.borrow_and_update();
        let over = match now {
            Stage::Run => false,
            Stage::Pause => true,
            Stage::Drain => shared.waiting() == 0,
        };
        if over && batches.is_empty() {
            return;
        }
        let free = pool.iter().position(|one| one.depth() < depth);
        let ready = !over && shared.listened.load(Ordering::Acquire);
        // Only one of the two arms that are woken by new requests is on.
        let taking = ready && (free.is_some() || connecting.is_empty() && pool.is_empty());
        tokio::select! {
            biased;
            Some(()) = batches.next(), if !batches.is_empty() => {}
            Some(opened) = connecting.next(), if !connecting.is_empty() => match opened {
                Ok(one) => pool.push(one),
                // It takes its time: those who came later may have more.
                Err(TierError::Late) if pool.is_empty() => {
                    shared.expire(shared.now(), &TierError::Late);
                }
                Err(error) if pool.is_empty() => shared.expire(u64::MAX, &error),
                Err(_) => {}
            },
            () = shared.gate.notified(), if !ready && !over => {}
            // What is told after it is over changes nothing.
            _ = stage.changed(), if now == Stage::Run => {}
            () = nonempty(&shared), if taking => {
                if let Some(free) = free {
                    let jobs = shared.take(BATCH);
                    let one = &pool[free];
                    let (wire, broken, busy) = (one.wire.clone(), one.broken.clone(), one.busy.clone());
                    if shared.is_cluster() {
                        for job in jobs {
                            // It mends its connections by itself, one by one.
                            let (wire, broken, busy) = (wire.clone(), Arc::default(), busy.clone());
                            batches.push(batch(&shared, wire, vec![job], broken, busy));
                        }
                    } else {
                        batches.push(batch(&shared, wire, jobs, broken, busy));
                    }
                    let more = shared.waiting() > GROW_AT && pool.len() < most;
                    if more && !shared.is_cluster() && connecting.is_empty() {
                        connecting.push(connect(&shared));
                    }
                } else {
                    connecting.push(connect(&shared));
                }
            }
            () = first_deadline(&shared), if !taking => {
                shared.expire(shared.now(), &TierError::Late);
            }
        }
    }
}

async fn connect(shared: &Shared) -> Result<Connection, TierError> {
    let server = shared.servers.load(Ordering::Acquire);
    let turn = shared.figures.connects.fetch_add(1, Ordering::Relaxed) as usize;
    let servers = &shared.config.servers;
    let opening = async {
        match &shared.nodes {
            Some(nodes) => nodes.ready().await.map(|()| Wire::Cluster(Arc::clone(nodes))),
            None => servers.open(turn).await.map_err(|error| why(&error)),
        }
    };
    match timeout(servers.timeout, opening).await {
        Ok(Ok(wire)) => {
            Ok(Connection { wire, server, broken: Arc::default(), busy: Arc::default() })
        }
        Ok(Err(error)) => {
            tokio::time::sleep(PAUSE).await;
            Err(error)
        }
        Err(_) => Err(TierError::Late),
    }
}

async fn nonempty(shared: &Shared) {
    loop {
        let woken = shared.wake.notified();
        if shared.waiting() > 0 {
            return;
        }
        woken.await;
    }
}

async fn first_deadline(shared: &Shared) {
    loop {
        let Some(deadline) = shared.first_deadline() else {
            let woken = shared.wake.notified();
            if shared.waiting() == 0 {
                woken.await;
            }
            continue;
        };
        let now = shared.now();
        if deadline <= now {
            return;
        }
        tokio::time::sleep(Duration::from_nanos(deadline - now)).await;
    }
}

/// Carries out jobs; what their replies make necessary goes in further round trips.
async fn batch(
    shared: &Shared,
    mut wire: Wire,
    jobs: Vec<Job>,
    broken: Arc<AtomicBool>,
    _busy: Arc<()>,
) {
    shared.figures.batches.fetch_add(1, Ordering::Relaxed);
    let mut live: Vec<(Job, Plan)> = jobs.into_iter().map(|job| begin(shared, job)).collect();
    while !live.is_empty() {
        let mut commands = Vec::with_capacity(live.len() * 2);
        let mut pending = Vec::with_capacity(live.len());
        for (job, Plan { commands: mine, then, lease }) in live.drain(..) {
            pending.push(Pending { job: Some(job), count: mine.len(), then, lease });
            commands.extend(mine);
        }
        let values = match replies(shared, wire.send(commands), &mut pending).await {
            Ok(values) => values,
            Err(error) => return give_up(shared, pending, &broken, &error),
        };
        answered(shared);
        let mut values = values.into_iter();
        for Pending { job, count, then, .. } in pending {
            let mine: Vec<Value> = values.by_ref().take(count).collect();
            let Some(job) = job else { continue };
            match refused(&mine) {
                None => match then(shared, tame(mine)) {
                    Next::Done(outcome) => job.done.end(outcome),
                    Next::More(plan) => live.push((job, plan)),
                    Next::Park(waiter, longest) => {
                        waiter.park(job.done);
                        tokio::spawn(async move {
                            tokio::time::sleep(longest).await;
                            waiter.ring();
                        });
                    }
                },
                Some(Refusal::Forgotten) if !job.again => {
                    // Somebody emptied its scripts: a new connection loads them.
                    broken.store(true, Ordering::Release);
                    shared.put_back(vec![Job { again: true, ..job }]);
                }
                Some(Refusal::Forgotten) => {
                    shared.fail(job, &TierError::Away("it forgets its scripts".into()));
                }
                Some(Refusal::Full(why)) => shared.fail(job, &TierError::Full(why)),
                Some(Refusal::Unfit(why)) => {
                    broken.store(true, Ordering::Release);
                    shared.leave_server();
                    shared.fail(job, &TierError::Away(why));
                }
                Some(Refusal::Part(why)) => shared.fail(job, &TierError::Part(why)),
                Some(Refusal::Node(why)) => {
                    shared.fail(job, &shared.partly(&TierError::Away(why)));
                }
                Some(Refusal::Other(why)) => shared.fail(job, &TierError::Away(why)),
            }
        }
    }
}

/// Waits for the replies to a batch; whose time is up meanwhile fails by itself.
async fn replies(
    shared: &Shared,
    sent: impl Future<Output = Result<Vec<Value>, TierError>>,
    pending: &mut [Pending],
) -> Result<Vec<Value>, TierError> {
    let mut sent = pin!(sent);
    loop {
        // Before it is looked at: what is cut from then on is heard of.
        let cut = shared.cut.notified();
        if shared.cutting.load(Ordering::Acquire) {
            return Err(TierError::Lost);
        }
        let first = pending.iter().filter_map(|one| Some(one.job.as_ref()?.deadline)).min();
        let Some(first) = first else { return Err(TierError::Late) };
        let left = first.saturating_sub(shared.now()).min(timeout_nanos(shared));
        tokio::select! {
            biased;
            replies = &mut sent => return replies,
            () = cut => {}
            () = tokio::time::sleep(Duration::from_nanos(left)) => {
                let (now, late) = (shared.now(), shared.partly(&TierError::Late));
                for one in &mut *pending {
                    if let Some(job) = one.job.take_if(|job| job.deadline <= now) {
                        if let Some((token, name)) = one.lease.take() {
                            shared.disown(token, name);
                        }
                        shared.fail(job, &late);
                    }
                }
            }
        }
    }
}

/// Redis has answered.
pub(super) fn answered(shared: &Shared) {
    let now = shared.now();
    let before = shared.last_reply.swap(now, Ordering::AcqRel);
    if now.saturating_sub(before) > timeout_nanos(shared) {
        // After a pause; else it is left to the upkeep.
        shared.end_orphans();
    }
}

fn timeout_nanos(shared: &Shared) -> Nanos {
    crate::core::clock::nanos_from_duration(shared.config.servers.timeout)
}

fn begin(shared: &Shared, job: Job) -> (Job, Plan) {
    let plan = match &job.ask {
        Ask::Request(request) => plan(shared, request),
        Ask::Renew(token, name) => renew(shared, *token, name),
        Ask::Disown(token, name) => disown(shared, *token, name),
        Ask::Debt(debt) => debts::settle(shared, debt),
        Ask::Discard(name, stamp) => discard(shared, name, stamp),
        Ask::Touch(name) => touch(name),
        Ask::Time => debts::look_at_the_clock(shared),
    };
    (job, plan)
}

/// A job whose commands are on their way.
struct Pending {
    /// Until its time is up.
    job: Option<Job>,
    count: usize,
    then: Then,
    lease: Option<(u64, String)>,
}

fn give_up(shared: &Shared, pending: Vec<Pending>, broken: &AtomicBool, error: &TierError) {
    // What is on its way on it would be answered to the next one.
    broken.store(true, Ordering::Release);
    if !shared.closed.load(Ordering::Acquire) {
        // Another server may have taken over.
        shared.hang_up();
    }
    let mut again = Vec::new();
    for Pending { job, lease, .. } in pending {
        if let Some((token, name)) = lease {
            shared.disown(token, name);
        }
        let Some(job) = job else { continue };
        let lease = matches!(job.ask, Ask::Request(Request::Lease { .. }));
        // A server that was restarted has closed a connection without a word; or it hangs, and a
        // fork does not wait. What was done may be done once more, but for a lease: that would
        // wait for the first one.
        match error {
            TierError::Away(_) if !job.again && !lease => again.push(Job { again: true, ..job }),
            TierError::Lost if !lease => again.push(job),
            error => shared.fail(job, &shared.partly(error)),
        }
    }
    shared.put_back(again);
}

pub(super) enum Refusal {
    /// It does not know the script.
    Forgotten,
    /// It has no memory left.
    Full(String),
    /// It is not, or not yet, or no longer the one to talk to.
    Unfit(String),
    /// Nobody has this key; others may be there.
    Part(String),
    /// This server cannot do it just now; of a Cluster, others may.
    Node(String),
    Other(String),
}

pub(super) fn refused(values: &[Value]) -> Option<Refusal> {
    values.iter().find_map(|value| match value {
        Value::ServerError(error) => refusal(error),
        _ => None,
    })
}

fn refusal(error: &ServerError) -> Option<Refusal> {
    let why = || format!("{} {}", error.code(), error.details().unwrap_or_default());
    match code_of(error.code(), error.details().unwrap_or_default()) {
        // Something else is there: as good as nothing.
        "WRONGTYPE" => None,
        "NOSCRIPT" => Some(Refusal::Forgotten),
        "OOM" => Some(Refusal::Full(why())),
        "CLUSTERDOWN" if why().contains("not served") => Some(Refusal::Part(why())),
        "READONLY" | "MASTERDOWN" | "NOAUTH" | "UNBLOCKED" => Some(Refusal::Unfit(why())),
        "TRYAGAIN" | "NOREPLICAS" | "LOADING" | "MISCONF" | "BUSY" => Some(Refusal::Node(why())),
        _ => Some(Refusal::Other(why())),
    }
}

/// What an error is about. Redis 6 reports what a script met as the script's own error.
fn code_of<'a>(code: &'a str, details: &'a str) -> &'a str {
    let inner = || details.split_whitespace().find_map(|word| word.strip_prefix('-'));
    match code {
        "ERR" if details.starts_with("Error running script") => inner().unwrap_or(code),
        _ if code.starts_with("@user_script") => inner().unwrap_or(code),
        _ => code,
    }
}

pub(super) fn tame(mut values: Vec<Value>) -> Vec<Value> {
    for value in &mut values {
        if let Value::ServerError(_) = value {
            *value = Value::Nil;
        }
    }
    values
}

/// An error as a sentence for people.
pub(super) fn why(error: &RedisError) -> TierError {
    if error.is_timeout() { TierError::Late } else { TierError::Away(error.to_string()) }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;
    use crate::core::clock::Clock;
    use crate::runtime::near::Near;
    use crate::runtime::place::Place;
    use crate::runtime::redis::{Config, Mode, Servers};
    use crate::runtime::tier::{Done, Outcome};

    fn shared() -> Arc<Shared> {
        let timeout = Duration::from_mins(1);
        let servers = Servers {
            mode: Mode::Single,
            nodes: vec![("nowhere".into(), 1)],
            db: 0,
            username: None,
            password: None,
            sentinel_username: None,
            sentinel_password: None,
            tls: None,
            timeout,
        };
        let config = Config { servers, prefix: "f:".into(), max_connections: 2, lease: timeout };
        let near = Arc::new(Near::new(1, Clock::System));
        Shared::new(config, near, &Clock::System, Arc::default(), Arc::default(), Arc::default())
    }

    fn pending(ask: Request, deadline: Nanos, ended: &Arc<AtomicUsize>) -> Pending {
        let ended = Arc::clone(ended);
        let done = Done::new(move |outcome: Outcome| {
            assert!(matches!(outcome, Err(TierError::Late | TierError::Lost)), "{outcome:?}");
            ended.fetch_add(1, Ordering::Relaxed);
        });
        let lease = matches!(ask, Request::Lease { .. }).then(|| (1, "f:{ns:k}:lease".into()));
        let job = Job { ask: Ask::Request(ask), done, deadline, again: false };
        let then: Then = Box::new(|_, _| Next::Done(Err(TierError::Ended)));
        Pending { job: Some(job), count: 1, then, lease }
    }

    fn run<T>(task: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(task)
    }

    #[test]
    fn what_a_script_met_is_known_in_redis_6_too() {
        let of = |line: &'static str| {
            let (code, details) = line.split_once(' ').unwrap_or((line, ""));
            code_of(code, details)
        };
        assert_eq!(of("OOM command not allowed when used memory > 'maxmemory'."), "OOM");
        assert_eq!(of("@user_script: 21: -OOM command not allowed when used memory"), "OOM");
        let met = "ERR Error running script (call to f_ab12): @user_script:12: @user_script: 12: \
                   -READONLY You can't write against a read only replica.";
        assert_eq!(of(met), "READONLY");
        assert_eq!(of("ERR Error running script (call to f_ab12): user_script:1: oh"), "ERR");
        assert_eq!(of("NOSCRIPT No matching script. Please use EVAL."), "NOSCRIPT");
    }

    #[test]
    fn whose_time_is_up_fails_and_the_others_are_answered() {
        run(async {
            let (shared, ended) = (shared(), Arc::new(AtomicUsize::new(0)));
            let mut both = [0, u64::MAX].map(|until| pending(Request::Ping, until, &ended));
            let sent = async {
                while ended.load(Ordering::Relaxed) == 0 {
                    tokio::task::yield_now().await;
                }
                Ok(vec![Value::Nil, Value::Okay])
            };
            let values = replies(&shared, sent, &mut both).await.unwrap();
            assert_eq!(values, [Value::Nil, Value::Okay]);
            assert!(both[0].job.is_none() && both[1].job.is_some());
        });
    }

    #[test]
    fn before_a_fork_it_is_given_up_and_kept_but_for_leases() {
        run(async {
            let (shared, ended) = (shared(), Arc::new(AtomicUsize::new(0)));
            let (place, tags) = (Place::new("ns".into(), "k"), Arc::from([]));
            let lease = Request::Lease { place, tags, anew: false };
            let mut both =
                vec![pending(Request::Ping, u64::MAX, &ended), pending(lease, u64::MAX, &ended)];
            let cut = async {
                shared.cutting.store(true, Ordering::Release);
                shared.cut.notify_waiters();
            };
            let never = std::future::pending();
            let (values, ()) = tokio::join!(replies(&shared, never, &mut both), cut);
            assert_eq!(values, Err(TierError::Lost));
            give_up(&shared, both, &AtomicBool::new(false), &TierError::Lost);
            assert_eq!((ended.load(Ordering::Relaxed), shared.waiting()), (1, 1));
            assert_eq!(shared.orphans.living(0).len(), 1);
        });
    }
}
