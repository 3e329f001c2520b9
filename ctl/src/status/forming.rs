//! A daemon that has no cluster yet.

use bftd_client::forming::{Forming, Phase, RefusedJoin, span};
use serde_json::{Value, json};

use crate::render::{self, Paint, printable};

pub(super) fn headline(forming: &Forming, paint: Paint) -> String {
    let (dot, word) = (paint.red("●"), paint.red("UNINITIALISED"));
    let name = printable(forming.cluster.as_bytes());
    let (there, expect) = (forming.members.len(), forming.expect);
    match forming.phase {
        Phase::Idle => format!("{dot} - {word} this daemon belongs to no cluster yet"),
        Phase::Gathering => {
            format!("{dot} {name} {word} {there}/{expect} members are there · this host gathers them")
        }
        Phase::Joining => {
            let inviter = forming.inviter.map_or_else(String::new, |it| it.to_string());
            format!("{dot} {name} {word} {there}/{expect} members are there · {inviter} gathers them")
        }
        Phase::Formed => format!("{dot} {name} {word} {expect}/{expect} members are there · starting"),
    }
}

/// Who is there, what is missing, who was refused, and this host's key.
pub(super) fn details(forming: &Forming) -> String {
    let mut text = String::new();
    if !forming.members.is_empty() {
        let mut rows: Vec<_> = forming
            .members
            .iter()
            .map(|member| {
                let own = if member.key == forming.key { " (this)" } else { "" };
                vec![
                    format!("{}{own}", printable(member.name.as_bytes())),
                    member.address.to_string(),
                    if member.is_here { "yes" } else { "NO" }.to_owned(),
                    short(&member.key.to_string()),
                ]
            })
            .collect();
        let missing = forming.expect.saturating_sub(forming.members.len() as u64);
        rows.extend((0..missing.min(16)).map(|_| ["missing", "-", "-", "-"].map(str::to_owned).to_vec()));
        text += &format!("\n\n{}", render::table(&["NAME", "ADDRESS", "CONNECTED", "KEY"], &[], rows));
    }
    text += &format!("\n\nthis host's key: {}", forming.key);
    for RefusedJoin { from, ago_s, why } in &forming.refused {
        // What was refused speaks of the joiner as of itself.
        text += &format!(
            "\nrefused {from} {} ago, which was told: {}",
            span(*ago_s),
            printable(why.to_string().as_bytes())
        );
    }
    if let Some(trouble) = &forming.trouble {
        text += &format!("\ntrouble: {}", printable(trouble.to_string().as_bytes()));
    }
    text
}

fn short(key: &str) -> String {
    format!("{}…", key.get(..16).unwrap_or(key))
}

pub(super) fn json(forming: &Forming) -> Value {
    let members = forming.members.iter().map(|member| {
        json!({ "name": member.name, "key": member.key, "address": member.address, "connected": member.is_here })
    });
    let refused = forming
        .refused
        .iter()
        .map(|it| json!({ "from": it.from, "seconds_ago": it.ago_s, "why": it.why.to_string() }));
    json!({
        "phase": forming.phase,
        "key": forming.key,
        "expect": forming.expect,
        "missing": forming.expect.saturating_sub(forming.members.len() as u64),
        "inviter": forming.inviter,
        "members": members.collect::<Vec<_>>(),
        "refused": refused.collect::<Vec<_>>(),
        "trouble": forming.trouble.as_ref().map(ToString::to_string),
    })
}
