//! A call and its answer, as all three hosts see them.

use std::collections::BTreeMap;

use axum::extract::Query;
use http::{HeaderMap, Method, StatusCode, Uri};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};

/// However many entries a call asks for, a page has no more: whoever does not turn pages misses some.
pub const PAGE: usize = 3;

/// A call of the REST API by somebody whom the forge knows.
#[derive(Debug)]
pub struct Call {
    /// The method.
    pub method: Method,
    /// The whole URI, as it came.
    pub uri: Uri,
    /// The path after the API's root, decoded, in parts.
    pub path: Vec<String>,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Vec<u8>,
    /// Who calls.
    pub login: String,
}

/// What the forge answers.
#[derive(Debug)]
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// The body; none where it is null.
    pub body: Value,
    /// Further headers.
    pub headers: BTreeMap<&'static str, String>,
    /// Why no client that was written by the documentation would make this call.
    pub complaint: Option<String>,
}

impl Answer {
    /// `200`.
    pub fn ok(body: Value) -> Self {
        Self::with(StatusCode::OK, body)
    }

    /// `201`.
    pub fn created(body: Value) -> Self {
        Self::with(StatusCode::CREATED, body)
    }

    /// Any other, which the client has to be prepared for.
    pub fn with(status: StatusCode, body: Value) -> Self {
        Self {
            status,
            body,
            headers: BTreeMap::new(),
            complaint: None,
        }
    }

    /// An error with a `message`, which the client has to be prepared for.
    pub fn error(status: StatusCode, message: &str) -> Self {
        Self::with(status, json!({"message": message}))
    }

    /// An error that only a mistake of the client's brings about.
    pub fn mistake(status: StatusCode, message: &str) -> Self {
        Self {
            complaint: Some(message.to_owned()),
            ..Self::error(status, message)
        }
    }
}

/// Which page of a list is wanted.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Page {
    /// From 1.
    pub page: Option<usize>,
    /// How many entries, as GitHub and GitLab say.
    pub per_page: Option<usize>,
    /// How many entries, as Gitea says.
    pub limit: Option<usize>,
}

impl Call {
    /// The body, which must have exactly the members of `T`.
    ///
    /// # Errors
    /// `422` where it has not.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, Answer> {
        let kind = self.headers.get(http::header::CONTENT_TYPE);
        if !kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/json")) {
            return Err(Answer::mistake(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "the body's Content-Type must be application/json",
            ));
        }
        serde_json::from_slice(&self.body).map_err(|error| {
            let body = String::from_utf8_lossy(&self.body);
            let message = format!("Invalid request: {error} in {body}");
            Answer::mistake(StatusCode::UNPROCESSABLE_ENTITY, &message)
        })
    }

    /// The query, which must have no other members than `T`.
    ///
    /// # Errors
    /// `400` where it has.
    pub fn query<T: DeserializeOwned>(&self) -> Result<T, Answer> {
        Query::try_from_uri(&self.uri)
            .map(|Query(query)| query)
            .map_err(|error| Answer::mistake(StatusCode::BAD_REQUEST, &format!("Query: {error}")))
    }

    /// One page of `all`, with the headers that lead to the others.
    pub fn page(&self, base_url: &str, page: Page, all: Vec<Value>) -> Answer {
        let asked = page.per_page.or(page.limit).unwrap_or(30);
        let (size, total) = (asked.clamp(1, PAGE), all.len());
        let number = page.page.unwrap_or(1).max(1);
        let pages = total.div_ceil(size).max(1);
        let entries: Vec<_> = all
            .into_iter()
            .skip((number - 1) * size)
            .take(size)
            .collect();
        let mut answer = Answer::ok(Value::Array(entries));
        let mut links = Vec::new();
        let mut link = |to: usize, relation: &str| {
            let url = self.uri_of_page(base_url, to);
            links.push(format!("<{url}>; rel=\"{relation}\""));
        };
        if number > 1 {
            link(number - 1, "prev");
            link(1, "first");
        }
        if number < pages {
            link(number + 1, "next");
            link(pages, "last");
        }
        if !links.is_empty() {
            answer.headers.insert("link", links.join(", "));
        }
        let next = if number < pages {
            (number + 1).to_string()
        } else {
            String::new()
        };
        answer.headers.insert("x-next-page", next);
        answer.headers.insert("x-total", total.to_string());
        answer.headers.insert("x-total-count", total.to_string());
        answer.headers.insert("x-page", number.to_string());
        answer.headers.insert("x-total-pages", pages.to_string());
        answer
    }

    fn uri_of_page(&self, base_url: &str, page: usize) -> String {
        let query = self.uri.query().unwrap_or_default();
        let mut pairs: Vec<_> = query
            .split('&')
            .filter(|pair| !pair.is_empty() && !pair.starts_with("page="))
            .map(str::to_owned)
            .collect();
        pairs.push(format!("page={page}"));
        format!("{base_url}{}?{}", self.uri.path(), pairs.join("&"))
    }
}

/// Sets a member of an object.
pub fn put(object: &mut Value, name: &str, member: Value) {
    if let Some(object) = object.as_object_mut() {
        object.insert(name.to_owned(), member);
    }
}
