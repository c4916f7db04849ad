//! The HTTP API: enrollment for devices, everything else for operators.
//!
//! Bodies are JSON with `camelCase` members (the enrollment endpoint keeps the `snake_case` of its published
//! form). Instants are milliseconds since the Unix epoch. Errors are RFC 9457 problem documents
//! ([`Problem`]), except that an unknown token is answered with exactly `404 {"error":"Token not found"}`.

pub mod connection;
pub mod preview;
pub mod renew;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    Condition, DeviceId, DeviceName, Digest, FleetName, Generation, ObjectKey, TenantName, TokenId,
};

/// Where a device asks to enroll: `POST`, with `Authorization: Bearer <provisioning token>`.
pub const ENROLL_PATH: &str = "/v1/enroll";
/// Where an agent opens its WebSocket on the edge listener.
pub const EDGE_PATH: &str = "/v1/edge";
/// The WebSocket subprotocol of the session.
pub const SUBPROTOCOL: &str = "longshore.v1";
/// The trailer that says why a log broke off, where it did.
pub const LOG_ERROR: &str = "longshore-log-error";
/// The media type of [`Problem`].
pub const PROBLEM_MEDIA_TYPE: &str = "application/problem+json";

/// What a device says of itself: free text by free name, bounded by the controller.
pub type Facts = BTreeMap<String, String>;

/// The body of an enrollment call.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EnrollRequest {
    /// The name that the device asks for. Parsed by the controller, so that a bad one is answered with 422.
    pub name: String,
    /// The certificate signing request in PEM (RFC 2986), ECDSA P-256, signed with the device's key.
    pub csr: String,
    /// Hardware, operating system, agent version, …
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub facts: Facts,
    /// For how many seconds the controller may hold the answer while the device is pending (at most 30).
    #[serde(default)]
    pub wait: u64,
}

/// The answer `202`: the device is registered and waits for approval.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EnrollPending {
    /// The id that the controller gave to the device.
    pub device_id: DeviceId,
    /// The second secret of the edge endpoint, beside the certificate. Given again on every answer.
    pub device_token: String,
    /// Always `pending`.
    pub status: String,
    /// After how many seconds to call again.
    pub retry_after: u64,
    /// What the device waits for, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// The answer `200`: the device is approved.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EnrollApproved {
    /// The id of the device, and its certificate's common name.
    pub device_id: DeviceId,
    /// The second secret of the edge endpoint.
    pub device_token: String,
    /// The device's certificate and the intermediates, leaf first, in PEM.
    pub certificate_chain: String,
    /// The roots that the edge endpoint's certificate is to be verified with, in PEM.
    pub ca_bundle: String,
    /// Where to connect: `wss://host:port/v1/edge`.
    pub edge_url: String,
}

/// The answer `403`: somebody rejected the device, or decommissioned it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EnrollRejected {
    /// `rejected` or `decommissioned`.
    pub status: String,
    /// Why, for people.
    pub reason: String,
}

/// An error, as RFC 9457 describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// A name for the class of problem: `about:blank` or `https://longshore.dev/problems/<name>`.
    #[serde(rename = "type", default)]
    pub kind: String,
    /// The class in words.
    #[serde(default)]
    pub title: String,
    /// The HTTP status.
    #[serde(default)]
    pub status: u16,
    /// What is wrong this time, and what to do next.
    #[serde(default)]
    pub detail: String,
}

/// A list, in one page.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct List<T> {
    /// The things, in the order of their names unless said otherwise.
    pub items: Vec<T>,
}

/// `POST /api/v1/tenants`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CreateTenant {
    /// Its name.
    pub name: TenantName,
}

/// The answer to [`CreateTenant`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CreatedTenant {
    /// Its name.
    pub name: TenantName,
    /// An API token for all of the tenant. Shown this once.
    pub api_token: String,
}

/// A tenant.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Tenant {
    /// Its name.
    pub name: TenantName,
    /// When it was made.
    pub created_at: u64,
}

