//! `fleet.yaml`.

use std::{collections::BTreeSet, time::Duration};

use longshore_protocol::FleetName;

use super::{
    facts,
    fields::{Fields, expect_kind, text},
};
use crate::yaml::{Node, Value, YamlError};

/// The longest time for which devices join one pull request, in seconds.
const LONGEST_BATCH: u64 = 24 * 3600;

/// How many facts may be labels.
const MAX_FACTS: usize = 32;

/// What `fleet.yaml` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FleetSettings {
    /// `metadata.name`.
    pub name: FleetName,
    /// `spec.safety.maxDecommission`: how many devices one commit may decommission unasked.
    pub max_decommission: MaxDecommission,
    /// `spec.enrollment`: how enrollments become pull requests.
    pub enrollment: EnrollmentSettings,
    /// `spec.labelsFromFacts`: which facts are labels of the devices that claim them.
    pub labels_from_facts: BTreeSet<String>,
    /// `spec.previews.forks`: whether pull requests from forks are rendered. Those are written by strangers.
    pub preview_forks: bool,
    /// `spec.push.refuseBroken`: whether a hosted repo refuses a push that breaks an overlay.
    pub refuse_broken: bool,
}

/// How enrollments become pull requests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EnrollmentSettings {
    /// `batch`: for how long devices of one token join one pull request; each has its own where this is absent.
    pub batch: Option<Duration>,
    /// `reviewers`: who is asked for a review; `team:<name>` is a team.
    pub reviewers: Vec<String>,
    /// `labels`: what the pull requests are labelled with, besides the forge's own rules.
    pub labels: Vec<String>,
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
    let mut settings = FleetSettings {
        name,
        max_decommission: MaxDecommission::default(),
        enrollment: EnrollmentSettings::default(),
        labels_from_facts: BTreeSet::new(),
        preview_forks: false,
        refuse_broken: true,
    };
    if let Some(spec) = root.optional("spec") {
        let known = [
            "safety",
            "enrollment",
            "labelsFromFacts",
            "previews",
            "push",
        ];
        let spec = Fields::of(spec, "spec", &known)?;
        if let Some(safety) = spec.optional("safety") {
            let safety = Fields::of(safety, "spec.safety", &["maxDecommission"])?;
            if let Some(most) = safety.optional("maxDecommission") {
                settings.max_decommission = MaxDecommission::parse(most)?;
            }
        }
        if let Some(enrollment) = spec.optional("enrollment") {
            settings.enrollment = EnrollmentSettings::parse(enrollment)?;
        }
        if let Some(names) = spec.optional("labelsFromFacts") {
            settings.labels_from_facts = fact_names(names)?;
        }
        if let Some(previews) = spec.optional("previews") {
            let previews = Fields::of(previews, "spec.previews", &["forks"])?;
            if let Some(forks) = previews.optional("forks") {
                settings.preview_forks = truth(forks, "forks")?;
            }
        }
        if let Some(push) = spec.optional("push") {
            let push = Fields::of(push, "spec.push", &["refuseBroken"])?;
            if let Some(refuse) = push.optional("refuseBroken") {
                settings.refuse_broken = truth(refuse, "refuseBroken")?;
            }
        }
    }
    Ok(settings)
}

impl EnrollmentSettings {
    fn parse(node: &Node) -> Result<Self, YamlError> {
        let fields = Fields::of(node, "spec.enrollment", &["batch", "reviewers", "labels"])?;
        let batch = fields.optional("batch").map(period).transpose()?;
        let texts_of = |name| {
            fields
                .optional(name)
                .map_or(Ok(Vec::new()), |node| texts(node, name))
        };
        Ok(Self {
            batch,
            reviewers: texts_of("reviewers")?,
            labels: texts_of("labels")?,
        })
    }
}

fn fact_names(node: &Node) -> Result<BTreeSet<String>, YamlError> {
    let names = texts(node, "labelsFromFacts")?;
    if names.len() > MAX_FACTS {
        return Err(node.error(format!(
            "`labelsFromFacts` may name {MAX_FACTS} facts at most"
        )));
    }
    facts::check_names(&names)
        .map_err(|message| node.error(format!("`labelsFromFacts`: {message}")))?;
    Ok(names.into_iter().collect())
}

/// A duration from a second to a day, such as `30s`, `10m` or `1h`.
fn period(node: &Node) -> Result<Duration, YamlError> {
    let text = node.scalar().unwrap_or_default();
    let number = text.trim_end_matches(|unit: char| unit.is_ascii_alphabetic());
    let seconds = match text.get(number.len()..) {
        Some("s") => Some(1),
        Some("m") => Some(60),
        Some("h") => Some(3600),
        _ => None,
    };
    number
        .parse::<u64>()
        .ok()
        .zip(seconds)
        .and_then(|(number, seconds)| number.checked_mul(seconds))
        .filter(|seconds| (1..=LONGEST_BATCH).contains(seconds) && !number.starts_with('+'))
        .map(Duration::from_secs)
        .ok_or_else(|| {
            node.error("`batch` must be a duration of at most a day, such as 30s, 10m or 1h")
        })
}

fn texts(node: &Node, what: &'static str) -> Result<Vec<String>, YamlError> {
    let Value::Sequence(items) = &node.value else {
        return Err(node.error(format!("`{what}` must be a list, not {}", node.what())));
    };
    items
        .iter()
        .map(|item| Ok(text(item, what)?.to_owned()))
        .collect()
}

fn truth(node: &Node, what: &str) -> Result<bool, YamlError> {
    match node.scalar() {
        Some("true") => Ok(true),
        Some("false") => Ok(false),
        _ => Err(node.error(format!("`{what}` must be true or false"))),
    }
}
