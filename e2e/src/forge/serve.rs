//! The forge's listener: TLS, credentials, faults, and who answers what.

use std::{future, io, sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use axum::{
    body::{Body, Bytes, to_bytes},
    response::Response,
};
use futures_util::{StreamExt as _, stream};
use http::{HeaderValue, Method, Request, StatusCode, header, request::Parts};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use longshore_protocol::Digest;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use super::{
    Shared,
    call::{Answer, Call},
    fault::Kind,
    git_http, github,
    state::USERS,
};

const MAX_BODY: usize = 64 * 1024 * 1024;

/// Accepts connections for as long as the forge lives.
pub(super) async fn serve(shared: Arc<Shared>, listener: std::net::TcpListener, tls: TlsAcceptor) {
    let listener = match TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return eprintln!("the forge does not listen: {error}"),
    };
    loop {
        match listener.accept().await {
            Ok((stream, _peer)) => {
                tokio::spawn(connection(shared.clone(), stream, tls.clone()));
            }
            Err(error) => {
                eprintln!("the forge accepts no connection: {error}");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// A peer that hangs up, or does not trust our certificate, is its own business.
async fn connection(shared: Arc<Shared>, stream: TcpStream, tls: TlsAcceptor) {
    let Ok(stream) = tls.accept(stream).await else {
        return;
    };
    let service = service_fn(move |request| handle(shared.clone(), request));
    drop(
        http1::Builder::new()
            .serve_connection(TokioIo::new(stream), service)
            .await,
    );
}

/// An error closes the connection without an answer.
async fn handle(shared: Arc<Shared>, request: Request<Incoming>) -> Result<Response, io::Error> {
    let cut = || io::Error::other("the test cuts this connection");
    let (parts, body) = request.into_parts();
    let body = to_bytes(Body::new(body), MAX_BODY)
        .await
        .map_err(io::Error::other)?;
    let target = parts.uri.path_and_query().map(ToString::to_string);
    let line = format!("{} {}", parts.method, target.unwrap_or_default());
    let fault = {
        let mut state = shared.state();
        state.calls.push(line.clone());
        let (method, path) = (&parts.method, parts.uri.path());
        state
            .faults
            .iter_mut()
            .find_map(|fault| fault.strike(method, path))
    };
    match fault {
        Some(Kind::Hang) => future::pending::<()>().await,
        Some(Kind::Cut) => return Err(cut()),
        _ => {}
    }
    if let Some(answer) = fault.and_then(Kind::answer) {
        return Ok(rest_response(answer, &parts));
    }
    let worker = shared.clone();
    let done = tokio::task::spawn_blocking(move || answer(&worker, &parts, body.to_vec()));
    let response = done.await.map_err(io::Error::other)?;
    shared.send_webhooks();
    match fault {
        Some(Kind::LoseAnswer) => Err(cut()),
        Some(Kind::HalfBody) => half(response).await.map_err(io::Error::other),
        _ => match response {
            Ok(response) => Ok(response),
            Err(error) => {
                shared.state().complaints.push(format!("{line}: {error:#}"));
                Err(cut())
            }
        },
    }
}

fn answer(shared: &Shared, parts: &Parts, body: Vec<u8>) -> Result<Response> {
    if parts.uri.path().contains(".git/") {
        return git(shared, parts, body);
    }
    let line = format!("{} {}", parts.method, parts.uri);
    let answer = rest(shared, parts, body);
    if let Some(why) = &answer.complaint {
        shared.state().complaints.push(format!("{line}: {why}"));
    }
    Ok(rest_response(answer, parts))
}

fn git(shared: &Shared, parts: &Parts, body: Vec<u8>) -> Result<Response> {
    let Some(password) = git_http::password(&parts.headers) else {
        return Ok(git_http::unauthorized());
    };
    let Some(login) = shared.state().login(&password) else {
        return Ok(git_http::unauthorized());
    };
    let may_write = USERS.contains(&(&*login, true));
    if git_http::is_push(parts) && !may_write {
        let message = format!("Permission to the repo is denied to {login}.");
        return Ok(git_http::refused(StatusCode::FORBIDDEN, &message));
    }
    let response = git_http::serve(&shared.root, parts, body, &login)?;
    if git_http::is_push(parts) && parts.method == Method::POST {
        shared.state().refresh(&login)?;
    }
    Ok(response)
}

fn rest(shared: &Shared, parts: &Parts, body: Vec<u8>) -> Answer {
    let mut state = shared.state();
    let host = state.host;
    let Some(path) = parts.uri.path().strip_prefix(host.api_root()) else {
        return Answer::mistake(StatusCode::NOT_FOUND, "not a path of the API");
    };
    let path: Vec<_> = path.trim_matches('/').split('/').map(decode).collect();
    if !parts.headers.contains_key(header::USER_AGENT) {
        let message = "Request forbidden by administrative rules. Please make sure your request has a User-Agent header";
        return Answer::mistake(StatusCode::FORBIDDEN, message);
    }
    let Some(credential) = host.credential(&parts.headers) else {
        return Answer::mistake(StatusCode::UNAUTHORIZED, "Requires authentication");
    };
    let known = if github::is_for_apps(&path) {
        github::verify_app(&shared.app, &credential)
    } else {
        state.login(&credential)
    };
    let Some(login) = known else {
        return Answer::error(StatusCode::UNAUTHORIZED, host.bad_credential());
    };
    let call = Call {
        method: parts.method.clone(),
        uri: parts.uri.clone(),
        path,
        headers: parts.headers.clone(),
        body,
        login,
    };
    host.answer(&mut state, &call)
        .unwrap_or_else(|refused| refused)
}

/// A part of a path without its percent encoding.
fn decode(part: &str) -> String {
    let form = format!("part={}", part.replace('+', "%2B").replace('&', "%26"));
    url::form_urlencoded::parse(form.as_bytes())
        .map(|(_name, value)| value.into_owned())
        .next()
        .unwrap_or_default()
}

/// An answer as HTTP; one that is known by its `ETag` already is only that.
fn rest_response(answer: Answer, parts: &Parts) -> Response {
    let text = if answer.body.is_null() {
        String::new()
    } else {
        answer.body.to_string()
    };
    let mut response = Response::new(Body::empty());
    *response.status_mut() = answer.status;
    let headers = response.headers_mut();
    for (name, value) in answer.headers {
        if let Ok(value) = HeaderValue::from_str(&value) {
            headers.insert(name, value);
        }
    }
    let json = HeaderValue::from_static("application/json; charset=utf-8");
    headers.insert(header::CONTENT_TYPE, json);
    if parts.method == Method::GET && answer.status == StatusCode::OK {
        let tag = format!("W/\"{}\"", Digest::of(text.as_bytes()));
        let is_known = parts
            .headers
            .get(header::IF_NONE_MATCH)
            .is_some_and(|known| known.as_bytes() == tag.as_bytes());
        if let Ok(tag) = HeaderValue::from_str(&tag) {
            headers.insert(header::ETAG, tag);
        }
        if is_known {
            *response.status_mut() = StatusCode::NOT_MODIFIED;
            return response;
        }
    }
    *response.body_mut() = Body::from(text);
    response
}

/// The answer up to its middle; then the connection ends.
async fn half(response: Result<Response>) -> Result<Response> {
    let (mut parts, body) = response?.into_parts();
    let bytes = to_bytes(body, MAX_BODY).await.context("an answer")?;
    let length = HeaderValue::from(bytes.len().max(2));
    parts.headers.insert(header::CONTENT_LENGTH, length);
    let first: Result<Bytes, io::Error> = Ok(bytes.slice(..bytes.len() / 2));
    let rest = async {
        // What was written goes out while the rest is waited for.
        tokio::task::yield_now().await;
        Err(io::Error::other("the test cuts this answer"))
    };
    Ok(Response::from_parts(
        parts,
        Body::from_stream(stream::iter([first]).chain(stream::once(rest))),
    ))
}
