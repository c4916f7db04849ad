//! The agent's connection to the controller, for as long as the agent runs.
//!
//! ```text
//! dial ──▶ Welcome ──▶ serve: messages, pings, reports, renewal ──▶ the link ends ──▶ wait ──▶ dial …
//! ```
//!
//! One [`DeviceSession`] lives across all connections; this module carries out its effects, in order, and the
//! ledger is durable before the next effect is looked at. Waits are exponential with full jitter, from one
//! second to one minute, and start again once a connection has proved stable; what the controller asks for in
//! `Reconnect` or `Retry-After` is a lower bound. Credentials that are refused are tried again slowly: only a
//! verified server that says `decommissioned` ends the device's membership. A certificate that ended while the device
//! was away is renewed at the controller's public address first.

pub(crate) mod dial;
mod logs;
mod renewal;
mod serve;

use std::{sync::Arc, time::Duration};

use longshore_protocol::{
    api::Facts,
    session::{DeviceSession, Holding},
};
use rand::{SeedableRng as _, rngs::StdRng};
use tokio::{sync::watch, time};
use tokio_util::sync::CancellationToken;

use self::{dial::DialError, renewal::Renewal};
use crate::{
    backoff::Backoff,
    causes,
    http_client::HttpError,
    identity::{self, CertificateError, Identity, StateDir, StateError},
    ledger::{self, Ledger},
    network::Network,
    renew::{self, RenewError},
    report::Reporter,
    runtime::logs::Logs,
    tls::{self, TlsError},
    watchdog,
};

/// A connection that held for this long was a good one.
const STABLE: Duration = Duration::from_secs(10);

/// How many times the longest wait a device waits to ask again whose certificate ended too long ago.
const TOO_LATE: u32 = 15;

/// How often what happens, where the controller does not say.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// The first ceiling of the backoff.
    pub first_retry: Duration,
    /// Its last one.
    pub last_retry: Duration,
    /// Between two looks at the session's and the certificate's clocks.
    pub tick: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            first_retry: Duration::from_secs(1),
            last_retry: Duration::from_mins(1),
            tick: Duration::from_secs(5),
        }
    }
}

/// Everything that the link works with.
#[derive(Debug)]
pub struct Link<S = StateDir, L = Ledger> {
    /// Where a renewed certificate is kept.
    pub state: Arc<S>,
    /// Who the device is.
    pub identity: Identity,
    /// Where accepted sets are kept.
    pub ledger: Arc<L>,
    /// What the ledger held at the start.
    pub holding: Option<Arc<Holding>>,
    /// Where accepted sets go to be applied.
    pub target: watch::Sender<Option<Arc<Holding>>>,
    /// What to tell the controller.
    pub reporter: Reporter,
    /// Whether a session is open.
    pub connected: watch::Sender<bool>,
    /// The runtime's name.
    pub runtime: &'static str,
    /// Where its workloads' logs are to be had.
    pub logs: Arc<dyn Logs>,
    /// What the device says of itself.
    pub facts: watch::Receiver<Facts>,
    /// How often what happens.
    pub timing: Timing,
    /// How to get to the controller, and what time it is.
    pub network: Network,
    /// Chance.
    pub random: StdRng,
}

/// How a link ended for good.
#[derive(Debug, PartialEq, Eq)]
pub enum Ended {
    /// It was told to stop.
    Stopped,
    /// The device is no longer part of its fleet.
    Decommissioned {
        /// Why, in the controller's words.
        reason: String,
    },
}

/// Why there can be no link at all.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The identity does not make a TLS client.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The certificate cannot be read, or a key not made.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// The state directory fails.
    #[error(transparent)]
    State(#[from] StateError),
}

/// How one connection ended.
#[derive(Debug)]
enum Closed {
    Stopped,
    Decommissioned(String),
    /// The controller said when to come back.
    Asked(Duration),
    /// There is a new certificate to connect with.
    Renewed,
    /// It broke.
    Broken(String),
}

/// What comes after a connection that was not made.
#[derive(Debug)]
enum Next {
    /// Another try.
    Wait(Duration),
    /// Another try, with a new certificate.
    Afresh,
    Ended(Ended),
}

