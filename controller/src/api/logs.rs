//! A device's logs, streamed as they come.
//!
//! An error before the first byte is a problem document. One after it is in the trailer [`LOG_ERROR`], where the
//! caller takes trailers (`TE: trailers`), and otherwise the answer breaks off: half a log must not look whole.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::{
    body::{Body, Bytes},
    extract::{Query, State as Extract, rejection::QueryRejection},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use hyper::body::Frame;
use jiff::Timestamp;
use longshore_protocol::{
    ObjectKey,
    api::{DeviceState, LOG_ERROR},
    message::{LogEnd, LogRequest},
};
use serde::Deserialize;
use tracing::info;

use super::{Api, ApiError, State, access::OfDevice, devices::ended};
use crate::{
    logs::{NotOpened, Piece, Reader, named},
    store::{
        content,
        devices::{self, Device},
    },
};

/// How long a device may take to open a log.
const OPENING: Duration = Duration::from_secs(30);
const NAME: HeaderName = HeaderName::from_static(LOG_ERROR);

/// What is asked for.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Asked {
    object: Option<String>,
    container: Option<String>,
    #[serde(default)]
    follow: bool,
    tail: Option<u64>,
    since: Option<u64>,
}

pub(super) async fn read(
    Extract(api): State,
    OfDevice { device, .. }: OfDevice,
    asked: Result<Query<Asked>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let Query(asked) = asked
        .map_err(|error| ApiError::refused(StatusCode::UNPROCESSABLE_ENTITY, error.body_text()))?;
    if device.state != DeviceState::Active {
        return Err(not_active(&device));
    }
    let object = match &asked.object {
        Some(name) => Some(object(&api, &device, name).await?),
        None => None,
    };
    let request = LogRequest {
        object,
        container: asked.container,
        follow: asked.follow,
        tail: asked.tail,
        since: asked.since,
    };
    let of = request.object.as_ref().map(ToString::to_string);
    let tenant = &device.fleet.tenant;
    let reader = match api.logs.open(tenant, &device.id, request) {
        Ok(reader) => reader,
        Err(NotOpened::TooMany) => {
            let why = "as many logs are being read as may be at a time";
            return Err(ApiError::too_many(why, Duration::from_secs(10)));
        }
        Err(NotOpened::NotHere) => return Err(not_here(&api, device).await),
    };
    let log = opened(reader).await?;
    info!(%tenant, fleet = %device.fleet.name, device = %device.name, of, "a log is read");
    Ok(answer(log, &headers))
}

/// The object of this name that the device runs, or should.
async fn object(api: &Api, device: &Device, name: &str) -> Result<ObjectKey, ApiError> {
    let mut db = api.store.read().await?;
    let view = devices::view(&mut db, device.clone()).await?;
    let desired = view.desired.map(|desired| desired.target.digest);
    let observed = view.observed.map(|observed| observed.report.held.digest);
    let mut keys = Vec::new();
    for digest in [desired, observed].into_iter().flatten() {
        if let Some(set) = content::set(&mut db, &device.fleet.tenant, digest).await? {
            keys.extend(set.entries().iter().map(|entry| entry.key.clone()));
        }
    }
    let key = named(name, &keys)
        .map_err(|error| ApiError::refused(StatusCode::UNPROCESSABLE_ENTITY, error.to_string()))?;
    Ok(key.clone())
}

fn not_active(device: &Device) -> ApiError {
    match device.state {
        DeviceState::Rejected | DeviceState::Decommissioned => ended(device),
        DeviceState::Pending | DeviceState::Active => ApiError::refused(
            StatusCode::CONFLICT,
            format!("device `{}` waits for approval", device.name),
        ),
    }
}

