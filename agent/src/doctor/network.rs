//! The way to the controller, step by step: the first step that fails says what is in the way.

use std::{net::IpAddr, sync::Arc};

use http::{HeaderMap, Method, Request, StatusCode, header};
use http_body_util::Full;
use hyper::body::Bytes;
use jiff::{Timestamp, fmt::rfc2822::DateTimeParser};
use longshore_protocol::api::{ENROLL_PATH, EnrollRejected, EnrollRequest, Facts};
use rustls::ClientConfig;
use secrecy::{ExposeSecret as _, SecretString};
use tokio::{net::lookup_host, time};
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use url::Url;

use super::{Check, PATIENCE};
use crate::{
    causes,
    clock::Clock,
    config::Settings,
    files::Folder,
    http_client::{self, Answer, HttpError},
    identity::{Chain, Identity, StateDir},
    network::Network,
    tls,
};

/// A clock that is off by more makes certificates look wrong sooner or later.
const CLOCK_SLACK: u64 = 60_000;
const SET_CLOCK: &str = "set the clock, or start NTP: `timedatectl set-ntp true`";
/// A subprotocol that nobody speaks, so that the controller checks everything and opens no session.
const NO_SESSION: &str = "longshore.doctor";

/// What the controller answered.
struct Reply {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

/// Whom to ask, and how.
struct Question {
    url: Url,
    tls: Arc<ClientConfig>,
    request: Request<Full<Bytes>>,
}

pub(super) async fn examine(settings: &Settings, identity: Option<&Identity>) -> Vec<Check> {
    let clock = Folder::open(&settings.state_dir).map_or_else(|_| Clock::default(), Clock::kept_in);
    let network = settings.network(clock);
    let network = &network;
    let certificate = identity.map(|identity| certificate(identity, &network.clock));
    let mut checks: Vec<Check> = certificate.into_iter().collect();
    let asked = match identity {
        Some(identity) => about_membership(identity, network),
        None => about_enrollment(settings, network),
    };
    let question = match asked {
        Ok(question) => question,
        Err(check) => {
            checks.push(check);
            return checks;
        }
    };
    let proxied = network.stands_before(&question.url);
    if proxied.is_none() {
        // A proxy looks names up itself.
        let resolved = dns(&question.url).await;
        let is_resolved = resolved.verdict != super::Verdict::Fail;
        checks.push(resolved);
        if !is_resolved {
            return checks;
        }
    }
    checks.push(proxy(network, proxied));
    let url = question.url.clone();
    let reply = time::timeout(PATIENCE, ask(network, question)).await;
    let reply = reply.unwrap_or_else(|_over| Err(HttpError::Timeout(url.to_string())));
    match reply {
        Ok(reply) => {
            checks.push(compared(&reply.headers, &network.clock));
            checks.push(Check::ok(
                "tls",
                format!("{url} is the controller that this device trusts"),
            ));
            checks.push(match identity {
                Some(_) => credentials(&reply),
                None => token(&reply),
            });
        }
        Err(error) => {
            checks.push(alone(&network.clock));
            if matches!(error, HttpError::Proxy(_)) {
                // One word about the proxy, and not two that contradict each other.
                checks.retain(|check| check.name != "proxy");
            }
            checks.push(unanswered(&error, identity.is_some()));
        }
    }
    checks
}

/// The device's certificate, by the device's own clock.
fn certificate(identity: &Identity, clock: &Clock) -> Check {
    const NAME: &str = "certificate";
    let (from, to) = match Chain::verify(&identity.chain, &identity.ca_bundle, None) {
        Ok(chain) => chain.validity(),
        Err(error) => {
            let advice = "restore identity.json, or remove it and enroll the device anew";
            return Check::fail(NAME, causes(&error), advice);
        }
    };
    let now = clock.system();
    let found = format!("in force from {} to {}", shown(from), shown(to));
    if now < from {
        let found = format!("{found}, and this device's clock says {}", shown(now));
        return Check::fail(NAME, found, "set the clock, or start NTP");
    }
    if now >= to {
        let found = format!("expired: {found}, and it is {}", shown(now));
        let advice = "if the clock is right, the device was without a connection for too long: see \
                      \"Devices that were away for too long\" in the operator's manual";
        return Check::fail(NAME, found, advice);
    }
    // It is renewed after two thirds of its life.
    if now > to - (to - from) / 6 {
        let advice = "let the device connect: it should have been renewed by now";
        return Check::warn(NAME, found, advice);
    }
    Check::ok(NAME, found)
}

/// Asks the edge to be let in, with a subprotocol that it does not speak.
fn about_membership(identity: &Identity, network: &Network) -> Result<Question, Check> {
    let failed = |error: &dyn std::error::Error| {
        let advice = "restore identity.json, or remove it and enroll the device anew";
        Check::fail("certificate", causes(error), advice)
    };
    let tls = tls::edge(identity, network).map_err(|error| failed(&error))?;
    let token = identity.device_token.expose_secret();
    let request = Request::builder()
        .uri(identity.edge_url.path())
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "websocket")
        .header(header::SEC_WEBSOCKET_VERSION, "13")
        .header(header::SEC_WEBSOCKET_KEY, generate_key())
        .header(header::SEC_WEBSOCKET_PROTOCOL, NO_SESSION)
        .header(header::AUTHORIZATION, format!("Bearer {token}"))
        .body(Full::default())
        .map_err(|error| failed(&error))?;
    let url = identity.edge_url.clone();
    Ok(Question { url, tls, request })
}

