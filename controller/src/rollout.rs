//! Who may move now: a pure plan from what is and what is wanted.
//!
//! Planning knows no clock and does no I/O; executing a [`Plan`] leaves no choices. Two rules of safety live
//! here. A device whose wanted state is not known keeps what it has. And the mass-removal guard: a commit that
//! would take away more than the fleet allows is held, as far as it takes away, until an operator confirms it.

use std::sync::LazyLock;

use longshore_protocol::{
    DeviceId, DeviceName, Digest, Generation, ManifestSet, api::HeldRemoval, message::Held,
};

/// One active device: what it should run so far, and what the commit wants.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    /// Its id.
    pub id: &'a DeviceId,
    /// Its name.
    pub name: &'a DeviceName,
    /// What it should run so far.
    pub current: Option<Current>,
    /// What the commit wants.
    pub wanted: Wanted,
}

/// What a device should run so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Current {
    /// Generation and digest of the set.
    pub target: Held,
    /// Whether the set has no objects.
    pub empty: bool,
}

impl Current {
    /// A device that should run this.
    pub fn of(target: Held) -> Self {
        Self {
            target,
            empty: target.digest == *EMPTY,
        }
    }
}

/// What a commit wants of a device.
#[derive(Clone, Copy, Debug)]
pub enum Wanted {
    /// To run the set with this digest.
    Set(Digest),
    /// It will be known when a build that is under way has ended.
    Building,
    /// Nothing that is known: the overlay is broken.
    Unknown,
    /// To be gone: its folder was deleted, or names another key.
    Gone,
}

/// How much a commit may take away unasked.
#[derive(Clone, Copy, Debug)]
pub struct Guard {
    /// How many removals pass.
    pub max_removals: usize,
    /// Whether an operator confirmed this commit's removals.
    pub confirmed: bool,
}

/// A device's next desired state.
#[derive(Clone, Debug)]
pub struct Move {
    /// The device.
    pub id: DeviceId,
    /// The generation after its present one.
    pub generation: Generation,
    /// The digest of the set that it is to run.
    pub digest: Digest,
}

/// What to do, all of it.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Devices whose desired state changes.
    pub moves: Vec<Move>,
    /// Devices to decommission.
    pub decommissions: Vec<DeviceId>,
    /// Removals that wait for an operator.
    pub held: Vec<HeldRemoval>,
}

enum Step {
    Move(Move),
    Empty(DeviceName, Move),
    Decommission(DeviceName, DeviceId),
}

/// Plans one commit for one fleet.
///
/// Builds of one commit end one by one, and each may turn out to be empty. So that the guard counts a commit and
/// not a moment, sets become empty only when the builds that could add to them have ended.
pub fn plan<'a>(candidates: impl IntoIterator<Item = Candidate<'a>>, guard: Guard) -> Plan {
    let mut building = 0;
    let mut steps = Vec::new();
    for candidate in candidates {
        building += usize::from(may_become_empty(&candidate));
        steps.extend(step(&candidate));
    }
    let removals = steps
        .iter()
        .filter(|step| !matches!(step, Step::Move(_)))
        .count();
    let hold = removals > guard.max_removals && !guard.confirmed;
    let wait = removals + building > guard.max_removals && !guard.confirmed;
    let mut plan = Plan::default();
    for step in steps {
        match step {
            Step::Empty(device, _) if hold => {
                plan.held.push(HeldRemoval {
                    device,
                    removal: "Empty".to_owned(),
                });
            }
            Step::Empty(..) if wait => {}
            Step::Move(change) | Step::Empty(_, change) => plan.moves.push(change),
            Step::Decommission(device, _) if hold => {
                plan.held.push(HeldRemoval {
                    device,
                    removal: "Decommission".to_owned(),
                });
            }
            Step::Decommission(_, id) => plan.decommissions.push(id),
        }
    }
    plan.held
        .sort_by(|one, other| one.device.cmp(&other.device));
    plan
}

fn may_become_empty(candidate: &Candidate<'_>) -> bool {
    matches!(candidate.wanted, Wanted::Building)
        && candidate.current.is_some_and(|current| !current.empty)
}

fn step(candidate: &Candidate<'_>) -> Option<Step> {
    let Candidate {
        id,
        name,
        current,
        wanted,
    } = *candidate;
    let digest = match wanted {
        Wanted::Building | Wanted::Unknown => return None,
        Wanted::Gone => return Some(Step::Decommission(name.clone(), id.clone())),
        Wanted::Set(digest) => digest,
    };
    if current.is_some_and(|current| current.target.digest == digest) {
        return None;
    }
    let generation = current.map_or(Generation::FIRST, |current| {
        current.target.generation.next()
    });
    let becomes_empty = digest == *EMPTY && current.is_some_and(|current| !current.empty);
    let change = Move {
        id: id.clone(),
        generation,
        digest,
    };
    Some(if becomes_empty {
        Step::Empty(name.clone(), change)
    } else {
        Step::Move(change)
    })
}

/// The digest of a set without objects.
pub static EMPTY: LazyLock<Digest> = LazyLock::new(|| ManifestSet::empty().digest());

