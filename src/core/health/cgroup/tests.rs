use super::*;
use crate::core::health::files::tree::Tree;
use proptest::prelude::*;

const GIB: u64 = 1 << 30;

/// Docker on a v2 host with a cgroup namespace: we see ourselves at the top.
fn docker_v2() -> Tree {
    let tree = Tree::new();
    tree.write("proc/self/cgroup", "0::/\n")
        .write(
            "proc/self/mountinfo",
            "643 642 0:27 / /sys/fs/cgroup ro,nosuid - cgroup2 cgroup rw,nsdelegate\n",
        )
        .write("sys/fs/cgroup/memory.max", "1073741824\n")
        .write("sys/fs/cgroup/memory.current", "805306368\n")
        .write("sys/fs/cgroup/memory.stat", "anon 5\nfile 9\ninactive_file 268435456\n")
        .write("sys/fs/cgroup/memory.events", "low 0\nhigh 0\nmax 7\noom 3\noom_kill 2\n")
        .write("sys/fs/cgroup/cpu.max", "150000 100000\n")
        .write(
            "sys/fs/cgroup/cpu.stat",
            "usage_usec 2500000\nuser_usec 1\nnr_periods 40\nnr_throttled 10\nthrottled_usec 77\n",
        )
        .write("sys/fs/cgroup/memory.pressure", "some avg10=2.5 avg60=0 avg300=0 total=9\n");
    tree
}

#[test]
fn a_v2_container() {
    let tree = docker_v2();
    let c = Cgroup::read(tree.path()).unwrap();
    assert_eq!(c.version, 2);
    assert_eq!(c.memory_limit, Some(GIB));
    assert_eq!(c.memory_current, Some(805_306_368));
    assert_eq!(c.memory_used, Some(GIB / 2), "without the inactive page cache");
    assert_eq!(c.quota_cores, Some(1.5));
    assert_eq!(c.cpu_nanos, Some(2_500_000_000));
    assert_eq!(c.throttling, Some(Throttling { periods: 40, throttled: 10, nanos: 77_000 }));
    assert_eq!(c.memory_events, Some(MemoryEvents { at_limit: 7, oom: Some(3), oom_kills: 2 }));
    assert!((c.pressure.memory.unwrap().some.unwrap().avg10 - 2.5).abs() < 1e-12);
    assert_eq!(c.pressure.cpu, None);
}

