//! What to do when a cluster is not formed: one next step a reason.

use bftd_client::{forming::FormFailure, genesis::fingerprint_of};

use crate::failure::{Code, Failure};

/// The exit code of a reason.
pub(crate) fn code_of(failure: &FormFailure) -> Code {
    use FormFailure as F;
    match failure {
        F::UnknownToken
        | F::TokenExpired { .. }
        | F::TokenUsedUp { .. }
        | F::FormedWithout(_)
        | F::Full { .. } => Code::Denied,
        F::InviterUnreachable { .. }
        | F::InviterBusy(_)
        | F::InviterNotGathering(_)
        | F::NotReached { .. } => Code::Unreachable,
        F::WrongKey { .. } | F::InviterMisbehaves { .. } => Code::VerificationFailed,
        F::NoToken(_)
        | F::NameTaken { .. }
        | F::AddressTaken { .. }
        | F::BadAddress(_)
        | F::BadName { .. }
        | F::TooFew { .. }
        | F::NoSuchMember(_)
        | F::BadGenesis(_) => Code::Usage,
        F::FormedHere { .. }
        | F::Engaged(_)
        | F::NotGathering
        | F::OtherVersion(_)
        | F::ClockOff { .. }
        | F::Impossible(_)
        | F::CantListen { .. }
        | F::TooManyTokens(_) => Code::Other,
    }
}

/// A reason with its cause and its next step.
pub(crate) fn explain(base: Failure, failure: &FormFailure) -> Failure {
    use FormFailure as F;
    const NEW_TOKEN: &str = "ask the inviter's operator for another one: bftctl token create";
    match failure {
        F::FormedHere { id, .. } => {
            let base = base.detail("id", id.as_str());
            let base = match fingerprint_of(id) {
                Some(shown) => base.cause(format!("its fingerprint is {shown}")),
                None => base,
            };
            base.next("bftctl status shows it; a host that shall belong to another cluster needs an empty data directory")
        }
        F::Engaged(_) => base.next(
            "bftctl status shows how far it is; repeat the very same command to watch it, or give it up with --abandon",
        ),
        F::NotGathering => base.next("on the host that shall gather: bftctl init --name NAME --expect 4 --advertise HOST:PORT"),
        F::InviterNotGathering(_) => base
            .cause("its operator has given the cluster up, or has not begun")
            .next("there: bftctl status; bftctl init; and then a new token"),
        F::NoToken(_) => base.next("copy the whole word that begins with bftd1"),
        F::UnknownToken => base
            .cause("it was made for another cluster, or long ago, or the inviter has begun anew")
            .next(NEW_TOKEN),
        F::TokenExpired { .. } => base.cause("by the inviter's clock").next(NEW_TOKEN),
        F::TokenUsedUp { .. } => base.next("ask the inviter's operator for another one: bftctl token create --uses N"),
        F::InviterUnreachable { address, .. } => base
            .cause("bftd does not run there, has not been told to gather, or UDP does not get there and back")
            .next(format!(
                "there: bftctl status, bftctl doctor; on the way: let UDP to {address} through, and the answers back"
            )),
        F::WrongKey { .. } => base
            .cause("another daemon has that address now, or somebody is in between; nothing was told to them")
            .next(
                "ask the inviter's operator what `bftd identity` prints there, by another way than the one that the token came by; \
                 if the inviter was set up anew, ask for a new token",
            ),
        F::OtherVersion(_) => base.next("install the same version of bftd on all hosts: bftd --version"),
        F::FormedWithout(_) => base
            .cause("all its members were there before this host came")
            .next("see whether the token is of the right cluster: bftctl status at the inviter lists the members"),
        F::Full { .. } => base.next(
            "at the inviter: bftctl status lists them; bftctl init --forget NAME makes room while the cluster is not formed yet",
        ),
        F::ClockOff { .. } => base
            .cause("blocks carry times, and members refuse those far ahead of their own clock")
            .next("set the clock that is wrong, here or there: timedatectl set-ntp true; then repeat the command"),
        F::NameTaken { .. } => base.next(
            "choose another name with --member-name; if that was this host with a key that is lost, at the inviter: \
             bftctl init --forget NAME",
        ),
        F::AddressTaken { .. } => base.next(
            "give this host's own address with --advertise; if that was this host with a key that is lost, at the inviter: \
             bftctl init --forget NAME",
        ),
        F::NotReached { address, .. } => base
            .cause("every member must reach every other; packets from here to the inviter come through, but not back to that address")
            .next(format!(
                "see whether {address} is this host's own, and let UDP in; behind NAT or in a container `listen` in [node] of bftd.toml is \
                 the address inside"
            )),
        F::InviterBusy(_) => base.next("repeat the command in a moment"),
        F::BadAddress(_) => base.next("give --advertise HOST:PORT, as in 10.0.0.1:7000, or `advertise` in [node] of bftd.toml"),
        F::BadName { .. } => base.next("choose one with --name for the cluster, or --member-name for this host"),
        F::TooFew { least, .. } => base.next(format!(
            "--expect {least}; or, for a test, --without-tolerance: then nothing can be decided while one member is away"
        )),
        F::CantListen { .. } => base.next(
            "see who has the port: ss -ulpn; and whether the address is this host's: behind NAT or in a container `listen` in [node] \
             of bftd.toml is the address inside",
        ),
        F::NoSuchMember(_) => base.next("bftctl status lists who was gathered; the host that gathers stays"),
        F::BadGenesis(_) => base.next("`bftd identity` prints this host's key; bftctl genesis new makes a genesis"),
        F::TooManyTokens(_) => base.next("use one of them, or wait until some expire"),
        F::InviterMisbehaves { .. } => base.next("talk to its operator; this host has stored no genesis of it"),
        F::Impossible(_) => base.next("journalctl -u bftd may say more; then repeat the command"),
    }
}

