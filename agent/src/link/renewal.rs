//! A new certificate before the old one ends: at two thirds of its life, give or take a twentieth, so that
//! devices that enrolled together do not renew together. A refused or lost request is made again after an
//! hour, or sooner where the life is short. Every request has a fresh key; the old one is used until the new
//! certificate is on disk. A device that was away for too long renews elsewhere, in [`crate::renew`].

use rand::{RngExt as _, rngs::StdRng};

use crate::{
    causes,
    http_client::HttpError,
    identity::{CertificateError, Chain, DeviceKey, Identity, Keep},
};

use super::{LinkError, dial::DialError};

/// When to renew, in milliseconds since the Unix epoch by the controller's clock.
#[derive(Debug)]
pub(super) struct Renewal {
    beginning: u64,
    due: u64,
    /// When the certificate ends.
    ends: u64,
    again: u64,
    asked: Option<DeviceKey>,
}

impl Renewal {
    pub(super) fn of(identity: &Identity, random: &mut StdRng) -> Result<Self, CertificateError> {
        let (from, to) = Chain::verify(&identity.chain, &identity.ca_bundle, None)?.validity();
        Ok(Self::between(from, to, random))
    }

    fn between(from: u64, to: u64, random: &mut StdRng) -> Self {
        let life = to - from;
        let jitter = life / 20;
        let earliest = from + life / 3 * 2 - jitter;
        let due = random.random_range(earliest..=earliest + 2 * jitter);
        Self {
            beginning: from,
            due,
            ends: to,
            again: (life / 20).clamp(1000, 3_600_000),
            asked: None,
        }
    }

    /// Whether a connection failed because the certificate has ended: the controller says so, or the device's clock,
    /// where somebody answered and did not say why he hung up.
    pub(super) fn is_overdue(&self, error: &DialError, now: u64) -> bool {
        match error {
            DialError::Http(error) if error.is_certificate_expired() => true,
            DialError::Http(HttpError::Exchange(..) | HttpError::Tls(..)) => now > self.ends,
            _ => false,
        }
    }

    /// When the present certificate began, by the controller's clock.
    pub(super) fn beginning(&self) -> u64 {
        self.beginning
    }

    /// The request to make now, if it is time.
    pub(super) fn request(
        &mut self,
        identity: &Identity,
        now: u64,
    ) -> Result<Option<Vec<u8>>, CertificateError> {
        if now < self.due {
            return Ok(None);
        }
        self.due = now + self.again;
        let key = DeviceKey::generate()?;
        let request = key.request(&identity.name)?;
        self.asked = Some(key);
        Ok(Some(request.der))
    }

    /// Checks what came, and switches to it on disk. `None` where it is of no use.
    pub(super) async fn switch(
        &mut self,
        state: &impl Keep,
        identity: &Identity,
        answer: Result<Vec<Vec<u8>>, String>,
        now: u64,
    ) -> Result<Option<Identity>, LinkError> {
        let Some(key) = self.asked.as_ref() else {
            return Ok(None);
        };
        let checked = answer.and_then(|certificates| {
            let chain = Chain::verify_der(certificates, &identity.ca_bundle, now)
                .and_then(|chain| {
                    chain.belongs_to(key)?;
                    chain.names(&identity.device_id)?;
                    Ok(chain)
                })
                .map_err(|error| error.to_string())?;
            Ok(Identity {
                key: key.pem(),
                chain: chain.pem(),
                ..identity.clone()
            })
        });
        match checked {
            Ok(renewed) => match state.keep_identity(&renewed).await {
                Ok(()) => {
                    tracing::info!("the certificate is renewed");
                    Ok(Some(renewed))
                }
                Err(error) if error.may_pass() => {
                    tracing::warn!(
                        error = causes(&error),
                        "the renewed certificate cannot be kept; trying again later"
                    );
                    Ok(None)
                }
                Err(error) => Err(error.into()),
            },
            Err(why) => {
                tracing::warn!(why, "the certificate is not renewed; trying again later");
                Ok(None)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;

    use super::*;

    #[test]
    fn devices_that_enrolled_together_do_not_renew_together() {
        let day = 86_400_000;
        let mut random = StdRng::seed_from_u64(1);
        let dues: Vec<_> = (0..1000)
            .map(|_| Renewal::between(day, 31 * day, &mut random).due)
            .collect();
        let (first, last) = (dues.iter().min().unwrap(), dues.iter().max().unwrap());
        assert!(*first >= 19 * day + day / 2 && *last <= 22 * day + day / 2);
        assert!(last - first > 2 * day);
        // The shortest of lives does not break the arithmetic.
        Renewal::between(5, 5, &mut random);
    }
}
