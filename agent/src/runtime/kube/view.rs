//! What is known of the cluster, folded from what following the kinds brings.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures_util::{
    StreamExt as _,
    future::{AbortHandle, Abortable},
    stream::{BoxStream, SelectAll},
};
use tokio::time::Instant;

use super::{
    api::Api,
    follow::{self, Event},
    inventory::Record,
    kinds::Resource,
    name::{Kind, Name},
    seen::{Seen, is_older},
};

/// A connection that is lost for no longer than this is nothing to report: API servers restart.
const BRIEFLY: Duration = Duration::from_secs(30);

/// What is known of a kind.
#[derive(Debug)]
struct Followed {
    /// Whether its objects have been listed.
    listed: bool,
    /// Why its objects cannot be seen, where the API server refuses.
    denied: Option<String>,
    /// Since when and why there is no answer.
    lost: Option<Lost>,
    end: AbortHandle,
}

#[derive(Debug)]
struct Lost {
    since: Instant,
    why: String,
    connected: bool,
}

/// What is known of the cluster.
#[derive(Default)]
pub(super) struct View {
    kinds: BTreeMap<Kind, Followed>,
    objects: BTreeMap<Name, Seen>,
    streams: SelectAll<BoxStream<'static, Event>>,
}

impl std::fmt::Debug for View {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("View")
            .field("kinds", &self.kinds)
            .finish_non_exhaustive()
    }
}

/// Whether the objects of a kind are known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// They are.
    Yes,
    /// They are not, and this is why.
    No(String),
    /// There are none, for the API server does not serve the kind any more.
    Unserved,
}

impl View {
    /// The object, where it is there and carries a device's label.
    pub(super) fn object(&self, name: &Name) -> Option<&Seen> {
        self.objects.get(name)
    }

    /// Whether the objects of this kind are known.
    pub(super) fn knows(&self, kind: &Kind) -> Known {
        match self.kinds.get(kind) {
            Some(Followed {
                denied: Some(why), ..
            }) => Known::No(why.clone()),
            Some(Followed { listed: true, .. }) => Known::Yes,
            Some(Followed {
                lost: Some(lost), ..
            }) => Known::No(lost.why.clone()),
            Some(_) => Known::No("its objects are not listed yet".to_owned()),
            None => Known::Unserved,
        }
    }

