//! What the device says of itself, for the approver and the inventory. All of it is best effort.

use std::{fs, path::Path};

use longshore_protocol::{DeviceName, api::Facts};

/// This device's facts.
pub fn gather() -> Facts {
    let system = rustix::system::uname();
    let kernel = format!("{} {}", text(system.sysname()), text(system.release()));
    let mut facts = Facts::from([
        ("agent".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
        ("arch".to_owned(), std::env::consts::ARCH.to_owned()),
        ("hostname".to_owned(), text(system.nodename())),
        ("kernel".to_owned(), kernel),
    ]);
    let found = [
        ("os", first_line("/etc/os-release", "PRETTY_NAME=")),
        ("memory", first_line("/proc/meminfo", "MemTotal:")),
        (
            "model",
            first_line("/proc/device-tree/model", "")
                .or_else(|| first_line("/sys/class/dmi/id/product_name", "")),
        ),
        (
            "cpus",
            std::thread::available_parallelism()
                .ok()
                .map(|count| count.to_string()),
        ),
    ];
    facts.extend(
        found
            .into_iter()
            .filter_map(|(name, fact)| Some((name.to_owned(), fact?))),
    );
    facts
}

/// A device name made of the host's name: its first label, in lower case, without what a name cannot hold.
pub fn host_name() -> Option<DeviceName> {
    name_of(&text(rustix::system::uname().nodename()))
}

fn name_of(host: &str) -> Option<DeviceName> {
    let label = host.split('.').next()?.to_ascii_lowercase();
    let safe: String = label
        .chars()
        .map(|it| if it.is_ascii_alphanumeric() { it } else { '-' })
        .take(63)
        .collect();
    safe.trim_matches('-').parse().ok()
}

fn text(name: &std::ffi::CStr) -> String {
    name.to_string_lossy().into_owned()
}

/// What follows `prefix` on the first line that starts with it, without quotes and padding.
fn first_line(path: impl AsRef<Path>, prefix: &str) -> Option<String> {
    let content = fs::read(path).ok()?;
    let content = String::from_utf8_lossy(&content);
    let line = content.lines().find_map(|line| line.strip_prefix(prefix))?;
    let fact: String = line
        .trim_matches(|it: char| it.is_whitespace() || it == '"' || it == '\0')
        .chars()
        .filter(|it| !it.is_control())
        .take(200)
        .collect();
    (!fact.is_empty()).then_some(fact)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_names_become_device_names() {
        for (host, name) in [
            ("till-7.shop.example", "till-7"),
            ("RaspberryPi", "raspberrypi"),
            ("_a_b_", "a-b"),
        ] {
            assert_eq!(name_of(host).unwrap().as_str(), name);
        }
        assert!(name_of("").is_none());
        assert!(name_of("___").is_none());
    }

    #[test]
    fn there_is_something_to_say() {
        let facts = gather();
        assert!(
            facts.contains_key("arch") && facts.contains_key("kernel"),
            "{facts:?}"
        );
    }
}
