//! A controller session and a device session over a hostile network: whatever is lost, doubled, delayed,
//! reordered or cut, the device ends with the desired set and never goes back.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::{
    collections::BTreeMap,
    sync::{Arc, LazyLock},
};

use longshore_protocol::{
    Digest, Entry, Generation, ManifestSet, Object,
    message::{
        ControlMessage, DeviceMessage, Hello, PATCHES, Patch, RejectReason, objects_in_parts,
        patched,
    },
    session::{
        ControlSession, DeviceSession, Holding, RESEND_AFTER_MS,
        control::{self, Desired},
        device,
    },
};
use proptest::{collection::vec, prelude::*};
use serde_json::json;

/// A set is a choice of a version for each of these names; 0 leaves the name out.
type Versions = Vec<u8>;

fn objects(versions: &Versions) -> Vec<Object> {
    versions
        .iter()
        .enumerate()
        .filter(|(_, version)| **version > 0)
        .map(|(name, version)| {
            // Some bodies are larger than a part, so that transfers can be cut in the middle.
            ALL[name][usize::from(*version)].clone()
        })
        .collect()
}

/// Every version of every object, made once.
static ALL: LazyLock<Vec<Vec<Object>>> = LazyLock::new(|| {
    let object = |name: usize, version: u8| {
        let text = noise(version, if name == 0 { 300_000 } else { 10 });
        Object::from_value(&json!({"apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": format!("object-{name}")}, "data": {"text": text}}))
        .unwrap()
    };
    (0..4)
        .map(|name| (0..4).map(|version| object(name, version)).collect())
        .collect()
});

fn noise(seed: u8, size: usize) -> String {
    (0..=size / 64)
        .map(|n| Digest::of(format!("{seed} {n}").as_bytes()).to_hex())
        .collect()
}

#[derive(Clone, Debug)]
enum Step {
    /// The desired state changes.
    Push(Versions),
    /// The n-th frame under way to the device arrives; or is lost; or arrives and stays under way.
    ToDevice(usize, Fate),
    ToControl(usize, Fate),
    /// The connection breaks, with all that is under way, and a new one is made, at another replica.
    Reconnect,
    /// The device loses power: its machine starts again from the ledger.
    Restart,
    /// The device's disk refuses the next write.
    DiskFull,
    /// The device's ledger is corrupted and set aside.
    LoseLedger,
    Tick,
}

#[derive(Clone, Copy, Debug)]
enum Fate {
    Arrive,
    Lose,
    Double,
}

fn step() -> impl Strategy<Value = Step> {
    let fate =
        || prop_oneof![4 => Just(Fate::Arrive), 1 => Just(Fate::Lose), 1 => Just(Fate::Double)];
    prop_oneof![
        3 => vec(0_u8..4, 4).prop_map(Step::Push),
        8 => (any::<usize>(), fate()).prop_map(|(n, fate)| Step::ToDevice(n, fate)),
        8 => (any::<usize>(), fate()).prop_map(|(n, fate)| Step::ToControl(n, fate)),
        2 => Just(Step::Reconnect),
        1 => Just(Step::Restart),
        1 => Just(Step::DiskFull),
        1 => Just(Step::LoseLedger),
        2 => Just(Step::Tick),
    ]
}

struct World {
    now: u64,
    // The store.
    generation: Generation,
    desired: Vec<Object>,
    sets: BTreeMap<Digest, Arc<ManifestSet>>,
    bodies: BTreeMap<Digest, Object>,
    control: ControlSession,
    // The device.
    takes_patches: bool,
    ledger: Option<Arc<Holding>>,
    device: DeviceSession,
    disk_full: bool,
    applied: Vec<(Generation, Digest)>,
    // The network.
    to_device: Vec<Vec<u8>>,
    to_control: Vec<Vec<u8>>,
    bytes_to_device: usize,
    patches: usize,
}

impl World {
    fn new() -> Self {
        Self::with_patches(false)
    }

    fn with_patches(takes_patches: bool) -> Self {
        let mut world = Self {
            now: 0,
            generation: Generation::default(),
            desired: Vec::new(),
            sets: BTreeMap::new(),
            bodies: BTreeMap::new(),
            control: ControlSession::new(),
            takes_patches,
            ledger: None,
            device: DeviceSession::new(None),
            disk_full: false,
            applied: Vec::new(),
            to_device: Vec::new(),
            to_control: Vec::new(),
            bytes_to_device: 0,
            patches: 0,
        };
        world.connect();
        world
    }

