//! Follows the objects of one kind that carry the label of any device's agent.
//!
//! ```text
//!      ┌── 410 Gone ──────────────────────────────┐
//!      ▼                                          │
//!    list, in pages ──▶ watch from its version ──▶ events, bookmarks ──▶ end ──▶ watch from the last version
//! ```
//!
//! What was listed is told when the watch is open, so that nothing is applied that cannot be followed.
//!
//! Objects are reduced to what is kept of them as they are read, one page or one line at a time. A connection that
//! breaks is opened again with backoff, from where it was; the API server says when that is too long ago.

use std::{sync::Arc, time::Duration};

use futures_util::{Stream, stream};
use rand::{RngExt as _, rngs::StdRng};
use serde_json::Value;
use tokio::time::{self, Instant};

use super::{
    api::{Api, CallError, Detail, Lines, Refusal},
    kinds::Resource,
    name::{Kind, Name},
    seen::{DEVICE, Seen},
    status::text,
};
use crate::backoff::Backoff;

/// How many whole objects a page has, and how many metadata.
const WHOLE_PAGE: usize = 50;
const METADATA_PAGE: usize = 250;
/// After this long the API server ends a watch, and up to half as much more.
const WATCH_SECONDS: u64 = 300;
/// How much longer than that a silent connection is believed.
const GRACE: Duration = Duration::from_secs(30);
/// An API server that has just started knows neither accounts nor roles yet, and refuses whoever comes. For this long
/// that is asked again soon and, where it was allowed before, taken for that.
const STARTING: Duration = Duration::from_secs(10);
/// The first and the last ceiling of the waits between tries.
const FIRST_RETRY: Duration = Duration::from_millis(500);
const LAST_RETRY: Duration = Duration::from_mins(1);

/// What following brings.
#[derive(Debug)]
pub(super) enum Event {
    /// All objects that there are.
    Listed(Kind, Vec<(Name, Seen)>),
    /// One that is new or changed.
    Changed(Name, Seen),
    /// One that is gone, or carries the label no more, in this version.
    Gone(Name, String),
    /// There is no answer to be had. Without a connection, none about other kinds either.
    Lost {
        kind: Kind,
        why: String,
        connected: bool,
    },
    /// It can again.
    Regained(Kind),
    /// It refuses to show the kind.
    Denied(Arc<Resource>, String),
    /// It does not serve the kind any more. This is the last event.
    Unserved(Kind),
}

/// Follows the objects of a kind, in one namespace or in all.
pub(super) fn follow(
    api: Api,
    resource: Arc<Resource>,
    namespace: Option<&str>,
    random: StdRng,
) -> impl Stream<Item = Event> + Send + use<> {
    let path = format!("{}?labelSelector={DEVICE}", resource.path(namespace));
    let follower = Follower {
        api,
        path,
        resource,
        at: None,
        listed: None,
        lines: None,
        pause: None,
        lost: false,
        allowed: false,
        denied: None,
        ended: false,
        backoff: Backoff::new(FIRST_RETRY, LAST_RETRY, rand::make_rng()),
        random,
    };
    stream::unfold(follower, |mut follower| async {
        let event = follower.next().await?;
        Some((event, follower))
    })
}

struct Follower {
    api: Api,
    path: String,
    resource: Arc<Resource>,
    /// The version that was seen last; none before a list.
    at: Option<String>,
    /// What was listed, until the watch is open.
    listed: Option<Event>,
    lines: Option<Lines>,
    /// What to wait before the next try.
    pause: Option<Duration>,
    lost: bool,
    /// Whether a watch was ever open.
    allowed: bool,
    /// Since when it is refused.
    denied: Option<Instant>,
    ended: bool,
    backoff: Backoff,
    random: StdRng,
}

impl Follower {
    async fn next(&mut self) -> Option<Event> {
        while !self.ended {
            if let Some(pause) = self.pause.take() {
                time::sleep(pause).await;
            }
            match self.step().await {
                Ok(None) => {}
                Ok(Some(event)) => return Some(event),
                Err(CallError::Unreachable(why)) => return Some(self.failed(why, false)),
                Err(CallError::Refused(refusal)) => {
                    if let Some(event) = self.refused(&refusal) {
                        return Some(event);
                    }
                }
            }
        }
        None
    }

