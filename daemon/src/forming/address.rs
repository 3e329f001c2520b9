//! Where others reach this host, and how it is called, from what an operator says.

use std::net::SocketAddr;

use bftd_client::{
    forming::{FormFailure, Place},
    genesis::is_name,
};
use tokio::net::lookup_host;

use crate::config::NodeConfig;

/// The name and the address that a daemon goes by.
pub(super) async fn resolve(place: &Place, config: &NodeConfig) -> Result<(String, SocketAddr), FormFailure> {
    let name = match &place.name {
        Some(name) => name.clone(),
        None => host_name()?,
    };
    if !is_name(&name) {
        return Err(FormFailure::BadName { name, of: "member's".to_owned() });
    }
    let Some(text) = place.advertise.as_ref().or(config.advertise.as_ref()) else {
        return Err(FormFailure::BadAddress("where do the other members reach this host?".to_owned()));
    };
    let address = find(text, config.listen).await?;
    Ok((name, address))
}

async fn find(text: &str, listen: Option<SocketAddr>) -> Result<SocketAddr, FormFailure> {
    let bad = |why: String| Err(FormFailure::BadAddress(why));
    if !text.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok_and(|port| port > 0)) {
        return bad(format!("`{text}` names no port: HOST:PORT is needed, as in 10.0.0.1:7000"));
    }
    let found: Vec<_> = match lookup_host(text).await {
        Ok(found) => found.collect(),
        Err(error) => return bad(format!("`{text}` can't be found: {error}")),
    };
    let suits = |address: &&SocketAddr| listen.is_none_or(|listen| listen.is_ipv4() == address.is_ipv4());
    let Some(address) = found.iter().find(suits).or(found.first()).copied() else {
        return bad(format!("`{text}` has no address"));
    };
    let ip = address.ip();
    if ip.is_unspecified() || ip.is_multicast() {
        return bad(format!("{ip} is no address that others reach this host at"));
    }
    // Debian gives a host's own name such an address.
    if ip.is_loopback() && text.parse::<SocketAddr>().is_err() && !text.starts_with("localhost:") {
        return bad(format!("`{text}` is {ip} here, which no other host reaches; give the address itself"));
    }
    Ok(address)
}

fn host_name() -> Result<String, FormFailure> {
    let system = rustix::system::uname();
    let name = system.nodename().to_string_lossy().into_owned();
    if is_name(&name) { Ok(name) } else { Err(FormFailure::BadName { name, of: "member's".to_owned() }) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn an_address_is_one_that_others_can_use() {
        assert_eq!(find("10.0.0.1:7000", None).await.unwrap().to_string(), "10.0.0.1:7000");
        assert_eq!(find("[::1]:7000", None).await.unwrap().to_string(), "[::1]:7000");
        assert!(find("localhost:7000", None).await.unwrap().ip().is_loopback());
        for (text, why) in [
            ("10.0.0.1", "names no port"),
            ("10.0.0.1:0", "names no port"),
            ("10.0.0.1:99999", "names no port"),
            ("0.0.0.0:7000", "no address that others reach"),
            ("224.0.0.1:7000", "no address that others reach"),
            ("no.such.host.invalid:7000", "can't be found"),
        ] {
            let error = find(text, None).await.unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
