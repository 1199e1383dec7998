//! Where a client is.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;
use std::sync::Arc;

use axum::http::HeaderMap;
use ipnet::IpNet;

/// The network address at the other end of a connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Peer(pub(super) IpAddr);

/// The proxies whose word is taken for where a client is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Proxies(Arc<[IpNet]>);

/// The text is no list of networks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a list of addresses and networks, such as 10.0.0.0/8,192.0.2.7,2001:db8::/32")]
pub struct InvalidNetwork;

/// As it is read.
impl fmt::Display for Proxies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let networks: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&networks.join(","))
    }
}

impl FromStr for Proxies {
    type Err = InvalidNetwork;

    fn from_str(text: &str) -> Result<Self, InvalidNetwork> {
        text.split(',')
            .map(str::trim)
            .filter(|entry| !entry.is_empty())
            .map(|entry| {
                let single = entry.parse::<IpAddr>().map(|ip| ip.to_canonical().into());
                single.or_else(|_| entry.parse().map_err(|_| InvalidNetwork))
            })
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

impl Proxies {
    fn trust(&self, address: IpAddr) -> bool {
        self.0.iter().any(|network| network.contains(&address))
    }

    /// Where the client is that reached us through `peer`: what the trusted proxies say, read from
    /// the nearest to the farthest, up to the first address that is none of them. Anybody can
    /// write what lies beyond.
    pub(super) fn client(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        let mut nearest = peer.to_canonical();
        let forwarded: Vec<&str> = headers
            .get_all("x-forwarded-for")
            .iter()
            // An entry that is no text ends the walk, as one that is no address does.
            .flat_map(|value| value.to_str().unwrap_or_default().split(','))
            .collect();
        for entry in forwarded.into_iter().rev() {
            if !self.trust(nearest) {
                break;
            }
            let Some(address) = address(entry.trim()) else {
                break;
            };
            nearest = address;
        }
        nearest
    }
}

/// An address as proxies write it: with a port or without.
fn address(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|t| t.strip_suffix(']'));
    let parsed = bare.unwrap_or(text).parse();
    let with_port = || text.parse().map(|socket: std::net::SocketAddr| socket.ip());
    parsed
        .or_else(|_| with_port())
        .ok()
        .map(|ip| ip.to_canonical())
}

/// What is counted as one place. Whoever has one IPv6 address has the 2^64 of its network as well.
pub(super) fn neighbourhood(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(address) => {
            let network = address.to_bits() & (u128::MAX << 64);
            Ipv6Addr::from_bits(network).into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(trusted: &str, peer: &str, forwarded: &[&str]) -> String {
        let mut headers = HeaderMap::new();
        for value in forwarded {
            headers.append("x-forwarded-for", value.parse().unwrap());
        }
        let proxies: Proxies = trusted.parse().unwrap();
        proxies.client(peer.parse().unwrap(), &headers).to_string()
    }

    #[test]
    fn nobody_is_believed_unless_told_so() {
        assert_eq!(client("", "10.0.0.1", &["192.0.2.1"]), "10.0.0.1");
        assert_eq!(
            client("10.0.0.0/8", "192.0.2.9", &["192.0.2.1"]),
            "192.0.2.9"
        );
    }

    #[test]
    fn the_nearest_address_that_is_no_trusted_proxy_is_the_clients() {
        let trusted = "10.0.0.0/8, 2001:db8::/32,203.0.113.7";
        for (peer, forwarded, expected) in [
            ("10.0.0.1", &["198.51.100.4"] as &[&str], "198.51.100.4"),
            // What the client wrote itself stands farther away.
            ("10.0.0.1", &["1.1.1.1, 198.51.100.4"], "198.51.100.4"),
            (
                "10.0.0.1",
                &["1.1.1.1", "198.51.100.4, 10.9.9.9"],
                "198.51.100.4",
            ),
            (
                "10.0.0.1",
                &["198.51.100.4:5123, 203.0.113.7"],
                "198.51.100.4",
            ),
            ("2001:db8::1", &["[2a00::5]:443"], "2a00::5"),
            ("2001:db8::1", &["[2a00::5]"], "2a00::5"),
            ("::ffff:10.0.0.1", &["::ffff:198.51.100.4"], "198.51.100.4"),
            // No address: the last hop that is known.
            ("10.0.0.1", &["198.51.100.4, unknown"], "10.0.0.1"),
            ("10.0.0.1", &["198.51.100.4, unknown, 10.0.0.2"], "10.0.0.2"),
            ("10.0.0.1", &[""], "10.0.0.1"),
            ("10.0.0.1", &[], "10.0.0.1"),
            ("10.0.0.1", &["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
        ] {
            assert_eq!(client(trusted, peer, forwarded), expected, "{forwarded:?}");
        }
    }

    #[test]
    fn an_ipv6_network_counts_as_one_place() {
        let of = |text: &str| neighbourhood(text.parse().unwrap());
        assert_eq!(of("2a00:1:2:3::1"), of("2a00:1:2:3:ffff::9"));
        assert_ne!(of("2a00:1:2:3::1"), of("2a00:1:2:4::1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
    }

    #[test]
    fn what_is_no_network_is_refused_at_the_start() {
        for bad in ["x", "10.0.0.0/33", "10.0.0", "localhost"] {
            assert!(bad.parse::<Proxies>().is_err(), "{bad}");
        }
    }
}
