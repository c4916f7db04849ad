//! The HTTP API, called as an operator does.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result, bail};
use longshore_protocol::{
    Condition,
    api::{
        Approval, CreateFleet, CreateTenant, CreateToken, CreatedFleet, CreatedTenant,
        CreatedToken, Device, DeviceManifests, DeviceState, Fleet, List, Revision, Token,
    },
    message::Phase,
};
use reqwest::{Certificate, Client, Method, RequestBuilder, StatusCode, header::RETRY_AFTER};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::{Metrics, wait::eventually};

/// The tenant that exists from the start.
pub const OPERATOR: &str = "default";
/// The fleet that a [`World`](crate::World) follows.
pub const FLEET: &str = "example";

/// A controller's API, for one tenant with one API token.
#[derive(Clone, Debug)]
pub struct Api {
    client: Client,
    server: String,
    tenant: String,
    token: String,
}

/// A status and a body, as they came.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// The body, whatever it is.
    pub text: String,
    /// The header `Retry-After`.
    pub retry_after: Option<String>,
}

impl Answer {
    /// The body as JSON; null where it is none.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_default()
    }

    /// The body of a success.
    ///
    /// # Errors
    /// Where it is no success, or its body is something else.
    pub fn success<T: DeserializeOwned>(&self) -> Result<T> {
        if !self.status.is_success() {
            bail!("{}: {}", self.status, self.text);
        }
        serde_json::from_str(&self.text).with_context(|| self.text.clone())
    }
}

impl Api {
    /// The API at `server`, whose certificate the roots in `ca` must verify.
    ///
    /// # Errors
    /// Where `ca` is not in PEM.
    pub fn new(server: SocketAddr, ca: &[u8], tenant: &str, token: &str) -> Result<Self> {
        let client = Client::builder()
            .tls_certs_only(Certificate::from_pem_bundle(ca).context("the CA's certificate")?)
            .timeout(Duration::from_mins(1))
            .no_proxy()
            .build()
            .context("an HTTP client")?;
        Ok(Self {
            client,
            server: format!("https://{server}"),
            tenant: tenant.to_owned(),
            token: token.to_owned(),
        })
    }

    /// The same server as another tenant.
    #[must_use]
    pub fn as_tenant(&self, tenant: &str, token: &str) -> Self {
        Self {
            tenant: tenant.to_owned(),
            token: token.to_owned(),
            ..self.clone()
        }
    }

    /// The same tenant, with another API token.
    #[must_use]
    pub fn with_token(&self, token: &str) -> Self {
        self.as_tenant(&self.tenant, token)
    }

    /// A hosted repo's URL with the API token in it, so that git need not ask.
    pub fn with_credentials(&self, url: &str) -> String {
        url.replacen("://", &format!("://olivia:{}@", self.token), 1)
    }

    /// The base URL.
    pub fn server(&self) -> &str {
        &self.server
    }

