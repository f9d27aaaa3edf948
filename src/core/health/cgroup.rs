//! What the container may use and does use, from cgroup v1, v2 or both.
//!
//! sysinfo knows the memory limit only. A hybrid machine (v1 controllers and
//! an empty v2 tree for systemd) is common: each controller is looked up on its
//! own, v1 first, because a controller that v1 holds is absent from v2.
//!
//! A limit may stand on any ancestor. The level that counts is the one with
//! the least room: the highest share of memory used, the smallest CPU quota.

use std::path::{Path, PathBuf};

use super::files;
use super::pressure::PressureSet;

/// v1 says "no limit" with the largest page-aligned i64; nothing near it is real.
const UNLIMITED: u64 = 1 << 62;

/// Levels walked from our group to the top; systemd and Kubernetes nest about eight.
const MAX_DEPTH: usize = 64;

/// How often the group was held back from running.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Throttling {
    /// Enforcement periods in which the group ran.
    pub periods: u64,
    /// Of those, the ones in which it used up its quota.
    pub throttled: u64,
    /// Time it was held back, in nanoseconds.
    pub nanos: u64,
}

/// What the kernel counted at the memory limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryEvents {
    /// Times the group hit its hard limit (v1: `failcnt`).
    pub at_limit: u64,
    /// Times an allocation was about to fail (v2 only).
    pub oom: Option<u64>,
    /// Processes killed for want of memory.
    pub oom_kills: u64,
}

/// One reading of our control group.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cgroup {
    /// 1 or 2: the version that holds the memory controller.
    pub version: u8,
    /// The memory limit that counts, in bytes.
    pub memory_limit: Option<u64>,
    /// Memory charged at that level, page cache included, in bytes.
    pub memory_current: Option<u64>,
    /// The working set: charged memory without the inactive page cache, which
    /// the kernel gives back before it kills anybody. In bytes.
    pub memory_used: Option<u64>,
    /// CPU quota in cores.
    pub quota_cores: Option<f64>,
    /// CPU time used at the level of the quota, in nanoseconds.
    pub cpu_nanos: Option<u64>,
    /// Throttling at the level of the quota.
    pub throttling: Option<Throttling>,
    /// Events at our own memory limit.
    pub memory_events: Option<MemoryEvents>,
    /// Pressure inside our group (v2 only).
    pub pressure: PressureSet,
}

impl Cgroup {
    /// Reads the group of this process below `root` (`/` outside of tests);
    /// `None` where there are no control groups.
    #[must_use]
    pub fn read(root: &Path) -> Option<Self> {
        let groups = Groups::find(root)?;
        let mut reading = Self::default();
        if let Some((version, levels)) = groups.chain("memory") {
            reading.version = version;
            reading.read_memory(version, &levels);
        }
        if let Some((version, levels)) = groups.chain("cpu") {
            reading.version = reading.version.max(version);
            reading.read_cpu(version, &levels, &groups);
        }
        if let Some(own) = groups.unified().and_then(|levels| levels.into_iter().next()) {
            reading.pressure = PressureSet::of_group(&own);
            reading.version = reading.version.max(if reading.version == 0 { 2 } else { 0 });
        }
        Some(reading)
    }

    fn read_memory(&mut self, version: u8, levels: &[PathBuf]) {
        let read = |level: &PathBuf| memory_at(version, level);
        let mut chosen = levels.first().map(read).unwrap_or_default();
        for level in levels.iter().map(read) {
            if level.share() > chosen.share() {
                chosen = level;
            }
        }
        self.memory_limit = chosen.limit;
        self.memory_current = chosen.current;
        self.memory_used = chosen.used;
        self.memory_events = levels.first().and_then(|own| events_at(version, own));
    }