impl<S: identity::Keep, L: ledger::Keep> Link<S, L> {
    /// Keeps the link up until it is stopped or the device is decommissioned.
    pub async fn run(mut self, stop: CancellationToken) -> Result<Ended, LinkError> {
        let random = StdRng::from_rng(&mut self.random);
        let mut backoff = Backoff::new(self.timing.first_retry, self.timing.last_retry, random);
        let mut session = DeviceSession::new(self.holding.clone());
        let mut renewal = Renewal::of(&self.identity, &mut self.random)?;
        let mut tls = tls::edge(&self.identity, &self.network)?;
        let started = time::Instant::now();
        // Whoever signed our certificate knew what time it was.
        self.network.clock.not_before(renewal.beginning());
        if let Some(complaint) = self.network.clock.complaint() {
            tracing::warn!("{complaint}");
        }
        loop {
            self.keep_what_passes();
            watchdog::beat(dial::PATIENCE);
            let dialed = tokio::select! {
                () = stop.cancelled() => return Ok(Ended::Stopped),
                dialed = dial::dial(&self.network, &self.identity, tls.clone()) => dialed,
            };
            let wait = match dialed {
                Ok(socket) => {
                    tracing::info!(edge = %self.identity.edge_url, "connected");
                    let since = time::Instant::now();
                    let closed = serve::serve(
                        &mut self,
                        socket,
                        &mut session,
                        &mut renewal,
                        started,
                        &stop,
                    )
                    .await?;
                    if since.elapsed() >= STABLE {
                        backoff.reset();
                    }
                    match closed {
                        Closed::Stopped => return Ok(Ended::Stopped),
                        Closed::Decommissioned(reason) => {
                            return Ok(Ended::Decommissioned { reason });
                        }
                        Closed::Asked(after) => backoff.at_least(after),
                        Closed::Renewed => {
                            renewal = Renewal::of(&self.identity, &mut self.random)?;
                            tls = tls::edge(&self.identity, &self.network)?;
                            Duration::ZERO
                        }
                        Closed::Broken(why) => {
                            let wait = backoff.after_failure();
                            tracing::warn!(why, ?wait, "the link broke");
                            wait
                        }
                    }
                }
                Err(error) => {
                    if matches!(error, DialError::Http(HttpError::Exchange(..))) {
                        // A resumed session may be refused without a word; a new one is told why.
                        tls = tls::edge(&self.identity, &self.network)?;
                    }
                    match self.after(error, &renewal, &mut backoff, &stop).await? {
                        Next::Wait(wait) => wait,
                        Next::Afresh => {
                            renewal = Renewal::of(&self.identity, &mut self.random)?;
                            tls = tls::edge(&self.identity, &self.network)?;
                            // A good session resets it; a certificate that is new does not make one.
                            backoff.after_failure()
                        }
                        Next::Ended(ended) => return Ok(ended),
                    }
                }
            };
            watchdog::beat(wait);
            tokio::select! {
                () = stop.cancelled() => return Ok(Ended::Stopped),
                () = time::sleep(wait) => {}
            }
        }
    }

    /// What to do after no connection was made. A certificate that has ended is renewed.
    async fn after(
        &mut self,
        error: DialError,
        renewal: &Renewal,
        backoff: &mut Backoff,
        stop: &CancellationToken,
    ) -> Result<Next, LinkError> {
        if let DialError::Decommissioned(reason) = error {
            return Ok(Next::Ended(Ended::Decommissioned { reason }));
        }
        let wait = self.wait_after(&error, backoff);
        if !renewal.is_overdue(&error, self.network.clock.now()) {
            return Ok(Next::Wait(wait));
        }
        let server = self.identity.server.clone();
        tracing::info!(%server, "the certificate has ended; renewing it");
        let renewed = tokio::select! {
            () = stop.cancelled() => return Ok(Next::Ended(Ended::Stopped)),
            renewed = renew::renew(&self.network, &self.identity) => renewed,
        };
        let wait = match renewed {
            Ok(identity) => match self.state.keep_identity(&identity).await {
                Ok(()) => {
                    self.identity = identity;
                    tracing::info!("the certificate is renewed");
                    return Ok(Next::Afresh);
                }
                Err(error) if error.may_pass() => {
                    tracing::warn!(
                        error = causes(&error),
                        "the renewed certificate cannot be kept; trying again"
                    );
                    return Ok(Next::Wait(wait));
                }
                Err(error) => return Err(error.into()),
            },
            Err(RenewError::Decommissioned(reason)) => {
                return Ok(Next::Ended(Ended::Decommissioned { reason }));
            }
            Err(RenewError::TooLate(why)) => {
                // What runs keeps running, and somebody may allow more.
                let wait = backoff.at_least(self.timing.last_retry * TOO_LATE);
                tracing::error!(why, ?wait, "this device cannot connect any more");
                return Ok(Next::Wait(wait));
            }
            Err(RenewError::Later(status, asked)) => {
                tracing::warn!(status, "the controller asks to come back later");
                return Ok(Next::Wait(backoff.after_refusal(asked)));
            }
            Err(error) => {
                let wait = match error {
                    RenewError::Refused(..) => backoff.slow(),
                    _ => wait,
                };
                tracing::warn!(error = causes(&error), %server, ?wait, "the certificate is not renewed");
                wait
            }
        };
        Ok(Next::Wait(wait))
    }

    /// Keeps for the next start what time it is, and what happened that nobody could be told.
    fn keep_what_passes(&self) {
        let clock = &self.network.clock;
        clock.keep();
        self.reporter.journal().keep(clock.now(), false);
    }

    fn wait_after(&self, error: &DialError, backoff: &mut Backoff) -> Duration {
        let wait = match error {
            DialError::CredentialsRefused(_) => backoff.slow(),
            DialError::Later(_, asked) => backoff.after_refusal(*asked),
            _ => backoff.after_failure(),
        };
        tracing::warn!(error = causes(error), edge = %self.identity.edge_url, ?wait, "not connected; what runs keeps running");
        wait
    }
}
