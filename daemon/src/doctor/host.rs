//! What can be seen of a host alone: buffers, limits, permissions, the disk.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::Path,
    time::{Duration, Instant},
};

use bftd_client::protocol::Finding;
use bytesize::ByteSize;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::{fail, ok, unknown, warn};
use crate::{admin::CONNECTIONS, identity::KEY_FILE, transport::settings::UDP_BUFFER};

/// Beside clients a daemon has files, sockets and threads of its own.
const FILES: u64 = CONNECTIONS as u64 + 256;
/// With less free space a daemon is about to stop: both write-ahead files, and a checkpoint.
const LEAST_SPACE: u64 = 256 << 20;
/// With less it is time to do something.
const LOW_SPACE: u64 = 2 << 30;
/// How often a sync is measured.
const SYNCS: usize = 24;
/// A sync that takes longer is what writes wait for most.
const SLOW_SYNC: Duration = Duration::from_millis(10);
/// With such a disk a leader is suspected.
const WORST_SYNC: Duration = Duration::from_millis(150);

/// Looks at a host. Writes to the data directory, if there is one.
pub(super) fn examine(directory: &Path) -> Vec<Finding> {
    let mut findings = vec![udp_buffers(), file_limit()];
    findings.extend(permissions(directory));
    findings.push(space(directory));
    findings.push(sync_time(directory));
    findings
}

/// Lets this process open as many files as it may. Systems start programs with a limit that suits programs of long ago.
pub fn raise_file_limit() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let wanted = maximum.map_or(1 << 16, |maximum| maximum.min(1 << 16));
    if current.is_some_and(|current| current < wanted) {
        let raised = Rlimit { current: Some(wanted), maximum };
        if let Err(error) = setrlimit(Resource::Nofile, raised) {
            tracing::debug!(%error, "the limit of open files stays as it is");
        }
    }
}

fn udp_buffers() -> Finding {
    let read = |name: &str| -> Option<usize> {
        fs::read_to_string(format!("/proc/sys/net/core/{name}")).ok()?.trim().parse().ok()
    };
    let (Some(receive), Some(send)) = (read("rmem_max"), read("wmem_max")) else {
        return unknown("udp buffers", "net.core.rmem_max and wmem_max can't be read", "");
    };
    buffers(receive, send)
}

fn buffers(receive: usize, send: usize) -> Finding {
    let text = format!(
        "up to {} KiB to receive, {} KiB to send; {} KiB are wanted",
        receive >> 10,
        send >> 10,
        UDP_BUFFER >> 10
    );
    if receive >= UDP_BUFFER && send >= UDP_BUFFER {
        return ok("udp buffers", text);
    }
    let remedy = format!(
        "sysctl -w net.core.rmem_max={UDP_BUFFER} net.core.wmem_max={UDP_BUFFER}, and the same in /etc/sysctl.d; then restart bftd"
    );
    warn("udp buffers", text, remedy)
}

fn file_limit() -> Finding {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let could = maximum.map_or(u64::MAX, |maximum| maximum.min(1 << 16)).max(current.unwrap_or(u64::MAX));
    let text = format!(
        "{} open files are allowed, {FILES} are needed with as many clients as there may be",
        shown(could)
    );
    if could >= FILES {
        return ok("file limit", text);
    }
    warn("file limit", text, "systemctl edit bftd: LimitNOFILE=65536 under [Service]; then restart bftd")
}

fn shown(limit: u64) -> String {
    if limit == u64::MAX { "unlimited".to_owned() } else { limit.to_string() }
}

/// The data directory and the key in it.
fn permissions(directory: &Path) -> Vec<Finding> {
    vec![
        private("data directory", directory, 0o700, "is made, with mode 0700, when bftd starts"),
        private("key", &directory.join(KEY_FILE), 0o600, "is made when bftd starts"),
    ]
}

fn private(subject: &str, path: &Path, wanted: u32, if_absent: &str) -> Finding {
    let shown = path.display();
    match fs::metadata(path) {
        Ok(metadata) if metadata.mode() & 0o077 == 0 => {
            ok(subject, format!("{shown} is its owner's alone (mode {:04o})", metadata.mode() & 0o7777))
        }
        Ok(metadata) => fail(
            subject,
            format!("{shown} is open to others (mode {:04o}): bftd does not start", metadata.mode() & 0o7777),
            format!(
                "chmod {wanted:o} {shown}, if you are sure that nobody has read the key; else replace it"
            ),
        ),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            unknown(subject, format!("{shown} is not there; it {if_absent}"), "")
        }
        Err(error) => {
            unknown(subject, format!("{shown}: {error}"), "run it as root, or start bftd and ask again")
        }
    }
}

fn space(directory: &Path) -> Finding {
    match rustix::fs::statvfs(directory) {
        Ok(stat) => free(stat.f_bavail.saturating_mul(stat.f_frsize), directory),
        Err(error) => unknown("disk space", format!("{}: {error}", directory.display()), ""),
    }
}

