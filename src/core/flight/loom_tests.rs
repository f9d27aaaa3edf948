//! Joins, landings and departures in every order.

use super::*;
use loom::sync::atomic::{AtomicUsize, Ordering as LoomOrdering};
use loom::thread;

/// Each waiter is woken exactly once or sees the landing when it enrols.
#[test]
fn loom_no_wakeup_is_lost_or_doubled() {
    loom::model(|| {
        let flights: Arc<Flights<i32, usize>> = Arc::new(Flights::default());
        let key = Key::new(b"k");
        let woken = Arc::new(AtomicUsize::new(0));
        let (flight, leads) = flights.join(&key, Purpose::Answer);
        assert!(leads);
        let followers: Vec<_> = (0..2)
            .map(|me| {
                let flight = Arc::clone(&flight);
                let woken = Arc::clone(&woken);
                thread::spawn(move || match flight.enroll(me) {
                    Ok(_) => 1,
                    Err((_, landing)) => {
                        assert!(matches!(landing, Landing::Done(_)));
                        woken.fetch_add(1, LoomOrdering::SeqCst);
                        0
                    }
                })
            })
            .collect();
        let wakers = flights.land(&key, &flight, Landing::Done(Arc::new(7)));
        woken.fetch_add(wakers.len(), LoomOrdering::SeqCst);
        for follower in followers {
            follower.join().unwrap();
        }
        assert_eq!(woken.load(LoomOrdering::SeqCst), 2);
    });
}

/// However joins and landings interleave, every load has one leader.
#[test]
fn loom_one_leader_at_a_time() {
    loom::model(|| {
        let flights: Arc<Flights<i32, ()>> = Arc::new(Flights::default());
        let leading = Arc::new(AtomicUsize::new(0));
        let threads: Vec<_> = (0..2)
            .map(|_| {
                let flights = Arc::clone(&flights);
                let leading = Arc::clone(&leading);
                thread::spawn(move || {
                    let key = Key::new(b"k");
                    let (flight, leads) = flights.join(&key, Purpose::Answer);
                    if leads {
                        assert_eq!(leading.fetch_add(1, LoomOrdering::SeqCst), 0);
                        leading.fetch_sub(1, LoomOrdering::SeqCst);
                        drop(flights.land(&key, &flight, Landing::Abandoned));
                    }
                })
            })
            .collect();
        for one in threads {
            one.join().unwrap();
        }
        assert!(flights.is_empty());
    });
}

/// A cancelled waiter is either handed back by `leave` or woken, never both and never neither.
#[test]
fn loom_leaving_races_with_landing() {
    loom::model(|| {
        let flights: Arc<Flights<i32, ()>> = Arc::new(Flights::default());
        let key = Key::new(b"k");
        let (flight, _) = flights.join(&key, Purpose::Answer);
        let id = flight.enroll(()).unwrap();
        let leaver = {
            let flight = Arc::clone(&flight);
            thread::spawn(move || usize::from(flight.leave(id).0.is_some()))
        };
        let woken = flights.land(&key, &flight, Landing::Abandoned).len();
        assert_eq!(woken + leaver.join().unwrap(), 1);
    });
}
