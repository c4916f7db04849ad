//! How devices stand, looked up for many sessions at once.
//!
//! A lone question is asked at once; those that come while a statement is under way are asked together in the
//! next one. So a poke of ten thousand sessions is a handful of statements, and one connection of the store's
//! serves them all. While the store fails, the questions wait.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use longshore_protocol::DeviceId;
use tokio::{
    sync::{Notify, oneshot},
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    error::chain,
    metrics::Metrics,
    store::{
        Store, StoreError,
        devices::{self, Standing},
    },
};

/// How many devices one statement asks for: enough to be cheap, few enough that the next in line waits shortly.
const AT_ONCE: usize = 500;
/// How long a question waits for a store that fails or stalls.
const PATIENCE: Duration = Duration::from_secs(15);
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Why a question has no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum LookupError {
    #[error("the store did not answer within {PATIENCE:?}")]
    Late,
    #[error(transparent)]
    Store(#[from] Arc<StoreError>),
}

type Answer = Result<Option<Standing>, Arc<StoreError>>;
type Question = (DeviceId, oneshot::Sender<Answer>);

/// Answers how devices stand.
#[derive(Debug)]
pub struct Lookups {
    store: Store,
    metrics: Arc<Metrics>,
    questions: Mutex<Vec<Question>>,
    wake: Notify,
}

impl Lookups {
    /// Looks into `store`.
    pub fn new(store: Store, metrics: Arc<Metrics>) -> Self {
        Self {
            store,
            metrics,
            questions: Mutex::default(),
            wake: Notify::new(),
        }
    }

    /// How a device stands now; `None` where there is no such device.
    pub(super) async fn standing(
        &self,
        device: &DeviceId,
    ) -> Result<Option<Standing>, LookupError> {
        let (ask, answer) = oneshot::channel();
        self.questions().push((device.clone(), ask));
        self.wake.notify_one();
        match timeout(PATIENCE, answer).await {
            Ok(Ok(answer)) => Ok(answer?),
            // Nobody answers any more when the process stops.
            Ok(Err(_)) | Err(_) => Err(LookupError::Late),
        }
    }

    /// Answers until `end`.
    pub async fn run(&self, end: CancellationToken) {
        let answer = async {
            loop {
                self.wake.notified().await;
                let questions = std::mem::take(&mut *self.questions());
                let mut questions = questions.into_iter();
                loop {
                    let some: Vec<_> = questions.by_ref().take(AT_ONCE).collect();
                    if some.is_empty() {
                        break;
                    }
                    self.answer(some).await;
                }
            }
        };
        tokio::select! {
            () = answer => {}
            () = end.cancelled() => {}
        }
    }

    async fn answer(&self, mut questions: Vec<Question>) {
        let mut pause = FIRST_PAUSE;
        loop {
            questions.retain(|(_, asker)| !asker.is_closed());
            if questions.is_empty() {
                return;
            }
            match self.look(&questions).await {
                Ok(found) => {
                    if pause != FIRST_PAUSE {
                        info!("devices can be looked up again");
                    }
                    for (device, asker) in questions {
                        // Two connections of one device may have asked. Whoever left needs no answer.
                        drop(asker.send(found.get(&device).cloned().transpose()));
                    }
                    return;
                }
                Err(error) => {
                    if pause == FIRST_PAUSE {
                        warn!(error = %chain(&error), "devices cannot be looked up now; trying again");
                    }
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }

    async fn look(
        &self,
        questions: &[Question],
    ) -> Result<HashMap<DeviceId, Result<Standing, Arc<StoreError>>>, StoreError> {
        let devices: HashSet<_> = questions.iter().map(|(device, _)| device.clone()).collect();
        let devices: Vec<_> = devices.into_iter().collect();
        self.metrics.lookups.inc();
        self.metrics.looked_up.inc_by(devices.len() as u64);
        let mut db = self.store.read().await?;
        let found = devices::standings(&mut db, &devices).await?;
        let shared = |(device, standing): (_, Result<_, _>)| (device, standing.map_err(Arc::new));
        Ok(found.into_iter().map(shared).collect())
    }

    fn questions(&self) -> std::sync::MutexGuard<'_, Vec<Question>> {
        self.questions
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