    fn read_cpu(&mut self, version: u8, levels: &[PathBuf], groups: &Groups) {
        let mut tightest: Option<(usize, f64)> = None;
        for (depth, level) in levels.iter().enumerate() {
            if let Some(cores) = quota_at(version, level)
                && tightest.is_none_or(|(_, least)| cores < least)
            {
                tightest = Some((depth, cores));
            }
        }
        self.quota_cores = tightest.map(|(_, cores)| cores);
        let depth = tightest.map_or(0, |(depth, _)| depth);
        let Some(level) = levels.get(depth) else { return };
        let stat = files::text(&level.join("cpu.stat")).unwrap_or_default();
        let time = |micros: &str, nanos: &str| {
            files::keyed(&stat, micros)
                .map(|t| t.saturating_mul(1_000))
                .or_else(|| files::keyed(&stat, nanos))
        };
        self.throttling = files::keyed(&stat, "nr_periods").map(|periods| Throttling {
            periods,
            throttled: files::keyed(&stat, "nr_throttled").unwrap_or(0),
            nanos: time("throttled_usec", "throttled_time").unwrap_or(0),
        });
        self.cpu_nanos = if version == 2 {
            time("usage_usec", "")
        } else {
            // v1 keeps the time in a controller of its own; the quota's level
            // is there only if both hierarchies are cut alike.
            let accounts = groups.chain("cpuacct").map(|(_, chain)| chain).unwrap_or_default();
            let own = if accounts.len() == levels.len() { accounts.get(depth) } else { None };
            own.and_then(|level| files::number(&level.join("cpuacct.usage")))
        };
    }
}

#[derive(Clone, Copy, Default)]
struct Memory {
    limit: Option<u64>,
    current: Option<u64>,
    used: Option<u64>,
}

impl Memory {
    /// Share of the limit in use; below every real one where there is no limit.
    fn share(&self) -> f64 {
        match (self.limit, self.used) {
            (Some(limit), Some(used)) => used as f64 / limit.max(1) as f64,
            (Some(_), None) => -0.5,
            (None, _) => -1.0,
        }
    }
}

fn memory_at(version: u8, level: &Path) -> Memory {
    let (limit, current, inactive) = if version == 2 {
        ("memory.max", "memory.current", "inactive_file")
    } else {
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    };
    let current = files::number(&level.join(current));
    let cold = files::text(&level.join("memory.stat")).and_then(|s| files::keyed(&s, inactive));
    Memory {
        // v2 writes "max", which is not a number: no limit.
        limit: files::number(&level.join(limit)).filter(|bytes| *bytes < UNLIMITED),
        current,
        used: current.map(|bytes| bytes.saturating_sub(cold.unwrap_or(0))),
    }
}

fn events_at(version: u8, level: &Path) -> Option<MemoryEvents> {
    if version == 2 {
        let text = files::text(&level.join("memory.events"))?;
        return Some(MemoryEvents {
            at_limit: files::keyed(&text, "max").unwrap_or(0),
            oom: files::keyed(&text, "oom"),
            oom_kills: files::keyed(&text, "oom_kill")?,
        });
    }
    let text = files::text(&level.join("memory.oom_control"))?;
    Some(MemoryEvents {
        at_limit: files::number(&level.join("memory.failcnt")).unwrap_or(0),
        oom: None,
        // Kernels before 4.13 do not count the kills of v1.
        oom_kills: files::keyed(&text, "oom_kill")?,
    })
}

/// Cores that `cpu.max` (v2) or `cpu.cfs_quota_us` (v1) grants; `None` without a quota.
fn quota_at(version: u8, level: &Path) -> Option<f64> {
    let (quota, period) = if version == 2 {
        let text = files::text(&level.join("cpu.max"))?;
        let mut fields = text.split_whitespace();
        // "max 100000" has no quota; the period may be left out.
        (
            fields.next()?.parse::<i64>().ok()?,
            fields.next().map_or(Some(100_000), |p| p.parse().ok())?,
        )
    } else {
        let text = files::text(&level.join("cpu.cfs_quota_us"))?;
        (text.trim().parse::<i64>().ok()?, files::number(&level.join("cpu.cfs_period_us"))?)
    };
    (quota > 0 && period > 0).then(|| quota as f64 / period as f64)
}

/// Where the hierarchies are mounted and which group of each is ours.
struct Groups {
    root: PathBuf,
    memberships: Vec<Membership>,
    mounts: Vec<Mount>,
}

