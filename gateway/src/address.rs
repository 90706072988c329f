//! Who sent a request: the connection's other end, or, if that is a proxy that we trust, whoever it says
//! (`X-Forwarded-For`). Pure.
//!
//! Invariant: nobody but a trusted proxy can choose the address that we take for theirs. Each proxy appends whom it
//! heard the request from, so the list is read from its end, and left at the first address that isn't trusted.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use http::HeaderMap;

const FORWARDED_FOR: &str = "x-forwarded-for";

/// A network of proxies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Network {
    address: IpAddr,
    prefix: u32,
}

impl Network {
    /// Takes `10.1.0.0/16`, `fd00::/8` or a single address.
    ///
    /// # Errors
    /// Anything else.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let (address, prefix) = text.split_once('/').map_or((text, None), |(address, prefix)| (address, Some(prefix)));
        let address: IpAddr = address.parse().with_context(|| format!("{text:?} is no network"))?;
        let longest = if address.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            Some(prefix) => prefix.parse().with_context(|| format!("{text:?} is no network"))?,
            None => longest,
        };
        ensure!(prefix <= longest, "{text:?} is no network: at most /{longest}");
        Ok(Self { address, prefix })
    }

    fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                (own.to_bits() ^ other.to_bits()).checked_shr(32 - self.prefix).unwrap_or(0) == 0
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => {
                (own.to_bits() ^ other.to_bits()).checked_shr(128 - self.prefix).unwrap_or(0) == 0
            }
            _ => false,
        }
    }
}

/// Whom a request comes from that `peer` handed over. An entry that is no address ends the list: the proxy before it
/// is taken.
pub(crate) fn sender(peer: IpAddr, headers: &HeaderMap, trusted: &[Network]) -> IpAddr {
    let is_trusted = |address: IpAddr| trusted.iter().any(|network| network.contains(address));
    let mut sender = peer.to_canonical();
    let lines = headers.get_all(FORWARDED_FOR).iter().rev();
    for entry in lines.flat_map(|line| line.as_bytes().rsplit(|byte| *byte == b',')) {
        if !is_trusted(sender) {
            break;
        }
        match parse(entry) {
            Some(before) => sender = before,
            None => break,
        }
    }
    sender
}

/// `192.0.2.1`, `2001:db8::1`, and with a port, as some proxies write it.
fn parse(entry: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(entry).ok()?.trim();
    let address = text.parse().or_else(|_| text.parse::<SocketAddr>().map(|address| address.ip()));
    address.ok().map(|address| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sender_of(peer: &str, lines: &[&str], trusted: &[&str]) -> String {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(FORWARDED_FOR, line.parse().unwrap());
        }
        let trusted: Vec<_> = trusted.iter().map(|text| Network::parse(text).unwrap()).collect();
        sender(peer.parse().unwrap(), &headers, &trusted).to_string()
    }

    #[test]
    fn a_stranger_cannot_say_who_it_is() {
        assert_eq!(sender_of("203.0.113.9", &["198.51.100.1"], &[]), "203.0.113.9");
        assert_eq!(sender_of("203.0.113.9", &["198.51.100.1"], &["10.0.0.0/8"]), "203.0.113.9");
        let forged = "192.0.2.66, 203.0.113.9";
        assert_eq!(
            sender_of("10.0.0.1", &[forged], &["10.0.0.0/8"]),
            "203.0.113.9",
            "only the proxy's own entry counts"
        );
    }

    #[test]
    fn trusted_proxies_are_passed_over_from_the_end_and_across_lines() {
        let trusted = ["10.0.0.0/8", "fd00::/8"];
        assert_eq!(sender_of("10.0.0.1", &["203.0.113.9, 10.9.9.9", "fd00::1"], &trusted), "203.0.113.9");
        assert_eq!(sender_of("10.0.0.1", &["203.0.113.9:4711"], &trusted), "203.0.113.9");
        assert_eq!(sender_of("10.0.0.1", &["[2001:db8::1]:443"], &trusted), "2001:db8::1");
        assert_eq!(sender_of("::ffff:10.0.0.1", &["203.0.113.9"], &trusted), "203.0.113.9", "a dual-stack socket");
    }

    #[test]
    fn an_entry_that_is_no_address_ends_the_list() {
        for bad in ["unknown", "", "203.0.113.9, <script>", "999.1.1.1", "_hidden"] {
            assert_eq!(sender_of("10.0.0.1", &[bad], &["10.0.0.0/8"]), "10.0.0.1", "{bad}");
        }
        assert_eq!(sender_of("10.0.0.1", &[], &["10.0.0.0/8"]), "10.0.0.1");
    }

    #[test]
    fn networks_are_taken_with_and_without_a_prefix() {
        let within = |network: &str, address: &str| Network::parse(network).unwrap().contains(address.parse().unwrap());
        assert!(within("0.0.0.0/0", "203.0.113.9") && !within("0.0.0.0/0", "::1"));
        assert!(within("192.0.2.1", "192.0.2.1") && !within("192.0.2.1", "192.0.2.2"));
        assert!(within("192.0.2.0/31", "192.0.2.1") && !within("192.0.2.0/31", "192.0.2.2"));
        assert!(within("::/0", "2001:db8::1") && within("fd00::/8", "fdff::1") && !within("fd00::/8", "fe00::1"));
        for bad in ["", "10.0.0.0/33", "::/129", "10.0.0.0/-1", "example.com", "10.0.0.0/"] {
            assert!(Network::parse(bad).is_err(), "{bad}");
        }
    }
}
