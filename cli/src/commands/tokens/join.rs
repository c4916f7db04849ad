//! The commands that join a device, to paste into its shell.
//!
//! The token goes over standard input: arguments are there for every user of the device to see.

use clap::ValueEnum;
use longshore_protocol::{DeviceName, api::CreatedToken};

use crate::text;

/// What a device runs its workloads with, as `install.sh` and docs/AGENT.md name it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Platform {
    /// Files in a directory of the agent's own
    #[default]
    Generic,
    /// Containers, with Podman
    Podman,
    /// MicroShift, by way of its API server
    Microshift,
    /// k3s, by way of its API server
    K3s,
    /// Files that MicroShift reads when it starts
    MicroshiftManifests,
}

impl Platform {
    /// The agent's own settings, for where `install.sh` does not write them.
    const fn settings(self) -> &'static str {
        match self {
            Self::Generic => " --runtime directory",
            Self::Podman => " --runtime podman",
            Self::Microshift | Self::K3s => " --runtime kube",
            Self::MicroshiftManifests => {
                " --runtime directory --layout microshift --directory /etc/microshift/manifests.d/longshore"
            }
        }
    }
}

/// Where a device belongs: the words that every way of joining has.
///
/// The place for the name is quoted, so that pasting it as it is fails with the agent's own words.
fn belongs(created: &CreatedToken, device: Option<&DeviceName>) -> String {
    let name = device.map_or_else(|| "'<device name>'".to_owned(), ToString::to_string);
    format!(
        "--server {} --ca-fingerprint {} --name {name}",
        quote(&created.server),
        created.ca_fingerprint,
    )
}

/// The command that installs the agent, in the folder with `install.sh` and the package.
pub(super) fn install(
    created: &CreatedToken,
    device: Option<&DeviceName>,
    platform: Platform,
) -> String {
    let platform = platform.to_possible_value();
    let platform = platform
        .as_ref()
        .map_or("generic", |value| value.get_name());
    format!(
        "printf %s {} | sudo sh install.sh --platform {platform} {} --token-file -",
        quote(&created.secret),
        belongs(created, device),
    )
}

/// The command for where there is nothing but the program. It has no secret in it.
pub(super) fn by_hand(
    created: &CreatedToken,
    device: Option<&DeviceName>,
    platform: Platform,
) -> String {
    format!(
        "longshore-agent {} --token-file /dev/stdin{}",
        belongs(created, device),
        platform.settings(),
    )
}

/// One word of a POSIX shell.
fn quote(word: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./:=[]@%+,".contains(&byte);
    if !word.is_empty() && word.bytes().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", text::printable(word).replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_a_shell() {
        assert_eq!(quote("https://127.0.0.1:8443"), "https://127.0.0.1:8443");
        assert_eq!(quote("a b'; rm"), r"'a b'\''; rm'");
        assert_eq!(quote("$(x)"), "'$(x)'");
    }
}
