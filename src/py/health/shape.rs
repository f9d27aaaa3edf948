//! The dictionaries of `ferrogate.health`: one struct per `TypedDict` there.

use pyo3::prelude::*;

use crate::core::clock::SECOND;
use crate::core::health::{
    Alert, Container, Disk, Effective, Host, Pressure, PressureSet, Stall, SystemSample,
};

#[derive(Default, IntoPyObject)]
pub(super) struct AlertShape {
    name: String,
    severity: &'static str,
    message: String,
    value: f64,
    threshold: f64,
    raised_at: f64,
    resolved_at: Option<f64>,
    times_raised: u64,
}

impl From<Alert> for AlertShape {
    fn from(alert: Alert) -> Self {
        Self {
            name: alert.name,
            severity: alert.severity.as_str(),
            message: alert.message,
            value: alert.value,
            threshold: alert.threshold,
            raised_at: alert.raised_at,
            resolved_at: alert.resolved_at,
            times_raised: alert.times_raised,
        }
    }
}

#[derive(Default, IntoPyObject)]
pub(super) struct SampleShape {
    timestamp: f64,
    interval_seconds: Option<f64>,
    memory_percent: Option<f64>,
    cpu_percent: Option<f64>,
    disk_percent: Option<f64>,
    memory: Option<MemoryShape>,
    cpu: Option<CpuShape>,
    disk: Option<DiskShape>,
    network: Option<NetworkShape>,
    host: HostShape,
    container: Option<ContainerShape>,
    process: Option<ProcessShape>,
}

#[derive(Default, IntoPyObject)]
struct MemoryShape {
    source: &'static str,
    limit_bytes: u64,
    percent: Option<f64>,
}

#[derive(Default, IntoPyObject)]
struct CpuShape {
    source: &'static str,
    cores: f64,
    percent: Option<f64>,
}

#[derive(Default, IntoPyObject)]
struct DiskShape {
    path: String,
    total_bytes: u64,
    used_bytes: u64,
    available_bytes: u64,
    percent: Option<f64>,
}

#[derive(Default, IntoPyObject)]
struct NetworkShape {
    received_bytes: u64,
    sent_bytes: u64,
    received_bytes_per_second: Option<f64>,
    sent_bytes_per_second: Option<f64>,
}

#[derive(Default, IntoPyObject)]
struct HostShape {
    memory_total_bytes: Option<u64>,
    memory_available_bytes: Option<u64>,
    memory_percent: Option<f64>,
    swap_total_bytes: Option<u64>,
    swap_used_bytes: Option<u64>,
    cpu_percent: Option<f64>,
    cores: Option<u64>,
    load_1m: Option<f64>,
    pressure: PressureSetShape,
}

#[derive(Default, IntoPyObject)]
struct ContainerShape {
    cgroup_version: u8,
    memory_limit_bytes: Option<u64>,
    memory_current_bytes: Option<u64>,
    memory_used_bytes: Option<u64>,
    memory_percent: Option<f64>,
    memory_limit_hits: Option<u64>,
    oom_events: Option<u64>,
    oom_kills: Option<u64>,
    new_oom_kills: Option<u64>,
    cpu_quota_cores: Option<f64>,
    cpu_percent: Option<f64>,
    cpu_seconds: Option<f64>,
    periods: Option<u64>,
    throttled_periods: Option<u64>,
    throttled_seconds: Option<f64>,
    throttled_percent: Option<f64>,
    pressure: PressureSetShape,
}

#[derive(Default, IntoPyObject)]
struct ProcessShape {
    pid: u32,
    memory_bytes: u64,
    cpu_percent: Option<f64>,
    cpu_seconds: f64,
}

#[derive(Default, IntoPyObject)]
struct PressureSetShape {
    cpu: Option<PressureShape>,
    memory: Option<PressureShape>,
    io: Option<PressureShape>,
}

#[derive(Default, IntoPyObject)]
struct PressureShape {
    some: Option<StallShape>,
    full: Option<StallShape>,
}

#[derive(Default, IntoPyObject)]
struct StallShape {
    avg10: f64,
    avg60: f64,
    avg300: f64,
    total_seconds: f64,
}

/// Makes the names of all dictionaries, which are interned on first use.
pub(super) fn prepare(py: Python<'_>) -> PyResult<()> {
    let stall = || Some(StallShape::default());
    let pressure = PressureShape { some: stall(), full: stall() };
    let pressure = PressureSetShape { cpu: Some(pressure), ..PressureSetShape::default() };
    let sample = SampleShape {
        memory: Some(MemoryShape::default()),
        cpu: Some(CpuShape::default()),
        disk: Some(DiskShape::default()),
        network: Some(NetworkShape::default()),
        host: HostShape { pressure, ..HostShape::default() },
        container: Some(ContainerShape::default()),
        process: Some(ProcessShape::default()),
        ..SampleShape::default()
    };
    sample.into_pyobject(py)?;
    AlertShape::default().into_pyobject(py).map(drop)
}