    /// Begins to follow these kinds, and forgets all others.
    pub(super) fn follow<'a>(
        &mut self,
        api: &Api,
        resources: impl Iterator<Item = &'a Arc<Resource>>,
        namespace: Option<&str>,
    ) {
        let mut wanted = BTreeMap::new();
        for resource in resources {
            wanted.entry(resource.kind()).or_insert(resource);
        }
        self.kinds.retain(|kind, followed| {
            let stays = wanted.contains_key(kind);
            if !stays {
                followed.end.abort();
            }
            stays
        });
        let kinds = &self.kinds;
        self.objects
            .retain(|name, _| kinds.contains_key(&name.kind()));
        for (kind, resource) in wanted {
            if self.kinds.contains_key(&kind) {
                continue;
            }
            let events = follow::follow(api.clone(), resource.clone(), namespace, rand::make_rng());
            let (end, registration) = AbortHandle::new_pair();
            self.streams
                .push(Abortable::new(events, registration).boxed());
            let followed = Followed {
                listed: false,
                denied: None,
                lost: None,
                end,
            };
            self.kinds.insert(kind, followed);
        }
    }

    /// Returns when each kind's objects are known, or it is known why not.
    pub(super) async fn settled(&mut self, records: &BTreeMap<Name, Record>) -> bool {
        let mut stirred = false;
        while self.kinds.values().any(|followed| {
            !followed.listed && followed.denied.is_none() && followed.lost.is_none()
        }) {
            match self.streams.next().await {
                Some(event) => stirred |= self.fold(event, records),
                None => break,
            }
        }
        stirred
    }

    /// The next event, folded; whether it is a reason to look. Never returns where nothing is followed.
    pub(super) async fn event(&mut self, records: &BTreeMap<Name, Record>) -> bool {
        match self.streams.next().await {
            Some(event) => self.fold(event, records),
            None => std::future::pending().await,
        }
    }

    /// Takes what a call answered. It is newer than what the watch has brought so far.
    pub(super) fn put(&mut self, name: Name, seen: Seen) {
        self.objects.insert(name, seen);
    }

    /// Takes that a deletion ended at once.
    pub(super) fn remove(&mut self, name: &Name) {
        self.objects.remove(name);
    }

    /// Why there is no connection, where there has been none for a while, or none ever.
    pub(super) fn cut_off(&self) -> Option<&str> {
        let mut followed = self.kinds.values();
        followed.find_map(|followed| {
            let lost = followed.lost.as_ref().filter(|lost| !lost.connected)?;
            let tell = !followed.listed || lost.since.elapsed() >= BRIEFLY;
            tell.then_some(lost.why.as_str())
        })
    }

    /// Whether nothing that is followed is out of sight now, however briefly.
    pub(super) fn sees_all(&self) -> bool {
        self.kinds.values().all(|followed| followed.lost.is_none())
    }

    fn fold(&mut self, event: Event, records: &BTreeMap<Name, Record>) -> bool {
        match event {
            Event::Listed(kind, found) => self.listed(&kind, found, records),
            Event::Changed(name, seen) => self.changed(name, seen, records),
            Event::Gone(name, version) => {
                let known = self.objects.get(&name);
                if known.is_none_or(|known| is_older(&version, &known.version)) {
                    return false;
                }
                self.objects.remove(&name);
                records.contains_key(&name)
            }
            Event::Lost {
                kind,
                why,
                connected,
            } => {
                tracing::debug!(kind = kind.kind, why, "lost the watch");
                let Some(followed) = self.kinds.get_mut(&kind) else {
                    return false;
                };
                let since = followed
                    .lost
                    .as_ref()
                    .map_or_else(Instant::now, |lost| lost.since);
                followed.lost = Some(Lost {
                    since,
                    why,
                    connected,
                });
                since.elapsed() >= BRIEFLY
            }
            Event::Regained(kind) => self
                .kinds
                .get_mut(&kind)
                .is_some_and(|followed| followed.lost.take().is_some()),
            Event::Denied(resource, why) => {
                let Some(followed) = self.kinds.get_mut(&resource.kind()) else {
                    return false;
                };
                followed.lost = None;
                followed.denied.replace(why).is_none()
            }
            Event::Unserved(kind) => {
                self.kinds.remove(&kind);
                self.objects.retain(|name, _| name.kind() != kind);
                records.keys().any(|name| name.kind() == kind)
            }
        }
    }

    fn listed(
        &mut self,
        kind: &Kind,
        found: Vec<(Name, Seen)>,
        records: &BTreeMap<Name, Record>,
    ) -> bool {
        let Some(followed) = self.kinds.get_mut(kind) else {
            return false;
        };
        followed.listed = true;
        let was_denied = followed.denied.take().is_some();
        let was_lost = followed.lost.take().is_some();
        let mut before = BTreeMap::new();
        self.objects.retain(|name, seen| {
            let other = name.kind() != *kind;
            if !other {
                before.insert(name.clone(), seen.version.clone());
            }
            other
        });
        let mut stirred = was_denied || was_lost;
        for (name, seen) in found {
            before.remove(&name);
            stirred |= self.changed(name, seen, records);
        }
        stirred || before.keys().any(|name| records.contains_key(name))
    }

    fn changed(&mut self, name: Name, seen: Seen, records: &BTreeMap<Name, Record>) -> bool {
        let known = self.objects.get(&name);
        if known.is_some_and(|known| seen.is_older_than(known)) {
            return false;
        }
        let stirs = records.get(&name).is_some_and(|record| {
            let as_applied = record.uid == seen.uid && record.fields == seen.fields;
            let as_known = known
                .is_some_and(|known| known.verdict == seen.verdict && known.ending == seen.ending);
            !as_applied || !as_known
        });
        self.objects.insert(name, seen);
        stirs
    }
}
