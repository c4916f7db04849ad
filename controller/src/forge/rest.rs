//! A JSON API in the style of GitLab and Gitea: paths of segments, a token in a header, pages by number.

use bytes::Bytes;
use http::{
    HeaderName, HeaderValue, Method, Request, Response,
    header::{ACCEPT, CONTENT_TYPE, LINK},
};
use serde::de::DeserializeOwned;
use serde_json::Value;
use url::{Position, Url};

use super::{
    ForgeError, MAX_LISTED,
    client::{CallError, Client},
    connection::{ForgeSettings, InvalidConnection},
    refusal::{misunderstood, refused, unanswered},
};

/// More pages are not read: nobody reviews thousands of pull requests.
const MAX_PAGES: u32 = 100;

/// Asks one repo's forge.
#[derive(Debug)]
pub(super) struct Rest {
    /// [`super::Forge::name`].
    pub(super) name: String,
    client: Client,
    header: HeaderName,
    credential: HeaderValue,
}

impl Rest {
    /// A client that presents `credential` in `header`.
    pub(super) fn new(
        client: Client,
        settings: &ForgeSettings,
        header: HeaderName,
        credential: &str,
    ) -> Result<Self, InvalidConnection> {
        let mut credential = HeaderValue::from_str(credential).map_err(|_unprintable| {
            InvalidConnection("the token holds characters that no token has".to_owned())
        })?;
        credential.set_sensitive(true);
        let host = settings.url.host_str().unwrap_or_default();
        Ok(Self {
            name: format!("{host}/{}", settings.repository),
            client,
            header,
            credential,
        })
    }

    /// Reads.
    pub(super) async fn get<T: DeserializeOwned>(
        &self,
        operation: &'static str,
        path: &[&str],
        query: &[(&str, &str)],
    ) -> Result<T, ForgeError> {
        let answer = self.call(operation, Method::GET, path, query, None).await?;
        self.read(operation, &answer)
    }

    /// Reads all pages of a list.
    pub(super) async fn list<T: DeserializeOwned>(
        &self,
        operation: &'static str,
        path: &[&str],
        query: &[(&str, &str)],
    ) -> Result<Vec<T>, ForgeError> {
        let mut all = Vec::new();
        for number in 1..=MAX_PAGES {
            let number = number.to_string();
            let query = [query, &[("page", number.as_str())]].concat();
            let answer = self
                .call(operation, Method::GET, path, &query, None)
                .await?;
            let page: Vec<T> = self.read(operation, &answer)?;
            // The link to the next page is only looked at: following it could lead elsewhere.
            let links = answer.headers().get_all(LINK).into_iter();
            let has_next = links
                .filter_map(|link| link.to_str().ok())
                .any(|link| link.contains("rel=\"next\""));
            // Gitea links to no further pages of some lists, but says how long they are.
            let total = answer.headers().get("x-total-count");
            let total = total.and_then(|total| total.to_str().ok()?.parse::<usize>().ok());
            let is_empty = page.is_empty();
            all.extend(page);
            let has_more = has_next || total.is_some_and(|total| total > all.len());
            if !has_more || is_empty || all.len() >= MAX_LISTED {
                break;
            }
        }
        all.truncate(MAX_LISTED);
        Ok(all)
    }

    /// Writes, and reads what the forge made of it.
    pub(super) async fn send<T: DeserializeOwned>(
        &self,
        operation: &'static str,
        method: Method,
        path: &[&str],
        body: &Value,
    ) -> Result<T, ForgeError> {
        let answer = self.call(operation, method, path, &[], Some(body)).await?;
        self.read(operation, &answer)
    }

    async fn call(
        &self,
        operation: &'static str,
        method: Method,
        path: &[&str],
        query: &[(&str, &str)],
        body: Option<&Value>,
    ) -> Result<Response<Bytes>, ForgeError> {
        let answer = async {
            let mut request = Request::builder()
                .method(method)
                .uri(target(path, query))
                .header(&self.header, &self.credential)
                .header(ACCEPT, "application/json");
            if body.is_some() {
                request = request.header(CONTENT_TYPE, "application/json");
            }
            let body = body.map(Value::to_string).unwrap_or_default();
            let request = request.body(Bytes::from(body));
            self.client
                .send(request.map_err(|error| CallError::Unspeakable(Box::new(error)))?)
                .await
        };
        let answer = answer
            .await
            .map_err(|error| unanswered(&self.name, operation, error))?;
        if answer.status().is_success() {
            return Ok(answer);
        }
        let words = serde_json::from_slice(answer.body()).map(|body| words(&body));
        Err(refused(
            &self.name,
            operation,
            answer.status(),
            &words.unwrap_or_default(),
        ))
    }

    fn read<T: DeserializeOwned>(
        &self,
        operation: &'static str,
        answer: &Response<Bytes>,
    ) -> Result<T, ForgeError> {
        serde_json::from_slice(answer.body())
            .map_err(|error| misunderstood(&self.name, operation, error))
    }
}

/// Path and query, with all that has a meaning in URLs escaped.
fn target(path: &[&str], query: &[(&str, &str)]) -> String {
    let Ok(mut url) = Url::parse("http://host/") else {
        return String::new();
    };
    if let Ok(mut segments) = url.path_segments_mut() {
        segments.pop_if_empty().extend(path);
    }
    if !query.is_empty() {
        url.query_pairs_mut().extend_pairs(query);
    }
    url[Position::BeforePath..].to_owned()
}

/// What an error's body says: GitLab has texts, lists and members of texts in `message`, or `error` and
/// `error_description`; Gitea has a text in `message`.
fn words(body: &Value) -> String {
    match body {
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(words).collect::<Vec<_>>().join(", "),
        Value::Object(members) => {
            let known = ["error_description", "message", "error"];
            if let Some(said) = known.iter().find_map(|name| members.get(*name)) {
                return words(said);
            }
            let said = members
                .iter()
                .map(|(name, said)| format!("{name} {}", words(said)));
            said.collect::<Vec<_>>().join(", ")
        }
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_stay_in_their_place() {
        let target = target(&["projects", "acme/kiosks?"], &[("source_branch", "a&b/c")]);
        assert_eq!(target, "/projects/acme%2Fkiosks%3F?source_branch=a%26b%2Fc");
    }

    #[test]
    fn errors_are_read_in_all_their_shapes() {
        for (body, expected) in [
            (json!({"message": "401 Unauthorized"}), "401 Unauthorized"),
            (json!({"message": ["one", "two"]}), "one, two"),
            (
                json!({"message": {"title": ["is too long"]}}),
                "title is too long",
            ),
            (
                json!({"error": "insufficient_scope", "error_description": "more"}),
                "more",
            ),
            (json!(7), ""),
        ] {
            assert_eq!(words(&body), expected);
        }
    }
}