#[cfg(test)]
mod tests {
    use longshore_protocol::{Entry, ObjectKey};
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn set(version: u8) -> Digest {
        let key = ObjectKey {
            api_version: "v1".into(),
            kind: "ConfigMap".into(),
            namespace: String::new(),
            name: "a".into(),
        };
        let entry = Entry {
            key,
            digest: Digest::of(&[version]),
            size: 1,
        };
        let set = ManifestSet::new((version > 0).then_some(entry)).unwrap();
        set.digest()
    }

    fn current(version: u8, generation: u64) -> Current {
        let digest = set(version);
        Current {
            target: Held {
                generation: generation.into(),
                digest,
            },
            empty: version == 0,
        }
    }

    fn candidate(n: u8, current: Option<Current>, wanted: Wanted) -> Candidate<'static> {
        let name = format!("device-{n}").parse().unwrap();
        Candidate {
            id: Box::leak(Box::new(DeviceId::from_random([n; 16]))),
            name: Box::leak(Box::new(name)),
            current,
            wanted,
        }
    }

    fn guard(max_removals: usize) -> Guard {
        Guard {
            max_removals,
            confirmed: false,
        }
    }

    #[test]
    fn a_new_digest_is_a_new_generation_and_an_old_one_is_none() {
        let plan = plan(
            vec![
                candidate(1, None, Wanted::Set(set(1))),
                candidate(2, Some(current(1, 7)), Wanted::Set(set(2))),
                candidate(3, Some(current(2, 7)), Wanted::Set(set(2))),
                candidate(4, Some(current(2, 7)), Wanted::Unknown),
            ],
            guard(5),
        );
        let moves: Vec<_> = plan
            .moves
            .iter()
            .map(|it| (it.id.clone(), it.generation))
            .collect();
        assert_eq!(
            moves,
            [
                (DeviceId::from_random([1; 16]), Generation::from(1)),
                (DeviceId::from_random([2; 16]), Generation::from(8)),
            ]
        );
        assert!(plan.decommissions.is_empty() && plan.held.is_empty());
    }

    #[test]
    fn too_many_removals_are_held_and_the_rest_goes_on() {
        let candidates = || {
            vec![
                candidate(1, Some(current(1, 1)), Wanted::Gone),
                candidate(2, Some(current(1, 1)), Wanted::Set(set(0))),
                candidate(3, Some(current(1, 1)), Wanted::Set(set(2))),
            ]
        };
        let held = plan(candidates(), guard(1));
        assert_eq!(held.moves.len(), 1);
        assert_eq!(held.held.len(), 2);
        assert!(held.decommissions.is_empty());
        let few = plan(candidates(), guard(2));
        assert_eq!(
            (few.moves.len(), few.decommissions.len(), few.held.len()),
            (2, 1, 0)
        );
        let confirmed = plan(
            candidates(),
            Guard {
                max_removals: 1,
                confirmed: true,
            },
        );
        assert_eq!(
            (confirmed.decommissions.len(), confirmed.held.len()),
            (1, 0)
        );
    }

    #[test]
    fn a_set_becomes_empty_only_when_the_builds_that_could_add_to_it_have_ended() {
        let candidates = |others: &Wanted| {
            (0..4)
                .map(|n| {
                    let wanted = if n == 0 { Wanted::Set(set(0)) } else { *others };
                    candidate(n, Some(current(1, 1)), wanted)
                })
                .collect::<Vec<_>>()
        };
        let early = plan(candidates(&Wanted::Building), guard(2));
        assert_eq!((early.moves.len(), early.held.len()), (0, 0));
        let many = plan(candidates(&Wanted::Set(set(0))), guard(2));
        assert_eq!((many.moves.len(), many.held.len()), (0, 4));
        let one = plan(candidates(&Wanted::Unknown), guard(2));
        assert_eq!((one.moves.len(), one.held.len()), (1, 0));
    }

    #[test]
    fn a_first_state_may_be_empty() {
        let plan = plan(vec![candidate(1, None, Wanted::Set(set(0)))], guard(0));
        assert_eq!((plan.moves.len(), plan.held.len()), (1, 0));
    }

    proptest! {
        #[test]
        fn generations_grow_by_one_exactly_when_the_digest_changes(
            devices in vec((proptest::option::of((0_u8..3, 1_u64..9)), 0_u8..4), 0..20),
            max_removals in 0_usize..20,
        ) {
            let candidates: Vec<_> = devices.iter().zip(0_u8..).map(|((now, wanted), n)| {
                let wanted = if *wanted == 3 { Wanted::Unknown } else { Wanted::Set(set(*wanted)) };
                candidate(n, now.map(|(version, generation)| current(version, generation)), wanted)
            }).collect();
            let plan = plan(candidates.clone(), guard(max_removals));
            for change in &plan.moves {
                let before = candidates.iter().find(|it| *it.id == change.id).unwrap().current;
                prop_assert_ne!(before.map(|it| it.target.digest), Some(change.digest));
                let generation = before.map_or(0, |it| it.target.generation.number());
                prop_assert_eq!(change.generation.number(), generation + 1);
            }
        }
    }
}