    fn push(&mut self, versions: &Versions) {
        self.push_objects(objects(versions));
    }

    fn push_objects(&mut self, objects: Vec<Object>) {
        let set = Arc::new(ManifestSet::of(&objects).unwrap());
        let unchanged = self.generation > Generation::default()
            && set.digest() == ManifestSet::of(&self.desired).unwrap().digest();
        if !unchanged {
            self.generation = self.generation.next();
        }
        self.sets.insert(set.digest(), set);
        self.bodies.extend(
            objects
                .iter()
                .map(|object| (object.digest(), object.clone())),
        );
        self.desired = objects;
        self.control(control::Event::Poked);
    }

    fn connect(&mut self) {
        self.to_device.clear();
        self.to_control.clear();
        self.control = ControlSession::new();
        self.device(device::Event::Disconnected);
        let capabilities = self.takes_patches.then(|| PATCHES.to_owned());
        self.device(device::Event::Connected(Hello {
            capabilities: capabilities.into_iter().collect(),
            ..Hello::default()
        }));
    }

    fn control(&mut self, event: control::Event) {
        for effect in self.control.handle(event, self.now) {
            match effect {
                control::Effect::Welcome => {
                    self.send(&ControlMessage::Welcome {
                        heartbeat_ms: 1,
                        server_time_ms: 0,
                    });
                }
                control::Effect::LoadDesired => {
                    let base = self
                        .control
                        .held()
                        .and_then(|held| self.sets.get(&held.digest));
                    let desired = (self.generation > Generation::default()).then(|| Desired {
                        generation: self.generation,
                        revision: "commit".into(),
                        set: Arc::new(ManifestSet::of(&self.desired).unwrap()),
                        base: base.cloned(),
                    });
                    self.control(control::Event::Desired(desired));
                }
                control::Effect::Send(message) => self.send(&message),
                control::Effect::SendDelta {
                    generation,
                    revision,
                    base,
                    target,
                    delta,
                    previous,
                } => {
                    let bodies = |entries: &[Entry]| -> Vec<_> {
                        let digests = entries.iter().map(|entry| entry.digest);
                        digests.map(|it| self.bodies[&it].clone()).collect()
                    };
                    let (upserts, patches) = patched(bodies(&delta.upserts), &bodies(&previous));
                    self.patches += patches.len();
                    let removals = delta.removals;
                    self.send(&ControlMessage::Delta {
                        generation,
                        revision,
                        base,
                        target,
                        upserts,
                        patches,
                        removals,
                    });
                }
                control::Effect::SendObjects { target, entries } => {
                    let objects: Vec<_> = entries
                        .iter()
                        .map(|entry| self.bodies[&entry.digest].clone())
                        .collect();
                    for message in objects_in_parts(target, &objects) {
                        self.send(&message);
                    }
                }
                control::Effect::RaiseGeneration { above } => {
                    self.generation = self.generation.max(above).next();
                    self.control(control::Event::Poked);
                }
                control::Effect::RecordHello(_)
                | control::Effect::RecordFacts(_)
                | control::Effect::RecordAccepted(_)
                | control::Effect::RecordReject { .. }
                | control::Effect::RecordStatus(_)
                | control::Effect::IssueCertificate { .. }
                | control::Effect::LogData { .. }
                | control::Effect::LogsEnd { .. }
                | control::Effect::Break(_) => {}
            }
        }
    }

    fn send(&mut self, message: &ControlMessage) {
        let frame = message.encode();
        self.bytes_to_device += frame.len();
        self.to_device.push(frame);
    }

    fn device(&mut self, event: device::Event) {
        for effect in self.device.handle(event, self.now) {
            match effect {
                device::Effect::Send(message) => self.to_control.push(message.encode()),
                device::Effect::Store(holding) => {
                    let result = if std::mem::take(&mut self.disk_full) {
                        Err("disk full".to_owned())
                    } else {
                        self.ledger = Some(holding);
                        Ok(())
                    };
                    self.device(device::Event::Stored(result));
                }
                device::Effect::Apply(holding) => {
                    let held = holding.held();
                    self.applied.push((held.generation, held.digest));
                }
                device::Effect::Reconnect { .. }
                | device::Effect::Welcomed { .. }
                | device::Effect::Certificate(_)
                | device::Effect::Decommission { .. }
                | device::Effect::OpenLogs { .. }
                | device::Effect::ReadLogs { .. }
                | device::Effect::CloseLogs { .. } => {}
            }
        }
    }