impl SampleShape {
    pub(super) fn new(sample: &SystemSample, unix: f64, disk_path: &str) -> Self {
        let rate = |pick: fn((f64, f64)) -> f64| sample.network_rates.map(pick);
        Self {
            timestamp: unix,
            interval_seconds: sample.interval_seconds,
            memory_percent: sample.memory.and_then(|m| m.percent),
            cpu_percent: sample.cpu.and_then(|c| c.percent),
            disk_percent: sample.disk_percent,
            memory: sample.memory.map(MemoryShape::from),
            cpu: sample.cpu.map(CpuShape::from),
            disk: sample.host.disk.map(|disk| DiskShape::new(disk, disk_path)),
            network: sample.host.network.map(|network| NetworkShape {
                received_bytes: network.received,
                sent_bytes: network.sent,
                received_bytes_per_second: rate(|r| r.0),
                sent_bytes_per_second: rate(|r| r.1),
            }),
            host: HostShape::new(&sample.host, sample),
            container: sample.container.as_ref().map(ContainerShape::from),
            process: sample.host.process.map(|process| ProcessShape {
                pid: process.pid,
                memory_bytes: process.memory,
                cpu_percent: sample.process_cpu_percent,
                cpu_seconds: process.cpu_millis as f64 / 1e3,
            }),
        }
    }
}

impl From<Effective> for MemoryShape {
    fn from(memory: Effective) -> Self {
        Self {
            source: memory.origin.as_str(),
            limit_bytes: memory.limit as u64,
            percent: memory.percent,
        }
    }
}

impl From<Effective> for CpuShape {
    fn from(cpu: Effective) -> Self {
        Self { source: cpu.origin.as_str(), cores: cpu.limit, percent: cpu.percent }
    }
}

impl DiskShape {
    fn new(disk: Disk, path: &str) -> Self {
        Self {
            path: path.to_owned(),
            total_bytes: disk.total,
            used_bytes: disk.used,
            available_bytes: disk.available,
            percent: disk.percent(),
        }
    }
}

impl HostShape {
    fn new(host: &Host, sample: &SystemSample) -> Self {
        Self {
            memory_total_bytes: host.memory_total,
            memory_available_bytes: host.memory_available,
            memory_percent: sample.host_memory_percent,
            swap_total_bytes: host.swap_total,
            swap_used_bytes: host.swap_used,
            cpu_percent: host.cpu_percent,
            cores: host.cores,
            load_1m: host.load1,
            pressure: sample.host_pressure.into(),
        }
    }
}

impl From<&Container> for ContainerShape {
    fn from(container: &Container) -> Self {
        let group = &container.reading;
        let seconds = |nanos: u64| nanos as f64 / SECOND as f64;
        Self {
            cgroup_version: group.version,
            memory_limit_bytes: group.memory_limit,
            memory_current_bytes: group.memory_current,
            memory_used_bytes: group.memory_used,
            memory_percent: container.memory_percent,
            memory_limit_hits: group.memory_events.map(|e| e.at_limit),
            oom_events: group.memory_events.and_then(|e| e.oom),
            oom_kills: group.memory_events.map(|e| e.oom_kills),
            new_oom_kills: container.new_oom_kills,
            cpu_quota_cores: group.quota_cores,
            cpu_percent: container.cpu_percent,
            cpu_seconds: group.cpu_nanos.map(seconds),
            periods: group.throttling.map(|t| t.periods),
            throttled_periods: group.throttling.map(|t| t.throttled),
            throttled_seconds: group.throttling.map(|t| seconds(t.nanos)),
            throttled_percent: container.throttled_percent,
            pressure: group.pressure.into(),
        }
    }
}

impl From<PressureSet> for PressureSetShape {
    fn from(set: PressureSet) -> Self {
        Self {
            cpu: set.cpu.map(PressureShape::from),
            memory: set.memory.map(PressureShape::from),
            io: set.io.map(PressureShape::from),
        }
    }
}

impl From<Pressure> for PressureShape {
    fn from(pressure: Pressure) -> Self {
        Self {
            some: pressure.some.map(StallShape::from),
            full: pressure.full.map(StallShape::from),
        }
    }
}

impl From<Stall> for StallShape {
    fn from(stall: Stall) -> Self {
        Self {
            avg10: stall.avg10,
            avg60: stall.avg60,
            avg300: stall.avg300,
            total_seconds: stall.total_micros as f64 / 1e6,
        }
    }
}