/// A line of `/proc/self/cgroup`; no controllers means v2.
struct Membership {
    controllers: Vec<String>,
    path: String,
}

/// A cgroup mount of `/proc/self/mountinfo`.
struct Mount {
    version: u8,
    /// The directory of the hierarchy that is mounted; not `/` inside a
    /// container that shares its host's cgroup namespace.
    top: String,
    point: String,
    options: Vec<String>,
}

impl Groups {
    fn find(root: &Path) -> Option<Self> {
        let memberships = memberships(&files::text(&root.join("proc/self/cgroup"))?);
        let mounts = files::text(&root.join("proc/self/mountinfo"))
            .map(|text| text.lines().filter_map(mount).collect())
            .unwrap_or_default();
        Some(Self { root: root.to_path_buf(), memberships, mounts })
    }

    /// The directories from our group of `controller` up to its mount, and
    /// the version that holds it.
    fn chain(&self, controller: &str) -> Option<(u8, Vec<PathBuf>)> {
        let held = |m: &&Membership| m.controllers.iter().any(|c| c == controller);
        let Some(membership) = self.memberships.iter().find(held) else {
            return self.unified().map(|levels| (2, levels));
        };
        let mounted = |m: &&Mount| m.version == 1 && m.options.iter().any(|o| o == controller);
        let levels = self
            .mounts
            .iter()
            .filter(mounted)
            .find_map(|mount| self.levels(&mount.point, &mount.top, &membership.path))
            .or_else(|| {
                self.levels(&format!("/sys/fs/cgroup/{controller}"), "/", &membership.path)
            })?;
        Some((1, levels))
    }

    /// The same for the v2 tree.
    fn unified(&self) -> Option<Vec<PathBuf>> {
        let membership = self.memberships.iter().find(|m| m.controllers.is_empty())?;
        self.mounts
            .iter()
            .filter(|m| m.version == 2)
            .find_map(|mount| self.levels(&mount.point, &mount.top, &membership.path))
            .or_else(|| self.levels("/sys/fs/cgroup", "/", &membership.path))
    }

    fn levels(&self, point: &str, top: &str, path: &str) -> Option<Vec<PathBuf>> {
        let base = files::below(&self.root, point);
        if !base.is_dir() {
            return None;
        }
        // A path outside of what is mounted, or above our namespace ("/../x"),
        // cannot be reached: the mount itself is then the closest that we see.
        let inside = path.strip_prefix(top.trim_end_matches('/')).unwrap_or("");
        let mut levels = vec![base.clone()];
        let mut level = base;
        for part in inside.split('/').filter(|part| !part.is_empty()).take(MAX_DEPTH) {
            level = level.join(part);
            if part == ".." || !level.is_dir() {
                levels.truncate(1);
                break;
            }
            levels.push(level.clone());
        }
        levels.reverse();
        Some(levels)
    }
}

fn memberships(text: &str) -> Vec<Membership> {
    let line = |line: &str| {
        let mut fields = line.splitn(3, ':');
        let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        // "name=systemd" is a named v1 hierarchy without a controller: never ours.
        let controllers = controllers.split(',').filter(|c| !c.is_empty()).map(String::from);
        Some(Membership { controllers: controllers.collect(), path: path.to_string() })
    };
    text.lines().filter_map(line).collect()
}

fn mount(line: &str) -> Option<Mount> {
    let (left, right) = line.split_once(" - ")?;
    let mut right = right.split(' ');
    let version = match right.next()? {
        "cgroup" => 1,
        "cgroup2" => 2,
        _ => return None,
    };
    let options = right.nth(1).unwrap_or("").split(',').map(String::from).collect();
    let mut left = left.split(' ').skip(3);
    Some(Mount { version, top: unescape(left.next()?), point: unescape(left.next()?), options })
}

/// mountinfo writes blanks, tabs, line ends and backslashes as `\040` and so on.
fn unescape(field: &str) -> String {
    let mut out = field.to_string();
    for (escape, plain) in [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")] {
        if out.contains(escape) {
            out = out.replace(escape, plain);
        }
    }
    out
}

#[cfg(test)]
mod tests;