#[cfg(test)]
mod tests {
    use bftd_client::{Error, Failure as Refused, genesis::PublicKey};

    use super::*;

    #[test]
    fn what_can_be_mended_has_an_exit_code_and_a_next_step() {
        let address = "10.0.0.1:7000".parse().expect("an address");
        let (key, other) = (PublicKey([1; 32]), PublicKey([2; 32]));
        let name = || "host1".to_owned();
        let cases = [
            (FormFailure::ClockOff { ahead_ms: 3_600_000 }, 1, "timedatectl"),
            (FormFailure::FormedHere { cluster: name(), id: "00".repeat(32) }, 1, "empty data directory"),
            (FormFailure::OtherVersion(address), 1, "bftd --version"),
            (FormFailure::NoToken(String::new()), 2, "begins with bftd1"),
            (FormFailure::NameTaken { name: name(), key }, 2, "--member-name"),
            (FormFailure::AddressTaken { address, name: name() }, 2, "--advertise"),
            (FormFailure::WrongKey { address, expected: key, found: other }, 8, "bftd identity"),
            (FormFailure::InviterMisbehaves { address, what: name() }, 8, "stored no genesis"),
            (FormFailure::UnknownToken, 9, "bftctl token create"),
            (FormFailure::TokenExpired { ago_s: 3 }, 9, "bftctl token create"),
            (FormFailure::TokenUsedUp { uses: 2 }, 9, "--uses"),
            (FormFailure::FormedWithout(address), 9, "bftctl status"),
            (FormFailure::InviterUnreachable { address, seconds: 5 }, 10, "let UDP to 10.0.0.1:7000 through"),
            (FormFailure::NotReached { address, why: name() }, 10, "`listen`"),
        ];
        for (reason, code, next) in cases {
            let text = reason.to_string();
            let failure = Failure::from(Error::Failed(Refused::Forming(reason)));
            assert_eq!(failure.code.number(), code, "{text}");
            assert!(failure.next.as_ref().is_some_and(|it| it.contains(next)), "{text}: {:?}", failure.next);
        }
    }
}
