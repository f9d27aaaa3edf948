//! One sample of everything, and the rates since the one before.

use std::path::PathBuf;

use super::cgroup::Cgroup;
use super::host::{Host, HostSource, Network, Process};
use super::pressure::PressureSet;
use crate::core::clock::{Clock, Nanos, SECOND, secs_from_nanos};

/// Samples closer than this share one: CPU time is counted in ticks of up to
/// 10 ms, so a rate over less is noise (sysinfo refuses below 200 ms).
const MIN_INTERVAL: Nanos = SECOND / 4;

/// Whose figure an [`Effective`] one is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The container's limit is the smaller one.
    Container,
    /// There is no limit below what the machine has.
    Host,
}

impl Origin {
    /// `container` or `host`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Container => "container",
            Self::Host => "host",
        }
    }
}

/// Use against what this process can really have.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Effective {
    /// Whose limit it is.
    pub origin: Origin,
    /// The limit: bytes of memory, or cores.
    pub limit: f64,
    /// Share in use, 0..=100; `None` for CPU until there are two samples.
    pub percent: Option<f64>,
}

/// The container's figures that need two readings.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Container {
    /// What the files said.
    pub reading: Cgroup,
    /// Memory used of its limit, 0..=100.
    pub memory_percent: Option<f64>,
    /// CPU used of its quota since the sample before, 0..=100.
    pub cpu_percent: Option<f64>,
    /// Share of enforcement periods since the sample before in which the quota
    /// ran out, 0..=100.
    pub throttled_percent: Option<f64>,
    /// Processes killed for want of memory since the sample before.
    pub new_oom_kills: Option<u64>,
}

/// Everything known at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SystemSample {
    /// When, on the monotonic clock.
    pub at: Nanos,
    /// Seconds since the sample before, over which the rates are taken.
    pub interval_seconds: Option<f64>,
    /// The machine.
    pub host: Host,
    /// Memory used of the machine's, 0..=100.
    pub host_memory_percent: Option<f64>,
    /// Pressure on the machine.
    pub host_pressure: PressureSet,
    /// The container, where there are control groups.
    pub container: Option<Container>,
    /// Memory, judged where it is tighter.
    pub memory: Option<Effective>,
    /// CPU, judged where it is tighter.
    pub cpu: Option<Effective>,
    /// Disk used, 0..=100.
    pub disk_percent: Option<f64>,
    /// Bytes per second received and sent since the sample before.
    pub network_rates: Option<(f64, f64)>,
    /// CPU of this process since the sample before; 100 is one whole core.
    pub process_cpu_percent: Option<f64>,
}

/// Takes samples; remembers the last one.
pub struct Sampler {
    clock: Clock,
    root: PathBuf,
    disk: PathBuf,
    host: Box<dyn HostSource>,
    last: Option<SystemSample>,
}

impl Sampler {
    /// Reads control groups and pressure below `root` (`/` outside of tests)
    /// and the file system that holds `disk`.
    #[must_use]
    pub fn new(clock: Clock, root: PathBuf, disk: PathBuf, host: Box<dyn HostSource>) -> Self {
        Self { clock, root, disk, host, last: None }
    }

    /// The state of things, at most a quarter of a second old.
    pub fn sample(&mut self) -> SystemSample {
        let now = self.clock.now();
        if let Some(last) = &self.last
            && now.saturating_sub(last.at) < MIN_INTERVAL
        {
            return *last;
        }
        let host = self.host.read(&self.disk);
        let group = Cgroup::read(&self.root);
        let pressure = PressureSet::of_host(&self.root);
        let sample = build(now, host, group.as_ref(), pressure, self.last.as_ref());
        self.last = Some(sample);
        sample
    }
}

fn build(
    now: Nanos,
    host: Host,
    group: Option<&Cgroup>,
    host_pressure: PressureSet,
    last: Option<&SystemSample>,
) -> SystemSample {
    let seconds = last.map(|l| secs_from_nanos(now.saturating_sub(l.at)));
    let container = group.map(|reading| {
        let before = last.and_then(|l| l.container.as_ref()).map(|c| &c.reading);
        contain(reading, before, seconds)
    });
    SystemSample {
        at: now,
        interval_seconds: seconds,
        host,
        host_memory_percent: host_memory_percent(&host),
        host_pressure,
        container,
        memory: memory(&host, container.as_ref()),
        cpu: cpu(&host, container.as_ref()),
        disk_percent: host.disk.and_then(|disk| disk.percent()),
        network_rates: rates(host.network, last.and_then(|l| l.host.network), seconds),
        process_cpu_percent: process_cpu(host.process, last.and_then(|l| l.host.process), seconds),
    }
}