fn free(bytes: u64, directory: &Path) -> Finding {
    let text = format!("{} are free for {}", ByteSize(bytes).display().iec(), directory.display());
    let remedy =
        "free some, or enlarge the file system; a daemon whose disk is full stops, and loses nothing";
    if bytes < LEAST_SPACE {
        fail("disk space", text, remedy)
    } else if bytes < LOW_SPACE {
        warn("disk space", text, remedy)
    } else {
        ok("disk space", text)
    }
}

fn sync_time(directory: &Path) -> Finding {
    match measure(directory) {
        Ok(time) => judge_sync(time),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            unknown("disk sync", format!("{} is not there", directory.display()), "")
        }
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => unknown(
            "disk sync",
            format!("{}: {error}", directory.display()),
            "run it as root, or start bftd and ask again",
        ),
        Err(error) => fail(
            "disk sync",
            format!("{} can't be written: {error}", directory.display()),
            "mend the disk or the mount; journalctl -k tells of disk errors",
        ),
    }
}

fn judge_sync(time: Duration) -> Finding {
    let text =
        format!("a write of 4 KiB is durable after {:.2} ms (median of {SYNCS})", time.as_secs_f64() * 1e3);
    let remedy =
        "every write waits for two or three of these: use a faster disk, or one that others don't keep busy";
    if time >= WORST_SYNC {
        fail("disk sync", text, remedy)
    } else if time >= SLOW_SYNC {
        warn("disk sync", text, remedy)
    } else {
        ok("disk sync", text)
    }
}

/// How long a durable write takes: in the middle of several.
fn measure(directory: &Path) -> io::Result<Duration> {
    let path = directory.join("doctor.tmp");
    let measured = (|| {
        // A new file, never what somebody has put there: root may be asked to look into a directory of the daemon's user.
        if let Err(error) = fs::remove_file(&path)
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(error);
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        let mut times = Vec::with_capacity(SYNCS);
        for _ in 0..SYNCS {
            let began = Instant::now();
            file.write_all(&[0x5a; 4096])?;
            file.sync_data()?;
            times.push(began.elapsed());
        }
        times.sort_unstable();
        Ok(times.get(SYNCS / 2).copied().unwrap_or_default())
    })();
    // Where it could not be made there is nothing to remove.
    let _ = fs::remove_file(&path);
    measured
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::PermissionsExt;

    use bftd_client::protocol::Verdict;

    use super::*;

    #[test]
    fn each_verdict_follows_from_what_is_found() {
        assert_eq!(buffers(UDP_BUFFER, UDP_BUFFER).verdict, Verdict::Ok);
        for (receive, send) in [(UDP_BUFFER - 1, UDP_BUFFER), (UDP_BUFFER, 212_992)] {
            let finding = buffers(receive, send);
            assert_eq!(finding.verdict, Verdict::Warn);
            assert!(finding.remedy.contains("rmem_max=2097152"), "{finding:?}");
        }
        let at = Path::new("/d");
        let verdicts = [LEAST_SPACE - 1, LEAST_SPACE, LOW_SPACE].map(|bytes| free(bytes, at).verdict);
        assert_eq!(verdicts, [Verdict::Fail, Verdict::Warn, Verdict::Ok]);
        let verdicts = [1, 10, 150].map(|ms| judge_sync(Duration::from_millis(ms)).verdict);
        assert_eq!(verdicts, [Verdict::Ok, Verdict::Warn, Verdict::Fail]);
    }

    #[test]
    fn what_somebody_has_put_in_the_way_is_not_written_to() {
        let (directory, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let precious = other.path().join("precious");
        fs::write(&precious, "p").unwrap();
        std::os::unix::fs::symlink(&precious, directory.path().join("doctor.tmp")).unwrap();
        measure(directory.path()).unwrap();
        assert_eq!(fs::read_to_string(&precious).unwrap(), "p");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_key_that_others_can_read_is_found_and_nothing_is_left_behind() {
        let directory = tempfile::tempdir().unwrap();
        let at = directory.path();
        fs::set_permissions(at, fs::Permissions::from_mode(0o700)).unwrap();
        let key = |findings: &[Finding]| findings.iter().find(|it| it.subject == "key").unwrap().clone();
        assert_eq!(key(&examine(at)).verdict, Verdict::Unknown);
        fs::write(at.join(KEY_FILE), "k").unwrap();
        fs::set_permissions(at.join(KEY_FILE), fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(key(&examine(at)).verdict, Verdict::Ok);
        fs::set_permissions(at.join(KEY_FILE), fs::Permissions::from_mode(0o640)).unwrap();
        let found = key(&examine(at));
        assert_eq!(found.verdict, Verdict::Fail);
        assert!(found.text.contains("0640") && found.remedy.contains("chmod 600"), "{found:?}");
        assert_eq!(fs::read_dir(at).unwrap().count(), 1);
        let absent = examine(&at.join("none"));
        assert!(absent.iter().all(|finding| finding.verdict != Verdict::Fail), "{absent:?}");
    }
}
