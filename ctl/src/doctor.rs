//! `doctor`: whether this host and its peers are as a daemon needs them, and what to do where they are not.
//!
//! The daemon looks after itself. Where none answers, its program looks at what can be seen without it.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use bftd_client::{Finding, Verdict};
use clap::Args;
use serde::Deserialize;
use serde_json::json;

use crate::{
    args::Output,
    dev::find_bftd,
    failure::{Code, Ended, Failure},
    render::{self, Paint, printable},
    session::Session,
};

/// Where a packaged daemon's configuration is.
const CONFIG: &str = "/etc/bftd/bftd.toml";

/// Check clock, network, disk and permissions, and say what to do
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  bftctl doctor\n  bftctl doctor --node 3 -o json\n\nWithout a running daemon it checks what can be seen then, and says so; as root it sees most.\n\n\
                  Exit codes: 0 all is well · 5 something is not as it should be"
)]
pub(crate) struct Doctor {
    /// The configuration to go by where no daemon answers [default: bftd.toml beside the socket, else /etc/bftd/bftd.toml]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl Doctor {
    pub(crate) async fn run(self, session: &mut Session) -> Result<Code, Ended> {
        let socket = session.socket()?;
        let (is_running, findings) = match session.client().await {
            Ok(client) => {
                let mut findings = vec![Finding {
                    subject: "daemon".to_owned(),
                    verdict: Verdict::Ok,
                    text: format!("answers on {}", socket.display()),
                    remedy: String::new(),
                }];
                findings.extend(client.examine().await?);
                (true, findings)
            }
            Err(failure) if failure.code == Code::Denied => return Err(failure.into()),
            Err(failure) => {
                let mut findings = vec![Finding {
                    subject: "daemon".to_owned(),
                    verdict: Verdict::Fail,
                    text: failure
                        .cause
                        .map_or(failure.message.clone(), |cause| format!("{}: {cause}", failure.message)),
                    remedy: failure.next.unwrap_or_default(),
                }];
                findings.extend(look_without(&self.config.unwrap_or_else(|| config_of(&socket)))?);
                (false, findings)
            }
        };
        show(session, is_running, &findings)?;
        let is_well = findings.iter().all(|finding| finding.verdict < Verdict::Warn);
        Ok(if is_well { Code::Ok } else { Code::Degraded })
    }
}

/// The configuration of the daemon behind a socket.
fn config_of(socket: &Path) -> PathBuf {
    let beside = socket.with_file_name("bftd.toml");
    if beside.exists() { beside } else { CONFIG.into() }
}

/// What the daemon's program finds without running as a daemon.
fn look_without(config: &Path) -> Result<Vec<Finding>, Failure> {
    #[derive(Deserialize)]
    struct Findings {
        findings: Vec<Finding>,
    }
    let bftd = find_bftd()?;
    let failed = |cause: String| {
        Failure::other("can't look at this host")
            .cause(cause)
            .next("bftd config check --config FILE; name the file with --config")
    };
    let output = Command::new(&bftd)
        .args(["doctor", "--config"])
        .arg(config)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| failed(format!("{}: {error}", bftd.display())))?;
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        return Ok(vec![Finding {
            subject: "configuration".to_owned(),
            verdict: Verdict::Fail,
            text: String::from_utf8_lossy(&output.stderr).trim().trim_start_matches("bftd: ").to_owned(),
            remedy: "mend it, or name another with --config".to_owned(),
        }]);
    }
    toml::from_str(&text).map(|found: Findings| found.findings).map_err(|error| failed(error.to_string()))
}

fn show(session: &Session, is_running: bool, findings: &[Finding]) -> Result<(), Ended> {
    let worst = findings.iter().map(|finding| finding.verdict).max().unwrap_or(Verdict::Ok);
    match session.options.output() {
        Output::Json => {
            render::json(&json!({ "running": is_running, "verdict": worst, "findings": findings }))
        }
        Output::Value => render::line(word(worst)),
        Output::Table => {
            if !is_running {
                session.say("no daemon answers here: these are the checks that need none");
            }
            render::line(&text(findings, Paint::stdout()))
        }
    }
}

fn text(findings: &[Finding], paint: Paint) -> String {
    let width = findings.iter().map(|finding| finding.subject.len()).max().unwrap_or(0);
    let line = |finding: &Finding| {
        let colour = match finding.verdict {
            Verdict::Ok => Paint::green,
            Verdict::Unknown | Verdict::Warn => Paint::yellow,
            Verdict::Fail => Paint::red,
        };
        let word = colour(paint, &format!("{:<4}", word(finding.verdict)));
        let shown = |text: &str| printable(text.as_bytes()).into_owned();
        let mut line = format!("{word}  {:<width$}  {}", finding.subject, shown(&finding.text));
        if !finding.remedy.is_empty() {
            line += &format!("\n      {:<width$}  next: {}", "", shown(&finding.remedy));
        }
        line
    };
    findings.iter().map(line).collect::<Vec<_>>().join("\n")
}

fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Ok => "ok",
        Verdict::Unknown => "?",
        Verdict::Warn => "warn",
        Verdict::Fail => "FAIL",
    }
}
