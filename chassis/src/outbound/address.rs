//! Where requests may go: the pure policy over URLs, names, addresses and ports.
//!
//! Sources: the IANA special-purpose registries for IPv4 and IPv6 (RFC 6890 and successors), the cloud vendors'
//! metadata addresses, and the WHATWG URL standard for the one parser that decides what a URL names.
//!
//! Invariant: only global unicast is ever a target, unless the configuration opens a network by name.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use url::{Host, Url};

/// Why an address is not a target.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// The URL's form: what it must be.
    #[error("the URL {0}")]
    Url(&'static str),
    /// The name, address or port is closed to outbound requests.
    #[error("{0} is not a public address that requests may go to")]
    Forbidden(String),
    /// The name has no address, or none was answered in time.
    #[error("{0} can't be resolved")]
    Unresolved(String),
}

const MAX_URL_BYTES: usize = 2048;

#[rustfmt::skip]
const FORBIDDEN_V4: [(Ipv4Addr, u8); 21] = [
    (Ipv4Addr::new(0, 0, 0, 0), 8),         // this network; reaches the machine itself on Linux
    (Ipv4Addr::new(10, 0, 0, 0), 8),        // private
    (Ipv4Addr::new(100, 64, 0, 0), 10),     // carrier-grade NAT; Alibaba's metadata
    (Ipv4Addr::new(127, 0, 0, 0), 8),       // loopback
    (Ipv4Addr::new(168, 63, 129, 16), 32),  // Azure's wire server, on a public address
    (Ipv4Addr::new(169, 254, 0, 0), 16),    // link-local; metadata of most clouds
    (Ipv4Addr::new(172, 16, 0, 0), 12),     // private
    (Ipv4Addr::new(192, 0, 0, 0), 24),      // IETF assignments; Oracle's metadata
    (Ipv4Addr::new(192, 0, 2, 0), 24),      // documentation
    (Ipv4Addr::new(192, 31, 196, 0), 24),   // AS112
    (Ipv4Addr::new(192, 52, 193, 0), 24),   // AMT
    (Ipv4Addr::new(192, 88, 99, 0), 24),    // 6to4 relays
    (Ipv4Addr::new(192, 168, 0, 0), 16),    // private
    (Ipv4Addr::new(192, 175, 48, 0), 24),   // AS112
    (Ipv4Addr::new(198, 18, 0, 0), 15),     // benchmarking
    (Ipv4Addr::new(198, 51, 100, 0), 24),   // documentation
    (Ipv4Addr::new(203, 0, 113, 0), 24),    // documentation
    (Ipv4Addr::new(224, 0, 0, 0), 4),       // multicast
    (Ipv4Addr::new(233, 252, 0, 0), 24),    // documentation, multicast
    (Ipv4Addr::new(240, 0, 0, 0), 4),       // class E
    (Ipv4Addr::new(255, 255, 255, 255), 32), // broadcast
];

/// Inside 2000::/3; everything outside it is refused as a whole (mapped, NAT64, unique local, link-local, multicast...).
#[rustfmt::skip]
const FORBIDDEN_V6: [(Ipv6Addr, u8); 5] = [
    (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 23),          // Teredo, benchmarking, ORCHID, AS112
    (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 32),      // documentation
    (Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16),          // 6to4
    (Ipv6Addr::new(0x2620, 0x4f, 0x8000, 0, 0, 0, 0, 0), 48),  // AS112
    (Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 0), 20),          // documentation
];

const GLOBAL_UNICAST: (Ipv6Addr, u8) = (Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0), 3);

/// Ports of services that a crafted HTTP request could harm.
const FORBIDDEN_PORTS: [u16; 45] = [
    0, 22, 23, 25, 53, 110, 111, 135, 139, 143, 389, 445, 465, 587, 636, 873, 993, 995, 1433, 1521, 2049, 2181, 2375,
    2376, 2379, 3306, 3389, 4222, 5432, 5672, 5984, 6379, 6443, 8086, 8222, 8500, 9000, 9042, 9092, 9200, 10250, 11211,
    27017, 21, 69,
];

/// Names that mean the inside of some network, with everything below them.
const FORBIDDEN_NAMES: [&str; 9] =
    ["localhost", "local", "internal", "intranet", "lan", "arpa", "onion", "svc", "localdomain"];

/// A network that the configuration opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Network {
    address: IpAddr,
    prefix: u8,
}

