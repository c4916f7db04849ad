//! Log streams between a controller session and a device session: whatever the reader does and whenever, everything
//! arrives in order, no more than a window is ever on its way, and what is not read is not sent.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::collections::{BTreeMap, VecDeque};

use longshore_protocol::{
    message::{
        ControlMessage, DeviceMessage, Hello, LOG_WINDOW, LOGS, LogEnd, LogRequest, MAX_LOG_CHUNK,
        MAX_LOG_STREAMS, StreamId, log_cost,
    },
    session::{ControlSession, DeviceSession, control, device},
};
use proptest::{collection::vec, prelude::*};

/// What a log has to say, and whether it ends after that.
#[derive(Debug, Default)]
struct Source {
    text: VecDeque<u8>,
    ends: bool,
    /// What the driver was told to read and could not, because there was nothing.
    pending: Option<usize>,
}

/// What the reader of a log has.
#[derive(Debug, Default)]
struct Reader {
    waiting: VecDeque<Vec<u8>>,
    read: Vec<u8>,
    end: Option<LogEnd>,
}

#[derive(Debug)]
struct Pair {
    control: ControlSession,
    device: DeviceSession,
    to_device: VecDeque<Vec<u8>>,
    to_control: VecDeque<Vec<u8>>,
    sources: BTreeMap<StreamId, Source>,
    readers: BTreeMap<StreamId, Reader>,
    broken: Option<String>,
}

impl Pair {
    fn new(capabilities: &[&str]) -> Self {
        let mut pair = Self {
            control: ControlSession::new(),
            device: DeviceSession::new(None),
            to_device: VecDeque::new(),
            to_control: VecDeque::new(),
            sources: BTreeMap::new(),
            readers: BTreeMap::new(),
            broken: None,
        };
        pair.device(device::Event::Connected(Hello {
            capabilities: capabilities.iter().map(|it| (*it).to_owned()).collect(),
            ..Hello::default()
        }));
        pair.settle();
        pair
    }

    fn control(&mut self, event: control::Event) {
        for effect in self.control.handle(event, 0) {
            match effect {
                control::Effect::Send(message) => self.to_device.push_back(message.encode()),
                control::Effect::LogData { stream, data } => {
                    let reader = self.readers.get_mut(&stream).unwrap();
                    assert!(reader.end.is_none(), "data after the end");
                    reader.waiting.push_back(data);
                }
                control::Effect::LogsEnd { stream, end } => {
                    let reader = self.readers.get_mut(&stream).unwrap();
                    assert_eq!(reader.end.replace(end), None, "two ends");
                }
                control::Effect::Break(what) => self.broken = Some(what),
                _ => {}
            }
        }
    }

    fn device(&mut self, event: device::Event) {
        for effect in self.device.handle(event, 0) {
            match effect {
                device::Effect::Send(message) => self.to_control.push_back(message.encode()),
                device::Effect::OpenLogs { stream, .. } => {
                    self.device(device::Event::LogsOpened { stream });
                }
                device::Effect::ReadLogs { stream, most } => {
                    assert!(most > 0 && most <= MAX_LOG_CHUNK);
                    let source = self.sources.get_mut(&stream).unwrap();
                    assert_eq!(source.pending.replace(most), None, "two reads at a time");
                    self.read(stream);
                }
                device::Effect::CloseLogs { stream } => {
                    self.sources.remove(&stream);
                }
                _ => {}
            }
        }
    }

    /// Answers a read, where there is something.
    fn read(&mut self, stream: StreamId) {
        let Some(source) = self.sources.get_mut(&stream) else {
            return;
        };
        let Some(most) = source.pending else { return };
        if source.text.is_empty() {
            if source.ends {
                self.sources.remove(&stream);
                let end = LogEnd::Done;
                self.device(device::Event::LogsEnded { stream, end });
            }
            return;
        }
        source.pending = None;
        let size = most.min(source.text.len());
        let data = source.text.drain(..size).collect();
        self.device(device::Event::LogsRead { stream, data });
    }

    fn open(&mut self, stream: StreamId) {
        self.sources.insert(stream, Source::default());
        self.readers.insert(stream, Reader::default());
        let request = LogRequest::default();
        self.control(control::Event::OpenLogs { stream, request });
    }

    fn say(&mut self, stream: StreamId, text: &[u8]) {
        if let Some(source) = self.sources.get_mut(&stream) {
            source.text.extend(text);
        }
        self.read(stream);
    }

