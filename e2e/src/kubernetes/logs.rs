//! What the double's containers say: nobody runs them, so tests speak for them.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    sync::{Arc, Mutex},
};

use futures_util::stream;
use http::{Response, header};
use http_body_util::{BodyExt as _, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Bytes, Frame};
use tokio::sync::watch;

/// A pod's namespace and name, and one of its containers.
pub type Voice = (String, String, String);

/// What was said so far.
#[derive(Debug)]
pub struct Voices {
    said: watch::Sender<BTreeMap<Voice, Vec<u8>>>,
    readers: Arc<Mutex<usize>>,
}

impl Default for Voices {
    fn default() -> Self {
        Self {
            said: watch::Sender::new(BTreeMap::new()),
            readers: Arc::default(),
        }
    }
}

/// Counts as a reader until it is dropped.
struct Reading(Arc<Mutex<usize>>);

impl Drop for Reading {
    fn drop(&mut self) {
        *self.0.lock().unwrap() -= 1;
    }
}

impl Voices {
    /// A container says this.
    pub fn say(&self, voice: Voice, text: &str) {
        self.said
            .send_modify(|said| said.entry(voice).or_default().extend(text.as_bytes()));
    }

    /// How many logs are being followed or read.
    pub fn readers(&self) -> usize {
        *self.readers.lock().unwrap()
    }

    /// What a container said, and says from now on.
    pub fn answer(
        &self,
        voice: Voice,
        follow: bool,
        tail: Option<usize>,
    ) -> Response<UnsyncBoxBody<Bytes, Infallible>> {
        *self.readers.lock().unwrap() += 1;
        let reading = Reading(self.readers.clone());
        let said = self.said.subscribe();
        let text = said.borrow().get(&voice).cloned().unwrap_or_default();
        let lines = text.split_inclusive(|byte| *byte == b'\n').count();
        let skipped = tail.map_or(0, |tail| lines.saturating_sub(tail));
        let from = text
            .split_inclusive(|byte| *byte == b'\n')
            .take(skipped)
            .map(<[u8]>::len)
            .sum();
        let start = (reading, said, voice, from);
        let chunks = stream::unfold(
            start,
            move |(reading, mut said, voice, from): (
                _,
                watch::Receiver<BTreeMap<Voice, Vec<u8>>>,
                Voice,
                usize,
            )| async move {
                loop {
                    let more = {
                        let said = said.borrow_and_update();
                        let text = said.get(&voice).map(Vec::as_slice).unwrap_or_default();
                        Bytes::copy_from_slice(&text[from..])
                    };
                    if !more.is_empty() {
                        let next = (reading, said, voice, from + more.len());
                        return Some((Ok(Frame::data(more)), next));
                    }
                    if !follow {
                        return None;
                    }
                    said.changed().await.ok()?;
                }
            },
        );
        Response::builder()
            .header(header::CONTENT_TYPE, "text/plain")
            .body(StreamBody::new(chunks).boxed_unsync())
            .unwrap()
    }
}