    fn deliver_to_device(&mut self, frame: &[u8]) {
        let message = ControlMessage::decode(frame).unwrap().unwrap();
        self.device(device::Event::Message(message));
    }

    fn deliver_to_control(&mut self, frame: &[u8]) {
        let message = DeviceMessage::decode(frame).unwrap().unwrap();
        self.control(control::Event::Message(message));
    }

    fn step(&mut self, step: Step) {
        self.now += 10;
        match step {
            Step::Push(versions) => self.push(&versions),
            Step::ToDevice(n, fate) if !self.to_device.is_empty() => {
                let at = n % self.to_device.len();
                let frame = match fate {
                    Fate::Double => self.to_device[at].clone(),
                    Fate::Arrive | Fate::Lose => self.to_device.remove(at),
                };
                if !matches!(fate, Fate::Lose) {
                    self.deliver_to_device(&frame);
                }
            }
            Step::ToControl(n, fate) if !self.to_control.is_empty() => {
                let at = n % self.to_control.len();
                let frame = match fate {
                    Fate::Double => self.to_control[at].clone(),
                    Fate::Arrive | Fate::Lose => self.to_control.remove(at),
                };
                if !matches!(fate, Fate::Lose) {
                    self.deliver_to_control(&frame);
                }
            }
            Step::ToDevice(..) | Step::ToControl(..) => {}
            Step::Reconnect => self.connect(),
            Step::Restart => {
                self.device = DeviceSession::new(self.ledger.clone());
                self.connect();
            }
            Step::DiskFull => self.disk_full = true,
            Step::LoseLedger => {
                self.ledger = None;
                self.device = DeviceSession::new(None);
                self.applied.clear();
                self.connect();
            }
            Step::Tick => self.tick(),
        }
    }

    fn tick(&mut self) {
        self.now += RESEND_AFTER_MS;
        self.control(control::Event::Tick);
        self.device(device::Event::Tick);
    }

