//! `quota`: how much the store may hold.

use std::fmt::Display;

use bftd_client::{ClusterStatus, DiskUse, Operation, Outcome};
use bytesize::ByteSize;
use clap::Args;
use serde::Serialize;

use crate::{
    args::Output,
    failure::{Code, Ended, Failure},
    render,
    session::Session,
};

/// Show how much the store holds and may hold, or set that.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  bftctl quota\n  bftctl quota --set 16GiB\n\nIt counts keys and values, as they are and in the history that is not compacted, the \
                        same on all members. A full store refuses to put; deleting and compacting go on, and when there is room again, so does \
                        putting.\n\nWhat the store takes on the disk of the host that is asked is another matter: space that was freed is used again, and given back when \
                        bftd starts, if it is most of the file. The log of blocks keeps growing.\n\nSetting needs root or the group bftd-admin."
)]
pub(crate) struct Quota {
    /// So much, as in 512MiB, 16GiB (of 1024), 500MB, 16G (of 1000), or in bytes: at least 1MiB
    #[arg(long, value_name = "SIZE", value_parser = size, allow_hyphen_values = true)]
    set: Option<u64>,
}

/// A number of bytes, with or without a unit.
fn size(text: &str) -> Result<u64, String> {
    let (text, digits) = (text.trim(), |c: char| c.is_ascii_digit());
    // So that a plain number that is too large is told as one.
    let unit = if text.ends_with(digits) { "B" } else { "" };
    match format!("{text}{unit}").parse::<ByteSize>() {
        // It stands for all that is larger.
        Ok(ByteSize(u64::MAX)) => Err("that is more than bytes can be counted".to_owned()),
        Ok(ByteSize(bytes)) => Ok(bytes),
        Err(_) => Err("a size is a number with or without a unit, as in 512MiB, 1.5GiB (of 1024) or 500MB, 16G (of 1000)".to_owned()),
    }
}

/// How much of the quota is used, and what that takes where the daemon runs.
pub(crate) fn words(cluster: &ClusterStatus, disk: DiskUse) -> String {
    let (state, log) = (shown(disk.state), shown(disk.log));
    format!("{} · on this host's disk {state}, and {log} of log", of_quota(cluster.used, cluster.quota))
}

fn of_quota(used: u64, quota: u64) -> String {
    let percent = used.saturating_mul(100) / quota.max(1);
    format!("{} of {} used · {percent} %", shown(used), shown(quota))
}

/// Bytes in the largest unit of which there are some.
fn shown(bytes: u64) -> impl Display {
    ByteSize(bytes).display().iec()
}

/// What the files of a daemon take.
#[derive(Serialize)]
pub(crate) struct Disk {
    state: u64,
    log: u64,
}

impl From<DiskUse> for Disk {
    fn from(DiskUse { state, log }: DiskUse) -> Self {
        Self { state, log }
    }
}

#[derive(Serialize)]
struct Body {
    used: u64,
    quota: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    disk: Option<Disk>,
}

impl Quota {
    pub(crate) async fn run(self, session: &mut Session) -> Result<Code, Ended> {
        let (used, quota, disk, words) = match self.set {
            None => {
                let status = session.client().await?.status().await?;
                let words = words(&status.cluster, status.disk);
                (status.cluster.used, status.cluster.quota, Some(status.disk.into()), words)
            }
            Some(bytes) => {
                let operation = Operation::SetQuota { bytes };
                operation.check().map_err(|refusal| Failure::usage(refusal.to_string()))?;
                match session.client().await?.execute(operation).await?.outcome {
                    Outcome::QuotaSet { used, quota, .. } => (used, quota, None, of_quota(used, quota)),
                    other => {
                        return Err(
                            Failure::other(format!("the daemon did something else: {other:?}")).into()
                        );
                    }
                }
            }
        };
        match session.options.output() {
            Output::Json => render::json(&Body { used, quota, disk })?,
            Output::Value => render::line(&quota.to_string())?,
            Output::Table => render::line(&words)?,
        }
        Ok(Code::Ok)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn sizes_with_and_without_units_are_read_to_the_byte() {
        for (text, bytes) in [
            ("1048576", 1 << 20),
            ("1048576B", 1 << 20),
            ("512MiB", 512 << 20),
            ("512mib", 512 << 20),
            ("8GiB", 8 << 30),
            ("8 GiB", 8 << 30),
            ("8Gi", 8 << 30),
            ("1.5GiB", 3 << 29),
            ("2TiB", 2 << 40),
            ("8G", 8_000_000_000),
            ("500MB", 500_000_000),
            ("9007199254740993", 9_007_199_254_740_993),
            ("18446744073709551614", u64::MAX - 1),
            ("0", 0),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_told_so() {
        for text in
            ["", " ", "GiB", "-1", "-1GiB", "8 parsecs", "8GiBs", "1.5.3GiB", "1 000", "1e9", "NaN", "8Gß"]
        {
            let said = size(text).unwrap_err();
            assert!(said.contains("512MiB"), "{text}: {said}");
        }
        for text in ["18446744073709551616", "99999999999999999999B", "16EiB", "20000000TiB", "17.5EiB"] {
            let said = size(text).unwrap_err();
            assert!(said.contains("more than"), "{text}: {said}");
        }
    }

    #[test]
    fn sizes_are_shown_in_their_largest_unit() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1536, "1.5 KiB"),
            (96 << 20, "96.0 MiB"),
            (8 << 30, "8.0 GiB"),
            (2 << 40, "2.0 TiB"),
        ] {
            assert_eq!(shown(bytes).to_string(), text);
        }
        assert_eq!(of_quota(3 << 30, 4 << 30), "3.0 GiB of 4.0 GiB used · 75 %");
    }
}
