//! What `/metrics` shows, in the Prometheus text format.

use std::sync::atomic::AtomicU64;

use prometheus_client::{
    encoding::text::encode,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

/// All metrics of the process.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Builds that a kustomize process ran for.
    pub renders: Counter,
    /// How long builds took, in seconds.
    pub render_seconds: Histogram,
    /// Transactions that stored builds.
    pub build_flushes: Counter,
    /// Builds that run.
    pub builds_running: Gauge,
    /// Builds that wait for their turn.
    pub builds_waiting: Gauge,
    /// Passes of reconcilers.
    pub reconciliations: Counter,
    /// How long passes took, in seconds.
    pub reconcile_seconds: Histogram,
    /// Changes of devices' desired states.
    pub desired_changes: Counter,
    /// Connected devices.
    pub sessions: Gauge,
    /// Transactions that stored what devices report.
    pub flushes: Counter,
    /// Such transactions that failed; what they had is tried again.
    pub flush_failures: Counter,
    /// Devices of which those transactions stored something.
    pub flushed: Counter,
    /// How long they took, in seconds.
    pub flush_seconds: Histogram,
    /// Statements that looked devices up, for pokes and connects.
    pub lookups: Counter,
    /// Devices that were looked up.
    pub looked_up: Counter,
    /// Sets and objects that sessions found in memory.
    pub cache_hits: Counter,
    /// Those that were read from the store.
    pub cache_misses: Counter,
    /// Connections that are accepted and not through their TLS handshake.
    pub handshakes_waiting: Gauge,
    /// Connections that were hung up on because too many handshakes were under way.
    pub handshakes_refused: Counter,
    /// Frames that devices sent.
    pub device_frames: Counter,
    /// Memory set aside for what is being sent to devices, in bytes.
    pub outgoing_bytes: Gauge,
    /// Sessions that were ended because their device did not read and others needed the memory.
    pub readers_cut_off: Counter,
    /// Deltas sent.
    pub deltas: Counter,
    /// Offers sent.
    pub offers: Counter,
    /// Bytes of manifests sent to devices: deltas, offers and objects, before TLS.
    pub manifest_bytes: Counter,
    /// Logs of devices that are being read.
    pub log_streams: Gauge,
    /// Bytes of logs that were read.
    pub log_bytes: Counter,
    /// Devices that enrolled.
    pub enrollments: Counter,
    /// Enrollment calls that were refused.
    pub enrollments_refused: Counter,
    /// Webhook calls by host and outcome.
    pub webhooks: Family<[(&'static str, &'static str); 2], Counter>,
    /// Pushes to hosted repos that were accepted.
    pub pushes: Counter,
    /// Pushes to hosted repos that were refused.
    pub pushes_refused: Counter,
    /// Living replicas of the controller, this one included.
    pub replicas: Gauge,
    /// Fleets that this replica works for; 0 where it is the only one there can be.
    pub leases: Gauge,
    /// Resident memory of the process, in bytes.
    resident_memory: Gauge<f64, AtomicU64>,
}

impl Default for Metrics {
    fn default() -> Self {
        let seconds = || {
            Histogram::new([
                0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
            ])
        };
        let mut metrics = Self {
            registry: Registry::with_prefix("longshore"),
            renders: Counter::default(),
            render_seconds: seconds(),
            build_flushes: Counter::default(),
            builds_running: Gauge::default(),
            builds_waiting: Gauge::default(),
            reconciliations: Counter::default(),
            reconcile_seconds: seconds(),
            desired_changes: Counter::default(),
            sessions: Gauge::default(),
            flushes: Counter::default(),
            flush_failures: Counter::default(),
            flushed: Counter::default(),
            flush_seconds: seconds(),
            lookups: Counter::default(),
            looked_up: Counter::default(),
            cache_hits: Counter::default(),
            cache_misses: Counter::default(),
            handshakes_waiting: Gauge::default(),
            handshakes_refused: Counter::default(),
            device_frames: Counter::default(),
            outgoing_bytes: Gauge::default(),
            readers_cut_off: Counter::default(),
            deltas: Counter::default(),
            offers: Counter::default(),
            manifest_bytes: Counter::default(),
            log_streams: Gauge::default(),
            log_bytes: Counter::default(),
            enrollments: Counter::default(),
            enrollments_refused: Counter::default(),
            webhooks: Family::default(),
            pushes: Counter::default(),
            pushes_refused: Counter::default(),
            replicas: Gauge::default(),
            leases: Gauge::default(),
            resident_memory: Gauge::default(),
        };
        metrics.register();
        metrics.register_edge();
        metrics
    }
}

