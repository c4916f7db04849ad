//! Hosted repos over Git's smart protocol (gitprotocol-http(5)): who may, and what is asked.
//!
//! The API token is the password, with any user name. What is not the caller's, does not exist or is not hosted
//! is answered alike. Errors are plain text, because that is what git shows to people.

use std::sync::Arc;

use axum::{
    body::Body,
    extract::{Extension, Path, RawQuery, State as Extract},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use base64::{Engine as _, prelude::BASE64_STANDARD};

use super::{Api, Peer, State};
use crate::{
    error::chain,
    hosting::{BackendError, Busy, Call, Operation, Service},
    secret,
    store::{
        StoreError,
        fleets::{self, Fleet, FleetId},
        tenants::{self, Operator},
    },
};

/// The URL of a hosted repo.
pub(super) fn clone_url(public_url: &str, fleet: &FleetId) -> String {
    format!("{public_url}/git/{}/{}.git", fleet.tenant, fleet.name)
}

/// `GET …/info/refs?service=…`
pub(super) async fn advertise(
    extract: State,
    Extension(peer): Extension<Peer>,
    Path(names): Path<(String, String)>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let Extract(api) = extract;
    let fleet = authorize(&api, &headers, names).await?;
    let service = match query.as_deref() {
        Some("service=git-upload-pack") => Service::UploadPack,
        Some("service=git-receive-pack") => Service::ReceivePack,
        _ => {
            return Err(Refusal::new(
                StatusCode::FORBIDDEN,
                "only the smart protocol is spoken here; use git 1.6.6 or newer",
            ));
        }
    };
    let operation = Operation::Advertise(service);
    serve(&api, fleet, operation, &headers, peer, Body::empty()).await
}

/// `POST …/git-upload-pack`
pub(super) async fn upload_pack(
    extract: State,
    peer: Extension<Peer>,
    names: Path<(String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    exchange(Service::UploadPack, extract, peer, names, headers, body).await
}

/// `POST …/git-receive-pack`
pub(super) async fn receive_pack(
    extract: State,
    peer: Extension<Peer>,
    names: Path<(String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    exchange(Service::ReceivePack, extract, peer, names, headers, body).await
}

async fn exchange(
    service: Service,
    Extract(api): State,
    Extension(peer): Extension<Peer>,
    Path(names): Path<(String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    let fleet = authorize(&api, &headers, names).await?;
    let expected = format!("application/x-{}-request", service.name());
    if headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes) != Some(expected.as_bytes()) {
        return Err(Refusal::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            format!("a body of the type {expected} is needed"),
        ));
    }
    let operation = Operation::Exchange(service);
    serve(&api, fleet, operation, &headers, peer, body).await
}

async fn serve(
    api: &Api,
    fleet: Fleet,
    operation: Operation,
    headers: &HeaderMap,
    peer: Peer,
    body: Body,
) -> Result<Response, Refusal> {
    let encoding = headers.get(header::CONTENT_ENCODING);
    let gzip = match encoding.map(HeaderValue::as_bytes) {
        None | Some(b"identity") => false,
        Some(b"gzip" | b"x-gzip") => true,
        Some(_) => {
            return Err(Refusal::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "a body may be compressed with gzip only",
            ));
        }
    };
    let protocol = headers
        .get("git-protocol")
        .and_then(|value| value.to_str().ok());
    let call = Call {
        operation,
        gzip,
        version_2: protocol.is_some_and(|it| it.split(':').any(|part| part == "version=2")),
        user: user(headers),
        address: peer.0.ip(),
        fleet,
    };
    Ok(api.hosting.serve(call, body).await?)
}

/// The hosted fleet of this name, where the caller may see it.
async fn authorize(
    api: &Arc<Api>,
    headers: &HeaderMap,
    (tenant, repo): (String, String),
) -> Result<Fleet, Refusal> {
    let token = credentials(headers).map(|(_, token)| token);
    let token = token.ok_or_else(Refusal::unauthorized)?;
    let mut db = api.store.read().await?;
    let operator = tenants::operator(&mut db, secret::hash(&token)).await?;
    let operator = operator.ok_or_else(Refusal::unauthorized)?;
    let missing = || {
        Refusal::new(
            StatusCode::NOT_FOUND,
            format!(
                "there is no hosted repo {tenant}/{repo}; `longshore fleets list` shows what there is"
            ),
        )
    };
    let name = repo.strip_suffix(".git").and_then(|name| name.parse().ok());
    let (Ok(tenant), Some(name)) = (tenant.parse(), name) else {
        return Err(missing());
    };
    if matches!(&operator, Operator::Tenant(own) if *own != tenant) {
        return Err(missing());
    }
    let fleet = fleets::find(&mut db, &FleetId { tenant, name }).await?;
    fleet.filter(|fleet| fleet.hosted).ok_or_else(missing)
}

/// User name and token: of `Basic`, as git sends them, or of `Bearer`, as scripts may.
fn credentials(headers: &HeaderMap) -> Option<(String, String)> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, value) = value.split_once(' ')?;
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some((String::new(), value.to_owned()));
    }
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = String::from_utf8(BASE64_STANDARD.decode(value.trim()).ok()?).ok()?;
    let (user, token) = decoded.split_once(':')?;
    Some((user.to_owned(), token.to_owned()))
}

