//! Clone, fetch and push over https: `git http-backend`, as CGI (RFC 3875), behind the forge's tokens.

use std::{
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
    thread,
};

use anyhow::{Context as _, Result};
use axum::{body::Body, response::Response};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use http::{HeaderMap, StatusCode, header, request::Parts};

use crate::repo::isolate;

/// The password of Basic credentials. Hosts do not look at the user's name.
pub fn password(headers: &HeaderMap) -> Option<String> {
    let header = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let decoded = BASE64_STANDARD
        .decode(header.strip_prefix("Basic ")?)
        .ok()?;
    let text = String::from_utf8(decoded).ok()?;
    Some(text.split_once(':')?.1.to_owned())
}

/// Whether a call would change the repo.
pub fn is_push(parts: &Parts) -> bool {
    parts.uri.path().ends_with("/git-receive-pack")
        || parts.uri.query() == Some("service=git-receive-pack")
}

/// What Git is told that lacks a credential: it asks its helper then.
pub fn unauthorized() -> Response {
    let mut response = Response::new(Body::from("Authentication required\n"));
    *response.status_mut() = StatusCode::UNAUTHORIZED;
    let challenge = header::HeaderValue::from_static("Basic realm=\"forge\"");
    response
        .headers_mut()
        .insert(header::WWW_AUTHENTICATE, challenge);
    response
}

/// What Git is told about a repo that its user may not see or change.
pub fn refused(status: StatusCode, message: &str) -> Response {
    let mut response = Response::new(Body::from(format!("{message}\n")));
    *response.status_mut() = status;
    response
}

/// Serves one call of `login` for a repo below `root`.
///
/// # Errors
/// Where the program does not behave.
pub fn serve(root: &Path, parts: &Parts, body: Vec<u8>, login: &str) -> Result<Response> {
    let header = |name: &str| {
        let value = parts
            .headers
            .get(name)
            .and_then(|value| value.to_str().ok());
        value.unwrap_or_default().to_owned()
    };
    let mut command = Command::new("git");
    isolate(&mut command);
    command
        .arg("http-backend")
        .env("GIT_PROJECT_ROOT", root)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("GATEWAY_INTERFACE", "CGI/1.1")
        .env("REQUEST_METHOD", parts.method.as_str())
        .env("PATH_INFO", parts.uri.path())
        .env("QUERY_STRING", parts.uri.query().unwrap_or_default())
        .env("CONTENT_TYPE", header("content-type"))
        .env("CONTENT_LENGTH", body.len().to_string())
        .env("HTTP_CONTENT_ENCODING", header("content-encoding"))
        .env("GIT_PROTOCOL", header("git-protocol"))
        .env("REMOTE_USER", login)
        .env("REMOTE_ADDR", "127.0.0.1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit());
    let mut child = command.spawn().context("start git http-backend")?;
    let mut stdin = child.stdin.take().context("no stdin")?;
    // It may stop to read before the end; what it says then is in its output.
    let writer = thread::spawn(move || drop(stdin.write_all(&body)));
    let output = child.wait_with_output().context("read git http-backend")?;
    drop(writer.join());
    response(&output.stdout)
}

/// CGI's answer as one of HTTP.
fn response(output: &[u8]) -> Result<Response> {
    let end = output.windows(4).position(|window| window == b"\r\n\r\n");
    let end = end.context("git http-backend printed no headers")?;
    let (head, body) = output.split_at(end);
    let body = body.get(4..).unwrap_or_default().to_vec();
    let mut response = Response::builder();
    for line in std::str::from_utf8(head).context("headers")?.lines() {
        let (name, value) = line.split_once(':').context("a header")?;
        if name.eq_ignore_ascii_case("status") {
            let code = value.trim().split(' ').next().unwrap_or_default();
            response = response.status(code.parse::<u16>().context("a status")?);
        } else {
            response = response.header(name, value.trim());
        }
    }
    response.body(Body::from(body)).context("an answer")
}