impl Metrics {
    fn register_edge(&mut self) {
        let registry = &mut self.registry;
        registry.register("sessions", "Connected devices", self.sessions.clone());
        registry.register(
            "report_flushes",
            "Transactions that stored what devices report",
            self.flushes.clone(),
        );
        registry.register(
            "report_flush_failures",
            "Transactions that failed to store what devices report",
            self.flush_failures.clone(),
        );
        registry.register(
            "report_flushed_devices",
            "Devices of which those transactions stored something",
            self.flushed.clone(),
        );
        registry.register(
            "report_flush_seconds",
            "Time of one such transaction",
            self.flush_seconds.clone(),
        );
        registry.register(
            "device_lookups",
            "Statements that looked devices up, for pokes and connects",
            self.lookups.clone(),
        );
        registry.register(
            "devices_looked_up",
            "Devices that were looked up",
            self.looked_up.clone(),
        );
        registry.register(
            "content_cache_hits",
            "Sets and objects that sessions found in memory",
            self.cache_hits.clone(),
        );
        registry.register(
            "content_cache_misses",
            "Sets and objects that sessions read from the store",
            self.cache_misses.clone(),
        );
        registry.register(
            "handshakes_waiting",
            "Connections that are not through their TLS handshake",
            self.handshakes_waiting.clone(),
        );
        registry.register(
            "handshakes_refused",
            "Connections that were hung up on because of too many handshakes",
            self.handshakes_refused.clone(),
        );
        registry.register(
            "device_frames",
            "Frames that devices sent",
            self.device_frames.clone(),
        );
        registry.register(
            "outgoing_bytes",
            "Memory set aside for what is being sent to devices",
            self.outgoing_bytes.clone(),
        );
        registry.register(
            "readers_cut_off",
            "Sessions ended because their device did not read and others needed the memory",
            self.readers_cut_off.clone(),
        );
        registry.register("deltas", "Deltas sent to devices", self.deltas.clone());
        registry.register("offers", "Offers sent to devices", self.offers.clone());
        registry.register(
            "manifest_bytes",
            "Bytes of manifests sent to devices",
            self.manifest_bytes.clone(),
        );
        registry.register(
            "log_streams",
            "Logs of devices that are being read",
            self.log_streams.clone(),
        );
        registry.register(
            "log_bytes",
            "Bytes of devices' logs that were read",
            self.log_bytes.clone(),
        );
    }

    fn register(&mut self) {
        let registry = &mut self.registry;
        registry.register("renders", "Kustomize builds that ran", self.renders.clone());
        registry.register(
            "render_seconds",
            "Time of one kustomize build",
            self.render_seconds.clone(),
        );
        registry.register(
            "build_flushes",
            "Transactions that stored kustomize builds",
            self.build_flushes.clone(),
        );
        registry.register(
            "builds_running",
            "Kustomize builds that run",
            self.builds_running.clone(),
        );
        registry.register(
            "builds_waiting",
            "Kustomize builds that wait for their turn",
            self.builds_waiting.clone(),
        );
        registry.register(
            "reconciliations",
            "Passes of the fleets' reconcilers",
            self.reconciliations.clone(),
        );
        registry.register(
            "reconcile_seconds",
            "Time of one pass",
            self.reconcile_seconds.clone(),
        );
        registry.register(
            "desired_changes",
            "Changes of devices' desired states",
            self.desired_changes.clone(),
        );
        registry.register(
            "enrollments",
            "Devices that enrolled",
            self.enrollments.clone(),
        );
        registry.register(
            "enrollments_refused",
            "Enrollment calls that were refused",
            self.enrollments_refused.clone(),
        );
        registry.register(
            "webhooks",
            "Webhook calls by host and outcome",
            self.webhooks.clone(),
        );
        registry.register(
            "pushes",
            "Pushes to hosted repos that were accepted",
            self.pushes.clone(),
        );
        registry.register(
            "pushes_refused",
            "Pushes to hosted repos that were refused",
            self.pushes_refused.clone(),
        );
        self.register_process();
    }

    fn register_process(&mut self) {
        let registry = &mut self.registry;
        registry.register(
            "replicas",
            "Living replicas that share the database",
            self.replicas.clone(),
        );
        registry.register(
            "leases",
            "Fleets that this replica holds the lease of",
            self.leases.clone(),
        );
        registry.register(
            "resident_memory_bytes",
            "Resident memory of the controller",
            self.resident_memory.clone(),
        );
    }

    /// The text that Prometheus reads.
    pub fn text(&self) -> String {
        if let Some(bytes) = resident_bytes() {
            self.resident_memory.set(bytes);
        }
        let mut text = String::new();
        // Writing into a `String` cannot fail.
        if encode(&mut text, &self.registry).is_err() {
            text.clear();
        }
        text
    }
}

/// Resident memory as Linux tells it (proc(5): `VmRSS` in kibibytes).
fn resident_bytes() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024.0)
}
