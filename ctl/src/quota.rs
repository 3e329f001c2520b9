//! `quota`: how much the store may hold.

use bftd_client::{Operation, Outcome};
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
                        putting.\n\nSetting needs root or the group bftd-admin."
)]
pub(crate) struct Quota {
    /// So much, as in 512MiB, 16GiB: at least 1MiB
    #[arg(long, value_name = "SIZE", value_parser = size)]
    set: Option<u64>,
}

/// A number of bytes, with or without a unit.
fn size(text: &str) -> Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match unit {
        "" | "B" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        "TiB" => 40,
        _ => return Err("a size is a number with B, KiB, MiB, GiB or TiB".to_owned()),
    };
    let number: u64 = number.parse().map_err(|_| "a size begins with a number".to_owned())?;
    number.checked_mul(1 << shift).ok_or_else(|| "the size is too large".to_owned())
}

/// Bytes in the largest unit of which there are some.
fn shown(bytes: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "it is rounded anyhow")]
    let in_unit = |shift: u32, unit: &str| format!("{:.1} {unit}", bytes as f64 / f64::from(1 << shift));
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..0x10_0000 => in_unit(10, "KiB"),
        0x10_0000..0x4000_0000 => in_unit(20, "MiB"),
        _ => in_unit(30, "GiB"),
    }
}

#[derive(Serialize)]
struct Body {
    used: u64,
    quota: u64,
}

impl Quota {
    pub(crate) async fn run(self, session: &mut Session) -> Result<Code, Ended> {
        let (used, quota) = match self.set {
            None => {
                let cluster = session.client().await?.status().await?.cluster;
                (cluster.used, cluster.quota)
            }
            Some(bytes) => {
                let operation = Operation::SetQuota { bytes };
                operation.check().map_err(|refusal| Failure::usage(refusal.to_string()))?;
                match session.client().await?.execute(operation).await?.outcome {
                    Outcome::QuotaSet { used, quota, .. } => (used, quota),
                    other => {
                        return Err(
                            Failure::other(format!("the daemon did something else: {other:?}")).into()
                        );
                    }
                }
            }
        };
        match session.options.output() {
            Output::Json => render::json(&Body { used, quota })?,
            Output::Value => render::line(&quota.to_string())?,
            Output::Table => {
                let percent = used.saturating_mul(100) / quota.max(1);
                render::line(&format!("{} of {} used · {percent} %", shown(used), shown(quota)))?;
            }
        }
        Ok(Code::Ok)
    }
}
