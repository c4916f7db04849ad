//! Those who may be sent away when there is no room for others: in groups, of which the largest pays first.
//!
//! Whoever fills a bounded place by staying in it makes room again: the one of the largest group who waits longest
//! goes. So a group (a tenant, a network) that comes in crowds pushes out its own, and not the others.

use std::{
    collections::{BTreeMap, HashMap},
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    pin,
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

/// How often those who wait for room look whether somebody has to go.
pub const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Who stays, by group; clones are the same crowd.
#[derive(Clone, Debug)]
pub struct Crowd<G: Clone + Eq + Hash>(Arc<Mutex<Members<G>>>);

#[derive(Debug)]
struct Members<G> {
    count: usize,
    next: u64,
    groups: HashMap<G, BTreeMap<Place, CancellationToken>>,
}

/// Since when somebody waits, and a number that tells apart who came at the same moment.
type Place = (Instant, u64);

/// One of the crowd, until this is dropped.
#[derive(Debug)]
pub struct Member<G: Clone + Eq + Hash> {
    crowd: Crowd<G>,
    group: G,
    place: Place,
}

impl<G: Clone + Eq + Hash> Default for Crowd<G> {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Members {
            count: 0,
            next: 0,
            groups: HashMap::new(),
        })))
    }
}

impl<G: Clone + Eq + Hash> Crowd<G> {
    /// Counts somebody as waiting, for `waited` already. `go` is cancelled when that one has to go.
    pub fn enter(&self, group: G, waited: Duration, go: CancellationToken) -> Member<G> {
        let now = Instant::now();
        let since = now.checked_sub(waited).unwrap_or(now);
        let mut members = self.members();
        let place = (since, members.next);
        members.next += 1;
        members.count += 1;
        let own = members.groups.entry(group.clone()).or_default();
        own.insert(place, go);
        drop(members);
        Member {
            crowd: self.clone(),
            group,
            place,
        }
    }

    /// Sends one of the largest group away for the sake of somebody of the group `own`, where that one waits long
    /// enough: for `grace` where it is of the same group, for `grace_for_others` otherwise. Says whether there was
    /// one.
    pub fn send_away(&self, own: &G, grace: Duration, grace_for_others: Duration) -> bool {
        let mut members = self.members();
        let groups = members.groups.iter();
        let largest = groups.max_by_key(|(group, waiting)| (waiting.len(), *group == own));
        let Some((group, _)) = largest else {
            return false;
        };
        let group = group.clone();
        let grace = if group == *own {
            grace
        } else {
            grace_for_others
        };
        members.send_away(&group, grace)
    }

    /// Sends one of this group away, where it waits for `grace` or longer. Says whether there was one.
    pub fn send_away_of(&self, group: &G, grace: Duration) -> bool {
        self.members().send_away(group, grace)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.members().count
    }

    fn members(&self) -> MutexGuard<'_, Members<G>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<G: Eq + Hash> Members<G> {
    /// Sends away who waits longest.
    fn send_away(&mut self, group: &G, grace: Duration) -> bool {
        let waiting = self.groups.get(group);
        let Some((place, go)) = waiting.and_then(BTreeMap::first_key_value) else {
            return false;
        };
        if place.0.elapsed() < grace {
            return false;
        }
        go.cancel();
        let place = *place;
        self.forget(group, place);
        true
    }

    fn forget(&mut self, group: &G, place: Place) {
        let Some(waiting) = self.groups.get_mut(group) else {
            return;
        };
        if waiting.remove(&place).is_some() {
            self.count -= 1;
        }
        if waiting.is_empty() {
            self.groups.remove(group);
        }
    }
}

impl<G: Clone + Eq + Hash> Member<G> {
    /// For how long this one waits.
    pub fn waited(&self) -> Duration {
        self.place.0.elapsed()
    }
}

impl<G: Clone + Eq + Hash> Drop for Member<G> {
    fn drop(&mut self) {
        self.crowd.members().forget(&self.group, self.place);
    }
}

/// Waits in line for so many permits of `room`. As long as there are not enough, `send_away` is called every now and
/// then: it may make somebody give up theirs.
pub async fn room(
    room: Arc<Semaphore>,
    permits: u32,
    send_away: impl Fn(),
) -> Option<OwnedSemaphorePermit> {
    if let Ok(permit) = room.clone().try_acquire_many_owned(permits) {
        return Some(permit);
    }
    let permit = room.acquire_many_owned(permits);
    pin!(permit);
    loop {
        send_away();
        if let Ok(permit) = timeout(LOOK_AGAIN, permit.as_mut()).await {
            return permit.ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Waiting = (Member<&'static str>, CancellationToken);

    fn enter(crowd: &Crowd<&'static str>, group: &'static str) -> Waiting {
        let go = CancellationToken::new();
        (crowd.enter(group, Duration::ZERO, go.clone()), go)
    }

    fn gone(waiting: &[Waiting]) -> Vec<bool> {
        waiting.iter().map(|(_, go)| go.is_cancelled()).collect()
    }

    const GRACE: Duration = Duration::from_secs(3);

    #[tokio::test(start_paused = true)]
    async fn the_oldest_of_the_largest_group_goes() {
        let crowd = Crowd::default();
        let large = [
            enter(&crowd, "large"),
            enter(&crowd, "large"),
            enter(&crowd, "large"),
        ];
        let small = [enter(&crowd, "small")];
        assert!(crowd.send_away(&"small", GRACE, Duration::ZERO));
        assert!(crowd.send_away(&"new", GRACE, Duration::ZERO));
        assert_eq!(gone(&large), [true, true, false]);
        assert_eq!(gone(&small), [false]);
        assert_eq!(crowd.len(), 2);
        drop(large);
        assert_eq!(crowd.len(), 1, "who was sent away is not counted twice");
    }

    #[tokio::test(start_paused = true)]
    async fn among_ones_own_there_is_a_grace() {
        let crowd = Crowd::default();
        let own = [enter(&crowd, "own"), enter(&crowd, "own")];
        let other = [enter(&crowd, "other"), enter(&crowd, "other")];
        assert!(
            !crowd.send_away(&"own", GRACE, Duration::ZERO),
            "no other group is larger"
        );
        assert!(
            !crowd.send_away(&"new", Duration::ZERO, GRACE),
            "others have theirs"
        );
        assert!(!crowd.send_away_of(&"nobody", Duration::ZERO));
        tokio::time::advance(GRACE).await;
        assert!(crowd.send_away(&"own", GRACE, Duration::ZERO));
        assert_eq!(gone(&own), [true, false]);
        assert_eq!(gone(&other), [false, false]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_waited_before_counts() {
        let crowd = Crowd::default();
        let fresh = enter(&crowd, "own");
        let go = CancellationToken::new();
        tokio::time::advance(GRACE).await;
        let again = crowd.enter("own", GRACE * 2, go.clone());
        assert_eq!(again.waited(), GRACE * 2);
        assert!(crowd.send_away(&"own", GRACE, Duration::ZERO));
        assert!(go.is_cancelled() && !fresh.1.is_cancelled());
        drop((fresh, again));
        assert!(
            !crowd.send_away_of(&"own", Duration::ZERO),
            "nobody is left"
        );
        assert!(crowd.members().groups.is_empty());
    }
}
