//! What can be read of the machine.

use std::{collections::BTreeSet, fs, net::IpAddr, path::Path};

use nix::{ifaddrs::getifaddrs, net::if_::InterfaceFlags};
use rustix::fs::statvfs;

/// The most addresses that are told.
const MOST_ADDRESSES: usize = 8;

/// The addresses under which others may reach this machine, sorted, as one text.
pub(super) fn addresses() -> String {
    let Ok(interfaces) = getifaddrs() else {
        return String::new();
    };
    let up = InterfaceFlags::IFF_UP;
    let found: BTreeSet<IpAddr> = interfaces
        .filter(|it| it.flags.contains(up) && !it.flags.contains(InterfaceFlags::IFF_LOOPBACK))
        // The host's ends of containers' networks come and go with them.
        .filter(|it| !it.interface_name.starts_with("veth"))
        .filter_map(|it| {
            let address = it.address?;
            let four = address.as_sockaddr_in().map(|it| IpAddr::from(it.ip()));
            four.or_else(|| address.as_sockaddr_in6().map(|it| IpAddr::from(it.ip())))
        })
        .filter(|it| !is_local_to_the_link(it))
        .collect();
    let found: Vec<_> = found
        .iter()
        .take(MOST_ADDRESSES)
        .map(IpAddr::to_string)
        .collect();
    found.join(" ")
}

fn is_local_to_the_link(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(four) => four.is_link_local() || four.is_loopback(),
        IpAddr::V6(six) => six.is_unicast_link_local() || six.is_loopback(),
    }
}

/// The bytes of the file system that the path is on, and those that are free for us.
pub(super) fn disk(path: &Path) -> Option<(u64, u64)> {
    let there = path.ancestors().find(|path| path.exists())?;
    let found = statvfs(there).ok()?;
    let of = |blocks: u64| blocks.saturating_mul(found.f_frsize);
    Some((of(found.f_blocks), of(found.f_bavail)))
}

/// In words, without what nobody reads.
pub(super) fn bytes(bytes: u64) -> String {
    const MIB: u64 = 1024 * 1024;
    match bytes / MIB {
        few @ 0..2048 => format!("{few} MiB"),
        many => format!("{} GiB", many / 1024),
    }
}

/// The temperature of the hottest zone in degrees Celsius, where there is one that makes sense.
pub(super) fn temperature(zones: &Path) -> Option<u64> {
    let zones = fs::read_dir(zones).ok()?.flatten();
    zones
        .filter(|zone| {
            zone.file_name()
                .to_string_lossy()
                .starts_with("thermal_zone")
        })
        .filter_map(|zone| fs::read_to_string(zone.path().join("temp")).ok())
        .filter_map(|text| text.trim().parse::<u64>().ok())
        .map(|thousandths| thousandths / 1000)
        .filter(|degrees| (1..150).contains(degrees))
        .max()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hottest_zone_counts() {
        let dir = tempfile::tempdir().unwrap();
        let put = |zone: &str, text: &str| {
            let zone = dir.path().join(zone);
            fs::create_dir(&zone).unwrap();
            fs::write(zone.join("temp"), text).unwrap();
        };
        assert_eq!(temperature(dir.path()), None);
        put("thermal_zone0", "48312\n");
        put("thermal_zone1", "61000\n");
        put("thermal_zone2", "-274000\n");
        put("thermal_zone3", "999000\n");
        put("cooling_device0", "70000\n");
        assert_eq!(temperature(dir.path()), Some(61));
    }

    #[test]
    fn sizes_are_for_people() {
        assert_eq!(bytes(1024 * 1024), "1 MiB");
        assert_eq!(bytes(32_000_000_000), "29 GiB");
        let (total, free) = disk(Path::new("/no/such/path")).unwrap();
        assert!(total > 0 && free <= total);
    }

    /// The addresses of this machine as the kernel's tables have them.
    fn of_the_kernel() -> BTreeSet<IpAddr> {
        let routes = fs::read_to_string("/proc/net/fib_trie").unwrap();
        let mut last = "";
        let mut found = BTreeSet::new();
        for line in routes.lines() {
            match line.trim().strip_prefix("|-- ") {
                Some(address) => last = address,
                None if line.trim() == "/32 host LOCAL" => {
                    found.insert(last.parse().unwrap());
                }
                None => {}
            }
        }
        let six = fs::read_to_string("/proc/net/if_inet6").unwrap_or_default();
        let six = six.lines().map(|line| {
            let bits = u128::from_str_radix(line.split(' ').next().unwrap(), 16).unwrap();
            IpAddr::from(std::net::Ipv6Addr::from_bits(bits))
        });
        found.extend(six);
        found.retain(|it| !is_local_to_the_link(it));
        found
    }

    #[test]
    fn addresses_are_those_that_the_kernel_answers_to() {
        let kernel = of_the_kernel();
        let told = addresses();
        let told: BTreeSet<IpAddr> = told.split(' ').filter_map(|it| it.parse().ok()).collect();
        // Interfaces of containers come and go, so more may be there than are told, and never fewer.
        assert!(told.is_subset(&kernel), "{told:?}, of {kernel:?}");
        assert_eq!(told.is_empty(), kernel.is_empty(), "{kernel:?}");
    }

    #[test]
    fn addresses_are_those_that_others_can_use() {
        for address in addresses().split_whitespace() {
            let address: IpAddr = address.parse().unwrap();
            assert!(!address.is_loopback() && !is_local_to_the_link(&address));
        }
    }
}