/// `POST /api/v1/tenants/{tenant}/fleets`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CreateFleet {
    /// Its name.
    pub name: FleetName,
    /// The Git repo: an absolute path on the controller's machine, or an `https`, `ssh` or `file` URL. Empty where
    /// the controller hosts it.
    #[serde(default)]
    pub repo: String,
    /// Whether the controller makes an empty repo and hosts it itself.
    #[serde(default)]
    pub hosted: bool,
    /// The branch to follow.
    #[serde(default = "main_branch")]
    pub branch: String,
    /// The fleet's folder in the repo; empty for the repo's root.
    #[serde(default)]
    pub path: String,
}

fn main_branch() -> String {
    "main".to_owned()
}

/// The answer to [`CreateFleet`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CreatedFleet {
    /// The fleet.
    pub fleet: Fleet,
    /// The path of the webhook on the public listener.
    pub webhook_path: String,
    /// The webhook's secret. Shown this once.
    pub webhook_secret: String,
}

/// `POST /api/v1/tenants/{tenant}/fleets/{fleet}/webhook/rotate`.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RotateWebhookSecret {
    /// For how long the secret in force until now holds too; a day where absent, at most 30 days.
    #[serde(default)]
    pub overlap_seconds: Option<u64>,
}

/// The answer to [`RotateWebhookSecret`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RotatedWebhookSecret {
    /// The path of the webhook on the public listener.
    pub webhook_path: String,
    /// The webhook's new secret. Shown this once.
    pub webhook_secret: String,
    /// Until when the one before holds too.
    pub webhook_secret_before_until: u64,
}

/// A fleet, and how it does.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Fleet {
    /// Its name.
    pub name: FleetName,
    /// The repo, without credentials; where the controller hosts it, the URL to clone it from.
    pub repo: String,
    /// Whether the controller hosts the repo.
    #[serde(default)]
    pub hosted: bool,
    /// The branch that is followed.
    pub branch: String,
    /// The fleet's folder in the repo.
    pub path: String,
    /// The commit in force, where one was seen.
    pub revision: Option<String>,
    /// Device counts by state.
    pub devices: DeviceCounts,
    /// Conditions of the fleet: `SourceReady`, `FleetValid`, `Planned`, `RemovalsHeld`.
    pub conditions: Vec<Condition>,
    /// What is wrong in the repo, at most 100 lines of `path:line: message`.
    pub problems: Vec<String>,
    /// Removals that wait for an operator.
    pub held: Vec<HeldRemoval>,
    /// When it was made.
    pub created_at: u64,
}

/// Device counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeviceCounts {
    /// All that are not rejected or decommissioned.
    pub total: u64,
    /// Waiting for approval.
    pub pending: u64,
    /// Approved.
    pub active: u64,
    /// Connected to this controller or, with PostgreSQL, to any replica.
    pub connected: u64,
    /// Reported the desired generation as applied.
    pub in_sync: u64,
    /// Failed to render or to apply.
    pub failing: u64,
}

/// One removal that the mass-removal guard holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HeldRemoval {
    /// The device.
    pub device: DeviceName,
    /// `Decommission` or `Empty`.
    pub removal: String,
}

/// `POST …/fleets/{fleet}/removals/confirm`: lets the removals of one revision happen.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ConfirmRemovals {
    /// The commit that the operator looked at; refused with 409 when it is no longer the one in force.
    pub revision: String,
}

/// A commit of the fleet repo as the controller observed it; lists are newest first.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Revision {
    /// The commit's id.
    pub commit: String,
    /// The first line of its message.
    pub summary: String,
    /// Its author's name.
    pub author: String,
    /// When the controller saw it.
    pub observed_at: u64,
    /// How many devices' desired state it changed.
    pub devices_changed: u64,
    /// How many problems it had.
    pub problems: u64,
}

/// Who approves the devices of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Approval {
    /// The controller: it commits the device's folder to the tracked branch itself.
    Automatic,
    /// A person: by merging the device's branch.
    Manual,
}