    /// The network heals: everything under way arrives in order, and time passes.
    fn settle(&mut self) {
        self.disk_full = false;
        for _ in 0..20 {
            while !self.to_device.is_empty() || !self.to_control.is_empty() {
                if !self.to_device.is_empty() {
                    let frame = self.to_device.remove(0);
                    self.deliver_to_device(&frame);
                }
                if !self.to_control.is_empty() {
                    let frame = self.to_control.remove(0);
                    self.deliver_to_control(&frame);
                }
            }
            self.tick();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn sessions_converge_and_never_regress(
        first in vec(0_u8..4, 4),
        steps in vec(step(), 0..60),
        takes_patches in any::<bool>(),
    ) {
        let mut world = World::with_patches(takes_patches);
        world.push(&first);
        for step in steps {
            world.step(step);
            let mut seen = BTreeMap::new();
            for pair in world.applied.windows(2) {
                prop_assert!(pair[0].0 <= pair[1].0, "generations fell: {:?}", world.applied);
            }
            for (generation, digest) in &world.applied {
                let known = seen.insert(generation, digest);
                prop_assert!(known.is_none_or(|known| known == digest), "one generation, two digests");
            }
        }
        world.settle();
        let ledger = world.ledger.clone().expect("the device accepted something");
        let target = ManifestSet::of(&world.desired).unwrap();
        prop_assert_eq!(ledger.set().digest(), target.digest());
        prop_assert_eq!(ledger.generation(), world.generation);
        let held: Vec<_> = ledger.objects().cloned().collect();
        prop_assert_eq!(ManifestSet::of(&held).unwrap(), target);
        prop_assert_eq!(world.control.held(), Some(ledger.held()));
        prop_assert!(takes_patches || world.patches == 0, "a device gets what it does not know");
    }

    /// Whatever is changed in a delta on its way, the device takes what was meant or says that it does not, and ends
    /// with the desired set.
    #[test]
    fn a_damaged_delta_is_refused_and_made_good(
        damages in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        takes_patches in any::<bool>(),
    ) {
        let mut world = World::with_patches(takes_patches);
        world.push(&vec![1, 1, 1, 1]);
        world.settle();
        world.push(&vec![1, 2, 2, 0]);
        let mut frame = world.to_device.remove(0);
        for (at, byte) in damages {
            let at = at.index(frame.len());
            frame[at] = byte;
        }
        // A frame that cannot be read ends the connection.
        match ControlMessage::decode(&frame) {
            Ok(Some(message)) => world.device(device::Event::Message(message)),
            Ok(None) => {}
            Err(_) => world.connect(),
        }
        world.settle();
        let target = ManifestSet::of(&world.desired).unwrap();
        prop_assert_eq!(world.ledger.clone().unwrap().set().digest(), target.digest());
    }
}

#[test]
fn a_small_change_travels_as_a_small_delta() {
    let mut world = World::new();
    world.push(&vec![1, 1, 1, 1]);
    world.settle();
    world.bytes_to_device = 0;
    world.push(&vec![1, 1, 1, 2]);
    world.settle();
    assert!(
        world.bytes_to_device < 500,
        "{} bytes",
        world.bytes_to_device
    );
    assert_eq!(
        world.ledger.as_ref().unwrap().generation(),
        Generation::from(2)
    );
}

#[test]
fn a_change_of_a_large_object_travels_as_a_patch() {
    let large = |field: &str| {
        let text = noise(1, 30_000);
        Object::from_value(&json!({"apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": "large"}, "data": {"field": field, "text": text}}))
        .unwrap()
    };
    for takes_patches in [true, false] {
        let mut world = World::with_patches(takes_patches);
        world.push_objects(vec![large("before")]);
        world.settle();
        world.bytes_to_device = 0;
        world.push_objects(vec![large("after")]);
        world.settle();
        let bytes = world.bytes_to_device;
        assert_eq!(bytes < 300, takes_patches, "{bytes} bytes");
        assert_eq!(world.patches, usize::from(takes_patches));
        assert_eq!(world.ledger.unwrap().generation(), Generation::from(2));
    }
}

#[test]
fn a_patch_that_does_not_fit_leads_to_an_offer() {
    let mut world = World::with_patches(true);
    world.push(&vec![0, 1, 1, 1]);
    world.settle();
    world.push(&vec![0, 1, 1, 2]);
    let Ok(Some(ControlMessage::Delta {
        generation,
        revision,
        base,
        target,
        removals,
        ..
    })) = ControlMessage::decode(&world.to_device.remove(0))
    else {
        panic!("a delta")
    };
    let held = world.ledger.as_ref().unwrap().set().entries()[0].digest;
    for (previous, size) in [(Digest::of(b"not held"), 10), (held, 10), (held, u64::MAX)] {
        let patch = Patch {
            previous,
            size,
            data: vec![1, 2, 3],
        };
        world.device(device::Event::Message(ControlMessage::Delta {
            generation,
            revision: revision.clone(),
            base,
            target,
            upserts: Vec::new(),
            patches: vec![patch.clone(), patch],
            removals: removals.clone(),
        }));
        let answer = DeviceMessage::decode(world.to_control.last().unwrap());
        assert!(matches!(
            answer,
            Ok(Some(DeviceMessage::Reject {
                reason: RejectReason::DigestMismatch,
                ..
            }))
        ));
    }
    world.settle();
    let target = ManifestSet::of(&world.desired).unwrap();
    assert_eq!(world.ledger.unwrap().set().digest(), target.digest());
}

#[test]
fn a_broken_transfer_resumes_with_what_is_missing() {
    let mut world = World::new();
    world.push(&vec![1, 1, 1, 1]);
    // Hello, Welcome and Offer, Need; then the objects come, and the link breaks before the last frame.
    for _ in ["Hello", "Need"] {
        let frame = world.to_control.remove(0);
        world.deliver_to_control(&frame);
        while world.to_device.len() > 1
            || world.to_control.is_empty() && world.bytes_to_device < 1000
        {
            let frame = world.to_device.remove(0);
            world.deliver_to_device(&frame);
        }
    }
    assert_eq!(world.to_device.len(), 1);
    assert!(world.ledger.is_none());
    world.step(Step::Reconnect);
    world.bytes_to_device = 0;
    world.settle();
    assert!(world.ledger.is_some());
    let whole: u64 = ManifestSet::of(&world.desired).unwrap().total_size();
    assert!(
        (world.bytes_to_device as u64) < whole,
        "sent {} again",
        world.bytes_to_device
    );
}

#[test]
fn a_device_gets_only_objects_of_its_own_set() {
    let mut world = World::new();
    world.push(&vec![1, 1, 1, 1]);
    let frame = world.to_control.remove(0);
    world.deliver_to_control(&frame);
    world.to_device.clear();
    let foreign = Digest::of(b"another device's secret");
    world.bodies.insert(foreign, world.desired[0].clone());
    let target = ManifestSet::of(&world.desired).unwrap().digest();
    world.control(control::Event::Message(DeviceMessage::Need {
        target,
        digests: vec![foreign],
    }));
    assert!(world.to_device.is_empty());
}