/// Presents the token with a request that nobody can grant, so that no device is registered.
fn about_enrollment(settings: &Settings, network: &Network) -> Result<Question, Check> {
    let missing = |setting: &str| {
        let advice = "run the command that `longshore tokens create` prints, or write it to the settings' file";
        Check::fail(
            "token",
            format!("{setting} is not set, and the device is not enrolled"),
            advice,
        )
    };
    let url = settings.server.clone().ok_or_else(|| missing("--server"))?;
    let trust = settings
        .trust
        .as_ref()
        .ok_or_else(|| missing("--ca-fingerprint"))?;
    let token = own_token(settings)?.ok_or_else(|| missing("--token or --token-file"))?;
    let failed = |error: &dyn std::error::Error| {
        Check::fail("tls", causes(error), "correct --server, --ca or --token")
    };
    let tls = tls::enrollment(trust, network).map_err(|error| failed(&error))?;
    let nobody = EnrollRequest {
        name: String::new(),
        csr: String::new(),
        facts: Facts::new(),
        wait: 0,
    };
    let body = serde_json::to_vec(&nobody).map_err(|error| failed(&error))?;
    let request = Request::builder()
        .method(Method::POST)
        .uri(format!("{}{ENROLL_PATH}", url.path().trim_end_matches('/')))
        .header(header::CONTENT_TYPE, "application/json")
        .header(
            header::AUTHORIZATION,
            format!("Bearer {}", token.expose_secret()),
        )
        .body(Full::new(Bytes::from(body)))
        .map_err(|error| failed(&error))?;
    Ok(Question { url, tls, request })
}

fn own_token(settings: &Settings) -> Result<Option<SecretString>, Check> {
    let failed = |error: &dyn std::error::Error| {
        let advice = "make the file readable for the user who runs the agent, with the token as its only content";
        Check::fail("token", causes(error), advice)
    };
    if let Some(source) = &settings.token {
        return source.read().map(Some).map_err(|error| failed(&error));
    }
    let state = StateDir::peek(&settings.state_dir).ok().flatten();
    let token = state.map(|state| state.token()).transpose();
    Ok(token.map_err(|error| failed(&error))?.flatten())
}

async fn dns(url: &Url) -> Check {
    const NAME: &str = "dns";
    let host = url.host_str().unwrap_or_default();
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    if bare.parse::<IpAddr>().is_ok() {
        return Check::ok(NAME, format!("{host} needs no look-up"));
    }
    let advice = "look at /etc/resolv.conf and whether its name servers can be reached, and at the spelling of the name";
    let port = url.port_or_known_default().unwrap_or_default();
    match time::timeout(PATIENCE, lookup_host((bare, port))).await {
        Ok(Ok(addresses)) => {
            let found: Vec<_> = addresses.map(|it| it.ip().to_string()).collect();
            Check::ok(NAME, format!("{host} is {}", found.join(", ")))
        }
        Ok(Err(error)) => Check::fail(NAME, format!("{host} has no address: {error}"), advice),
        Err(_over) => Check::fail(NAME, format!("no answer about {host}"), advice),
    }
}

fn proxy(network: &Network, before: Option<String>) -> Check {
    const NAME: &str = "proxy";
    if let Some(complaint) = network.proxies.complaint() {
        let found = format!("none is used: {complaint}");
        return Check::warn(NAME, found, "name one with --proxy, or `--proxy none`");
    }
    match (before, network.proxies.shown()) {
        (Some(proxy), _) => Check::ok(NAME, format!("through {proxy}")),
        (None, Some(proxy)) => Check::ok(NAME, format!("{proxy}, but not for this address")),
        (None, None) => Check::ok(NAME, "none"),
    }
}

async fn ask(network: &Network, question: Question) -> Result<Reply, HttpError> {
    let Question { url, tls, request } = question;
    let stream = http_client::connect(network, &url, tls).await?;
    match http_client::exchange(stream, &url, request).await? {
        Answer::Plain(response) => {
            let (parts, body) = response.into_parts();
            Ok(Reply {
                status: parts.status,
                headers: parts.headers,
                body,
            })
        }
        Answer::Switched(headers, _) => Ok(Reply {
            status: StatusCode::SWITCHING_PROTOCOLS,
            headers,
            body: Bytes::new(),
        }),
    }
}

