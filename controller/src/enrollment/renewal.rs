//! How a device comes back whose certificate ended while it was away.
//!
//! ```text
//! challenge of ours, fresh ─▶ device by its old certificate, and its token ─▶ chain and signature ─▶ active?
//!     ─▶ within the grace? ─▶ certificate
//! ```
//!
//! It takes what a session takes, a certificate of our authority with its key and the device's token, with one
//! difference: the certificate may have ended. The signature is fresh by the challenge in it and holds for one
//! request, so a repeated call gives its repeater nothing. What is cheap is looked at first, and nothing is told
//! of a device to whoever has not proved to be it.

use std::{net::IpAddr, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use longshore_protocol::api::{
    DeviceState,
    renew::{RenewChallenge, RenewRequest, proof},
};
use tracing::{debug, info};

use super::{EnrollError, Enrollment, Outcome, refused};
use crate::{
    ca::{CaError, Former, Request},
    clock,
    store::devices::Standing,
};

/// How old a challenge may be, or, by another replica's clock, how new.
const CHALLENGE_MS: u64 = 5 * 60 * 1000;
const DAY: u64 = 24 * 60 * 60;

impl Enrollment {
    /// What a device is to sign.
    pub fn challenge(&self) -> RenewChallenge {
        let time = clock::now_ms();
        RenewChallenge {
            challenge: self.keyring.challenge(time),
            time,
        }
    }

    /// Handles one call of a device with the device token `presented`, from `source`.
    pub async fn renew(
        &self,
        presented: &str,
        request: &RenewRequest,
        source: IpAddr,
    ) -> Result<Outcome, EnrollError> {
        let result = self.try_renew(presented, request, clock::now_ms()).await;
        if result.is_err() {
            self.metrics.enrollments_refused.inc();
        }
        match result {
            // As with provisioning tokens, failures are counted by address, and nobody else's.
            Err(EnrollError::Unproven) => {
                let failed = self.limits.failed_try(source);
                failed.map_err(|retry_after| EnrollError::TooMany { retry_after })?;
                Err(EnrollError::Unproven)
            }
            result => result,
        }
    }

    async fn try_renew(
        &self,
        presented: &str,
        request: &RenewRequest,
        now: u64,
    ) -> Result<Outcome, EnrollError> {
        let challenged = self.keyring.challenged_at(&request.challenge);
        if challenged.is_none_or(|at| at.abs_diff(now) > CHALLENGE_MS) {
            return Err(EnrollError::StaleChallenge);
        }
        let invalid = |error: CaError| EnrollError::Invalid(error.to_string());
        let former = Former::from_pem(&request.certificate_chain, self.ca.trust_domain());
        let former = former.map_err(invalid)?;
        let standing = self.claimed(&former, presented).await?;
        let identity = former.identity();
        self.limits
            .renewal(&identity.device)
            .map_err(|retry_after| EnrollError::TooMany { retry_after })?;
        let place = self.limits.place(&identity.tenant).await;
        let _place = place.map_err(|retry_after| EnrollError::Busy { retry_after })?;
        let csr = Request::from_pem(&request.csr).map_err(invalid)?;
        let message = proof(&request.challenge, former.leaf(), csr.der());
        let signature = BASE64.decode(&request.signature).unwrap_or_default();
        if let Err(error) = former.verify(&self.ca.authority(), &message, &signature, now) {
            debug!(device = %identity.device, %error, "a renewal is not proven");
            return Err(EnrollError::Unproven);
        }
        match standing.state {
            DeviceState::Active => {}
            DeviceState::Decommissioned => {
                return Ok(refused("decommissioned", &standing.state_reason));
            }
            DeviceState::Pending | DeviceState::Rejected => {
                return Ok(refused("rejected", &standing.state_reason));
            }
        }
        if let Some(reason) = too_late(former.ended(), self.renewal_grace, now) {
            info!(
                fleet = %standing.fleet, device = %standing.name, ended = former.ended(),
                "a device asks too late for a new certificate"
            );
            return Ok(refused("expired", &reason));
        }
        let (tenant, id) = (&identity.tenant, &identity.device);
        let approved = self.approve(&csr, tenant, id, standing.public_key)?;
        info!(
            fleet = %standing.fleet, device = %standing.name, ended = former.ended(),
            "a certificate that had ended is renewed"
        );
        Ok(Outcome::Approved(approved))
    }

    /// The device that the certificate names, if the token is its.
    async fn claimed(&self, former: &Former, presented: &str) -> Result<Standing, EnrollError> {
        let identity = former.identity();
        let looked_at = self.limits.look();
        let _looked_at = looked_at.map_err(|retry_after| EnrollError::Busy { retry_after })?;
        self.lookups
            .standing(&identity.device)
            .await?
            .filter(|standing| standing.fleet.tenant == identity.tenant)
            .filter(|standing| {
                let key = standing.public_key;
                self.keyring
                    .is_device_token(&identity.device, key, presented)
            })
            .ok_or(EnrollError::Unproven)
    }
}

/// Why a certificate is not renewed any more, for people, where it is not.
fn too_late(ended: u64, grace: Duration, now: u64) -> Option<String> {
    let ago = Duration::from_millis(now.saturating_sub(ended));
    if ago.is_zero() || ago <= grace {
        return None;
    }
    let days = |duration: Duration| duration.as_secs() / DAY;
    let anew = "decommission the device, and enroll it anew with a token";
    Some(if grace.is_zero() {
        format!("this controller does not renew certificates that have ended: {anew}")
    } else {
        format!(
            "the certificate ended {} days ago, and this controller renews it for {} days: {anew}",
            days(ago),
            days(grace)
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grace_has_an_end_and_may_be_none() {
        let day = 1000 * DAY;
        let grace = Duration::from_hours(90 * 24);
        assert_eq!(too_late(day, grace, day - 1), None, "it has not ended");
        assert_eq!(too_late(day, grace, 91 * day), None);
        let late = too_late(day, grace, 92 * day).unwrap();
        assert!(late.contains("ended 91 days ago") && late.contains("enroll it anew"));
        assert_eq!(too_late(day, Duration::ZERO, day), None);
        let never = too_late(day, Duration::ZERO, day + 1).unwrap();
        assert!(never.contains("does not renew"), "{never}");
    }
}
