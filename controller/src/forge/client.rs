//! The HTTP client of all forges: bounded in time and size, polite, and careful with credentials.
//!
//! ```text
//! octocrab (GitHub) ─┐           ┌ throttle: asked to wait? then no call
//! rest (GitLab, …) ──┴▶ Client ──┼ answers: seen before? then If-None-Match, and 304 is as good as the answer
//!                                └ reqwest: no redirects, 10 s to connect, 30 s in all, 32 MiB
//! ```
//!
//! Redirects are not followed, so a credential never goes to another host. The roots are the system's, or those
//! of `SSL_CERT_FILE`, which Git heeds too.

use std::{
    collections::VecDeque,
    error::Error as StdError,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::{
    HeaderValue, Method, Request, Response, StatusCode,
    header::{CONTENT_LENGTH, ETAG, IF_NONE_MATCH},
};
use url::Url;

use super::{repository::is_loopback, throttle::Throttle};
use crate::clock;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const TIMEOUT: Duration = Duration::from_secs(30);
/// The largest answer: a hundred pull requests with texts as long as they may be.
const MAX_ANSWER: usize = 32 * 1024 * 1024;
/// How much of answers is kept to be asked for again, in bytes.
const MAX_KEPT: usize = 4 * 1024 * 1024;
const MAX_KEPT_ANSWERS: usize = 100;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The host wants no calls for now; no call was made.
    #[error("the host wants no calls for {} s", .0.as_secs())]
    Throttled(Duration),
    /// It was not reached, took too long, or broke off.
    #[error("no whole answer came")]
    Broken(#[source] reqwest::Error),
    /// The answer is too large.
    #[error("the answer is larger than {MAX_ANSWER} bytes")]
    TooLarge,
    /// What was to be sent is no request.
    #[error("the call cannot be put into words")]
    Unspeakable(#[source] Box<dyn StdError + Send + Sync>),
}

/// Calls the API at one base URL.
#[derive(Debug)]
pub struct Client {
    http: reqwest::Client,
    base: Url,
    throttle: Throttle,
    kept: Mutex<Kept>,
}

impl Client {
    /// A client for the API below `base`.
    ///
    /// # Errors
    /// The machine's certificates cannot be used.
    pub fn new(base: Url) -> Result<Self, reqwest::Error> {
        Self::with_timeout(base, TIMEOUT)
    }

    /// A client with another patience.
    pub fn with_timeout(base: Url, timeout: Duration) -> Result<Self, reqwest::Error> {
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("longshore/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(timeout);
        if is_loopback(&base) {
            builder = builder.no_proxy();
        }
        Ok(Self {
            http: builder.build()?,
            base,
            throttle: Throttle::default(),
            kept: Mutex::default(),
        })
    }

    /// Where the API is.
    pub fn base(&self) -> &Url {
        &self.base
    }

    /// Makes a call to the path and query of `request`, below the base URL.
    ///
    /// An answer that says "not modified" is given as the one that it is about.
    pub async fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, CallError> {
        if let Some(wait) = self.throttle.wait() {
            return Err(CallError::Throttled(wait));
        }
        let (mut parts, body) = request.into_parts();
        let url = format!("{}{}", self.base.as_str().trim_end_matches('/'), parts.uri);
        let is_question = parts.method == Method::GET;
        let known = is_question.then(|| self.kept().find(&url)).flatten();
        if let Some(etag) = known.as_ref().and_then(|known| known.headers().get(ETAG)) {
            parts.headers.insert(IF_NONE_MATCH, etag.clone());
        }
        if body.is_empty() {
            parts.headers.remove(CONTENT_LENGTH);
        }
        let answer = self
            .http
            .request(parts.method, &url)
            .headers(parts.headers)
            .body(body)
            .send()
            .await
            .map_err(broken)?;
        let answer = whole(answer).await?;
        if let (StatusCode::NOT_MODIFIED, Some(known)) = (answer.status(), known) {
            return Ok(known);
        }
        if let Some(wait) = self.throttle.observe(
            answer.status(),
            answer.headers(),
            answer.body(),
            clock::now_ms(),
        ) {
            return Err(CallError::Throttled(wait));
        }
        if is_question && answer.status() == StatusCode::OK {
            self.kept().keep(url, &answer);
        }
        Ok(answer)
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Without the URL: the log knows the forge, and URLs may hold what a log should not.
fn broken(error: reqwest::Error) -> CallError {
    if error.is_builder() {
        CallError::Unspeakable(error.without_url().into())
    } else {
        CallError::Broken(error.without_url())
    }
}

async fn whole(mut answer: reqwest::Response) -> Result<Response<Bytes>, CallError> {
    let mut body = BytesMut::new();
    while let Some(chunk) = answer.chunk().await.map_err(broken)? {
        if body.len() + chunk.len() > MAX_ANSWER {
            return Err(CallError::TooLarge);
        }
        body.extend_from_slice(&chunk);
    }
    let mut response = Response::new(body.freeze());
    *response.status_mut() = answer.status();
    *response.headers_mut() = std::mem::take(answer.headers_mut());
    Ok(response)
}

/// The newest answers that came with an entity tag (RFC 9110, section 8.8.3), by URL.
#[derive(Debug, Default)]
struct Kept(VecDeque<(String, Response<Bytes>)>);

impl Kept {
    fn find(&self, url: &str) -> Option<Response<Bytes>> {
        let (_, answer) = self.0.iter().find(|(known, _)| known == url)?;
        Some(answer.clone())
    }

    fn keep(&mut self, url: String, answer: &Response<Bytes>) {
        self.0.retain(|(known, _)| *known != url);
        if answer.headers().get(ETAG).is_none_or(HeaderValue::is_empty) {
            return;
        }
        self.0.push_back((url, answer.clone()));
        let mut size: usize = self.0.iter().map(|(_, answer)| answer.body().len()).sum();
        while size > MAX_KEPT || self.0.len() > MAX_KEPT_ANSWERS {
            let Some((_, oldest)) = self.0.pop_front() else {
                return;
            };
            size -= oldest.body().len();
        }
    }
}
