//! `fleet.yaml`.

use longshore_protocol::FleetName;

use super::fields::{Fields, expect_kind, text};
use crate::yaml::{Node, YamlError};

/// What `fleet.yaml` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FleetSettings {
    /// `metadata.name`.
    pub name: FleetName,
    /// `spec.safety.maxDecommission`: how many devices one commit may decommission unasked.
    pub max_decommission: MaxDecommission,
}

/// How many devices of a fleet may go at once without an operator's word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MaxDecommission {
    /// 10 % of the fleet, and at least 5.
    #[default]
    Default,
    /// This many.
    Count(u32),
    /// This many of each hundred, from 0 to 100, rounded down.
    Percent(u8),
}

impl MaxDecommission {
    /// How many of `devices` devices that is.
    pub fn of(self, devices: usize) -> usize {
        match self {
            Self::Default => (devices / 10).max(5),
            Self::Count(count) => usize::try_from(count).unwrap_or(usize::MAX),
            Self::Percent(percent) => devices.saturating_mul(usize::from(percent)) / 100,
        }
    }

    fn parse(node: &Node) -> Result<Self, YamlError> {
        let text = node.scalar().unwrap_or_default();
        let parsed = match text.strip_suffix('%') {
            Some(percent) => percent
                .parse()
                .ok()
                .filter(|percent| *percent <= 100)
                .map(Self::Percent),
            None => text.parse().ok().map(Self::Count),
        };
        parsed.filter(|_| !text.starts_with('+')).ok_or_else(|| {
            node.error("`maxDecommission` must be a number of devices, such as 5, or a share, such as \"10%\"")
        })
    }
}

pub(super) fn parse(node: &Node) -> Result<FleetSettings, YamlError> {
    let root = Fields::of(
        node,
        "fleet.yaml",
        &["apiVersion", "kind", "metadata", "spec"],
    )?;
    expect_kind(&root, "Fleet")?;
    let metadata_node = root.required("metadata")?;
    let metadata = Fields::of(metadata_node, "metadata", &["name"])?;
    let name_node = metadata.required("name")?;
    let name = text(name_node, "name")?
        .parse()
        .map_err(|error| name_node.error(format!("{error}")))?;
    let mut max_decommission = MaxDecommission::default();
    if let Some(spec) = root.optional("spec") {
        let spec = Fields::of(spec, "spec", &["safety"])?;
        if let Some(safety) = spec.optional("safety") {
            let safety = Fields::of(safety, "spec.safety", &["maxDecommission"])?;
            if let Some(most) = safety.optional("maxDecommission") {
                max_decommission = MaxDecommission::parse(most)?;
            }
        }
    }
    Ok(FleetSettings {
        name,
        max_decommission,
    })
}