/// This device's clock beside the controller's.
fn compared(headers: &HeaderMap, clock: &Clock) -> Check {
    const NAME: &str = "clock";
    let told = headers
        .get(header::DATE)
        .and_then(|date| date.to_str().ok());
    let told = told.and_then(|date| DateTimeParser::new().parse_timestamp(date).ok());
    let Some(told) = told.and_then(|told| u64::try_from(told.as_millisecond()).ok()) else {
        return alone(clock);
    };
    let now = clock.system();
    let found = format!("{}; the controller says {}", shown(now), shown(told));
    if now.abs_diff(told) > CLOCK_SLACK {
        return Check::warn(NAME, found, SET_CLOCK);
    }
    Check::ok(NAME, found)
}

/// The clock, with no controller to compare it with.
fn alone(clock: &Clock) -> Check {
    const NAME: &str = "clock";
    if let Some(complaint) = clock.complaint() {
        return Check::warn(NAME, complaint, SET_CLOCK);
    }
    let now = shown(clock.system());
    Check::ok(
        NAME,
        format!("{now}, with no controller to compare it with"),
    )
}

/// Why there is no answer. The error says most of it.
fn unanswered(error: &HttpError, is_enrolled: bool) -> Check {
    let found = causes(error);
    match error {
        HttpError::Proxy(_) => {
            Check::fail("proxy", found, "correct --proxy, or what the proxy allows")
        }
        HttpError::Clock { .. } => Check::fail(
            "tls",
            found,
            "compare the clock above with the real time; if it is right, the controller's certificate is out of date",
        ),
        HttpError::Untrusted(..) if is_enrolled => Check::fail(
            "tls",
            found,
            "look for what stands between this device and the controller, a proxy or a captive portal; or the controller \
             has a new authority",
        ),
        HttpError::Untrusted(..) => Check::fail(
            "tls",
            found,
            "compare --ca-fingerprint with what `longshore tokens create` printed: either it is mistyped, or somebody \
             stands between this device and the controller",
        ),
        HttpError::Certificate { .. } => Check::fail(
            "credentials",
            found,
            "look whether the certificate has expired (the agent renews it by itself within the grace period), or whether \
             the device was removed",
        ),
        HttpError::Tls(..) | HttpError::NotTls(_) => Check::fail(
            "tls",
            found,
            "look whether that is the controller's port, and whether something in between ends TLS",
        ),
        HttpError::Timeout(_) | HttpError::Connect(..) => Check::fail(
            "connection",
            found,
            "look whether the controller runs, and whether a firewall lets this device reach that port",
        ),
        _ => Check::fail(
            "connection",
            found,
            "look whether that is a Longshore controller",
        ),
    }
}

/// What the edge says of certificate and device token.
fn credentials(reply: &Reply) -> Check {
    const NAME: &str = "credentials";
    let reason = || {
        let said = serde_json::from_slice::<EnrollRejected>(&reply.body);
        said.map_or_else(|_| reply.status.to_string(), |said| said.reason)
    };
    match reply.status.as_u16() {
        400 | 101 => Check::ok(
            NAME,
            "the controller takes this device's certificate and token",
        ),
        401 | 403 => Check::fail(
            NAME,
            format!("the controller refuses this device: {}", reason()),
            "ask the operator how the device stands (`longshore devices show`), or enroll it anew",
        ),
        429 | 500..=599 => Check::warn(
            NAME,
            format!("the controller answers {}: {}", reply.status, reason()),
            "wait: the controller is there, and busy or starting",
        ),
        _ => Check::fail(
            NAME,
            format!("it answers {}", reply.status),
            "look whether that address is the controller's edge listener",
        ),
    }
}

/// What the enrollment endpoint says of the token, when asked to enroll a device without a name.
fn token(reply: &Reply) -> Check {
    const NAME: &str = "token";
    match reply.status.as_u16() {
        422 => Check::ok(
            NAME,
            "the controller knows it; whether it has uses left shows when the device enrolls",
        ),
        404 if is_unknown_token(&reply.body) => Check::fail(
            NAME,
            "the controller does not know this provisioning token, or it was revoked",
            "create a new one with `longshore tokens create`",
        ),
        429 | 500..=599 => Check::warn(
            NAME,
            format!("the controller answers {}", reply.status),
            "wait, and look again",
        ),
        _ => Check::fail(
            NAME,
            format!("it answers {}", reply.status),
            "look whether --server is the public address of a Longshore controller",
        ),
    }
}

fn is_unknown_token(body: &[u8]) -> bool {
    serde_json::from_slice::<serde_json::Value>(body).is_ok_and(|body| {
        body.get("error")
            .is_some_and(|error| error == "Token not found")
    })
}

/// A time as people write it, in UTC.
fn shown(time: u64) -> String {
    let seconds = i64::try_from(time / 1000).unwrap_or(i64::MAX);
    Timestamp::from_second(seconds)
        .unwrap_or(Timestamp::MAX)
        .to_string()
}
