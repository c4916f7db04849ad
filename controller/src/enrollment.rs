//! How a device gets in: token and request, then pending, then approved or rejected.
//!
//! ```text
//! POST /v1/enroll ─▶ registered (pending) ─▶ branch or commit ─▶ merged ─▶ active ─▶ certificate
//!                        │                    (branches)          (reconcile)
//!                        └─ repeated: the same device, by its key
//! ```
//!
//! A device is known by its key. Repeating the call with the same key gives the same device, whatever happened
//! in between; the signature of the request proves that the caller holds the key. Only a new device counts as a
//! use of the token, and the count is exact under concurrency.

mod automatic;
pub mod branches;
mod held;
pub mod limits;
mod pass;
mod push_pause;
mod renewal;
mod requests;
pub mod text;
mod verdict;
mod waiting;
mod write;

use std::{net::IpAddr, sync::Arc, time::Duration};

use longshore_protocol::{
    DeviceId, DeviceName, Digest, TenantName,
    api::{DeviceState, EnrollApproved, EnrollPending, EnrollRejected, EnrollRequest, Facts},
};
use rand::RngExt as _;
use secrecy::ExposeSecret as _;
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::info;

use self::limits::Limits;
use crate::{
    ca::{Ca, CaError, Request, Signer as _, pem},
    certificates::Certificates,
    clock,
    fleets::Fleets,
    gateway::{AskError, Lookups},
    metrics::Metrics,
    secret::{self, Keyring},
    store::{
        Store, StoreError,
        devices::{self, Device},
        tokens::{self, Token},
    },
};

/// The longest that a call is held while its device is pending.
const MAX_WAIT: Duration = Duration::from_secs(30);
/// After how many seconds a pending device is to call again.
const RETRY_AFTER: u64 = 1;
/// The same for one whose call gave its place to another one, between these: as often as calls that are held.
const UNHELD_RETRY_AFTER: (u64, u64) = (20, 40);
const MAX_FACTS: usize = 64;
const MAX_FACT_LENGTH: usize = 256;

/// What an enrollment call comes to.
#[derive(Debug)]
pub enum Outcome {
    /// `202`.
    Pending(EnrollPending),
    /// `200`.
    Approved(EnrollApproved),
    /// `403`.
    Rejected(EnrollRejected),
}