/// What the caller says to be called. Anybody may say anything; it is a note in Git's log of refs.
fn user(headers: &HeaderMap) -> String {
    let name = credentials(headers)
        .map(|(user, _)| user)
        .unwrap_or_default();
    let name: String = name
        .chars()
        .filter(|char| char.is_ascii_alphanumeric() || "-_.@".contains(*char))
        .take(64)
        .collect();
    // A user name that is a token, as some tools like it, must not be written down.
    if name.is_empty() || name.starts_with("ls") && name.len() > 40 {
        "git".to_owned()
    } else {
        name
    }
}

/// Why a git client is refused.
#[derive(Debug)]
pub(super) struct Refusal {
    status: StatusCode,
    message: String,
}

impl Refusal {
    fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
        }
    }

    fn unauthorized() -> Self {
        Self::new(
            StatusCode::UNAUTHORIZED,
            "an API token is needed as the password, with any user name",
        )
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = (self.status, format!("{}\n", self.message)).into_response();
        let headers = response.headers_mut();
        match self.status {
            StatusCode::UNAUTHORIZED => {
                let challenge = HeaderValue::from_static("Basic realm=\"Longshore\"");
                headers.insert(header::WWW_AUTHENTICATE, challenge);
            }
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from_static("10"));
            }
            _ => {}
        }
        response
    }
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        Self::internal(&error)
    }
}

impl From<BackendError> for Refusal {
    fn from(error: BackendError) -> Self {
        match error {
            BackendError::Busy(Busy::Tenant) => Self::new(
                StatusCode::TOO_MANY_REQUESTS,
                "the tenant has too many clones and pushes under way; try again in a moment",
            ),
            BackendError::Busy(Busy::Controller) => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "too many clones and pushes are under way; try again in a moment",
            ),
            BackendError::Elsewhere => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "this replica of the controller does not have the repo; its operator can let all replicas share it",
            ),
            other => Self::internal(&other),
        }
    }
}

impl Refusal {
    fn internal(error: &dyn std::error::Error) -> Self {
        tracing::error!(error = %chain(error), "a git request failed");
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "the controller failed; its log says why",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(authorization: &str) -> HeaderMap {
        let value = HeaderValue::from_str(authorization).unwrap();
        [(header::AUTHORIZATION, value)].into_iter().collect()
    }

    fn basic(text: &str) -> HeaderMap {
        headers(&format!("Basic {}", BASE64_STANDARD.encode(text)))
    }

    #[test]
    fn the_token_is_the_password_of_anybody() {
        let token = |headers| credentials(&headers).map(|(_, token)| token);
        assert_eq!(token(basic("olivia:lsa_1")).as_deref(), Some("lsa_1"));
        assert_eq!(token(basic(":lsa_1")).as_deref(), Some("lsa_1"));
        assert_eq!(token(basic("a:b:c")).as_deref(), Some("b:c"));
        assert_eq!(token(headers("bearer lsa_1")).as_deref(), Some("lsa_1"));
        for wrong in ["Basic", "Basic !", "Digest x", "Basic bm90aGluZw=="] {
            assert_eq!(token(headers(wrong)), None, "{wrong}");
        }
        assert_eq!(token(HeaderMap::new()), None);
    }

    #[test]
    fn a_user_name_is_a_plain_note() {
        assert_eq!(user(&basic("olivia@shop:x")), "olivia@shop");
        assert_eq!(user(&basic("o\n<l>i$(v)ia:x")), "olivia");
        assert_eq!(user(&basic(":x")), "git");
        let token = format!("lsa_{}", "0".repeat(40));
        assert_eq!(user(&basic(&format!("{token}:x"))), "git");
    }
}
