//! The machine and the process, by sysinfo; the disk of a path by `statvfs`.

use std::path::Path;

use sysinfo::{
    MemoryRefreshKind, Networks, Pid, ProcessRefreshKind, ProcessesToUpdate, System,
    get_current_pid,
};

/// One reading of the machine.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Host {
    /// Physical memory in bytes.
    pub memory_total: Option<u64>,
    /// What new work can have of it without swapping, in bytes.
    pub memory_available: Option<u64>,
    /// Swap space in bytes.
    pub swap_total: Option<u64>,
    /// Swap in use, in bytes.
    pub swap_used: Option<u64>,
    /// CPU use of the whole machine since the reading before, 0..=100.
    pub cpu_percent: Option<f64>,
    /// Logical CPUs.
    pub cores: Option<u64>,
    /// Load average of the last minute.
    pub load1: Option<f64>,
    /// Totals of all interfaces but loopback.
    pub network: Option<Network>,
    /// The file system asked for.
    pub disk: Option<Disk>,
    /// This process.
    pub process: Option<Process>,
}

/// Bytes through all interfaces but loopback since they came up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Network {
    /// Bytes received.
    pub received: u64,
    /// Bytes sent.
    pub sent: u64,
}

/// A file system.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Disk {
    /// Its size in bytes.
    pub total: u64,
    /// Bytes in use.
    pub used: u64,
    /// Bytes that an unprivileged process can still write.
    pub available: u64,
}

impl Disk {
    /// Used share of what an unprivileged process can ever use, 0..=100, as
    /// `df` and psutil count it: the blocks reserved for root are left out.
    #[must_use]
    pub fn percent(&self) -> Option<f64> {
        let usable = self.used.checked_add(self.available)?;
        (usable > 0).then(|| self.used as f64 * 100.0 / usable as f64)
    }
}

/// This process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Process {
    /// Its id.
    pub pid: u32,
    /// Resident memory in bytes.
    pub memory: u64,
    /// CPU time used so far, in milliseconds.
    pub cpu_millis: u64,
}

/// Where [`Host`] readings come from.
pub trait HostSource: Send {
    /// Reads everything that can be read; `disk` is a path on the file system asked for.
    fn read(&mut self, disk: &Path) -> Host;
}

/// sysinfo, refreshed for exactly what [`Host`] holds.
#[derive(Debug, Default)]
pub struct SysinfoHost {
    system: Option<System>,
    /// CPU use needs two readings: sysinfo's first is the mean since boot.
    primed: bool,
}

impl HostSource for SysinfoHost {
    fn read(&mut self, disk: &Path) -> Host {
        let mut host = Host { network: network(), disk: read_disk(disk), ..Host::default() };
        host.load1 = System::load_average().ok().map(|load| load.one);
        if self.system.is_none() {
            self.system = System::new().ok();
        }
        let Some(system) = &mut self.system else { return host };
        system.refresh_memory_specifics(MemoryRefreshKind::everything());
        system.refresh_cpu_usage();
        let known = |bytes: u64| (bytes > 0).then_some(bytes);
        host.memory_total = known(system.total_memory());
        host.memory_available = host.memory_total.map(|_| system.available_memory());
        host.swap_total = host.memory_total.map(|_| system.total_swap());
        host.swap_used = host.memory_total.map(|_| system.used_swap());
        host.cores = known(system.cpus().len() as u64);
        if self.primed {
            host.cpu_percent = host.cores.map(|_| f64::from(system.global_cpu_usage()));
        }
        self.primed = true;
        host.process = get_current_pid().ok().and_then(|pid| process(system, pid));
        host
    }
}

fn process(system: &mut System, pid: Pid) -> Option<Process> {
    let kind = ProcessRefreshKind::nothing().with_memory().with_cpu();
    system.refresh_processes_specifics(ProcessesToUpdate::Some(&[pid]), true, kind);
    let process = system.process(pid)?;
    Some(Process {
        pid: pid.as_u32(),
        memory: process.memory(),
        cpu_millis: process.accumulated_cpu_time(),
    })
}

fn network() -> Option<Network> {
    let networks = Networks::new_with_refreshed_list().ok()?;
    let mut total = Network::default();
    for (name, data) in &networks {
        // Loopback is this machine talking to itself: "lo" on Linux, "lo0" on BSD and macOS.
        if name == "lo" || name == "lo0" {
            continue;
        }
        total.received = total.received.saturating_add(data.total_received());
        total.sent = total.sent.saturating_add(data.total_transmitted());
    }
    Some(total)
}

/// sysinfo lists mounts and skips overlays, which is what a container's root
/// is, and asks network mounts that may hang; one `statvfs` of the path asked
/// for does neither.
#[cfg(unix)]
fn read_disk(path: &Path) -> Option<Disk> {
    let stat = rustix::fs::statvfs(path).ok()?;
    let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
    Some(Disk {
        total: bytes(stat.f_blocks),
        used: bytes(stat.f_blocks.saturating_sub(stat.f_bfree)),
        available: bytes(stat.f_bavail),
    })
}

#[cfg(not(unix))]
fn read_disk(path: &Path) -> Option<Disk> {
    let path = path.canonicalize().ok()?;
    let disks = sysinfo::Disks::new_with_refreshed_list().ok()?;
    let mounted = disks.list().iter().filter(|disk| path.starts_with(disk.mount_point()));
    let disk = mounted.max_by_key(|disk| disk.mount_point().as_os_str().len())?;
    Some(Disk {
        total: disk.total_space(),
        used: disk.total_space().saturating_sub(disk.available_space()),
        available: disk.available_space(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_os = "linux")]
    #[test]
    fn this_machine_reads_plausibly() {
        let mut source = SysinfoHost::default();
        let first = source.read(Path::new("/"));
        assert_eq!(first.cpu_percent, None, "one reading is not a rate");
        let total = first.memory_total.unwrap();
        assert!(first.memory_available.unwrap() <= total);
        assert!(first.cores.unwrap() >= 1);
        let process = first.process.unwrap();
        assert_eq!(process.pid, std::process::id());
        assert!(process.memory > 100_000 && process.memory < total);
        let disk = first.disk.unwrap();
        assert!(disk.used <= disk.total);
        assert!((0.0..=100.0).contains(&disk.percent().unwrap()));
        let second = source.read(Path::new("/no/such/path"));
        assert!((0.0..=100.0).contains(&second.cpu_percent.unwrap()));
        assert_eq!(second.disk, None);
    }

    #[test]
    fn a_disk_percentage_is_that_of_df() {
        // 100 blocks, 5 of them reserved for root.
        let disk = Disk { total: 100, used: 19, available: 76 };
        assert_eq!(disk.percent(), Some(20.0));
        assert_eq!(Disk::default().percent(), None);
    }
}