/// Why an enrollment call is refused.
#[derive(Debug, thiserror::Error)]
pub enum EnrollError {
    /// `404`: the token is unknown, expired, exhausted or revoked; which, is not told.
    #[error("Token not found")]
    TokenNotFound,
    /// `409`: another key has the name.
    #[error(
        "the name `{0}` is taken by a device with another key; choose another name, or decommission that device first"
    )]
    NameTaken(DeviceName),
    /// `422`: the name or the request is no good.
    #[error("{0}")]
    Invalid(String),
    /// `401`: what a device presents for a renewal is not all of the same device.
    #[error(
        "the certificate, the device token and the signature do not belong to one device of this controller"
    )]
    Unproven,
    /// `409`: the challenge of a renewal is not ours, or too old.
    #[error("the challenge is not this controller's, or it is too old: ask for another one")]
    StaleChallenge,
    /// `429`: too many tries.
    #[error("too many tries; come back after {} s", retry_after.as_secs().max(1))]
    TooMany {
        /// When to come back.
        retry_after: Duration,
    },
    /// `503`: too many call at once.
    #[error("too many devices enroll at once; come back after {} s", retry_after.as_secs().max(1))]
    Busy {
        /// When to come back.
        retry_after: Duration,
    },
    /// `500`: ours.
    #[error("the store failed")]
    Store(#[from] StoreError),
    /// `500`: ours.
    #[error("the store failed")]
    Read(#[source] Arc<StoreError>),
    /// `500`: ours.
    #[error("the certificate could not be made")]
    Ca(#[source] CaError),
}

impl From<AskError> for EnrollError {
    fn from(error: AskError) -> Self {
        match error {
            AskError::Late => Self::Busy {
                retry_after: limits::come_back(),
            },
            AskError::Store(error) => Self::Read(error),
        }
    }
}

/// Lets devices in.
#[derive(Debug)]
pub struct Enrollment {
    /// Remembers.
    pub store: Store,
    /// Issues certificates.
    pub ca: Arc<Ca>,
    /// Says by what devices are to trust the edge listener.
    pub certificates: Arc<Certificates>,
    /// Derives device tokens.
    pub keyring: Arc<Keyring>,
    /// Carries out and notices approvals.
    pub fleets: Arc<Fleets>,
    /// Bounds tries.
    pub limits: Limits,
    /// Says what tokens there are, and how the devices stand whose calls are held.
    pub lookups: Arc<Lookups>,
    /// Counts.
    pub metrics: Arc<Metrics>,
    /// Ends waiting.
    pub shutdown: CancellationToken,
    /// Where devices connect.
    pub edge_url: String,
    /// For how long after its end a certificate is renewed; nothing for never.
    pub renewal_grace: Duration,
}

impl Enrollment {
    /// Handles one call with the token `presented`, from `source`.
    pub async fn enroll(
        &self,
        presented: &str,
        request: EnrollRequest,
        source: IpAddr,
    ) -> Result<Outcome, EnrollError> {
        let result = self.handle(presented, request, source).await;
        if result.is_err() {
            self.metrics.enrollments_refused.inc();
        }
        result
    }

    async fn handle(
        &self,
        presented: &str,
        request: EnrollRequest,
        source: IpAddr,
    ) -> Result<Outcome, EnrollError> {
        // Failures are counted by address, but a right token is never turned away for its neighbours' sake:
        // thousands of devices may share one address.
        let Some(token) = self.token(presented).await? else {
            return Err(match self.limits.failed_try(source) {
                Ok(()) => EnrollError::TokenNotFound,
                Err(retry_after) => EnrollError::TooMany { retry_after },
            });
        };
        self.limits
            .token_try(&token.id)
            .map_err(|retry_after| EnrollError::TooMany { retry_after })?;
        let name: DeviceName = request
            .name
            .parse()
            .map_err(|error| EnrollError::Invalid(format!("{error}")))?;
        let facts = bounded(request.facts)?;
        let changes = self.fleets.changes(&token.fleet);
        let tenant = &token.fleet.tenant;
        let (mut device, csr) = {
            let place = self.limits.place(tenant).await;
            let _place = place.map_err(|retry_after| EnrollError::Busy { retry_after })?;
            let text = request.csr;
            let csr = Request::from_pem(&text)
                .map_err(|error| EnrollError::Invalid(error.to_string()))?;
            let device = self.register(&token, name, &csr, facts, source).await?;
            (device, csr)
        };
        let mut retry_after = RETRY_AFTER;
        if device.state == DeviceState::Pending
            && request.wait > 0
            && let Some(changes) = changes
        {
            let wait = Duration::from_secs(request.wait).min(MAX_WAIT);
            let hold = self.limits.hold(tenant, &device.id);
            tokio::select! {
                done = self.wait(&mut device, changes, Instant::now() + wait) => done?,
                () = hold.over() => {
                    let (least, most) = UNHELD_RETRY_AFTER;
                    retry_after = rand::rng().random_range(least..most);
                }
            }
        }
        self.answer(&device, &csr, retry_after)
    }

    /// Waits until the device is decided on, or what it waits for changes: that is worth an answer, too.
    async fn wait(
        &self,
        device: &mut Device,
        mut changes: watch::Receiver<u64>,
        deadline: Instant,
    ) -> Result<(), EnrollError> {
        loop {
            let told = tokio::select! {
                told = tokio::time::timeout_at(deadline, changes.changed()) => matches!(told, Ok(Ok(()))),
                () = self.shutdown.cancelled() => false,
            };
            if !told {
                return Ok(());
            }
            // All who wait look at this moment: the look-ups make few statements of it.
            let standing = self.lookups.standing(&device.id).await;
            let standing = standing?.ok_or(EnrollError::TokenNotFound)?;
            if standing.state != DeviceState::Pending
                || standing.state_reason != device.state_reason
            {
                device.state = standing.state;
                device.state_reason = standing.state_reason;
                return Ok(());
            }
        }
    }

    /// The token, unless it is revoked. Whether it may still register new devices is decided where one is.
    async fn token(&self, presented: &str) -> Result<Option<Token>, EnrollError> {
        let looked_at = self.limits.look();
        let _looked_at = looked_at.map_err(|retry_after| EnrollError::Busy { retry_after })?;
        let token = self.lookups.token(secret::hash(presented)).await?;
        Ok(token.filter(|token| !token.revoked))
    }

    async fn register(
        &self,
        token: &Token,
        name: DeviceName,
        csr: &Request,
        facts: Facts,
        source: IpAddr,
    ) -> Result<Device, EnrollError> {
        let key = csr.key_digest();
        let mut db = self.store.read().await?;
        if let Some(device) = devices::by_key(&mut db, &token.fleet, key).await? {
            // Another token of the fleet may have been given since; the device is the same.
            return Ok(device);
        }
        drop(db);
        let now = clock::now_ms();
        let device = Device {
            id: DeviceId::from_random(rand::random()),
            fleet: token.fleet.clone(),
            name: name.clone(),
            public_key: key,
            state: DeviceState::Pending,
            state_reason: "waits for approval".to_owned(),
            token: token.id.clone(),
            enrollment_branch: None,
            enrollment_commit: None,
            branch_pushed: false,
            folder_to_delete: false,
            labels: token.labels.clone(),
            facts,
            conditions: Vec::new(),
            source_address: source.to_string(),
            created_at: now,
        };
        let mut db = self.store.write().await?;
        if !tokens::take_use(&mut db, token, now).await? {
            return Err(EnrollError::TokenNotFound);
        }
        match devices::insert(&mut db, &device).await {
            Ok(()) => {}
            Err(StoreError::Duplicate(_)) => {
                drop(db);
                // Either the name is taken, or the same device came twice at the same moment.
                let mut db = self.store.read().await?;
                let same = devices::by_key(&mut db, &token.fleet, key).await?;
                return same.ok_or(EnrollError::NameTaken(name));
            }
            Err(error) => return Err(error.into()),
        }
        db.commit().await.map_err(StoreError::from)?;
        self.metrics.enrollments.inc();
        info!(
            fleet = %device.fleet, device = %device.name, id = %device.id, key = %device.public_key,
            "a device asks to enroll"
        );
        self.fleets.poke(&token.fleet);
        Ok(device)
    }

    fn answer(
        &self,
        device: &Device,
        csr: &Request,
        retry_after: u64,
    ) -> Result<Outcome, EnrollError> {
        Ok(match device.state {
            DeviceState::Pending => Outcome::Pending(EnrollPending {
                device_id: device.id.clone(),
                device_token: self.device_token(&device.id, device.public_key),
                status: "pending".to_owned(),
                retry_after,
                message: Some(device.state_reason.clone()),
            }),
            DeviceState::Active => {
                let tenant = &device.fleet.tenant;
                Outcome::Approved(self.approve(csr, tenant, &device.id, device.public_key)?)
            }
            DeviceState::Rejected => refused("rejected", &device.state_reason),
            DeviceState::Decommissioned => refused("decommissioned", &device.state_reason),
        })
    }

    /// What a device gets that is approved, with a certificate for the key of `csr`.
    fn approve(
        &self,
        csr: &Request,
        tenant: &TenantName,
        id: &DeviceId,
        public_key: Digest,
    ) -> Result<EnrollApproved, EnrollError> {
        let chain = self
            .ca
            .sign_device(csr, tenant, id, clock::now_ms())
            .map_err(EnrollError::Ca)?;
        Ok(EnrollApproved {
            device_id: id.clone(),
            device_token: self.device_token(id, public_key),
            certificate_chain: pem("CERTIFICATE", &chain),
            ca_bundle: self.certificates.edge_bundle(),
            edge_url: self.edge_url.clone(),
        })
    }

    fn device_token(&self, id: &DeviceId, public_key: Digest) -> String {
        let token = self.keyring.device_token(id, public_key);
        token.expose_secret().to_owned()
    }
}

fn refused(status: &str, reason: &str) -> Outcome {
    Outcome::Rejected(EnrollRejected {
        status: status.to_owned(),
        reason: reason.to_owned(),
    })
}

/// Facts come from outside: few, short, and without control characters.
pub fn bounded(facts: Facts) -> Result<Facts, EnrollError> {
    if facts.len() > MAX_FACTS {
        return Err(EnrollError::Invalid(format!("more than {MAX_FACTS} facts")));
    }
    let clean = |text: String| -> String {
        text.chars()
            .filter(|char| !char.is_control())
            .take(MAX_FACT_LENGTH)
            .collect()
    };
    Ok(facts
        .into_iter()
        .map(|(name, value)| (clean(name), clean(value)))
        .collect())
}