    /// The reader takes a chunk.
    fn take(&mut self, stream: StreamId) -> bool {
        let reader = self.readers.get_mut(&stream);
        let Some(reader) = reader.filter(|it| !it.waiting.is_empty()) else {
            return false;
        };
        let data = reader.waiting.pop_front().unwrap();
        reader.read.extend(&data);
        let cost = log_cost(data.len());
        self.control(control::Event::LogsTaken { stream, cost });
        true
    }

    fn deliver_to_device(&mut self) -> bool {
        let Some(frame) = self.to_device.pop_front() else {
            return false;
        };
        let message = ControlMessage::decode(&frame).unwrap().unwrap();
        self.device(device::Event::Message(message));
        true
    }

    fn deliver_to_control(&mut self) -> bool {
        let Some(frame) = self.to_control.pop_front() else {
            return false;
        };
        let message = DeviceMessage::decode(&frame).unwrap().unwrap();
        self.control(control::Event::Message(message));
        true
    }

    /// Delivers what is under way. `Welcome` is the driver's, and the device opens logs without it.
    fn settle(&mut self) {
        while self.deliver_to_device() | self.deliver_to_control() {}
    }

    /// What is held for a reader.
    fn held(&self, stream: StreamId) -> u64 {
        let reader = &self.readers[&stream];
        reader.waiting.iter().map(|it| log_cost(it.len())).sum()
    }
}

#[derive(Clone, Debug)]
enum Step {
    Say(StreamId, usize),
    Take(StreamId),
    ToDevice,
    ToControl,
    Close(StreamId),
}

fn step() -> impl Strategy<Value = Step> {
    let stream = || 0..3_u64;
    prop_oneof![
        4 => (stream(), 1_usize..30_000).prop_map(|(stream, size)| Step::Say(stream, size)),
        2 => (stream(), 1_usize..3).prop_map(|(stream, size)| Step::Say(stream, size)),
        4 => stream().prop_map(Step::Take),
        4 => Just(Step::ToDevice),
        8 => Just(Step::ToControl),
        1 => stream().prop_map(Step::Close),
    ]
}

proptest! {
    #[test]
    fn everything_arrives_in_order_and_never_too_much(steps in vec(step(), 1..200)) {
        let mut pair = Pair::new(&[LOGS]);
        let mut said: BTreeMap<StreamId, Vec<u8>> = BTreeMap::new();
        let mut closed = Vec::new();
        for stream in 0..3 {
            pair.open(stream);
            said.insert(stream, Vec::new());
        }
        pair.settle();
        let mut next = 0_u8;
        for step in steps {
            match step {
                Step::Say(stream, size) => {
                    let text: Vec<u8> = (0..size).map(|_| { next = next.wrapping_add(1); next }).collect();
                    said.get_mut(&stream).unwrap().extend(&text);
                    pair.say(stream, &text);
                }
                Step::Take(stream) => drop(pair.take(stream)),
                Step::ToDevice => drop(pair.deliver_to_device()),
                Step::ToControl => drop(pair.deliver_to_control()),
                Step::Close(stream) => {
                    closed.push(stream);
                    pair.control(control::Event::CloseLogs { stream });
                }
            }
            prop_assert_eq!(&pair.broken, &None);
            for stream in 0..3 {
                prop_assert!(pair.held(stream) <= LOG_WINDOW);
            }
        }
        for source in pair.sources.values_mut() {
            source.ends = true;
        }
        for stream in 0..3 {
            pair.read(stream);
        }
        loop {
            pair.settle();
            let taken = (0..3).filter(|stream| pair.take(*stream)).count();
            if taken == 0 {
                break;
            }
        }
        prop_assert_eq!(&pair.broken, &None);
        for stream in 0..3 {
            let reader = &pair.readers[&stream];
            let said = &said[&stream];
            if closed.contains(&stream) {
                prop_assert!(said.starts_with(&reader.read));
                prop_assert!(!pair.sources.contains_key(&stream), "its source goes on");
            } else {
                prop_assert_eq!(&reader.read, said);
                prop_assert_eq!(&reader.end, &Some(LogEnd::Done));
            }
        }
    }
}