/// `POST …/fleets/{fleet}/tokens`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CreateToken {
    /// What it is for, for people.
    #[serde(default)]
    pub label: String,
    /// Who approves.
    pub approval: Approval,
    /// How many devices may enroll with it; no limit where absent.
    #[serde(default)]
    pub max_uses: Option<u32>,
    /// For how many seconds it works; for ever where absent.
    #[serde(default)]
    pub expires_in: Option<u64>,
    /// The shared overlay that its devices get, relative to the fleet's root, such as `groups/kiosk`.
    #[serde(default)]
    pub overlay: Option<String>,
    /// The labels that its devices get.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// The answer to [`CreateToken`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CreatedToken {
    /// The token without its secret.
    pub token: Token,
    /// The secret. Shown this once.
    pub secret: String,
    /// The controller's public address, for the join command.
    pub server: String,
    /// The SHA-256 digest of the root certificate's DER form, which the agent pins.
    pub ca_fingerprint: Digest,
}

/// A provisioning token without its secret.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Token {
    /// Its public id.
    pub id: TokenId,
    /// The fleet that it enrolls into.
    pub fleet: FleetName,
    /// What it is for.
    pub label: String,
    /// Who approves its devices.
    pub approval: Approval,
    /// How many devices enrolled with it.
    pub uses: u32,
    /// How many may.
    pub max_uses: Option<u32>,
    /// When it stops to work.
    pub expires_at: Option<u64>,
    /// Whether somebody revoked it.
    pub revoked: bool,
    /// When it was made.
    pub created_at: u64,
}

/// Where a device stands in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceState {
    /// Registered, not yet in the tracked branch.
    Pending,
    /// Approved: its folder is in the tracked branch, with its key.
    Active,
    /// Its enrollment was refused.
    Rejected,
    /// Its folder was deleted, or an operator cut it off.
    Decommissioned,
}

/// A device, and how it does.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Device {
    /// Its id.
    pub id: DeviceId,
    /// Its name.
    pub name: DeviceName,
    /// Its fleet.
    pub fleet: FleetName,
    /// Where it stands.
    pub state: DeviceState,
    /// The digest of its public key, as the agent prints it.
    pub public_key: Digest,
    /// The branch whose merge approves it, while it is pending.
    pub enrollment_branch: Option<String>,
    /// Its labels in the revision in force.
    pub labels: BTreeMap<String, String>,
    /// What it said of itself.
    pub facts: Facts,
    /// The label of the token it enrolled with.
    pub token_label: String,
    /// From which address it enrolled.
    pub source_address: String,
    /// What it should run.
    pub desired: Option<DeviceDesired>,
    /// What it reports.
    pub observed: Option<DeviceObserved>,
    /// Whether it is connected now.
    pub connected: bool,
    /// When it was last heard of.
    pub last_seen: Option<u64>,
    /// The controller's statements (`Approved`, `Rendered`) and then the device's own.
    pub conditions: Vec<Condition>,
    /// When it enrolled.
    pub created_at: u64,
}

/// What a device should run.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeviceDesired {
    /// Its generation.
    pub generation: Generation,
    /// The digest of its manifest set.
    pub digest: Digest,
    /// The commit that it comes from.
    pub revision: String,
    /// How many objects it has.
    pub objects: u64,
    /// When it was planned.
    pub since: u64,
}

/// What a device reports.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeviceObserved {
    /// The generation that the report is about.
    pub generation: Generation,
    /// The digest of the manifest set that it accepted.
    pub digest: Digest,
    /// How far it is.
    pub phase: crate::message::Phase,
    /// When the controller got the report.
    pub reported_at: u64,
}

/// `GET …/devices/{device}/manifests`: what the device should run, `Secret` values redacted.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeviceManifests {
    /// Its generation.
    pub generation: Generation,
    /// The digest of the set.
    pub digest: Digest,
    /// The commit that it comes from.
    pub revision: String,
    /// The objects in the order of their keys.
    pub objects: Vec<DeviceObject>,
}

/// One object of [`DeviceManifests`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeviceObject {
    /// What names it.
    pub key: ObjectKey,
    /// The digest of its canonical form, before redaction.
    pub digest: Digest,
    /// Its value, redacted.
    pub object: Value,
}

/// `GET …/tenants/{tenant}/status`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// The controller's version.
    pub version: String,
    /// The program that renders, and its version.
    pub renderer: String,
    /// `sqlite` or `postgres`.
    pub store: String,
    /// The tenant's fleets.
    pub fleets: Vec<Fleet>,
}