/// Kubernetes on v1 without a cgroup namespace: the mount shows a subtree.
#[test]
fn a_v1_pod_in_its_hosts_namespace() {
    let tree = Tree::new();
    tree.write(
        "proc/self/cgroup",
        "11:cpu,cpuacct:/kubepods/pod1/abc\n4:memory:/kubepods/pod1/abc\n1:name=systemd:/x\n",
    )
    .write(
        "proc/self/mountinfo",
        "32 31 0:29 /kubepods/pod1/abc /sys/fs/cgroup/cpu,cpuacct ro - cgroup cgroup rw,cpu,cpuacct\n\
         35 31 0:32 /kubepods/pod1/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n",
    )
    .write("sys/fs/cgroup/memory/memory.limit_in_bytes", "536870912\n")
    .write("sys/fs/cgroup/memory/memory.usage_in_bytes", "500\n")
    .write("sys/fs/cgroup/memory/memory.stat", "inactive_file 1\ntotal_inactive_file 100\n")
    .write("sys/fs/cgroup/memory/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 4\n")
    .write("sys/fs/cgroup/memory/memory.failcnt", "9\n")
    .write("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "50000\n")
    .write("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n")
    .write("sys/fs/cgroup/cpu,cpuacct/cpuacct.usage", "123456789\n")
    .write(
        "sys/fs/cgroup/cpu,cpuacct/cpu.stat",
        "nr_periods 5\nnr_throttled 1\nthrottled_time 42\n",
    );
    let c = Cgroup::read(tree.path()).unwrap();
    assert_eq!(c.version, 1);
    assert_eq!((c.memory_limit, c.memory_used), (Some(536_870_912), Some(400)));
    assert_eq!(c.quota_cores, Some(0.5));
    assert_eq!(c.cpu_nanos, Some(123_456_789));
    assert_eq!(c.throttling, Some(Throttling { periods: 5, throttled: 1, nanos: 42 }));
    assert_eq!(c.memory_events, Some(MemoryEvents { at_limit: 9, oom: None, oom_kills: 4 }));
}

/// As recorded on a development machine: v1 controllers, a v2 tree beside
/// them for pressure only, no limits anywhere.
#[test]
fn a_hybrid_machine_without_limits() {
    let tree = Tree::new();
    tree.write("proc/self/cgroup", "4:memory:/api/19c7\n2:cpuacct:/\n1:cpu:/\n0::/\n")
        .write(
            "proc/self/mountinfo",
            "32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n\
             33 31 0:30 / /sys/fs/cgroup/cpuacct rw,relatime - cgroup cgroup rw,cpuacct\n\
             35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
             41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n",
        )
        .write("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n")
        .write("sys/fs/cgroup/memory/api/19c7/memory.limit_in_bytes", "9223372036854771712\n")
        .write("sys/fs/cgroup/memory/api/19c7/memory.usage_in_bytes", "4096\n")
        .write("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n")
        .write("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n")
        .write("sys/fs/cgroup/cpuacct/cpuacct.usage", "77\n")
        .write("sys/fs/cgroup/unified/cpu.pressure", "some avg10=0.5 avg60=0 avg300=0 total=1\n");
    let c = Cgroup::read(tree.path()).unwrap();
    assert_eq!(c.version, 1);
    assert_eq!((c.memory_limit, c.memory_used), (None, Some(4096)));
    assert_eq!((c.quota_cores, c.cpu_nanos), (None, Some(77)));
    assert!(c.pressure.cpu.is_some());
}

/// systemd: the limit stands on the slice above us.
#[test]
fn the_limit_of_an_ancestor_counts() {
    let tree = Tree::new();
    tree.write("proc/self/cgroup", "0::/app.slice/agent.service\n")
        .write("proc/self/mountinfo", "1 0 0:1 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n")
        .write("sys/fs/cgroup/cgroup.procs", "")
        .write("sys/fs/cgroup/app.slice/memory.max", "1000\n")
        .write("sys/fs/cgroup/app.slice/memory.current", "900\n")
        .write("sys/fs/cgroup/app.slice/cpu.max", "100000 100000\n")
        .write("sys/fs/cgroup/app.slice/cpu.stat", "usage_usec 5\nnr_periods 3\nnr_throttled 2\n")
        .write("sys/fs/cgroup/app.slice/agent.service/memory.max", "800\n")
        .write("sys/fs/cgroup/app.slice/agent.service/memory.current", "100\n")
        .write("sys/fs/cgroup/app.slice/agent.service/cpu.max", "max 100000\n")
        .write("sys/fs/cgroup/app.slice/agent.service/cpu.stat", "usage_usec 1\n");
    let c = Cgroup::read(tree.path()).unwrap();
    // 900 of 1000 will kill us before 100 of 800 does.
    assert_eq!((c.memory_limit, c.memory_used), (Some(1000), Some(900)));
    assert_eq!((c.quota_cores, c.cpu_nanos), (Some(1.0), Some(5_000)));
    assert_eq!(c.throttling.unwrap().throttled, 2);
}

#[test]
fn no_control_groups_is_none_and_unreadable_files_are_none() {
    let tree = Tree::new();
    assert_eq!(Cgroup::read(tree.path()), None);
    tree.write("proc/self/cgroup", "0::/gone\n").write("sys/fs/cgroup/memory.max", "max\n");
    let c = Cgroup::read(tree.path()).unwrap();
    assert_eq!(c.memory_limit, None);
    assert_eq!(c.memory_used, None);
    assert_eq!(c.cpu_nanos, None);
}

#[test]
fn a_group_above_our_namespace_falls_back_to_the_mount() {
    let tree = docker_v2();
    tree.write("proc/self/cgroup", "0::/../../other\n");
    assert_eq!(Cgroup::read(tree.path()).unwrap().memory_limit, Some(GIB));
}

#[test]
fn mount_points_with_blanks() {
    assert_eq!(unescape("/a\\040b\\134c"), "/a b\\c");
}

proptest! {
    #[test]
    fn broken_files_do_not_panic(
        cgroup in ".{0,80}", mounts in ".{0,80}", max in ".{0,30}", stat in ".{0,80}",
    ) {
        let tree = docker_v2();
        tree.write("sys/fs/cgroup/cpu.max", &max)
            .write("sys/fs/cgroup/memory.max", &max)
            .write("sys/fs/cgroup/cpu.stat", &stat)
            .write("sys/fs/cgroup/memory.stat", &stat)
            .write("sys/fs/cgroup/memory.events", &stat);
        let _ = Cgroup::read(tree.path());
        tree.write("proc/self/cgroup", &cgroup).write("proc/self/mountinfo", &mounts);
        let _ = Cgroup::read(tree.path());
    }
}
