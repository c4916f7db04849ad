//! The HTTP API on the public listener.
//!
//! Operators present a bearer token. An administrator's is good for everything, a tenant's for that tenant only:
//! what belongs to another tenant is answered like what does not exist. Errors are RFC 9457 problem documents;
//! this is the one place where domain errors become HTTP.

mod access;
mod body;
mod connection;
mod devices;
mod enroll;
mod error;
mod fleets;
mod git;
mod health;
mod logs;
mod presence;
mod previews;
mod renew;
mod serve;
mod tenants;
mod tokens;
mod webhooks;

use std::sync::Arc;

use axum::{
    Router, middleware,
    routing::{delete, get, post},
};

pub use self::{
    error::ApiError,
    serve::{Accepting, Peer, serve},
    webhooks::Webhooks,
};
use crate::{
    certificates::Certificates, enrollment::Enrollment, fleets::Fleets, hosting::Hosting, hub::Hub,
    logs::Logs, metrics::Metrics, secret::Keyring, store::Store,
};

/// What the API works with.
#[derive(Debug)]
pub struct Api {
    /// Remembers.
    pub store: Store,
    /// Follows.
    pub fleets: Arc<Fleets>,
    /// Hosts repos.
    pub hosting: Hosting,
    /// Lets devices in.
    pub enrollment: Enrollment,
    /// Reaches devices.
    pub hub: Arc<Hub>,
    /// Reads devices' logs.
    pub logs: Logs,
    /// Encrypts.
    pub keyring: Arc<Keyring>,
    /// Say what agents are to pin.
    pub certificates: Arc<Certificates>,
    /// Counts.
    pub metrics: Arc<Metrics>,
    /// What is remembered between webhook calls.
    pub webhooks: Webhooks,
    /// The address of the public listener, as devices reach it.
    pub public_url: String,
    /// The program that renders, and its version.
    pub renderer: String,
}

type State = axum::extract::State<Arc<Api>>;

/// All routes.
pub fn router(api: Arc<Api>) -> Router {
    let fleet = "/api/v1/tenants/{tenant}/fleets/{fleet}";
    let below = |path: &str| format!("{fleet}{path}");
    Router::new()
        .route("/api/v1/tenants", get(tenants::list).post(tenants::create))
        .route("/api/v1/tenants/{tenant}/status", get(tenants::status))
        .route(
            "/api/v1/tenants/{tenant}/fleets",
            get(fleets::list).post(fleets::create),
        )
        .route(fleet, get(fleets::show).delete(fleets::remove))
        .route(
            &below("/connection"),
            get(connection::show)
                .put(connection::put)
                .delete(connection::remove),
        )
        .route(&below("/sync"), post(fleets::sync))
        .route(&below("/removals/confirm"), post(fleets::confirm_removals))
        .route(&below("/webhook/rotate"), post(webhooks::rotate))
        .route(&below("/revisions"), get(fleets::revisions))
        .route(&below("/tokens"), get(tokens::list).post(tokens::create))
        .route(&below("/tokens/{token}"), delete(tokens::revoke))
        .route(&below("/devices"), get(devices::list))
        .route(&below("/previews"), post(previews::create))
        .route(&below("/devices/{device}"), get(devices::show))
        .route(
            &below("/devices/{device}/manifests"),
            get(devices::manifests),
        )
        .route(&below("/devices/{device}/logs"), get(logs::read))
        .route(&below("/devices/{device}/approve"), post(devices::approve))
        .route(&below("/devices/{device}/reject"), post(devices::reject))
        .route(
            &below("/devices/{device}/decommission"),
            post(devices::decommission),
        )
        .route(longshore_protocol::api::ENROLL_PATH, post(enroll::enroll))
        .route(
            longshore_protocol::api::renew::RENEW_PATH,
            get(renew::challenge).post(renew::renew),
        )
        .layer(middleware::from_fn_with_state(
            Arc::<body::Bodies>::default(),
            body::bounded,
        ))
        .route("/previews/{tenant}/{fleet}/{number}", get(previews::report))
        .route("/webhooks/{tenant}/{fleet}", post(webhooks::receive))
        .route("/git/{tenant}/{repo}/info/refs", get(git::advertise))
        .route(
            "/git/{tenant}/{repo}/git-upload-pack",
            post(git::upload_pack),
        )
        .route(
            "/git/{tenant}/{repo}/git-receive-pack",
            post(git::receive_pack),
        )
        .route("/healthz", get(health::alive))
        .route("/readyz", get(health::ready))
        .route("/metrics", get(health::metrics))
        .fallback(health::not_found)
        .with_state(api)
}
