//! Whose build is next. Pure.
//!
//! ```text
//! tenant ──▶ its askers (a fleet's reconciler, a preview) ──▶ what each waits for, in order
//! ```
//!
//! A free place goes to the tenant with the fewest builds running, among those to the one whose turn is longest
//! ago; within the tenant to an asker by the same rule; within the asker to what it asked for first. Who begins to
//! wait is behind everybody who waits already.
//!
//! Guarantees:
//! * **One place more than there are** is handed out, but only to a tenant that has none. So a tenant whose builds
//!   all hang delays nobody else. Where several tenants' builds hang, the others share what is left, and at worst
//!   get a turn when the first of those reaches its timeout.
//! * A tenant without a running build gets its turn after each tenant that waited before it had at most one.
//! * Previews have at most half of the places, of all tenants together.
//! * What all its askers have withdrawn is not handed out; what is handed out is in no line any more.

use std::collections::{BTreeMap, HashMap};

use longshore_fleet::InputKey;
use longshore_protocol::TenantName;

/// A build: tenants share none.
pub(super) type Key = (TenantName, InputKey);

/// One who asks for builds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct AskerId(pub(super) u64);

/// What builds are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Devices run what comes out.
    Devices,
    /// Somebody looks at what comes out.
    Preview,
}

#[derive(Debug)]
pub(super) struct Queue {
    places: usize,
    tenants: BTreeMap<TenantName, Tenant>,
    running: HashMap<Key, (AskerId, Purpose)>,
    /// Grows with each turn and each arrival.
    clock: u64,
}

#[derive(Debug, Default)]
struct Tenant {
    turn: u64,
    running: usize,
    lines: BTreeMap<AskerId, Line>,
}

#[derive(Debug)]
struct Line {
    purpose: Purpose,
    turn: u64,
    running: usize,
    waiting: BTreeMap<u64, InputKey>,
    numbers: HashMap<InputKey, u64>,
}

impl Queue {
    /// Nobody waits, and so many builds run at once.
    pub(super) fn new(places: usize) -> Self {
        Self {
            places: places.max(1),
            tenants: BTreeMap::new(),
            running: HashMap::new(),
            clock: 0,
        }
    }

    /// Puts `key` into the asker's line, at its end, where it is neither there nor running.
    pub(super) fn add(&mut self, asker: AskerId, purpose: Purpose, key: &Key) {
        if self.running.contains_key(key) {
            return;
        }
        self.clock += 1;
        let now = self.clock;
        let (tenant, input) = key;
        let tenant = self
            .tenants
            .entry(tenant.clone())
            .or_insert_with(|| Tenant {
                turn: now,
                ..Tenant::default()
            });
        let line = tenant.lines.entry(asker).or_insert_with(|| Line {
            purpose,
            turn: now,
            running: 0,
            waiting: BTreeMap::new(),
            numbers: HashMap::new(),
        });
        if !line.numbers.contains_key(input) {
            line.numbers.insert(*input, now);
            line.waiting.insert(now, *input);
        }
    }

    /// Takes `key` out of the asker's line, if it is there. What runs goes on.
    pub(super) fn withdraw(&mut self, asker: AskerId, (name, input): &Key) {
        if let Some(tenant) = self.tenants.get_mut(name) {
            if let Some(line) = tenant.lines.get_mut(&asker) {
                line.remove(input);
            }
            self.tidy(name);
        }
    }

    /// The next build, which runs from now until [`Queue::done`]; nothing where no place is free or nobody waits.
    pub(super) fn next(&mut self) -> Option<Key> {
        let free = self.places.checked_sub(self.running.len());
        let previews = self
            .running
            .values()
            .filter(|(_, purpose)| *purpose == Purpose::Preview)
            .count();
        let may_preview = previews < (self.places / 2).max(1);
        let (name, asker) = self
            .tenants
            .iter()
            .filter(|(_, tenant)| match free {
                None => false,
                Some(0) => tenant.running == 0,
                Some(_) => true,
            })
            .flat_map(|(name, tenant)| tenant.lines.iter().map(move |line| (name, tenant, line)))
            .filter(|(_, _, (_, line))| {
                !line.waiting.is_empty() && (may_preview || line.purpose == Purpose::Devices)
            })
            .min_by_key(|(_, tenant, (_, line))| {
                (tenant.running, tenant.turn, line.running, line.turn)
            })
            .map(|(name, _, (asker, _))| (name.clone(), *asker))?;
        self.clock += 1;
        let tenant = self.tenants.get_mut(&name)?;
        tenant.turn = self.clock;
        tenant.running += 1;
        let line = tenant.lines.get_mut(&asker)?;
        line.turn = self.clock;
        line.running += 1;
        let purpose = line.purpose;
        let (_, input) = line.waiting.first_key_value()?;
        let input = *input;
        for line in tenant.lines.values_mut() {
            line.remove(&input);
        }
        self.tidy(&name);
        let key = (name, input);
        self.running.insert(key.clone(), (asker, purpose));
        Some(key)
    }

