//! What processes used, by the kernel's account in `/proc`.

use std::{
    fs, io,
    ops::Sub,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::failure::Failure;

/// What some processes used since they began, and hold now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// CPU time of all threads, in user and kernel mode, in steps of a clock tick.
    pub(crate) cpu: Duration,
    /// Bytes that they caused to be written to a disk (`write_bytes` in `/proc/PID/io`). Linux counts what a write makes
    /// dirty in units of its page cache, which on newer kernels are up to 2 MiB, where only the blocks that changed go to
    /// the disk: a log that is synced often looks much worse than it is. [`Disk`] knows better.
    pub(crate) written: u64,
    /// Resident memory, in bytes.
    pub(crate) resident: u64,
}

impl Usage {
    /// What these processes used, added up.
    ///
    /// # Errors
    /// One of them has ended, or belongs to somebody else.
    pub(crate) fn of(pids: &[u32]) -> Result<Self, Failure> {
        pids.iter().try_fold(Self::default(), |sum, pid| {
            let one = Self::of_one(&pid.to_string())?;
            Ok(Self {
                cpu: sum.cpu + one.cpu,
                written: sum.written + one.written,
                resident: sum.resident + one.resident,
            })
        })
    }

    /// What this process used.
    ///
    /// # Errors
    /// There is no `/proc`.
    pub(crate) fn of_self() -> Result<Self, Failure> {
        Self::of_one("self")
    }

    fn of_one(pid: &str) -> Result<Self, Failure> {
        let read = |file: &str| {
            let path = format!("/proc/{pid}/{file}");
            fs::read_to_string(&path).map_err(|error| {
                Failure::new(format!("can't read {path}"))
                    .cause(error)
                    .next("see the node's log: it may have ended")
            })
        };
        let ticks = rustix::param::clock_ticks_per_second();
        let odd = |file: &str| Failure::new(format!("/proc/{pid}/{file} is not what it should be"));
        Ok(Self {
            cpu: cpu(&read("stat")?, ticks).ok_or_else(|| odd("stat"))?,
            written: field(&read("io")?, "write_bytes:").ok_or_else(|| odd("io"))?,
            resident: field(&read("status")?, "VmRSS:").ok_or_else(|| odd("status"))? * 1024,
        })
    }
}

impl Sub for Usage {
    type Output = Self;

    /// What was used since `earlier`; memory as it is now.
    fn sub(self, earlier: Self) -> Self {
        Self {
            cpu: self.cpu.saturating_sub(earlier.cpu),
            written: self.written.saturating_sub(earlier.written),
            resident: self.resident,
        }
    }
}

/// A disk, by the kernel's count of what goes to it, from whatever process.
#[derive(Debug)]
pub(crate) struct Disk {
    statistics: PathBuf,
}

impl Disk {
    /// The disk that a path is on; none where the file system is on no disk of its own.
    pub(crate) fn of(path: &Path) -> Option<Self> {
        let device = fs::metadata(path).ok()?.dev();
        let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
        let statistics = PathBuf::from(format!("/sys/dev/block/{major}:{minor}/stat"));
        statistics.exists().then_some(Self { statistics })
    }

    /// Bytes written to it since the machine started.
    pub(crate) fn written(&self) -> Option<u64> {
        sectors_written(&fs::read_to_string(&self.statistics).ok()?).map(|sectors| sectors * 512)
    }
}

/// Bytes that the files below a directory take on the disk. What vanishes meanwhile takes none.
pub(crate) fn disk_usage(directory: &Path) -> u64 {
    let of_entry = |entry: io::Result<fs::DirEntry>| {
        let entry = entry.ok()?;
        let metadata = entry.metadata().ok()?;
        Some(if metadata.is_dir() { disk_usage(&entry.path()) } else { metadata.blocks() * 512 })
    };
    fs::read_dir(directory).map_or(0, |entries| entries.filter_map(of_entry).sum())
}

/// The seventh number of `/sys/block/DISK/stat`, in units of 512 bytes whatever the disk's own are.
fn sectors_written(statistics: &str) -> Option<u64> {
    statistics.split_whitespace().nth(6)?.parse().ok()
}

/// User and system time from `/proc/PID/stat`.
fn cpu(stat: &str, ticks_per_second: u64) -> Option<Duration> {
    // The second field is the program's name in parentheses, and may hold anything; the third is the state.
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut times = rest.split(' ').skip(11).map(str::parse::<u64>);
    let ticks = times.next()?.ok()? + times.next()?.ok()?;
    Some(Duration::from_secs_f64(ticks as f64 / ticks_per_second.max(1) as f64))
}

/// The first number of a line that begins with a name.
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_program_misleads_nobody() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194304 5 6 0 0 250 50 0 0 20 0 9 0 100 1 1";
        assert_eq!(cpu(stat, 100), Some(Duration::from_secs(3)));
        assert_eq!(cpu("7 (a) S 1", 100), None);
    }

    #[test]
    fn fields_are_found_by_their_whole_name() {
        let io = "rchar: 1\nwrite_bytes: 4096\ncancelled_write_bytes: 5\n";
        assert_eq!(field(io, "write_bytes:"), Some(4096));
        assert_eq!(field("Name:\tx\nVmRSS:\t   12 kB\n", "VmRSS:"), Some(12));
        assert_eq!(field(io, "VmRSS:"), None);
    }

    #[test]
    fn a_disk_says_what_was_written() {
        let statistics = "     291    855    1054   8168    23912   320   6443   5571   0  1311";
        assert_eq!(sectors_written(statistics), Some(6443));
    }

    #[test]
    fn a_directory_takes_what_its_files_take() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let below = directory.path().join("below");
        fs::create_dir(&below).expect("a directory");
        fs::write(below.join("file"), vec![1; 100_000]).expect("a file");
        let usage = disk_usage(directory.path());
        assert!((100_000..1_000_000).contains(&usage), "{usage}");
        assert_eq!(disk_usage(&directory.path().join("missing")), 0);
    }

    #[test]
    fn this_process_uses_memory() {
        let usage = Usage::of_self().expect("there is a /proc");
        assert!(usage.resident > 100_000, "{usage:?}");
        assert_eq!((usage - usage).cpu, Duration::ZERO);
    }
}