impl Network {
    /// Takes `10.1.0.0/16`, `fd00::/8` or a single address.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().ok()?;
        let longest = if address.is_ipv4() { 32 } else { 128 };
        let prefix = prefix.map_or(Some(longest), |prefix| prefix.parse().ok())?;
        (prefix <= longest).then_some(Self { address, prefix })
    }

    fn contains(&self, ip: IpAddr) -> bool {
        match (self.address, ip) {
            (IpAddr::V4(network), IpAddr::V4(ip)) => within_v4((network, self.prefix), ip),
            (IpAddr::V6(network), IpAddr::V6(ip)) => within_v6((network, self.prefix), ip),
            _ => false,
        }
    }
}

fn within_v4((network, prefix): (Ipv4Addr, u8), ip: Ipv4Addr) -> bool {
    let differing = network.to_bits() ^ ip.to_bits();
    prefix == 0 || differing >> (32 - prefix) == 0
}

fn within_v6((network, prefix): (Ipv6Addr, u8), ip: Ipv6Addr) -> bool {
    let differing = network.to_bits() ^ ip.to_bits();
    prefix == 0 || differing >> (128 - prefix) == 0
}

/// Whether the whole internet can reach it: global unicast, of no special purpose.
pub(crate) fn is_public(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => !FORBIDDEN_V4.iter().any(|network| within_v4(*network, ip)),
        IpAddr::V6(ip) => within_v6(GLOBAL_UNICAST, ip) && !FORBIDDEN_V6.iter().any(|network| within_v6(*network, ip)),
    }
}

/// What the configuration opens.
#[derive(Debug, Clone, Default)]
pub(crate) struct Policy {
    pub(crate) allow_networks: Vec<Network>,
    pub(crate) allow_http: bool,
}

impl Policy {
    /// Parses and judges a URL by its form; an address in it is judged too, a name's addresses are not yet known.
    pub(crate) fn vet(&self, text: &str, own: &[SocketAddr]) -> Result<Url, AddressError> {
        let url = self.parse(text)?;
        let port = url.port_or_known_default().unwrap_or(0);
        match url.host() {
            Some(Host::Ipv4(ip)) => self.vet_address(SocketAddr::new(ip.into(), port), own)?,
            Some(Host::Ipv6(ip)) => self.vet_address(SocketAddr::new(ip.into(), port), own)?,
            Some(Host::Domain(name)) => self.vet_name(name)?,
            None => return Err(AddressError::Url("must name a host")),
        }
        Ok(url)
    }

    /// One form for one URL: where parsers are known to disagree, it is refused instead of interpreted.
    fn parse(&self, text: &str) -> Result<Url, AddressError> {
        let refuse = |reason| Err(AddressError::Url(reason));
        if text.len() > MAX_URL_BYTES {
            return refuse("must not be longer than 2048 bytes");
        }
        if text.chars().any(|c| c.is_control() || c.is_whitespace() || c == '\\') {
            return refuse("must not hold spaces, control characters or backslashes");
        }
        let Some((scheme, rest)) = text.split_once("://") else { return refuse("must begin with https://") };
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        if authority.contains(['@', '%']) {
            return refuse("must not hold a user, a password or escapes before its path");
        }
        if rest.contains('#') {
            return refuse("must not hold a fragment");
        }
        match scheme.to_ascii_lowercase().as_str() {
            "https" => {}
            "http" if self.allow_http => {}
            _ => return refuse("must begin with https://"),
        }
        if authority.is_empty() {
            return refuse("must name a host");
        }
        Url::parse(text).map_err(|_| AddressError::Url("is not well-formed"))
    }

    /// Names of the inside are refused unresolved, unless some network is open: its addresses decide then.
    fn vet_name(&self, name: &str) -> Result<(), AddressError> {
        if !self.allow_networks.is_empty() {
            return Ok(());
        }
        let inside = |label: &str| FORBIDDEN_NAMES.contains(&label);
        let last = name.rsplit('.').next().unwrap_or_default();
        if last.is_empty() || !name.contains('.') || inside(last) || name.starts_with("kubernetes.default") {
            return Err(AddressError::Forbidden(name.to_owned()));
        }
        Ok(())
    }

    /// Judges the address and port that a connection would go to.
    pub(crate) fn vet_address(&self, address: SocketAddr, own: &[SocketAddr]) -> Result<(), AddressError> {
        let refuse = || Err(AddressError::Forbidden(address.to_string()));
        if own.iter().any(|own| is_own(*own, address)) {
            return refuse();
        }
        if self.allow_networks.iter().any(|network| network.contains(address.ip())) {
            return Ok(());
        }
        if !is_public(address.ip()) || FORBIDDEN_PORTS.contains(&address.port()) {
            return refuse();
        }
        Ok(())
    }
}

