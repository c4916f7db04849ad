//! The HTTP client of all forges: bounded in time and size, polite, and careful with credentials.
//!
//! ```text
//! octocrab (GitHub) ─┐           ┌ throttle: asked to wait? then no call
//! rest (GitLab, …) ──┴▶ Client ──┼ answers: seen before? then If-None-Match, and 304 is as good as the answer
//!                                └ reqwest: no redirects, 10 s to connect, 30 s in all, 16 MiB
//! ```
//!
//! Redirects are not followed, so a credential never goes to another host. The roots are the system's, or those
//! of `SSL_CERT_FILE`, which Git heeds too.

use std::{
    collections::VecDeque,
    error::Error as StdError,
    sync::{Mutex, OnceLock, PoisonError},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode,
    header::{CONTENT_LENGTH, ETAG, IF_NONE_MATCH},
};
use url::Url;

use super::{repository::is_loopback, throttle::Throttle};
use crate::clock;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const TIMEOUT: Duration = Duration::from_secs(30);
/// The largest answer: a hundred pull requests with texts as long as they may be.
const MAX_ANSWER: usize = 16 * 1024 * 1024;
/// How much of answers is kept, compressed, to be asked for again, in bytes.
const MAX_KEPT: usize = 1024 * 1024;
const MAX_KEPT_ANSWERS: usize = 100;
/// The quickest that is not "none".
const COMPRESSION: i32 = 1;

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

/// What all clients share: reading the machine's certificates takes longer than most calls.
///
/// Made when it is first needed, so that a machine without certificates can run all that needs none.
#[derive(Debug, Default)]
pub struct Http {
    outside: OnceLock<reqwest::Client>,
    /// Without the proxies that the environment names.
    inside: OnceLock<reqwest::Client>,
}

impl Http {
    fn reaching(&self, base: &Url) -> Result<reqwest::Client, reqwest::Error> {
        let is_inside = is_loopback(base);
        let made = if is_inside {
            &self.inside
        } else {
            &self.outside
        };
        if let Some(made) = made.get() {
            return Ok(made.clone());
        }
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("longshore/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT);
        if is_inside {
            builder = builder.no_proxy();
        }
        let new = builder.build()?;
        Ok(made.get_or_init(|| new).clone())
    }
}

/// Calls the API at one base URL.
#[derive(Debug)]
pub struct Client {
    http: reqwest::Client,
    base: Url,
    timeout: Duration,
    throttle: Throttle,
    kept: Mutex<Kept>,
}

impl Client {
    /// A client for the API below `base`.
    ///
    /// # Errors
    /// The machine's certificates cannot be used.
    pub fn new(http: &Http, base: Url) -> Result<Self, reqwest::Error> {
        Ok(Self {
            http: http.reaching(&base)?,
            base,
            timeout: TIMEOUT,
            throttle: Throttle::default(),
            kept: Mutex::default(),
        })
    }

    /// It with another patience.
    #[must_use]
    pub fn with_timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
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
            .timeout(self.timeout)
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
///
/// They are kept compressed: a list of pull requests is mostly the same URLs again and again.
#[derive(Debug, Default)]
struct Kept(VecDeque<KeptAnswer>);

#[derive(Debug)]
struct KeptAnswer {
    url: String,
    headers: HeaderMap,
    length: usize,
    compressed: Vec<u8>,
}

impl Kept {
    fn find(&self, url: &str) -> Option<Response<Bytes>> {
        let kept = self.0.iter().find(|kept| kept.url == url)?;
        let body = zstd::bulk::decompress(&kept.compressed, kept.length).ok()?;
        let mut answer = Response::new(Bytes::from(body));
        answer.headers_mut().clone_from(&kept.headers);
        Some(answer)
    }

    fn keep(&mut self, url: String, answer: &Response<Bytes>) {
        self.0.retain(|kept| kept.url != url);
        if answer.headers().get(ETAG).is_none_or(HeaderValue::is_empty) {
            return;
        }
        let Ok(compressed) = zstd::bulk::compress(answer.body(), COMPRESSION) else {
            return;
        };
        self.0.push_back(KeptAnswer {
            url,
            headers: answer.headers().clone(),
            length: answer.body().len(),
            compressed,
        });
        let mut size: usize = self.0.iter().map(|kept| kept.compressed.len()).sum();
        while size > MAX_KEPT || self.0.len() > MAX_KEPT_ANSWERS {
            let Some(oldest) = self.0.pop_front() else {
                return;
            };
            size -= oldest.compressed.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(etag: &str, body: String) -> Response<Bytes> {
        let mut answer = Response::new(Bytes::from(body));
        answer.headers_mut().insert(ETAG, etag.parse().unwrap());
        answer
    }

    #[test]
    fn what_is_kept_is_bounded_and_comes_back_whole() {
        let mut kept = Kept::default();
        for number in 0..2 * MAX_KEPT_ANSWERS {
            kept.keep(number.to_string(), &answer("\"1\"", "x".repeat(number)));
        }
        assert_eq!(kept.0.len(), MAX_KEPT_ANSWERS);
        assert!(kept.find("0").is_none(), "the oldest went first");
        let newest = kept.find("199").unwrap();
        assert_eq!(newest.body().len(), 199);
        assert_eq!(newest.headers()[ETAG], "\"1\"");
        kept.keep("199".to_owned(), &answer("", String::new()));
        assert!(kept.find("199").is_none(), "it has no tag any longer");
    }
}