/// What a counter grew by; `None` when it was reset or moved to another group.
fn grown(now: Option<u64>, before: Option<u64>) -> Option<u64> {
    now?.checked_sub(before?)
}

/// `grown` per second.
fn per_second(grown: u64, seconds: Option<f64>) -> Option<f64> {
    seconds.filter(|s| *s > 0.0).map(|s| grown as f64 / s)
}

fn share(part: f64, whole: f64) -> Option<f64> {
    (whole > 0.0).then(|| (part * 100.0 / whole).clamp(0.0, 100.0))
}

fn contain(reading: &Cgroup, before: Option<&Cgroup>, seconds: Option<f64>) -> Container {
    let busy = grown(reading.cpu_nanos, before.and_then(|b| b.cpu_nanos))
        .and_then(|nanos| per_second(nanos, seconds))
        .map(|nanos| nanos / SECOND as f64);
    let throttling = |pick: fn(&super::Throttling) -> u64| {
        grown(
            reading.throttling.as_ref().map(pick),
            before.and_then(|b| b.throttling).as_ref().map(pick),
        )
    };
    let kills = |group: &Cgroup| group.memory_events.map(|events| events.oom_kills);
    Container {
        reading: *reading,
        memory_percent: reading
            .memory_used
            .zip(reading.memory_limit)
            .and_then(|(used, limit)| share(used as f64, limit as f64)),
        cpu_percent: busy.zip(reading.quota_cores).and_then(|(cores, quota)| share(cores, quota)),
        throttled_percent: throttling(|t| t.periods).zip(throttling(|t| t.throttled)).and_then(
            |(periods, throttled)| {
                if periods == 0 { Some(0.0) } else { share(throttled as f64, periods as f64) }
            },
        ),
        new_oom_kills: grown(kills(reading), before.and_then(kills)),
    }
}

fn host_memory_percent(host: &Host) -> Option<f64> {
    let (total, available) = host.memory_total.zip(host.memory_available)?;
    share(total.saturating_sub(available) as f64, total as f64)
}

fn memory(host: &Host, container: Option<&Container>) -> Option<Effective> {
    let limit = container.and_then(|c| c.reading.memory_limit);
    match (limit, host.memory_total) {
        (Some(limit), total) if total.is_none_or(|total| limit < total) => Some(Effective {
            origin: Origin::Container,
            limit: limit as f64,
            percent: container.and_then(|c| c.memory_percent),
        }),
        (_, Some(total)) => Some(Effective {
            origin: Origin::Host,
            limit: total as f64,
            percent: host_memory_percent(host),
        }),
        (_, None) => None,
    }
}

fn cpu(host: &Host, container: Option<&Container>) -> Option<Effective> {
    let quota = container.and_then(|c| c.reading.quota_cores);
    match (quota, host.cores.map(|cores| cores as f64)) {
        (Some(quota), cores) if cores.is_none_or(|cores| quota < cores) => Some(Effective {
            origin: Origin::Container,
            limit: quota,
            percent: container.and_then(|c| c.cpu_percent),
        }),
        (_, Some(cores)) => {
            Some(Effective { origin: Origin::Host, limit: cores, percent: host.cpu_percent })
        }
        (_, None) => None,
    }
}

fn rates(
    now: Option<Network>,
    before: Option<Network>,
    seconds: Option<f64>,
) -> Option<(f64, f64)> {
    let (now, before) = (now?, before?);
    // An interface that went away takes its bytes with it: no rate this time.
    let received = grown(Some(now.received), Some(before.received))?;
    let sent = grown(Some(now.sent), Some(before.sent))?;
    Some((per_second(received, seconds)?, per_second(sent, seconds)?))
}

fn process_cpu(now: Option<Process>, before: Option<Process>, seconds: Option<f64>) -> Option<f64> {
    // A fork inherits the sample but not the CPU time.
    let (now, before) = (now?, before.filter(|b| Some(b.pid) == now.map(|n| n.pid))?);
    let millis = grown(Some(now.cpu_millis), Some(before.cpu_millis))?;
    per_second(millis, seconds).map(|rate| rate / 10.0)
}

#[cfg(test)]
mod tests;