    /// One request or one line.
    async fn step(&mut self) -> Result<Option<Event>, CallError> {
        let Some(at) = &self.at else {
            self.list().await?;
            return Ok(None);
        };
        let Some(lines) = &mut self.lines else {
            let seconds = WATCH_SECONDS + self.random.random_range(0..=WATCH_SECONDS / 2);
            let path = format!(
                "{}&watch=true&allowWatchBookmarks=true&timeoutSeconds={seconds}&resourceVersion={at}",
                self.path
            );
            self.lines = Some(self.api.watch(&path, self.resource.detail()).await?);
            // Watches that end at once, again and again, must not become a storm.
            self.pause = None;
            (self.allowed, self.denied) = (true, None);
            let regained = std::mem::take(&mut self.lost);
            let regained = || regained.then(|| Event::Regained(self.resource.kind()));
            return Ok(self.listed.take().or_else(regained));
        };
        let patience = Duration::from_secs(WATCH_SECONDS * 3 / 2) + GRACE;
        let Some(line) = lines.next(patience).await? else {
            self.lines = None;
            self.pause = Some(self.backoff.after_failure());
            return Ok(None);
        };
        self.backoff.reset();
        self.read(&line)
    }

    async fn list(&mut self) -> Result<(), CallError> {
        let detail = self.resource.detail();
        let page = match detail {
            Detail::Whole => WHOLE_PAGE,
            Detail::Metadata => METADATA_PAGE,
        };
        let mut found = Vec::new();
        let mut next = String::new();
        loop {
            let path = format!("{}&limit={page}{next}", self.path);
            let answer = self.api.list(&path, detail).await?;
            let items = answer.get("items").and_then(Value::as_array);
            let items = items.into_iter().flatten();
            found.extend(items.filter_map(|item| Seen::read(&self.resource, item)));
            let token = text(&answer, "/metadata/continue");
            if token.is_empty() {
                self.at = Some(text(&answer, "/metadata/resourceVersion").to_owned());
                self.listed = Some(Event::Listed(self.resource.kind(), found));
                return Ok(());
            }
            let token: String = url::form_urlencoded::byte_serialize(token.as_bytes()).collect();
            next = format!("&continue={token}");
        }
    }

    fn read(&mut self, line: &[u8]) -> Result<Option<Event>, CallError> {
        let event: Value = serde_json::from_slice(line).map_err(|error| {
            CallError::Unreachable(format!("an event of the API server is no JSON: {error}"))
        })?;
        let object = event.get("object").unwrap_or(&Value::Null);
        let kind = text(&event, "/type");
        if kind == "ERROR" {
            let refusal = serde_json::from_value(object.clone()).unwrap_or_default();
            return Err(CallError::Refused(Box::new(refusal)));
        }
        let version = text(object, "/metadata/resourceVersion");
        if !version.is_empty() {
            self.at = Some(version.to_owned());
        }
        if kind == "BOOKMARK" {
            return Ok(None);
        }
        let seen = Seen::read(&self.resource, object);
        Ok(seen.map(|(name, seen)| match kind {
            "DELETED" => Event::Gone(name, seen.version),
            _ => Event::Changed(name, seen),
        }))
    }

    fn failed(&mut self, why: String, connected: bool) -> Event {
        self.lines = None;
        self.lost = true;
        self.pause = Some(self.backoff.after_failure());
        Event::Lost {
            kind: self.resource.kind(),
            why,
            connected,
        }
    }

    fn refused(&mut self, refusal: &Refusal) -> Option<Event> {
        self.lines = None;
        match refusal.code {
            // What happened since then is forgotten: begin anew.
            410 => {
                self.at = None;
                self.pause = Some(self.backoff.after_failure());
                None
            }
            404 => {
                self.ended = true;
                Some(Event::Unserved(self.resource.kind()))
            }
            401 | 403 | 405 => {
                let starting = self.denied.get_or_insert_with(Instant::now).elapsed() < STARTING;
                if starting && self.allowed {
                    return Some(self.failed(refusal.message.clone(), true));
                }
                self.at = None;
                self.pause = Some(if starting {
                    self.backoff.after_failure()
                } else {
                    self.backoff.slow()
                });
                let message = format!(
                    "cannot watch {}, which takes the verbs `list` and `watch`: {}",
                    self.resource.rule(),
                    refusal.message
                );
                Some(Event::Denied(self.resource.clone(), message))
            }
            _ => Some(self.failed(refusal.message.clone(), true)),
        }
    }
}
