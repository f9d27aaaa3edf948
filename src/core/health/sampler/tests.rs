use std::path::Path;

use super::*;
use crate::core::clock::ManualClock;
use crate::core::health::files::tree::Tree;
use crate::core::health::host::Disk;
use crate::core::sync::{Arc, Mutex};

/// A machine whose figures the test sets.
#[derive(Clone, Default)]
struct Recorded(Arc<Mutex<Host>>);

impl HostSource for Recorded {
    fn read(&mut self, _disk: &Path) -> Host {
        *self.0.lock()
    }
}

fn machine() -> Host {
    Host {
        memory_total: Some(8_000),
        memory_available: Some(6_000),
        cpu_percent: Some(12.5),
        cores: Some(4),
        network: Some(Network { received: 1_000, sent: 500 }),
        disk: Some(Disk { total: 100, used: 91, available: 9 }),
        process: Some(Process { pid: 7, memory: 1, cpu_millis: 1_000 }),
        ..Host::default()
    }
}

fn sampler(tree: &Tree, host: Host) -> (Sampler, ManualClock, Recorded) {
    let (time, recorded) = (ManualClock::default(), Recorded::default());
    *recorded.0.lock() = host;
    let clock = Clock::Manual(time.clone());
    let source = Box::new(recorded.clone());
    (Sampler::new(clock, tree.path().into(), "/".into(), source), time, recorded)
}

fn container(tree: &Tree, memory: &str, usage: u64, periods: u64, throttled: u64) {
    tree.write("proc/self/cgroup", "0::/\n")
        .write("proc/self/mountinfo", "1 0 0:1 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n")
        .write("sys/fs/cgroup/memory.max", memory)
        .write("sys/fs/cgroup/memory.current", "900\n")
        .write("sys/fs/cgroup/memory.events", "max 0\noom 0\noom_kill 1\n")
        .write("sys/fs/cgroup/cpu.max", "200000 100000\n")
        .write(
            "sys/fs/cgroup/cpu.stat",
            &format!("usage_usec {usage}\nnr_periods {periods}\nnr_throttled {throttled}\n"),
        );
}

fn close(a: Option<f64>, b: f64) -> bool {
    a.is_some_and(|a| (a - b).abs() < 1e-9)
}

#[test]
fn a_machine_without_control_groups() {
    let tree = Tree::new();
    tree.write("proc/pressure/cpu", "some avg10=1 avg60=2 avg300=3 total=4\n");
    let (mut sampler, _, _) = sampler(&tree, machine());
    let s = sampler.sample();
    assert_eq!(s.container, None);
    let memory = s.memory.unwrap();
    assert_eq!((memory.origin, memory.percent), (Origin::Host, Some(25.0)));
    assert_eq!(s.cpu.unwrap().origin, Origin::Host);
    assert!(close(s.disk_percent, 91.0));
    assert!(s.host_pressure.cpu.is_some() && s.host_pressure.io.is_none());
    assert_eq!((s.interval_seconds, s.network_rates, s.process_cpu_percent), (None, None, None));
}

#[test]
fn the_container_is_judged_by_its_own_limits() {
    let tree = Tree::new();
    container(&tree, "1000\n", 1_000_000, 100, 10);
    let (mut sampler, time, host) = sampler(&tree, machine());
    let first = sampler.sample();
    assert_eq!(first.memory.unwrap().origin, Origin::Container);
    assert!(close(first.memory.unwrap().percent, 90.0));
    assert_eq!(first.host_memory_percent, Some(25.0), "both are given");
    assert_eq!(first.cpu.unwrap().percent, None, "a rate needs two samples");

    time.advance(10 * SECOND);
    // 15 CPU seconds in 10 of a quota of 2 cores.
    container(&tree, "1000\n", 16_000_000, 200, 35);
    tree.write("sys/fs/cgroup/memory.events", "max 0\noom 0\noom_kill 3\n");
    {
        let mut host = host.0.lock();
        host.network = Some(Network { received: 21_000, sent: 1_500 });
        host.process = Some(Process { pid: 7, memory: 1, cpu_millis: 6_000 });
    }
    let second = sampler.sample();
    assert_eq!(second.interval_seconds, Some(10.0));
    let cpu = second.cpu.unwrap();
    assert_eq!((cpu.origin, cpu.limit), (Origin::Container, 2.0));
    assert!(close(cpu.percent, 75.0));
    let c = second.container.unwrap();
    assert!(close(c.throttled_percent, 25.0));
    assert_eq!(c.new_oom_kills, Some(2));
    assert_eq!(second.network_rates, Some((2_000.0, 100.0)));
    assert!(close(second.process_cpu_percent, 50.0));
}

#[test]
fn a_limit_beyond_the_machine_is_none() {
    let tree = Tree::new();
    container(&tree, "9000\n", 1, 1, 0);
    let (mut sampler, _, _) = sampler(&tree, machine());
    let s = sampler.sample();
    assert_eq!(s.memory.unwrap().origin, Origin::Host);
    assert!(s.container.unwrap().memory_percent.is_some());
}

#[test]
fn counters_that_go_back_give_no_rate() {
    let tree = Tree::new();
    container(&tree, "1000\n", 5_000_000, 100, 10);
    let (mut sampler, time, host) = sampler(&tree, machine());
    sampler.sample();
    time.advance(SECOND);
    container(&tree, "1000\n", 1_000_000, 5, 0);
    {
        let mut host = host.0.lock();
        host.network = Some(Network::default());
        host.process = Some(Process { pid: 8, memory: 1, cpu_millis: 5_000 });
    }
    let s = sampler.sample();
    assert_eq!((s.network_rates, s.process_cpu_percent), (None, None));
    let c = s.container.unwrap();
    assert_eq!((c.cpu_percent, c.throttled_percent), (None, None));
}

#[test]
fn samples_in_quick_succession_are_one() {
    let tree = Tree::new();
    let (mut sampler, time, host) = sampler(&tree, machine());
    let first = sampler.sample();
    host.0.lock().memory_available = Some(1);
    time.advance(SECOND / 10);
    assert_eq!(sampler.sample(), first);
    time.advance(SECOND);
    assert_ne!(sampler.sample().memory, first.memory);
}

#[test]
fn nothing_readable_is_all_none() {
    let tree = Tree::new();
    let (mut sampler, time, _) = sampler(&tree, Host::default());
    for _ in 0..2 {
        let s = sampler.sample();
        assert_eq!((s.memory, s.cpu, s.container), (None, None, None));
        assert_eq!((s.disk_percent, s.network_rates), (None, None));
        time.advance(SECOND);
    }
}