#[test]
fn what_nobody_takes_is_not_sent() {
    let mut pair = Pair::new(&[LOGS]);
    pair.open(1);
    pair.settle();
    for _ in 0..100 {
        pair.say(1, &[b'x'; 10_000]);
        pair.settle();
    }
    assert!(pair.held(1) <= LOG_WINDOW && pair.held(1) > LOG_WINDOW / 2);
    assert!(
        pair.sources[&1].text.len() > 900_000,
        "the rest stays where it is"
    );
    // Many small chunks are bounded as well.
    let mut pair = Pair::new(&[LOGS]);
    pair.open(1);
    pair.settle();
    for _ in 0..100_000 {
        pair.say(1, b"x");
        pair.settle();
    }
    assert!(pair.readers[&1].waiting.len() <= 1024);
}

#[test]
fn a_device_that_sends_what_it_was_not_granted_breaks_the_protocol() {
    let chunk = |stream, size| {
        let data = vec![b'x'; size];
        control::Event::Message(DeviceMessage::LogChunk { stream, data })
    };
    let opened = || {
        let mut pair = Pair::new(&[LOGS]);
        pair.open(1);
        pair.settle();
        pair
    };
    for (what, stream, size) in [
        ("a stream that nobody asked for", 2, 1),
        ("a chunk that is too large", 1, MAX_LOG_CHUNK + 1),
    ] {
        let mut pair = opened();
        pair.control(chunk(stream, size));
        assert!(pair.broken.is_some(), "{what}");
    }
    let mut pair = opened();
    let mut sent = 0;
    while pair.broken.is_none() {
        pair.control(chunk(1, MAX_LOG_CHUNK));
        sent += log_cost(MAX_LOG_CHUNK);
        assert!(sent <= 2 * LOG_WINDOW, "the window has no end");
    }
    assert!(pair.held(1) <= LOG_WINDOW);
    // What is on its way when the reader leaves is no fault of the device, and still counts.
    let mut pair = opened();
    let before = pair.held(1);
    pair.control(control::Event::CloseLogs { stream: 1 });
    pair.control(chunk(1, MAX_LOG_CHUNK));
    assert_eq!((&pair.broken, pair.held(1)), (&None, before));
    for _ in 0..20 {
        pair.control(chunk(1, MAX_LOG_CHUNK));
    }
    assert!(pair.broken.is_some());
}

#[test]
fn an_old_agent_is_not_asked_and_nobody_is_asked_for_too_much() {
    let mut pair = Pair::new(&[]);
    pair.open(1);
    let Some(LogEnd::Refused(why)) = &pair.readers[&1].end else {
        panic!("{:?}", pair.readers)
    };
    assert!(why.contains("too old"), "{why}");
    assert!(pair.to_device.is_empty());
    let mut pair = Pair::new(&[LOGS]);
    for stream in 0..=MAX_LOG_STREAMS as u64 {
        pair.open(stream);
    }
    pair.settle();
    let refused =
        |pair: &Pair, stream| matches!(pair.readers[&stream].end, Some(LogEnd::Refused(_)));
    let last = MAX_LOG_STREAMS as u64;
    assert!(!refused(&pair, 0) && refused(&pair, last));
    // One that ends makes room.
    pair.control(control::Event::CloseLogs { stream: 0 });
    pair.settle();
    pair.open(last + 1);
    assert!(!refused(&pair, last + 1));
    // The device itself keeps to the bound, whatever it is asked for.
    let mut device = DeviceSession::new(None);
    let mut opened = 0;
    for stream in 0..100 {
        let open = ControlMessage::OpenLogs {
            stream,
            request: LogRequest::default(),
            credit: 1,
        };
        let effects = device.handle(device::Event::Message(open), 0);
        opened += effects
            .iter()
            .filter(|it| matches!(it, device::Effect::OpenLogs { .. }))
            .count();
    }
    assert_eq!(opened, MAX_LOG_STREAMS);
}

#[test]
fn nothing_is_left_of_a_connection_that_is_gone() {
    let mut device = DeviceSession::new(None);
    let open = || {
        device::Event::Message(ControlMessage::OpenLogs {
            stream: 1,
            request: LogRequest::default(),
            credit: LOG_WINDOW,
        })
    };
    device.handle(open(), 0);
    device.handle(device::Event::Disconnected, 0);
    let late = device.handle(device::Event::LogsOpened { stream: 1 }, 0);
    assert!(late.is_empty(), "{late:?}");
    assert_eq!(device.handle(open(), 0).len(), 1, "it can be opened anew");
}
