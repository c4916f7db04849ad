//! The controller's HTTP API, as this program calls it.
//!
//! One method per endpoint. Every error says whose doing it is, because the exit code depends on it: a
//! controller that refuses (4xx), one that fails (5xx), one that cannot be reached or trusted.

use std::time::Duration;

use longshore_protocol::{
    DeviceName, FleetName, TenantName, TokenId,
    api::{
        ConfirmRemovals, CreateFleet, CreateTenant, CreateToken, CreatedFleet, CreatedTenant,
        CreatedToken, Device, DeviceManifests, Fleet, List, Problem, Revision, RotateWebhookSecret,
        RotatedWebhookSecret, Status, Tenant, Token,
        connection::{Connect, Connection},
        preview::{CreatePreview, Preview},
    },
};
use reqwest::{
    Body, Certificate, Client, Method, Response, StatusCode,
    header::{AUTHORIZATION, CONNECTION, TE},
};
use serde::{Serialize, de::DeserializeOwned};
use url::Url;

use crate::{
    Error, output,
    settings::{Settings, is_loopback},
    text,
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const TIMEOUT: Duration = Duration::from_mins(1);
/// How often a controller is asked again that says that another replica has the device, which is behind the same address.
const OTHER_REPLICAS: usize = 20;
const BETWEEN_TRIES: Duration = Duration::from_millis(100);
/// How long a preview may take: its overlays are built while we wait.
const PREVIEW_TIMEOUT: Duration = Duration::from_mins(15);

/// A controller, asked as one tenant.
#[derive(Debug)]
pub(crate) struct Api {
    client: Client,
    settings: Settings,
    verbose: bool,
}

/// No body.
const NOTHING: Option<&()> = None;

impl Api {
    pub(crate) fn new(settings: Settings, verbose: bool) -> Result<Self, Error> {
        if verbose {
            for origin in &settings.origins {
                output::say(origin);
            }
        }
        // Redirects are not followed: an API has none, and they could lead the token away.
        let mut builder = Client::builder()
            .user_agent(concat!("longshore/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT);
        if is_loopback(&settings.server) {
            builder = builder.no_proxy();
        }
        if let Some(pem) = &settings.ca {
            let certificates = Certificate::from_pem_bundle(pem).unwrap_or_default();
            if certificates.is_empty() {
                return Err(Error::usage("the CA file holds no certificate in PEM"));
            }
            builder = builder.tls_certs_only(certificates);
        }
        let client = builder
            .build()
            .map_err(|error| Error::usage("the CA file cannot be used").because(error))?;
        Ok(Self {
            client,
            settings,
            verbose,
        })
    }

    /// The fleet that the settings name.
    pub(crate) fn named_fleet(&self) -> Option<&FleetName> {
        self.settings.fleet.as_ref()
    }

    /// The tenant that is asked.
    pub(crate) fn tenant(&self) -> &TenantName {
        &self.settings.tenant
    }

    /// The controller's base URL.
    pub(crate) fn server(&self) -> &Url {
        &self.settings.server
    }

    pub(crate) async fn tenants(&self) -> Result<List<Tenant>, Error> {
        self.json(Method::GET, self.url(&["tenants"])?, NOTHING)
            .await
    }

    pub(crate) async fn create_tenant(&self, body: &CreateTenant) -> Result<CreatedTenant, Error> {
        self.json(Method::POST, self.url(&["tenants"])?, Some(body))
            .await
    }

    pub(crate) async fn status(&self) -> Result<Status, Error> {
        self.json(Method::GET, self.of_tenant(&["status"])?, NOTHING)
            .await
    }

    pub(crate) async fn fleets(&self) -> Result<List<Fleet>, Error> {
        self.json(Method::GET, self.of_tenant(&["fleets"])?, NOTHING)
            .await
    }

    pub(crate) async fn create_fleet(&self, body: &CreateFleet) -> Result<CreatedFleet, Error> {
        self.json(Method::POST, self.of_tenant(&["fleets"])?, Some(body))
            .await
    }

    pub(crate) async fn fleet(&self, fleet: &FleetName) -> Result<Fleet, Error> {
        self.json(Method::GET, self.of_fleet(fleet, &[])?, NOTHING)
            .await
    }

    pub(crate) async fn remove_fleet(&self, fleet: &FleetName) -> Result<(), Error> {
        self.done(Method::DELETE, self.of_fleet(fleet, &[])?, NOTHING)
            .await
    }

    pub(crate) async fn connect(
        &self,
        fleet: &FleetName,
        body: &Connect,
    ) -> Result<Connection, Error> {
        self.json(
            Method::PUT,
            self.of_fleet(fleet, &["connection"])?,
            Some(body),
        )
        .await
    }

    pub(crate) async fn connection(&self, fleet: &FleetName) -> Result<Connection, Error> {
        self.json(Method::GET, self.of_fleet(fleet, &["connection"])?, NOTHING)
            .await
    }

    pub(crate) async fn disconnect(&self, fleet: &FleetName) -> Result<(), Error> {
        self.done(
            Method::DELETE,
            self.of_fleet(fleet, &["connection"])?,
            NOTHING,
        )
        .await
    }

    pub(crate) async fn sync(&self, fleet: &FleetName) -> Result<(), Error> {
        self.done(Method::POST, self.of_fleet(fleet, &["sync"])?, NOTHING)
            .await
    }

    pub(crate) async fn rotate_webhook_secret(
        &self,
        fleet: &FleetName,
        body: &RotateWebhookSecret,
    ) -> Result<RotatedWebhookSecret, Error> {
        self.json(
            Method::POST,
            self.of_fleet(fleet, &["webhook", "rotate"])?,
            Some(body),
        )
        .await
    }

    pub(crate) async fn confirm_removals(
        &self,
        fleet: &FleetName,
        body: &ConfirmRemovals,
    ) -> Result<(), Error> {
        self.done(
            Method::POST,
            self.of_fleet(fleet, &["removals", "confirm"])?,
            Some(body),
        )
        .await
    }

    pub(crate) async fn revisions(&self, fleet: &FleetName) -> Result<List<Revision>, Error> {
        self.json(Method::GET, self.of_fleet(fleet, &["revisions"])?, NOTHING)
            .await
    }

    pub(crate) async fn tokens(&self, fleet: &FleetName) -> Result<List<Token>, Error> {
        self.json(Method::GET, self.of_fleet(fleet, &["tokens"])?, NOTHING)
            .await
    }

    pub(crate) async fn create_token(
        &self,
        fleet: &FleetName,
        body: &CreateToken,
    ) -> Result<CreatedToken, Error> {
        self.json(Method::POST, self.of_fleet(fleet, &["tokens"])?, Some(body))
            .await
    }

    pub(crate) async fn revoke_token(&self, fleet: &FleetName, id: &TokenId) -> Result<(), Error> {
        self.done(
            Method::DELETE,
            self.of_fleet(fleet, &["tokens", id.as_str()])?,
            NOTHING,
        )
        .await
    }

    pub(crate) async fn devices(&self, fleet: &FleetName) -> Result<List<Device>, Error> {
        self.json(Method::GET, self.of_fleet(fleet, &["devices"])?, NOTHING)
            .await
    }

    pub(crate) async fn device(
        &self,
        fleet: &FleetName,
        device: &DeviceName,
    ) -> Result<Device, Error> {
        self.json(
            Method::GET,
            self.of_fleet(fleet, &["devices", device.as_str()])?,
            NOTHING,
        )
        .await
    }

    /// `verb` is `approve`, `reject` or `decommission`.
    pub(crate) async fn decide(
        &self,
        fleet: &FleetName,
        device: &DeviceName,
        verb: &str,
    ) -> Result<Device, Error> {
        let url = self.of_fleet(fleet, &["devices", device.as_str(), verb])?;
        self.json(Method::POST, url, NOTHING).await
    }

    pub(crate) async fn manifests(
        &self,
        fleet: &FleetName,
        device: &DeviceName,
    ) -> Result<DeviceManifests, Error> {
        let url = self.of_fleet(fleet, &["devices", device.as_str(), "manifests"])?;
        self.json(Method::GET, url, NOTHING).await
    }

    /// A device's log, as it comes.
    pub(crate) async fn logs(
        &self,
        fleet: &FleetName,
        device: &DeviceName,
        query: &[(&str, String)],
    ) -> Result<Body, Error> {
        let mut url = self.of_fleet(fleet, &["devices", device.as_str(), "logs"])?;
        url.query_pairs_mut().extend_pairs(query);
        for _ in 0..OTHER_REPLICAS {
            let asked = self.send(Method::GET, url.clone(), NOTHING, None).await;
            match asked {
                Err(error) if error.is_misdirected() => tokio::time::sleep(BETWEEN_TRIES).await,
                asked => return Ok(http::Response::<Body>::from(asked?).into_body()),
            }
        }
        let response = self.send(Method::GET, url, NOTHING, None).await;
        let response = response
            .map_err(|error| error.hint("name that replica's own address with `--server`"))?;
        Ok(http::Response::<Body>::from(response).into_body())
    }

    pub(crate) async fn preview(
        &self,
        fleet: &FleetName,
        body: &CreatePreview,
    ) -> Result<Preview, Error> {
        let url = self.of_fleet(fleet, &["previews"])?;
        let response = self
            .send(Method::POST, url, Some(body), Some(PREVIEW_TIMEOUT))
            .await?;
        self.read(response).await
    }

    fn url(&self, segments: &[&str]) -> Result<Url, Error> {
        let mut url = self.settings.server.clone();
        url.path_segments_mut()
            .map_err(|()| Error::usage(format!("{} is no base URL", self.settings.server)))?
            .pop_if_empty()
            .extend(["api", "v1"])
            .extend(segments);
        Ok(url)
    }

    fn of_tenant(&self, segments: &[&str]) -> Result<Url, Error> {
        self.url(&[&["tenants", self.settings.tenant.as_str()], segments].concat())
    }

    fn of_fleet(&self, fleet: &FleetName, segments: &[&str]) -> Result<Url, Error> {
        self.of_tenant(&[&["fleets", fleet.as_str()], segments].concat())
    }

    async fn json<T: DeserializeOwned>(
        &self,
        method: Method,
        url: Url,
        body: Option<&impl Serialize>,
    ) -> Result<T, Error> {
        let response = self.send(method, url, body, Some(TIMEOUT)).await?;
        self.read(response).await
    }

    async fn read<T: DeserializeOwned>(&self, response: Response) -> Result<T, Error> {
        let bytes = response
            .bytes()
            .await
            .map_err(|error| self.unreachable(error))?;
        serde_json::from_slice(&bytes).map_err(|error| {
            Error::internal("the controller's answer is not what this version understands")
                .because(error)
                .hint("compare `longshore --version` with the version of the controller")
        })
    }

    async fn done(
        &self,
        method: Method,
        url: Url,
        body: Option<&impl Serialize>,
    ) -> Result<(), Error> {
        self.send(method, url, body, Some(TIMEOUT)).await.map(drop)
    }

    /// The answer, where it is a success.
    async fn send(
        &self,
        method: Method,
        url: Url,
        body: Option<&impl Serialize>,
        timeout: Option<Duration>,
    ) -> Result<Response, Error> {
        let asked = format!("{method} {url}");
        let mut request = self
            .client
            .request(method, url)
            .header(AUTHORIZATION, self.settings.bearer());
        request = match timeout {
            Some(timeout) => request.timeout(timeout),
            // What comes without an end may break off, and the reason for that comes as a trailer.
            // Over a connection of its own, so that another try may reach another replica.
            None => request
                .header(TE, "trailers")
                .header(CONNECTION, "close, TE"),
        };
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = request
            .send()
            .await
            .map_err(|error| self.unreachable(error))?;
        let status = response.status();
        if self.verbose {
            output::say(&format!("{asked} -> {status}"));
        }
        if status.is_success() {
            return Ok(response);
        }
        let body = response.bytes().await.unwrap_or_default();
        Err(refusal(status, &body))
    }

    fn unreachable(&self, error: reqwest::Error) -> Error {
        if error.is_builder() {
            return Error::usage("the API token holds characters that cannot be sent");
        }
        let message = format!(
            "the controller at {} cannot be reached",
            self.settings.server
        );
        let error = Error::unreachable(message).because(error.without_url());
        let causes = error.report();
        if causes.contains("certificate") {
            error.hint("name the controller's root certificate with `--ca FILE`: `ca.pem` in its data directory")
        } else {
            error.hint("look whether the controller runs, and whether `--server` names it")
        }
    }
}

/// A controller's answer that is no success.
fn refusal(status: StatusCode, body: &[u8]) -> Error {
    let problem: Problem = serde_json::from_slice(body).unwrap_or_default();
    let words = [problem.detail, problem.title]
        .into_iter()
        .find(|words| !words.is_empty())
        .unwrap_or_else(|| {
            status
                .canonical_reason()
                .unwrap_or("no reason given")
                .to_owned()
        });
    let message = text::printable_lines(&words);
    if status.is_client_error() {
        let error = Error::refused(format!(
            "the controller refused ({}): {message}",
            status.as_u16()
        ));
        match status {
            StatusCode::UNAUTHORIZED => error.hint(
                "the API token is not valid: look at `--token-file`, LONGSHORE_TOKEN, or `admin-token` in the data directory",
            ),
            StatusCode::FORBIDDEN => error.hint("this API token may not do that; ask for one that may"),
            StatusCode::NOT_FOUND => error.hint(
                "look at the names: `longshore fleets list`, `longshore devices list`, and `--tenant`",
            ),
            StatusCode::TOO_MANY_REQUESTS => error.hint("wait a little, then try again"),
            StatusCode::MISDIRECTED_REQUEST => error.misdirected(),
            _ => error,
        }
    } else if status.is_redirection() {
        Error::internal(format!(
            "the server answered with a redirect ({})",
            status.as_u16()
        ))
        .hint("name the controller's own address with `--server`")
    } else {
        Error::internal(format!(
            "the controller failed ({}): {message}",
            status.as_u16()
        ))
        .hint("look at the controller's log, then try again")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Exit;

    #[test]
    fn refusals_are_told_from_failures() {
        let problem = br#"{"type":"about:blank","title":"Conflict","status":409,"detail":"the name is taken"}"#;
        let cases = [
            (
                StatusCode::CONFLICT,
                problem.as_slice(),
                Exit::Refused,
                "the controller refused (409): the name is taken",
            ),
            (
                StatusCode::NOT_FOUND,
                b"<html>",
                Exit::Refused,
                "the controller refused (404): Not Found",
            ),
            (
                StatusCode::BAD_GATEWAY,
                b"",
                Exit::Internal,
                "the controller failed (502): Bad Gateway",
            ),
            (
                StatusCode::FOUND,
                b"",
                Exit::Internal,
                "the server answered with a redirect (302)",
            ),
        ];
        for (status, body, exit, message) in cases {
            let error = refusal(status, body);
            assert_eq!((error.exit(), error.to_string().as_str()), (exit, message));
        }
    }
}