/// Whether a connection to `target` would arrive at our own listener.
fn is_own(own: SocketAddr, target: SocketAddr) -> bool {
    let (own_ip, ip) = (own.ip().to_canonical(), target.ip().to_canonical());
    let loops = |ip: IpAddr| ip.is_loopback() || ip.is_unspecified();
    own.port() == target.port()
        && (own_ip == ip || (loops(own_ip) && loops(ip)) || (own_ip.is_unspecified() && is_of_this_machine(ip)))
}

/// Only an address of this machine can be bound.
fn is_of_this_machine(ip: IpAddr) -> bool {
    std::net::UdpSocket::bind(SocketAddr::new(ip, 0)).is_ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn strict() -> Policy {
        Policy { allow_http: true, ..Policy::default() }
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().expect(text)
    }

    #[test]
    fn special_purpose_addresses_are_refused_to_their_last_and_their_neighbours_are_not() {
        let edges = [
            ("0.0.0.0", "0.255.255.255", "1.0.0.0"),
            ("10.0.0.0", "10.255.255.255", "11.0.0.0"),
            ("100.64.0.0", "100.127.255.255", "100.128.0.0"),
            ("127.0.0.0", "127.255.255.255", "128.0.0.0"),
            ("168.63.129.16", "168.63.129.16", "168.63.129.17"),
            ("169.254.0.0", "169.254.255.255", "169.255.0.0"),
            ("172.16.0.0", "172.31.255.255", "172.32.0.0"),
            ("192.0.0.0", "192.0.0.255", "192.0.1.0"),
            ("192.0.2.0", "192.0.2.255", "192.0.3.0"),
            ("192.31.196.0", "192.31.196.255", "192.31.197.0"),
            ("192.52.193.0", "192.52.193.255", "192.52.194.0"),
            ("192.88.99.0", "192.88.99.255", "192.88.100.0"),
            ("192.168.0.0", "192.168.255.255", "192.169.0.0"),
            ("192.175.48.0", "192.175.48.255", "192.175.49.0"),
            ("198.18.0.0", "198.19.255.255", "198.20.0.0"),
            ("198.51.100.0", "198.51.100.255", "198.51.101.0"),
            ("203.0.113.0", "203.0.113.255", "203.0.114.0"),
            ("224.0.0.0", "255.255.255.255", "223.255.255.255"),
            ("2001::", "2001:1ff:ffff:ffff:ffff:ffff:ffff:ffff", "2001:200::"),
            ("2001:db8::", "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff", "2001:db9::"),
            ("2002::", "2002:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "2003::"),
            ("2620:4f:8000::", "2620:4f:8000:ffff:ffff:ffff:ffff:ffff", "2620:4f:8001::"),
            ("3fff::", "3fff:fff:ffff:ffff:ffff:ffff:ffff:ffff", "3fff:1000::"),
            ("::", "1fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "2000::"),
            ("4000::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "2a00:1450::"),
        ];
        for (first, last, neighbour) in edges {
            assert!(!is_public(ip(first)), "{first}");
            assert!(!is_public(ip(last)), "{last}");
            assert!(is_public(ip(neighbour)), "{neighbour}");
        }
    }

    #[test]
    fn addresses_that_lead_inside_by_another_spelling_are_refused() {
        for text in [
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:8.8.8.8",
            "::127.0.0.1",
            "::ffff:0:127.0.0.1",
            "64:ff9b::7f00:1",
            "64:ff9b::808:808",
            "64:ff9b:1::1",
            "100::1",
            "2002:7f00:1::",
            "2001:0:7f00:1::",
            "fd00:ec2::254",
            "fd20:ce::254",
            "fe80::1",
            "fec0::1",
            "ff02::1",
            "5f00::1",
            "169.254.169.254",
            "100.100.100.200",
            "192.0.0.192",
            "255.255.255.255",
        ] {
            assert!(!is_public(ip(text)), "{text}");
        }
        for text in ["8.8.8.8", "1.1.1.1", "93.184.216.34", "2606:4700::1111", "2a00:1450:4001::200e"] {
            assert!(is_public(ip(text)), "{text}");
        }
    }

    #[test]
    fn every_notation_of_a_forbidden_address_is_refused() {
        let hosts = [
            "127.0.0.1",
            "127.1",
            "127.0.1",
            "2130706433",
            "0x7f000001",
            "0x7f.1",
            "0177.0.0.1",
            "017700000001",
            "127.0.0.1.",
            "0",
            "0.0.0.0",
            "0x0",
            "１２７.０.０.１",
            "①②⑦.⓪.⓪.①",
            "127。0。0。1",
            "[::1]",
            "[::ffff:127.0.0.1]",
            "[::ffff:7f00:1]",
            "[0:0:0:0:0:ffff:127.0.0.1]",
            "[::127.0.0.1]",
            "[64:ff9b::7f00:1]",
            "[2002:7f00:1::]",
            "[fe80::1]",
            "[fd00::1]",
            "10.1.2.3",
            "192.168.1",
            "169.254.169.254",
            "2852039166",
            "0xa9fea9fe",
            "224.0.0.1",
        ];
        for host in hosts {
            for scheme in ["http", "https", "HTTPS"] {
                for rest in ["", "/", "/path?q", ":8080/", ":00443/"] {
                    let url = format!("{scheme}://{host}{rest}");
                    assert!(matches!(strict().vet(&url, &[]), Err(AddressError::Forbidden(_))), "{url}");
                }
            }
        }
    }

    #[test]
    fn urls_that_parsers_read_differently_are_refused_by_their_form() {
        for url in [
            "",
            "https",
            "https:",
            "https://",
            "https:///",
            "https:127.0.0.1",
            "https:/127.0.0.1",
            "https:\\\\127.0.0.1",
            "https://u:p@example.com",
            "https://example.com@127.0.0.1",
            "https://@example.com",
            "https://good.com\\@127.0.0.1",
            "https://127.0.0.1#@good.com",
            "https://good.com#fragment",
            "https://%31%32%37.0.0.1",
            "https://exa\tmple.com",
            "https://exa\r\nmple.com",
            "https://exa\0mple.com",
            " https://example.com",
            "https://example.com ",
            "https://[::1%25lo]",
            "https://[::1",
            "https://::1/",
            "https://example.com:65536",
            "https://example.com:-1",
            "https://example.com:x",
            "https://exam ple.com",
            "//example.com",
            "example.com",
            "file:///etc/passwd",
            "ftp://example.com",
            "gopher://example.com",
            "dict://example.com",
            "ldap://example.com",
            "jar:https://example.com",
            "data:text/plain,x",
            "unix:///run/docker.sock",
            "blob:https://example.com/x",
            "ws://example.com",
            "https://?",
            "https://#",
            "https://exa<mple.com",
            "https://xn--/",
            "https://1.2.3.4.5.6.7.8.9/",
        ] {
            assert!(strict().vet(url, &[]).is_err(), "{url:?}");
        }
        assert_eq!(
            strict().vet(&format!("https://example.com/{}", "a".repeat(2048)), &[]),
            Err(AddressError::Url("must not be longer than 2048 bytes"))
        );
    }

    #[test]
    fn names_of_the_inside_are_refused_unresolved() {
        for name in [
            "localhost",
            "LOCALHOST",
            "a.localhost",
            "printer.local",
            "db.internal",
            "metadata.google.internal",
            "x.intranet",
            "nas.lan",
            "x.home.arpa",
            "1.0.0.127.in-addr.arpa",
            "x.onion",
            "kubernetes.default",
            "kubernetes.default.svc",
            "redis.svc",
            "redis.ns.svc.cluster.local",
            "intra",
            "localhost.",
            "db.internal.",
            "example.com.",
            "localhost.localdomain",
            "ｌｏｃａｌｈｏｓｔ",
        ] {
            let refused = strict().vet(&format!("https://{name}/"), &[]);
            assert!(matches!(refused, Err(AddressError::Forbidden(_))), "{name}: {refused:?}");
        }
        for name in
            ["example.com", "hooks.slack.com", "bücher.example.com", "local.example.com", "xn--bcher-kva.example"]
        {
            assert!(strict().vet(&format!("https://{name}/"), &[]).is_ok(), "{name}");
        }
    }

    #[test]
    fn a_url_is_kept_in_its_one_serialised_form() {
        let url = strict().vet("HTTPS://BÜCHER.example.com:443/a/../b?x=1", &[]).expect("a public name");
        assert_eq!(url.as_str(), "https://xn--bcher-kva.example.com/b?x=1");
    }

    #[test]
    fn plain_http_needs_the_setting() {
        assert!(Policy::default().vet("http://example.com/", &[]).is_err());
        assert!(strict().vet("http://example.com/", &[]).is_ok());
    }

    #[test]
    fn ports_of_other_protocols_are_refused_even_on_public_addresses() {
        for port in FORBIDDEN_PORTS {
            assert!(strict().vet(&format!("https://8.8.8.8:{port}/"), &[]).is_err(), "{port}");
        }
        for port in [80, 443, 8080, 8443, 3000] {
            assert!(strict().vet(&format!("https://8.8.8.8:{port}/"), &[]).is_ok(), "{port}");
        }
    }

    #[test]
    fn an_opened_network_lets_only_itself_through_and_never_our_own_ports() {
        let network = Network::parse("127.0.0.0/8").expect("a network");
        let open = Policy { allow_networks: vec![network], allow_http: true };
        assert!(open.vet("http://127.0.0.1:9000/", &[]).is_ok());
        assert!(open.vet("http://localhost:9000/", &[]).is_ok(), "its addresses decide");
        for url in ["http://10.0.0.1/", "http://[::1]/", "http://[::ffff:127.0.0.1]/", "http://169.254.169.254/"] {
            assert!(open.vet(url, &[]).is_err(), "{url}");
        }
        for own in ["127.0.0.1:7410", "0.0.0.0:7410", "[::]:7410", "[::1]:7410"] {
            let own = [own.parse().expect(own)];
            assert!(open.vet("http://127.0.0.1:7410/", &own).is_err(), "{own:?}");
            assert!(open.vet("http://127.0.0.1:7411/", &own).is_ok(), "{own:?}");
        }
    }

    #[test]
    fn our_own_public_listener_is_refused_and_a_strangers_same_port_is_not() {
        let own = ["8.8.8.8:443".parse().expect("an address"), "0.0.0.0:443".parse().expect("an address")];
        assert!(strict().vet("https://8.8.8.8/", &own).is_err());
        assert!(strict().vet("https://9.9.9.9/", &own).is_ok());
    }

    #[test]
    fn malformed_networks_are_refused() {
        for text in ["", "localhost", "10.0.0.0/33", "10.0.0.0/", "::/129", "10.0.0.0/-1", "10.0.0/8"] {
            assert_eq!(Network::parse(text), None, "{text}");
        }
        assert!(Network::parse("0.0.0.0/0").expect("all").contains(ip("8.8.8.8")));
        assert!(Network::parse("10.1.2.3").expect("one").contains(ip("10.1.2.3")));
        assert!(!Network::parse("10.1.2.3").expect("one").contains(ip("10.1.2.4")));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(5_000))]

        /// The standard library's own classification as an independent opinion.
        #[test]
        fn nothing_that_the_standard_library_calls_special_is_public(bits in any::<u32>(), wide in any::<u128>()) {
            let v4 = Ipv4Addr::from_bits(bits);
            if v4.is_private() || v4.is_loopback() || v4.is_link_local() || v4.is_multicast() || v4.is_broadcast()
                || v4.is_documentation() || v4.is_unspecified() {
                prop_assert!(!is_public(v4.into()));
            }
            prop_assert!(!is_public(v4.to_ipv6_mapped().into()));
            prop_assert!(!is_public(v4.to_ipv6_compatible().into()));
            let v6 = Ipv6Addr::from_bits(wide);
            if v6.is_loopback() || v6.is_unspecified() || v6.is_multicast() || v6.is_unique_local() || v6.is_unicast_link_local() {
                prop_assert!(!is_public(v6.into()));
            }
            prop_assert_eq!(is_public(v6.into()) , is_public(v6.into()) && (wide >> 125) == 1);
        }

        #[test]
        fn no_spelling_of_an_address_changes_the_verdict(bits in any::<u32>()) {
            let v4 = Ipv4Addr::from_bits(bits);
            let [a, b, c, d] = v4.octets();
            let expected = is_public(v4.into());
            for host in [v4.to_string(), bits.to_string(), format!("0x{bits:x}"), format!("0{a:o}.{b}.{c}.{d}"), format!("{a}.{b}.{}", u32::from(c) * 256 + u32::from(d))] {
                prop_assert_eq!(strict().vet(&format!("https://{host}/"), &[]).is_ok(), expected, "{}", host);
            }
        }
    }
}