    /// A request of an absolute path, without the API token.
    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.client
            .request(method, format!("{}{path}", self.server))
    }

    /// The same with the API token, and for as long as it takes.
    pub fn authorized(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.request(method, path).bearer_auth(&self.token);
        request.timeout(Duration::from_hours(1))
    }

    /// Sends a request, and reads the whole answer.
    ///
    /// # Errors
    /// Where there is no answer.
    pub async fn send(request: RequestBuilder) -> Result<Answer> {
        let response = request.send().await.context("no answer")?;
        let status = response.status();
        let retry_after = response.headers().get(RETRY_AFTER);
        let retry_after = retry_after.map(|value| String::from_utf8_lossy(value.as_bytes()).into());
        let text = response.text().await.context("half an answer")?;
        Ok(Answer {
            status,
            text,
            retry_after,
        })
    }

    /// Calls the tenant's resource `path`, such as `fleets/example/devices`.
    ///
    /// # Errors
    /// Where there is no answer.
    pub async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<&(impl Serialize + ?Sized)>,
    ) -> Result<Answer> {
        let path = format!("/api/v1/tenants/{}/{path}", self.tenant);
        let mut request = self.request(method, &path).bearer_auth(&self.token);
        if let Some(body) = body {
            request = request.json(body);
        }
        Self::send(request).await
    }

    async fn read<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        let answer = self.call(Method::GET, path, None::<&()>).await?;
        answer.success().with_context(|| path.to_owned())
    }

    async fn make<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T> {
        let answer = self.call(Method::POST, path, Some(body)).await?;
        answer.success().with_context(|| path.to_owned())
    }

    /// Succeeds when the controller is ready.
    ///
    /// # Errors
    /// Where it is not.
    pub async fn is_ready(&self) -> Result<()> {
        let answer = Self::send(self.request(Method::GET, "/readyz")).await?;
        anyhow::ensure!(
            answer.status.is_success(),
            "{}: {}",
            answer.status,
            answer.text
        );
        Ok(())
    }

    /// The counters.
    ///
    /// # Errors
    /// Where there is no answer.
    pub async fn metrics(&self) -> Result<Metrics> {
        let request = self
            .request(Method::GET, "/metrics")
            .bearer_auth(&self.token);
        let answer = Self::send(request).await?;
        anyhow::ensure!(
            answer.status.is_success(),
            "{}: {}",
            answer.status,
            answer.text
        );
        Ok(Metrics::parse(&answer.text))
    }

    /// Makes a tenant.
    ///
    /// # Errors
    /// Where the controller refuses.
    pub async fn create_tenant(&self, name: &str) -> Result<CreatedTenant> {
        let request = self
            .request(Method::POST, "/api/v1/tenants")
            .bearer_auth(&self.token)
            .json(&CreateTenant {
                name: name.parse()?,
            });
        Self::send(request).await?.success()
    }

    /// Lets the controller follow a repo, or host one where `repo` is empty.
    ///
    /// # Errors
    /// Where the controller refuses.
    pub async fn create_fleet(&self, name: &str, repo: &str) -> Result<CreatedFleet> {
        let body = CreateFleet {
            name: name.parse()?,
            repo: repo.to_owned(),
            hosted: repo.is_empty(),
            branch: "main".to_owned(),
            path: String::new(),
        };
        self.make("fleets", &body).await
    }

    /// Makes a token for devices that run the shared overlay `groups/kiosk`.
    ///
    /// # Errors
    /// Where the controller refuses.
    pub async fn create_token(&self, approval: Approval) -> Result<CreatedToken> {
        self.create_token_with(approval, |_| ()).await
    }

    /// The same, changed by `change`.
    ///
    /// # Errors
    /// Where the controller refuses.
    pub async fn create_token_with(
        &self,
        approval: Approval,
        change: impl FnOnce(&mut CreateToken),
    ) -> Result<CreatedToken> {
        let mut body = CreateToken {
            label: "test".to_owned(),
            approval,
            max_uses: None,
            expires_in: None,
            overlay: Some("groups/kiosk".to_owned()),
            labels: [("site".to_owned(), "madrid".to_owned())].into(),
        };
        change(&mut body);
        self.make(&format!("fleets/{FLEET}/tokens"), &body).await
    }

    /// The tokens.
    ///
    /// # Errors
    /// Where the controller refuses.
    pub async fn tokens(&self) -> Result<Vec<Token>> {
        let list: List<Token> = self.read(&format!("fleets/{FLEET}/tokens")).await?;
        Ok(list.items)
    }

    /// The fleet.
    ///
    /// # Errors
    /// Where the controller refuses.
    pub async fn fleet(&self) -> Result<Fleet> {
        self.read(&format!("fleets/{FLEET}")).await
    }

    /// The commits that the controller saw.
    ///
    /// # Errors
    /// Where the controller refuses.
    pub async fn revisions(&self) -> Result<Vec<Revision>> {
        let list: List<Revision> = self.read(&format!("fleets/{FLEET}/revisions")).await?;
        Ok(list.items)
    }

    /// The devices.
    ///
    /// # Errors
    /// Where the controller refuses.
    pub async fn devices(&self) -> Result<Vec<Device>> {
        let list: List<Device> = self.read(&format!("fleets/{FLEET}/devices")).await?;
        Ok(list.items)
    }

    /// One device.
    ///
    /// # Errors
    /// Where there is none of that name.
    pub async fn device(&self, name: &str) -> Result<Device> {
        self.read(&format!("fleets/{FLEET}/devices/{name}")).await
    }

    /// What a device should run.
    ///
    /// # Errors
    /// Where there is none of that name.
    pub async fn manifests(&self, name: &str) -> Result<DeviceManifests> {
        self.read(&format!("fleets/{FLEET}/devices/{name}/manifests"))
            .await
    }

    /// `verb` is `approve`, `reject` or `decommission`.
    ///
    /// # Errors
    /// Where the controller refuses.
    pub async fn decide(&self, name: &str, verb: &str) -> Result<Device> {
        let path = format!("fleets/{FLEET}/devices/{name}/{verb}");
        let answer = self.call(Method::POST, &path, None::<&()>).await?;
        answer.success().with_context(|| path.clone())
    }

    /// Waits until a device is in this state.
    ///
    /// # Errors
    /// Where it is not in time.
    pub async fn device_becomes(&self, name: &str, state: DeviceState) -> Result<Device> {
        eventually(&format!("{name} {state:?}"), async || {
            let device = self.device(name).await?;
            anyhow::ensure!(device.state == state, "{name} is {:?}", device.state);
            Ok(device)
        })
        .await
    }

    /// Waits until a device says that it applied what the controller wants.
    ///
    /// # Errors
    /// Where it does not in time.
    pub async fn in_sync(&self, name: &str) -> Result<Device> {
        eventually(&format!("{name} in sync"), async || {
            let device = self.device(name).await?;
            anyhow::ensure!(is_in_sync(&device), "{device:#?}");
            Ok(device)
        })
        .await
    }

    /// Waits until the controller acted on a commit.
    ///
    /// # Errors
    /// Where it does not in time.
    pub async fn sees(&self, commit: &str) -> Result<Fleet> {
        eventually(&format!("revision {commit}"), async || {
            let fleet = self.fleet().await?;
            anyhow::ensure!(
                fleet.revision.as_deref() == Some(commit),
                "{:?}",
                fleet.revision
            );
            Ok(fleet)
        })
        .await
    }
}

/// Whether a device reports what it should run as applied.
pub fn is_in_sync(device: &Device) -> bool {
    match (&device.desired, &device.observed) {
        (Some(desired), Some(observed)) => {
            desired.generation == observed.generation
                && desired.digest == observed.digest
                && observed.phase == Phase::Applied
        }
        _ => false,
    }
}

/// The condition of this kind.
///
/// # Errors
/// Where there is none.
pub fn condition<'a>(conditions: &'a [Condition], kind: &str) -> Result<&'a Condition> {
    conditions
        .iter()
        .find(|condition| condition.kind == kind)
        .with_context(|| format!("no condition {kind} among {conditions:?}"))
}