    /// Gives back the place of `key`.
    pub(super) fn done(&mut self, key: &Key) {
        let Some((asker, _)) = self.running.remove(key) else {
            return;
        };
        if let Some(tenant) = self.tenants.get_mut(&key.0) {
            tenant.running -= 1;
            if let Some(line) = tenant.lines.get_mut(&asker) {
                line.running -= 1;
            }
            self.tidy(&key.0);
        }
    }

    /// How many builds run.
    pub(super) fn running(&self) -> usize {
        self.running.len()
    }

    /// How many places in lines are taken; a build that two wait for counts twice.
    pub(super) fn waiting(&self) -> usize {
        let lines = self
            .tenants
            .values()
            .flat_map(|tenant| tenant.lines.values());
        lines.map(|line| line.waiting.len()).sum()
    }

    /// Forgets who neither waits nor has builds running.
    fn tidy(&mut self, name: &TenantName) {
        if let Some(tenant) = self.tenants.get_mut(name) {
            tenant
                .lines
                .retain(|_, line| line.running > 0 || !line.waiting.is_empty());
            if tenant.lines.is_empty() {
                self.tenants.remove(name);
            }
        }
    }
}

impl Line {
    fn remove(&mut self, input: &InputKey) {
        if let Some(number) = self.numbers.remove(input) {
            self.waiting.remove(&number);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeSet, HashSet};

    use longshore_protocol::Digest;
    use proptest::{prelude::*, sample::Index};

    use super::*;

    fn tenant(number: u8) -> TenantName {
        format!("tenant-{number}").parse().unwrap()
    }

    fn key(owner: u8, number: u16) -> Key {
        (tenant(owner), InputKey(Digest::of(&number.to_be_bytes())))
    }

    fn drain(queue: &mut Queue) -> Vec<Key> {
        std::iter::from_fn(|| queue.next()).collect()
    }

    /// Two askers per tenant for devices, one for previews.
    fn asker(owner: u8, line: u8) -> (AskerId, Purpose) {
        let purpose = if line == 2 {
            Purpose::Preview
        } else {
            Purpose::Devices
        };
        (AskerId(u64::from(owner) * 3 + u64::from(line)), purpose)
    }

    #[test]
    fn a_tenant_without_builds_does_not_wait_for_one_with_all_places() {
        let mut queue = Queue::new(2);
        let (hostile, purpose) = asker(0, 0);
        for number in 0..10_000 {
            queue.add(hostile, purpose, &key(0, number));
        }
        assert_eq!(drain(&mut queue), [key(0, 0), key(0, 1)]);
        queue.add(asker(1, 0).0, Purpose::Devices, &key(1, 0));
        assert_eq!(drain(&mut queue), [key(1, 0)], "beyond the places");
        queue.add(asker(2, 0).0, Purpose::Devices, &key(2, 0));
        assert_eq!(drain(&mut queue), [], "one more, and no further");
        queue.done(&key(1, 0));
        assert_eq!(drain(&mut queue), [key(2, 0)]);
        queue.done(&key(0, 0));
        assert_eq!(drain(&mut queue), [], "two run still");
        queue.done(&key(2, 0));
        assert_eq!(drain(&mut queue), [key(0, 2)]);
    }

    #[test]
    fn fleets_of_a_tenant_take_turns() {
        let mut queue = Queue::new(1);
        for number in 0..4 {
            queue.add(asker(0, 0).0, Purpose::Devices, &key(0, number));
        }
        queue.add(asker(0, 1).0, Purpose::Devices, &key(0, 10));
        queue.add(asker(0, 2).0, Purpose::Preview, &key(0, 20));
        let mut order = Vec::new();
        while let Some(next) = queue.next() {
            queue.done(&next);
            order.push(next);
        }
        let expected = [0, 10, 20, 1, 2, 3].map(|number| key(0, number));
        assert_eq!(order, expected);
    }

    #[test]
    fn previews_have_half_of_the_places() {
        let mut queue = Queue::new(4);
        for number in 0..9 {
            queue.add(asker(0, 2).0, Purpose::Preview, &key(0, number));
            queue.add(asker(1, 2).0, Purpose::Preview, &key(1, number));
        }
        assert_eq!(drain(&mut queue).len(), 2);
        for number in 10..20 {
            queue.add(asker(0, 0).0, Purpose::Devices, &key(0, number));
        }
        assert_eq!(drain(&mut queue), [key(0, 10), key(0, 11)]);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Add(u8, u8, u16),
        Withdraw(u8, u8, u16),
        Next,
        Done(Index),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let (tenants, lines, keys) = (0..4_u8, 0..3_u8, 0..6_u16);
        let step = prop_oneof![
            4 => (tenants.clone(), lines.clone(), keys.clone())
                .prop_map(|(tenant, line, key)| Step::Add(tenant, line, key)),
            1 => (tenants, lines, keys)
                .prop_map(|(tenant, line, key)| Step::Withdraw(tenant, line, key)),
            3 => Just(Step::Next),
            3 => any::<Index>().prop_map(Step::Done),
        ];
        prop::collection::vec(step, 0..200)
    }

    /// What the queue should know, said as plainly as possible.
    #[derive(Default)]
    struct Model {
        /// By asker, in order.
        lines: BTreeMap<(u8, u8), Vec<Key>>,
        running: Vec<(Key, u8, u8)>,
    }

    impl Model {
        fn of(&self, owner: u8) -> usize {
            self.running
                .iter()
                .filter(|(_, of, _)| *of == owner)
                .count()
        }

        fn waits_for_devices(&self, owner: u8) -> bool {
            (0..2).any(|line| {
                self.lines
                    .get(&(owner, line))
                    .is_some_and(|line| !line.is_empty())
            })
        }

        fn hand_out(&mut self, next: &Key, places: usize) -> Result<u8, TestCaseError> {
            let owner = (0..4).find(|owner| tenant(*owner) == next.0).unwrap();
            let line = (0..3).find(|line| {
                let waiting = self.lines.get(&(owner, *line));
                waiting.and_then(|waiting| waiting.first()) == Some(next)
            });
            let taken = self.running.len();
            prop_assert!(
                taken < places || taken == places && self.of(owner) == 0,
                "more than may run"
            );
            prop_assert!(line.is_some(), "handed out but at the head of no line");
            prop_assert!(
                self.running.iter().all(|(running, _, _)| running != next),
                "handed out twice"
            );
            for ((of, _), line) in &mut self.lines {
                if *of == owner {
                    line.retain(|key| key != next);
                }
            }
            self.running.push((next.clone(), owner, line.unwrap()));
            Ok(owner)
        }
    }

    proptest! {
        /// Nothing is lost, nothing is handed out twice, and limits hold, whatever happens in whatever order.
        #[test]
        fn hands_out_each_once(places in 1..5_usize, steps in steps()) {
            let mut queue = Queue::new(places);
            let mut model = Model::default();
            // For each tenant that waits without a running build: who had a turn since.
            let mut passed_over: BTreeMap<u8, HashSet<u8>> = BTreeMap::new();
            for step in steps {
                match step {
                    Step::Add(owner, line, number) => {
                        let (id, purpose) = asker(owner, line);
                        let key = key(owner, number);
                        queue.add(id, purpose, &key);
                        let waiting = model.lines.entry((owner, line)).or_default();
                        let runs = model.running.iter().any(|(running, _, _)| *running == key);
                        if !runs && !waiting.contains(&key) {
                            waiting.push(key);
                        }
                    }
                    Step::Withdraw(owner, line, number) => {
                        let key = key(owner, number);
                        queue.withdraw(asker(owner, line).0, &key);
                        if let Some(waiting) = model.lines.get_mut(&(owner, line)) {
                            waiting.retain(|waiting| *waiting != key);
                        }
                    }
                    Step::Next => match queue.next() {
                        Some(next) => {
                            let served = model.hand_out(&next, places)?;
                            passed_over.remove(&served);
                            for others in passed_over.values_mut() {
                                prop_assert!(others.insert(served), "two turns before another's first");
                            }
                        }
                        None => for owner in 0..4 {
                            let waits = model.waits_for_devices(owner);
                            prop_assert!(
                                !waits || model.running.len() >= places + usize::from(model.of(owner) == 0),
                                "a place is free, and nobody gets it"
                            );
                        }
                    },
                    Step::Done(index) if !model.running.is_empty() => {
                        let (key, _, _) = model.running.swap_remove(index.index(model.running.len()));
                        queue.done(&key);
                    }
                    Step::Done(_) => {}
                }
                for owner in 0..4 {
                    if model.of(owner) == 0 && model.waits_for_devices(owner) {
                        passed_over.entry(owner).or_default();
                    } else {
                        passed_over.remove(&owner);
                    }
                }
                let previews = model.running.iter().filter(|(_, _, line)| *line == 2).count();
                prop_assert!(previews <= (places / 2).max(1));
                prop_assert_eq!(queue.waiting(), model.lines.values().map(Vec::len).sum::<usize>());
                prop_assert_eq!(queue.running(), model.running.len());
            }
            // What waits is built in the end.
            let wanted: BTreeSet<_> = model.lines.values().flatten().cloned().collect();
            let mut built = BTreeSet::new();
            loop {
                while let Some(next) = queue.next() {
                    model.hand_out(&next, places)?;
                    prop_assert!(built.insert(next));
                }
                let Some((key, _, _)) = model.running.pop() else { break };
                queue.done(&key);
            }
            prop_assert_eq!(built, wanted);
            prop_assert!(queue.tenants.is_empty(), "who left is forgotten");
        }
    }
}
