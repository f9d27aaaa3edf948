//! Every interleaving of a settlement, a cancel and a look: nothing that came back is lost,
//! no waiter is left asleep.

use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread;

use super::*;
use crate::core::clock::ManualClock;

type Woken = Arc<AtomicUsize>;
type Tested = LlmLimiter<u32, Woken>;

fn limiter() -> Arc<Tested> {
    let limits = [None, None, Some(10), None, None];
    let settings = Settings { limits, max_models: 1, ..Settings::default() };
    let clock = Clock::Manual(ManualClock::starting_at(0));
    Arc::new(Tested::new(settings, clock).unwrap())
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
    let ask = Ask::tokens(0, 10);
    let ticket = call(limiter, |l, out| l.enqueue(&ask, NEVER, waker.clone(), out)).unwrap();
    (ticket, waker)
}

fn releasing(limiter: &Arc<Tested>, grant: Grant<u32>) -> thread::JoinHandle<()> {
    let limiter = limiter.clone();
    thread::spawn(move || call(&limiter, |l, out| l.release(grant, false, out)))
}

/// The head is cancelled while what it waits for comes back: the next one is woken and served.
#[test]
fn loom_release_against_cancel() {
    loom::model(|| {
        let limiter = limiter();
        let first = call(&limiter, |l, out| l.try_reserve(&Ask::tokens(0, 10), out)).unwrap();
        let (head, head_waker) = queue(&limiter);
        let (next, next_waker) = queue(&limiter);
        for ticket in [head, next] {
            let looked = call(&limiter, |l, out| l.poll(None, ticket, out));
            assert!(matches!(looked, Looked::Wait { .. }));
        }
        let releasing = releasing(&limiter, first);
        assert!(call(&limiter, |l, out| l.cancel(None, head, out)));
        releasing.join().unwrap();
        assert!(head_waker.load(Ordering::Acquire) <= 1);
        assert!(next_waker.load(Ordering::Acquire) >= 1, "a lost wake");
        let looked = call(&limiter, |l, out| l.poll(None, next, out));
        assert!(matches!(looked, Looked::Granted(_)));
        let stats = limiter.stats();
        assert_eq!((stats.open, stats.waiting, stats.dimensions[0].used), (1, 0, 10));
    });
}

/// The head looks while what it waits for comes back: granted at the look, or woken after it.
#[test]
fn loom_release_against_look() {
    loom::model(|| {
        let limiter = limiter();
        let first = call(&limiter, |l, out| l.try_reserve(&Ask::tokens(0, 10), out)).unwrap();
        let (head, waker) = queue(&limiter);
        let releasing = releasing(&limiter, first);
        let seen = call(&limiter, |l, out| l.poll(None, head, out));
        releasing.join().unwrap();
        match seen {
            Looked::Granted(_) => assert_eq!(waker.load(Ordering::Acquire), 0),
            Looked::Wait { .. } => {
                assert_eq!(waker.load(Ordering::Acquire), 1);
                let looked = call(&limiter, |l, out| l.poll(None, head, out));
                assert!(matches!(looked, Looked::Granted(_)));
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(limiter.stats().open, 1);
    });
}
