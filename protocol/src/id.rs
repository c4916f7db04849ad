//! Names and ids, checked where they enter.
//!
//! Tenant, fleet and device names are DNS labels (RFC 1123: lower-case letters, digits and `-`, at most 63
//! characters, starting and ending with a letter or digit), so that they can stand in paths, branch names,
//! certificates and Kubernetes labels alike. Ids are made by the controller and opaque to everybody else.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// Why a text is not a name or an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidName {
    /// The text breaks the rules of a DNS label.
    #[error(
        "{kind} `{text}` must be 1 to 63 lower-case letters, digits or `-`, and start and end with a letter or digit"
    )]
    Label {
        /// What the text was meant to name.
        kind: &'static str,
        /// The text, cut to 80 characters.
        text: String,
    },
    /// The text is not an id of this kind.
    #[error("{kind} `{text}` must be `{prefix}` and 20 to 40 lower-case letters or digits")]
    Id {
        /// What the text was meant to identify.
        kind: &'static str,
        /// The prefix that ids of this kind have.
        prefix: &'static str,
        /// The text, cut to 80 characters.
        text: String,
    },
}

fn cut(text: &str) -> String {
    text.chars().take(80).collect()
}

fn is_label(text: &str) -> bool {
    let alphanumeric = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    (1..=63).contains(&bytes.len())
        && bytes.iter().all(|byte| alphanumeric(byte) || *byte == b'-')
        && bytes.first().is_some_and(alphanumeric)
        && bytes.last().is_some_and(alphanumeric)
}

fn is_id(text: &str, prefix: &str) -> bool {
    text.strip_prefix(prefix).is_some_and(|rest| {
        (20..=40).contains(&rest.len())
            && rest
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
    })
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $check:expr, $error:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(String);

        impl $type {
            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $type {
            type Error = InvalidName;

            fn try_from(text: String) -> Result<Self, InvalidName> {
                let check: fn(&str) -> bool = $check;
                if check(&text) {
                    Ok(Self(text))
                } else {
                    let error: fn(&str) -> InvalidName = $error;
                    Err(error(&text))
                }
            }
        }

        impl FromStr for $type {
            type Err = InvalidName;

            fn from_str(text: &str) -> Result<Self, InvalidName> {
                text.to_owned().try_into()
            }
        }

        impl From<$type> for String {
            fn from(name: $type) -> Self {
                name.0
            }
        }

        impl AsRef<str> for $type {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name!(
    /// The name of a tenant, the isolation boundary.
    TenantName, is_label, |text| InvalidName::Label { kind: "tenant name", text: cut(text) }
);
name!(
    /// The name of a fleet within its tenant.
    FleetName, is_label, |text| InvalidName::Label { kind: "fleet name", text: cut(text) }
);
name!(
    /// The name of a device within its fleet, and of its folder under `devices/`.
    DeviceName, is_label, |text| InvalidName::Label { kind: "device name", text: cut(text) }
);
name!(
    /// The id of a device, `dev_…`, given at enrollment and the common name of its certificate.
    DeviceId,
    |text| is_id(text, "dev_"),
    |text| InvalidName::Id { kind: "device id", prefix: "dev_", text: cut(text) }
);
name!(
    /// The public id of a provisioning token, `tok_…`; not the secret.
    TokenId,
    |text| is_id(text, "tok_"),
    |text| InvalidName::Id { kind: "token id", prefix: "tok_", text: cut(text) }
);

impl TenantName {
    /// The tenant that always exists.
    pub fn default_tenant() -> Self {
        Self("default".to_owned())
    }
}

macro_rules! random_id {
    ($type:ident, $prefix:literal) => {
        impl $type {
            /// An id made of 16 random bytes, supplied by the caller.
            pub fn from_random(random: [u8; 16]) -> Self {
                Self(format!(concat!($prefix, "{}"), hex::encode(random)))
            }
        }
    };
}
random_id!(DeviceId, "dev_");
random_id!(TokenId, "tok_");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels() {
        for good in ["a", "store-0001", "0", &"x".repeat(63)] {
            assert!(good.parse::<DeviceName>().is_ok(), "{good}");
        }
        let long = "x".repeat(64);
        for bad in ["", "-a", "a-", "A", "a_b", "a.b", "a/b", "..", "é", &long] {
            let error = bad.parse::<DeviceName>().unwrap_err();
            assert!(error.to_string().starts_with("device name"), "{error}");
        }
    }

    #[test]
    fn ids() {
        let id = DeviceId::from_random([7; 16]);
        assert_eq!(id.as_str().parse::<DeviceId>().unwrap(), id);
        for bad in [
            "dev_",
            "tok_07070707070707070707",
            "dev_ABCDEFABCDEFABCDEFABCDEF",
        ] {
            assert!(bad.parse::<DeviceId>().is_err(), "{bad}");
        }
    }
}
