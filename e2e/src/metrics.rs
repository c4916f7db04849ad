//! The controller's counters.

use std::collections::BTreeMap;

/// One reading of `/metrics`, without the metrics that have labels.
#[derive(Clone, Debug, Default)]
pub struct Metrics(BTreeMap<String, f64>);

impl Metrics {
    /// Reads the Prometheus text format.
    pub fn parse(text: &str) -> Self {
        let sample = |line: &str| {
            let (name, value) = line.split_once(' ')?;
            Some((name.to_owned(), value.trim().parse().ok()?))
        };
        Self(
            text.lines()
                .filter(|line| !line.starts_with('#'))
                .filter_map(sample)
                .collect(),
        )
    }

    /// The value of `longshore_<name>`; 0 where there is none.
    pub fn value(&self, name: &str) -> f64 {
        self.0
            .get(&format!("longshore_{name}"))
            .copied()
            .unwrap_or_default()
    }

    /// A counter or a gauge of whole things.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "counts are small and not negative"
    )]
    pub fn count(&self, name: &str) -> u64 {
        self.value(name) as u64
    }

    /// How many builds ran.
    pub fn renders(&self) -> u64 {
        self.count("renders_total")
    }

    /// How many bytes of manifests went to devices.
    pub fn manifest_bytes(&self) -> u64 {
        self.count("manifest_bytes_total")
    }
}
