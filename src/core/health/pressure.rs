//! Pressure stall information: the share of time in which somebody waited for
//! a resource (kernel document `accounting/psi.rst`).

use std::path::Path;

use super::files;

/// One line of a pressure file.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Stall {
    /// Share of the last 10 seconds, in percent.
    pub avg10: f64,
    /// Share of the last minute, in percent.
    pub avg60: f64,
    /// Share of the last five minutes, in percent.
    pub avg300: f64,
    /// All time stalled so far, in microseconds.
    pub total_micros: u64,
}

/// The pressure on one resource.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Pressure {
    /// At least one task waited.
    pub some: Option<Stall>,
    /// All tasks waited at once. Kernels before 5.13 do not have it for CPU.
    pub full: Option<Stall>,
}

/// The pressure on the three resources; `None` where the kernel tells nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PressureSet {
    /// Waiting for a CPU.
    pub cpu: Option<Pressure>,
    /// Waiting for memory.
    pub memory: Option<Pressure>,
    /// Waiting for I/O.
    pub io: Option<Pressure>,
}

impl PressureSet {
    /// The machine's: `/proc/pressure/{cpu,memory,io}`.
    pub(super) fn of_host(root: &Path) -> Self {
        let read = |name: &str| parse(&files::text(&root.join("proc/pressure").join(name))?);
        Self { cpu: read("cpu"), memory: read("memory"), io: read("io") }
    }

    /// A control group's: `{cpu,memory,io}.pressure` in its directory.
    pub(super) fn of_group(directory: &Path) -> Self {
        let read = |name: &str| parse(&files::text(&directory.join(name))?);
        Self { cpu: read("cpu.pressure"), memory: read("memory.pressure"), io: read("io.pressure") }
    }
}

fn parse(text: &str) -> Option<Pressure> {
    let mut pressure = Pressure::default();
    for line in text.lines() {
        match line.split_once(' ') {
            Some(("some", rest)) => pressure.some = stall(rest),
            Some(("full", rest)) => pressure.full = stall(rest),
            _ => {}
        }
    }
    // A file without any line is a kernel booted with `psi=0`.
    (pressure != Pressure::default()).then_some(pressure)
}

fn stall(fields: &str) -> Option<Stall> {
    let mut stall = Stall::default();
    for field in fields.split_whitespace() {
        let (name, value) = field.split_once('=')?;
        match name {
            "avg10" => stall.avg10 = value.parse().ok()?,
            "avg60" => stall.avg60 = value.parse().ok()?,
            "avg300" => stall.avg300 = value.parse().ok()?,
            "total" => stall.total_micros = value.parse().ok()?,
            // A field of a later kernel.
            _ => {}
        }
    }
    Some(stall)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_recorded_file_reads_as_it_is() {
        let p = parse(
            "some avg10=0.10 avg60=0.27 avg300=0.35 total=5337727\n\
             full avg10=0.00 avg60=0.00 avg300=1.50 total=12\n",
        )
        .unwrap();
        assert_eq!(
            p.some,
            Some(Stall { avg10: 0.10, avg60: 0.27, avg300: 0.35, total_micros: 5_337_727 })
        );
        assert_eq!(p.full.unwrap().total_micros, 12);
    }

    #[test]
    fn a_kernel_without_full_or_without_anything() {
        let p = parse("some avg10=1 avg60=2 avg300=3 total=4\n").unwrap();
        assert!(p.some.is_some() && p.full.is_none());
        assert_eq!(parse(""), None);
        assert_eq!(parse("some avg10=x avg60=2 avg300=3 total=4\n"), None);
    }

    proptest! {
        #[test]
        fn whatever_stands_there_does_not_panic(text in ".{0,200}") {
            let _ = parse(&text);
        }
    }
}
