//! Writing `device.yaml`.

use std::{collections::BTreeMap, fmt::Write as _};

use longshore_protocol::{DeviceId, DeviceName, Digest};
use serde_json::Value;

use super::API_VERSION;
use crate::{render::resolve_scalar, yaml::Scalar};

/// The text of a new `device.yaml`, as the enrollment of a device adds it.
///
/// `overlay` is relative to the device's folder, such as `../../groups/kiosk`.
pub fn device_yaml(
    name: &DeviceName,
    id: &DeviceId,
    public_key: &Digest,
    labels: &BTreeMap<String, String>,
    overlay: Option<&str>,
) -> String {
    let mut text = format!(
        "apiVersion: {API_VERSION}\nkind: Device\nmetadata:\n  name: {}\n",
        scalar(name.as_str())
    );
    if !labels.is_empty() {
        text.push_str("  labels:\n");
        for (key, value) in labels {
            line(&mut text, &format!("    {}", scalar(key)), value);
        }
    }
    text.push_str("spec:\n");
    line(&mut text, "  id", id.as_str());
    line(&mut text, "  publicKey", &public_key.to_string());
    if let Some(overlay) = overlay {
        line(&mut text, "  overlay", overlay);
    }
    text
}

fn line(text: &mut String, key: &str, value: &str) {
    // Writing to a `String` cannot fail.
    let _ok = writeln!(text, "{key}: {}", scalar(value));
}

/// `value` plain where it is a text without quotes too, and else in double quotes, as JSON.
fn scalar(value: &str) -> String {
    let safe = |char: char| char.is_ascii_alphanumeric() || "-_./:".contains(char);
    let bare = Scalar {
        text: value.to_owned(),
        plain: true,
        tag: None,
    };
    let plain = value.starts_with(|first: char| first.is_ascii_alphanumeric() || first == '.')
        && value.chars().all(safe)
        && !value.ends_with(':')
        && matches!(resolve_scalar(&bare), Ok(Value::String(_)));
    if plain {
        value.to_owned()
    } else {
        Value::from(value).to_string()
    }
}
