//! The unit in which client addresses are counted, limited and recognised again.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

/// One IPv4 address, or one IPv6 network of the length in which addresses are given out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AddressGroup {
    network: IpAddr,
    bits: u8,
}

/// The IPv6 networks in which one peer is counted, the narrowest first: a link, a home, an organisation. Whoever has a wider one
/// can vary the narrower ones freely.
const IPV6_STEPS: [u8; 3] = [64, 56, 48];

impl AddressGroup {
    /// The groups that `address` is counted in, the narrowest first, and how many times the limit of one address each may have.
    /// An IPv4 address is one group; an IPv6 address is in its /64, in its /56 (twice the limit) and in its /48 (four times).
    pub fn steps(address: IpAddr) -> impl Iterator<Item = (Self, usize)> {
        let (steps, factors): (&[u8], _) = match address.to_canonical() {
            IpAddr::V4(_) => (&[32], [1, 1, 1]),
            IpAddr::V6(_) => (&IPV6_STEPS, [1, 2, 4]),
        };
        let steps = steps.iter().copied().zip(factors);
        steps.map(move |(bits, factor)| (Self::of(address, bits), factor))
    }

    /// The widest group that `address` is counted in.
    #[must_use]
    pub fn widest(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(_) => address.into(),
            IpAddr::V6(_) => Self::of(address, 48),
        }
    }

    fn of(address: IpAddr, bits: u8) -> Self {
        let network = match address.to_canonical() {
            address @ IpAddr::V4(_) => address,
            IpAddr::V6(address) => {
                let mask = u128::MAX << (128 - u32::from(bits.min(128))).min(127);
                IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & mask))
            }
        };
        Self { network, bits }
    }
}

impl From<IpAddr> for AddressGroup {
    /// One IPv4 address, or one IPv6 /64: the least that a site has.
    fn from(address: IpAddr) -> Self {
        let bits = if address.to_canonical().is_ipv4() {
            32
        } else {
            64
        };
        Self::of(address, bits)
    }
}

impl fmt::Display for AddressGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.network {
            IpAddr::V4(address) => write!(f, "{address}"),
            IpAddr::V6(network) => write!(f, "{network}/{}", self.bits),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv6_site_counts_as_one_address() {
        let group = |text: &str| AddressGroup::from(text.parse::<IpAddr>().unwrap());
        assert_eq!(group("2001:db8:1:2:3:4:5:6"), group("2001:db8:1:2::9"));
        assert_ne!(group("2001:db8:1:2::9"), group("2001:db8:1:3::9"));
        assert_eq!(group("::ffff:192.0.2.1"), group("192.0.2.1"));
        assert_ne!(group("192.0.2.1"), group("192.0.2.2"));
    }

    #[test]
    fn an_ipv6_address_is_counted_in_three_steps_and_an_ipv4_address_in_one() {
        let steps = |text: &str| -> Vec<String> {
            let steps = AddressGroup::steps(text.parse().unwrap());
            steps
                .map(|(group, factor)| format!("{group} x{factor}"))
                .collect()
        };
        assert_eq!(
            steps("2001:db8:1:abcd::9"),
            [
                "2001:db8:1:abcd::/64 x1",
                "2001:db8:1:ab00::/56 x2",
                "2001:db8:1::/48 x4"
            ]
        );
        assert_eq!(steps("::ffff:192.0.2.1"), ["192.0.2.1 x1"]);
        let widest = AddressGroup::widest("2001:db8:1:abcd::9".parse().unwrap());
        assert_eq!(widest.to_string(), "2001:db8:1::/48");
    }
}
