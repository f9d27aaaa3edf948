//! Every interleaving of a grant, a cancel and a newcomer: no permit is lost,
//! no waiter is left asleep.

use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread;

use super::*;
use crate::core::clock::{ManualClock, SECOND};

type Woken = Arc<AtomicUsize>;
type Tested = Limiter<u32, Woken>;

fn limiter(clock: &ManualClock) -> Arc<Tested> {
    let settings = Settings {
        limits: vec!["1/second".parse().unwrap()],
        burst: Some(1),
        adaptive: None,
        algorithm: Algorithm::SlidingWindow,
        max_keys: 1,
        max_waiters: 10,
        enabled: true,
        sharing: None,
    };
    Arc::new(Limiter::new(settings, Clock::Manual(clock.clone())).unwrap())
}

fn call<T>(limiter: &Tested, body: impl FnOnce(&Tested, &mut Outbox<u32, Woken>) -> T) -> T {
    let mut out = Outbox::new();
    let answer = body(limiter, &mut out);
    for waker in out.take_wakes() {
        waker.fetch_add(1, Ordering::Release);
    }
    answer
}

fn queue(limiter: &Tested) -> (Ticket, Woken) {
    let waker = Woken::new(AtomicUsize::new(0));
    let ticket =
        call(limiter, |l, out| l.enqueue(None, 1, true, NEVER, waker.clone(), out)).unwrap();
    (ticket, waker)
}

/// The slot is released while the head is cancelled: whoever stands next is woken and served.
#[test]
fn loom_grant_against_cancel() {
    loom::model(|| {
        let clock = ManualClock::starting_at(0);
        let limiter = limiter(&clock);
        assert!(call(&limiter, |l, out| l.try_enter(None, 1, true, out)).granted);
        clock.advance(SECOND);
        let (head, head_waker) = queue(&limiter);
        let (next, next_waker) = queue(&limiter);
        for ticket in [head, next] {
            assert_eq!(call(&limiter, |l, out| l.poll(None, ticket, out)), Progress::Wait(NEVER));
        }
        let releasing = {
            let limiter = limiter.clone();
            thread::spawn(move || assert!(call(&limiter, |l, out| l.release_slot(out))))
        };
        assert!(call(&limiter, |l, out| l.cancel(None, head, out)));
        releasing.join().unwrap();
        assert!(head_waker.load(Ordering::Acquire) <= 1);
        assert_eq!(next_waker.load(Ordering::Acquire), 1, "a lost or doubled wake");
        assert_eq!(call(&limiter, |l, out| l.poll(None, next, out)), Progress::Granted);
        let stats = limiter.stats();
        assert_eq!((stats.concurrent, stats.waiting, stats.windows[0].1), (1, 0, 1));
    });
}

/// The head looks at its ticket while the slot is released: it is granted at
/// the look, or woken after it; never neither.
#[test]
fn loom_grant_against_look() {
    loom::model(|| {
        let clock = ManualClock::starting_at(0);
        let limiter = limiter(&clock);
        assert!(call(&limiter, |l, out| l.try_enter(None, 1, true, out)).granted);
        clock.advance(SECOND);
        let (head, waker) = queue(&limiter);
        let releasing = {
            let limiter = limiter.clone();
            thread::spawn(move || assert!(call(&limiter, |l, out| l.release_slot(out))))
        };
        let seen = call(&limiter, |l, out| l.poll(None, head, out));
        releasing.join().unwrap();
        match seen {
            Progress::Granted => assert_eq!(waker.load(Ordering::Acquire), 0),
            Progress::Wait(NEVER) => {
                assert_eq!(waker.load(Ordering::Acquire), 1);
                assert_eq!(call(&limiter, |l, out| l.poll(None, head, out)), Progress::Granted);
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(limiter.stats().concurrent, 1);
    });
}

/// A newcomer never overtakes the waiter, and one of the two gets the permit.
#[test]
fn loom_newcomer_against_waiter() {
    loom::model(|| {
        let clock = ManualClock::starting_at(0);
        let limiter = limiter(&clock);
        assert!(call(&limiter, |l, out| l.try_acquire(None, 1, out)).granted);
        let (head, _waker) = queue(&limiter);
        assert_eq!(call(&limiter, |l, out| l.poll(None, head, out)), Progress::Wait(SECOND));
        let coming = {
            let (limiter, clock) = (limiter.clone(), clock.clone());
            thread::spawn(move || {
                clock.advance(SECOND);
                call(&limiter, |l, out| l.try_acquire(None, 1, out)).granted
            })
        };
        let cancelled = call(&limiter, |l, out| l.cancel(None, head, out));
        let overtook = coming.join().unwrap();
        assert!(cancelled);
        let last = call(&limiter, |l, out| l.try_acquire(None, 1, out)).granted;
        assert!(overtook != last, "the permit went to nobody, or twice");
        assert_eq!(limiter.stats().windows[0].1, 1);
    });
}
