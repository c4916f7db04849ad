//! Questions of many sessions, answered together.
//!
//! A lone question is asked at once; those that come while an answer is under way are asked together in the next
//! one. So the poke of ten thousand sessions is a handful of statements, and one of the store's connections serves
//! them all. While the store fails, the questions wait.

use std::{
    collections::{HashMap, HashSet},
    hash::Hash,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::future::BoxFuture;
use tokio::{
    sync::{Notify, oneshot},
    time::timeout,
};
use tracing::{info, warn};

use crate::{error::chain, store::StoreError};

/// How much is asked at once: enough to be cheap, little enough that the next in line waits shortly.
const AT_ONCE: usize = 500;
/// How long a question waits for a store that fails or stalls.
const PATIENCE: Duration = Duration::from_secs(15);
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Why a question has no answer.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum AskError {
    #[error("the store did not answer within {PATIENCE:?}")]
    Late,
    #[error(transparent)]
    Store(#[from] Arc<StoreError>),
}

/// What was found, by key. What is not there was not found; what cannot be read is an error of its own.
pub(super) type Found<K, V> = HashMap<K, Result<V, StoreError>>;

type Answer<K, V> = Result<HashMap<K, V>, AskError>;

#[derive(Debug)]
struct Question<K, V> {
    keys: Vec<K>,
    asker: oneshot::Sender<Answer<K, V>>,
}

/// Gathers questions about `K`, each answered with a `V`.
#[derive(Debug)]
pub(super) struct Gather<K, V> {
    questions: Mutex<Vec<Question<K, V>>>,
    wake: Notify,
}

impl<K, V> Default for Gather<K, V> {
    fn default() -> Self {
        Self {
            questions: Mutex::default(),
            wake: Notify::new(),
        }
    }
}

impl<K: Clone + Eq + Hash, V: Clone> Gather<K, V> {
    /// What is found of `keys`.
    pub(super) async fn ask(&self, keys: Vec<K>) -> Answer<K, V> {
        if keys.is_empty() {
            return Ok(HashMap::new());
        }
        let (asker, answer) = oneshot::channel();
        self.questions().push(Question { keys, asker });
        self.wake.notify_one();
        match timeout(PATIENCE, answer).await {
            Ok(Ok(answer)) => answer,
            // Nobody answers any more when the process stops.
            Ok(Err(_)) | Err(_) => Err(AskError::Late),
        }
    }

    /// Answers for as long as it is polled, with what `look` finds.
    pub(super) async fn answer<'a>(
        &self,
        mut look: impl FnMut(Vec<K>) -> BoxFuture<'a, Result<Found<K, V>, StoreError>>,
    ) {
        loop {
            self.wake.notified().await;
            let mut waiting = std::mem::take(&mut *self.questions())
                .into_iter()
                .peekable();
            while waiting.peek().is_some() {
                let mut keys = 0;
                let some = std::iter::from_fn(|| {
                    waiting.next_if(|question| {
                        let fits = keys == 0 || keys + question.keys.len() <= AT_ONCE;
                        keys += question.keys.len();
                        fits
                    })
                });
                let some: Vec<_> = some.collect();
                Self::answer_some(some, &mut look).await;
            }
        }
    }

    async fn answer_some<'a>(
        mut questions: Vec<Question<K, V>>,
        look: &mut impl FnMut(Vec<K>) -> BoxFuture<'a, Result<Found<K, V>, StoreError>>,
    ) {
        let mut pause = FIRST_PAUSE;
        loop {
            questions.retain(|question| !question.asker.is_closed());
            if questions.is_empty() {
                return;
            }
            let keys: HashSet<_> = questions.iter().flat_map(|it| &it.keys).cloned().collect();
            match look(keys.into_iter().collect()).await {
                Ok(found) => {
                    if pause != FIRST_PAUSE {
                        info!("the store answers the edge again");
                    }
                    let found: HashMap<_, _> = found
                        .into_iter()
                        .map(|(key, value)| (key, value.map_err(Arc::new)))
                        .collect();
                    for Question { keys, asker } in questions {
                        let of_key = |key: K| Some((key.clone(), found.get(&key)?.clone()));
                        let answer = keys
                            .into_iter()
                            .filter_map(of_key)
                            .map(|(key, value)| Ok((key, value?)))
                            .collect();
                        // Whoever left needs no answer.
                        drop(asker.send(answer));
                    }
                    return;
                }
                Err(error) => {
                    if pause == FIRST_PAUSE {
                        warn!(
                            error = %chain(&error),
                            sessions = questions.len(),
                            "the store does not answer the edge now; trying again"
                        );
                    }
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }

    fn questions(&self) -> std::sync::MutexGuard<'_, Vec<Question<K, V>>> {
        self.questions
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::future::ready;

    use futures_util::{FutureExt as _, future::join_all};

    use super::*;

    fn corrupt() -> StoreError {
        StoreError::Corrupt {
            column: "a.b",
            value: String::new(),
        }
    }

    async fn with<T>(
        gather: &Gather<u32, u32>,
        mut look: impl FnMut(Vec<u32>) -> Result<Found<u32, u32>, StoreError>,
        ask: impl Future<Output = T>,
    ) -> T {
        tokio::select! {
            () = gather.answer(|keys| ready(look(keys)).boxed()) => unreachable!("it answers for ever"),
            answer = ask => answer,
        }
    }

    fn doubled(keys: Vec<u32>) -> Found<u32, u32> {
        let double = |key| {
            if key == 13 {
                Err(corrupt())
            } else {
                Ok(2 * key)
            }
        };
        keys.into_iter()
            .filter(|key| *key != 7)
            .map(|key| (key, double(key)))
            .collect()
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_asked_at_once_is_one_look() {
        let gather = Gather::default();
        let mut looks = Vec::new();
        let asks = join_all((0..1200).map(|n| gather.ask(vec![n, n + 1])));
        let look = |keys: Vec<u32>| {
            looks.push(keys.len());
            Ok(doubled(keys))
        };
        let answers = with(&gather, look, asks).await;
        let few = looks.len() <= 6 && looks.iter().all(|keys| *keys <= AT_ONCE);
        assert!(few, "{looks:?}");
        for (n, answer) in (0..).zip(answers) {
            match n {
                6 => assert_eq!(answer.unwrap(), HashMap::from([(6, 12)])),
                7 => assert_eq!(answer.unwrap(), HashMap::from([(8, 16)])),
                12 | 13 => assert!(matches!(answer, Err(AskError::Store(_)))),
                n => assert_eq!(answer.unwrap().len(), 2, "{n}"),
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_fails_is_waited_for_and_not_for_ever() {
        let gather = Gather::default();
        let mut failures = 3;
        let look = |keys: Vec<u32>| {
            failures -= 1;
            if failures >= 0 {
                return Err(corrupt());
            }
            Ok(doubled(keys))
        };
        let answer = with(&gather, look, gather.ask(vec![1])).await;
        assert_eq!(answer.unwrap(), HashMap::from([(1, 2)]));
        let never = |_: Vec<u32>| Err(corrupt());
        let answer = with(&gather, never, gather.ask(vec![1])).await;
        assert!(matches!(answer, Err(AskError::Late)));
    }
}
