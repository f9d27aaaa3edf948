//! The core alone: what each hot path costs without Python, one thread, locks
//! included as the bindings take them.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ferrogate::core::cache::{Bounds, Graveyard, Insert, Policy, Table};
use ferrogate::core::clock::{Clock, ManualClock, SECOND};
use ferrogate::core::key::Key;
use ferrogate::core::key::encode::{Encoder, tag};
use ferrogate::core::limiter::llm::{self, Ask, LlmLimiter, NANO_USD, Usage};
use ferrogate::core::limiter::{Algorithm, Limiter, Outbox, Settings};
use ferrogate::core::sync::Mutex;

const ENTRIES: usize = 1_000;

fn key(number: usize) -> Key {
    let mut encoder = Encoder::new(false);
    encoder.str(&format!("tenant-7:document:{number:05}"));
    Key::new(encoder.as_bytes())
}

fn filled(keys: &[Key], policy: Policy) -> Mutex<Table<u64>> {
    let bounds =
        Bounds { max_size: ENTRIES, max_weight: None, ttl: Some(3_600 * SECOND), tti: None };
    let mut table = Table::new(bounds, policy);
    let mut grave = Graveyard::new();
    for (value, key) in (0..).zip(keys) {
        let _ = table.insert(key, value, Insert::default(), 0, &mut grave);
    }
    Mutex::new(table)
}

fn cache(c: &mut Criterion) {
    policy(c, "cache, TTL on", Policy::Lru);
    policy(c, "cache, adaptive, TTL on", Policy::Adaptive);
}

fn policy(c: &mut Criterion, name: &str, policy: Policy) {
    let clock = Clock::default();
    let keys: Vec<Key> = (0..4 * ENTRIES).map(key).collect();
    let mut group = c.benchmark_group(name);

    let hits = filled(&keys[..100], policy);
    let mut turn = keys[..100].iter().cycle();
    group.bench_function("hit", |b| {
        b.iter(|| {
            let key = turn.next()?;
            let mut grave = Graveyard::new();
            let value = hits.lock().get(key, &clock, &mut grave).copied();
            drop(black_box(grave));
            value
        });
    });

    let mut turn = keys[..100].iter().cycle();
    group.bench_function("set, the key is there", |b| {
        b.iter(|| {
            let Some(key) = turn.next() else { return };
            let mut grave = Graveyard::new();
            let now = clock.now();
            let _ = hits.lock().insert(key, 1, Insert::default(), now, &mut grave);
            drop(black_box(grave));
        });
    });

    // Four times more keys than fit, in turn: every insert is new and evicts one.
    let full = filled(&keys, policy);
    let mut turn = keys.iter().cycle();
    group.bench_function("insert and evict", |b| {
        b.iter(|| {
            let Some(key) = turn.next() else { return };
            let mut grave = Graveyard::new();
            let now = clock.now();
            let _ = full.lock().insert(key, 1, Insert::default(), now, &mut grave);
            drop(black_box(grave));
        });
    });
    group.finish();
}

/// A chat request of about 10 KB, walked as the bindings walk a dict.
fn encode_request(encoder: &mut Encoder, texts: &[String]) {
    encoder.tag(tag::DICT);
    encoder.len(4);
    let mark = encoder.mark();
    for (name, write) in [("model", 0), ("messages", 1), ("temperature", 2), ("max_tokens", 3)] {
        encoder.part();
        encoder.str(name);
        match write {
            0 => encoder.str("gpt-5-mini"),
            1 => {
                encoder.tag(tag::LIST);
                encoder.len(texts.len());
                for text in texts {
                    encoder.tag(tag::DICT);
                    encoder.len(2);
                    let mark = encoder.mark();
                    encoder.part();
                    encoder.str("role");
                    encoder.str("user");
                    encoder.part();
                    encoder.str("content");
                    encoder.str(text);
                    encoder.sort_parts(mark);
                }
            }
            2 => encoder.float(0.2),
            _ => encoder.int(800),
        }
    }
    encoder.sort_parts(mark);
}

fn keys(c: &mut Criterion) {
    let mut group = c.benchmark_group("key");
    let mut encoder = Encoder::new(false);
    group.bench_function("short text", |b| {
        b.iter(|| {
            encoder.reset(false);
            encoder.str(black_box("tenant-7:document:00042"));
            Key::new(encoder.as_bytes())
        });
    });

    let texts: Vec<String> =
        (0..20).map(|n| format!("{n}: ") + &"what a user says ".repeat(29)).collect();
    encode_request(&mut encoder, &texts);
    encoder.reset(false);
    encode_request(&mut encoder, &texts);
    group.throughput(Throughput::Bytes(encoder.as_bytes().len() as u64));
    group.bench_function("chat request of 10 KB", |b| {
        b.iter(|| {
            encoder.reset(false);
            encode_request(&mut encoder, black_box(&texts));
            Key::new(encoder.as_bytes())
        });
    });
    group.finish();
}

/// One call of a limiter with 60 a minute and 1000 an hour.
fn limiter(c: &mut Criterion) {
    let settings = || Settings {
        limits: ["60/minute", "1000/hour"].iter().filter_map(|text| text.parse().ok()).collect(),
        burst: Some(10),
        adaptive: None,
        algorithm: Algorithm::SlidingWindow,
        max_keys: 1_000,
        max_waiters: 1_000,
        enabled: true,
        sharing: None,
    };
    let mut group = c.benchmark_group("try_acquire, two sliding windows");

    // Four seconds pass between two calls: all are granted, each enters the log and one leaves it.
    let time = ManualClock::default();
    let rolling = Limiter::<u64, ()>::new(settings(), Clock::Manual(time.clone()));
    if let Ok(limiter) = rolling {
        group.bench_function("granted", |b| {
            b.iter(|| {
                time.advance(4 * SECOND);
                let mut out = Outbox::new();
                limiter.try_acquire(None, 1, &mut out).granted
            });
        });
    }

    if let Ok(limiter) = Limiter::<u64, ()>::new(settings(), Clock::default()) {
        group.bench_function("denied", |b| {
            b.iter(|| {
                let mut out = Outbox::new();
                limiter.try_acquire(None, 1, &mut out).granted
            });
        });
    }
    group.finish();
}

/// A call's way through a limiter of four dimensions that holds a minute of 600 calls.
fn llm_limiter(c: &mut Criterion) {
    let mut group = c.benchmark_group("LLM limiter, four dimensions");
    for (name, fairness) in [
        ("reserve and settle", llm::Fairness::Fifo),
        ("reserve and settle, weighted", llm::Fairness::Weighted),
    ] {
        let time = ManualClock::default();
        let settings = llm::Settings {
            limits: [Some(1_000), Some(1_000_000), Some(1_000_000), None, Some(10 * NANO_USD)],
            concurrency: Some(10),
            fairness,
            ..llm::Settings::default()
        };
        let limiter = LlmLimiter::<u64, ()>::new(settings, Clock::Manual(time.clone()));
        let Ok(limiter) = limiter else { continue };
        let ask = Ask { model: Some(1), tenant: Some(2), ..Ask::tokens(400, 300) };
        let usage = Usage { input: Some(400), output: Some(100), usd: Some(NANO_USD / 1_000) };
        group.bench_function(name, |b| {
            b.iter(|| {
                time.advance(SECOND / 10);
                let mut out = Outbox::new();
                limiter
                    .try_reserve(&ask, &mut out)
                    .map(|grant| limiter.settle(grant, &usage, &mut out))
                    .is_ok()
            });
        });
    }
    group.finish();
}

criterion_group!(benches, cache, keys, limiter, llm_limiter);
criterion_main!(benches);