/// Why there is no way to the device from here.
async fn not_here(api: &Api, device: Device) -> ApiError {
    let name = device.name.clone();
    let connection = match api.store.read().await {
        Ok(mut db) => devices::view(&mut db, device).await,
        Err(error) => Err(error),
    };
    let connection = match connection {
        Ok(view) => view.connection,
        Err(error) => return error.into(),
    };
    let seen = connection
        .seen_at
        .and_then(|at| Timestamp::from_millisecond(i64::try_from(at).ok()?).ok());
    if connection.connected && api.store.peers().is_some() {
        // Another connection may lead to that one (RFC 9110, section 15.5.20).
        let detail = format!(
            "device `{name}` is connected to another replica of the controller; ask again, or ask that replica"
        );
        return ApiError::refused(StatusCode::MISDIRECTED_REQUEST, detail);
    }
    let detail = match seen {
        Some(_) if connection.connected => format!("device `{name}` has just disconnected"),
        Some(seen) => format!("device `{name}` is not connected since {seen:.0}"),
        None => format!("device `{name}` has never been connected"),
    };
    ApiError::refused(StatusCode::CONFLICT, detail)
}

/// Waits until the device has opened the log. Gives the first piece along.
async fn opened(mut reader: Reader) -> Result<(Reader, Piece), ApiError> {
    let first = tokio::time::timeout(OPENING, reader.next()).await;
    match first {
        Ok(Some(first @ (Piece::Data(_) | Piece::End(LogEnd::Done)))) => Ok((reader, first)),
        Ok(Some(Piece::End(LogEnd::Refused(why)))) => {
            Err(ApiError::refused(StatusCode::CONFLICT, why))
        }
        Ok(Some(Piece::End(LogEnd::Failed(why)))) => {
            Err(ApiError::refused(StatusCode::BAD_GATEWAY, why))
        }
        Ok(None) => Err(ApiError::busy(
            "the device disconnected before it answered",
            Duration::from_secs(5),
        )),
        Err(_elapsed) => Err(ApiError::refused(
            StatusCode::GATEWAY_TIMEOUT,
            format!(
                "the device did not open the log within {} seconds",
                OPENING.as_secs()
            ),
        )),
    }
}

fn answer((reader, first): (Reader, Piece), headers: &HeaderMap) -> Response {
    let accepted = headers.get_all(header::TE).iter();
    let trailers = accepted
        .filter_map(|value| value.to_str().ok())
        .any(|value| {
            value
                .split(',')
                .any(|it| it.trim().eq_ignore_ascii_case("trailers"))
        });
    let body = Body::new(LogBody {
        reader,
        first: Some(first),
        trailers,
        is_over: false,
    });
    let text = HeaderValue::from_static("text/plain; charset=utf-8");
    let mut response = ([(header::CONTENT_TYPE, text)], body).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if trailers {
        headers.insert(header::TRAILER, HeaderValue::from_static(LOG_ERROR));
    }
    response
}

/// What comes of a log, as the body of an answer.
#[derive(Debug)]
struct LogBody {
    reader: Reader,
    first: Option<Piece>,
    trailers: bool,
    is_over: bool,
}

impl hyper::body::Body for LogBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let error = loop {
            if self.is_over {
                return Poll::Ready(None);
            }
            let piece = match self.first.take() {
                Some(first) => Some(first),
                None => ready!(self.reader.poll_next(cx)),
            };
            match piece {
                Some(Piece::Data(data)) if data.is_empty() => {}
                Some(Piece::Data(data)) => return Poll::Ready(Some(Ok(Frame::data(data)))),
                Some(Piece::End(LogEnd::Done)) => self.is_over = true,
                Some(Piece::End(LogEnd::Refused(why) | LogEnd::Failed(why))) => break why,
                None => break "the device disconnected".to_owned(),
            }
        };
        self.is_over = true;
        Poll::Ready(Some(if self.trailers {
            Ok(Frame::trailers(HeaderMap::from_iter([(
                NAME,
                value(&error),
            )])))
        } else {
            Err(io::Error::other(error))
        }))
    }
}

/// Any text as a header's value.
fn value(text: &str) -> HeaderValue {
    let printable: String = text
        .chars()
        .map(|it| if it.is_control() { ' ' } else { it })
        .collect();
    HeaderValue::from_bytes(printable.as_bytes())
        .unwrap_or(HeaderValue::from_static("the log cannot be read"))
}
