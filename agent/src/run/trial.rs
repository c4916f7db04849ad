//! Sees whether the settings connect, and what follows from that.

use std::{convert::Infallible, time::Duration};

use tokio::{sync::watch, time};

use crate::{
    causes,
    config::{LastGood, Origin, Refused, Standing},
    files::FileError,
    report::{CONFIG_INVALID, Reporter},
    watchdog,
};

/// How often to look whether the settings' file has changed, while it is not in force.
const LOOK: Duration = Duration::from_mins(1);

/// How long the settings that connected last have to do so again, before the new ones get another chance.
const COPYS_TURN: Duration = Duration::from_mins(10);

/// Returns when the settings should be read anew.
pub(super) async fn judge(
    origin: &Origin,
    last_good: &LastGood,
    mut connected: watch::Receiver<bool>,
    reporter: &Reporter,
) {
    match &origin.standing {
        Standing::Holds(essence) => {
            connects(&mut connected).await;
            noted(last_good.keep(essence));
            never().await;
        }
        Standing::OnTrial(essence, deadline) => {
            let path = origin.path.display();
            tracing::info!(%path, ?deadline, "the settings have changed since they connected; on trial");
            let deadline = deadline.unwrap_or(Duration::MAX);
            if time::timeout(deadline, connects(&mut connected))
                .await
                .is_ok()
            {
                noted(last_good.keep(essence));
                never().await;
            }
            tracing::error!(%path, "no connection with the changed settings; those that connected last come back");
            if let Some(digest) = origin.digest {
                noted(last_good.refuse(digest));
            }
        }
        Standing::Refused(refused) => {
            let why = refused.explanation(&origin.path);
            tracing::error!(
                reason = refused.reason(),
                why,
                "the settings' file is not in force"
            );
            reporter.holds(CONFIG_INVALID, refused.reason(), why);
            let once = *refused == Refused::NoConnection { tried_again: false };
            let begun = time::Instant::now();
            while !origin.has_changed() {
                time::sleep(LOOK).await;
                if once && !*connected.borrow() && begun.elapsed() >= COPYS_TURN {
                    noted(last_good.forgive());
                    return;
                }
                if let Some(digest) = origin.digest
                    && once
                    && *connected.borrow()
                {
                    noted(last_good.try_again(digest));
                    return;
                }
            }
            tracing::info!(path = %origin.path.display(), "the settings' file has changed");
        }
    }
}

async fn connects(connected: &mut watch::Receiver<bool>) {
    if connected.wait_for(|connected| *connected).await.is_err() {
        // The link is at its end, and so are we.
        never().await;
    }
}

async fn never() -> Infallible {
    std::future::pending().await
}

/// Where it cannot be noted, all goes on: another start may then come to another conclusion.
fn noted(result: Result<(), FileError>) {
    watchdog::allow(watchdog::FILES);
    if let Err(error) = result {
        tracing::warn!(
            error = causes(&error),
            "how the settings fared is not recorded"
        );
    }
}

#[cfg(test)]
mod tests {
    use longshore_protocol::Digest;
    use tokio::time::Instant;

    use super::*;
    use crate::clock;

    const DEADLINE: Duration = Duration::from_mins(10);

    fn origin(dir: &tempfile::TempDir, standing: Standing) -> Origin {
        let path = dir.path().join("agent.toml");
        std::fs::write(&path, "name = 'a'").unwrap();
        Origin {
            path,
            digest: Some(Digest::of(b"name = 'a'")),
            standing,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_connects_is_kept_and_what_does_not_is_given_up_in_time() {
        let dir = tempfile::tempdir().unwrap();
        let last_good = LastGood::open(dir.path()).unwrap();
        let reporter = Reporter::new(None, clock::system);
        let connected = watch::Sender::new(false);
        let trial = origin(&dir, Standing::OnTrial("name = 'a'".into(), Some(DEADLINE)));
        let digest = trial.digest.unwrap();

        let begun = Instant::now();
        judge(&trial, &last_good, connected.subscribe(), &reporter).await;
        assert!(begun.elapsed() >= DEADLINE);
        let refused = last_good.refusal(digest).unwrap();
        assert_eq!(refused, Refused::NoConnection { tried_again: false });

        // The copy does not connect either: perhaps the file was right, and gets its chance as if it were new.
        let back = origin(&dir, Standing::Refused(refused));
        judge(&back, &last_good, connected.subscribe(), &reporter).await;
        assert_eq!(last_good.refusal(digest), None);
        last_good.refuse(digest).unwrap();

        // The copy connects, and the file gets its second chance.
        let judging = judge(&back, &last_good, connected.subscribe(), &reporter);
        assert!(time::timeout(COPYS_TURN / 2, judging).await.is_err());
        let conditions = reporter.follow().borrow().conditions.clone();
        let stated = conditions
            .iter()
            .find(|it| it.kind == CONFIG_INVALID)
            .unwrap();
        assert_eq!(stated.reason, "NoConnection");
        connected.send_replace(true);
        judge(&back, &last_good, connected.subscribe(), &reporter).await;
        assert_eq!(last_good.refusal(digest), None);

        // It connects now.
        let judging = judge(&trial, &last_good, connected.subscribe(), &reporter);
        assert!(time::timeout(DEADLINE * 2, judging).await.is_err());
        assert_eq!(last_good.copy().unwrap(), "name = 'a'");

        // What is wrong for good waits for hands.
        let back = origin(&dir, Standing::Refused(Refused::Invalid("a typo".into())));
        let mut judging = Box::pin(judge(&back, &last_good, connected.subscribe(), &reporter));
        assert!(time::timeout(DEADLINE * 100, &mut judging).await.is_err());
        std::fs::write(&back.path, "name = 'b'").unwrap();
        judging.await;
    }
}
