//! As whom GitHub is asked: a token's user, or an App's installation on the one repo.
//!
//! An installation's tokens last an hour. They are made for the fleet's repo alone, and made anew some minutes before
//! they end, so that a long push does not outlive one:
//! <https://docs.github.com/en/apps/creating-github-apps/authenticating-with-a-github-app/generating-an-installation-access-token-for-a-github-app>.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderValue, Request, header::ACCEPT};
use http_body_util::{BodyExt as _, Full};
use longshore_protocol::api::connection::ForgeCredential;
use octocrab::{
    AuthState, OctoBody, Octocrab, OctocrabBuilder,
    auth::AppAuth,
    models::{AppId, InstallationId},
};
use secrecy::SecretString;
use tokio::sync::{Mutex, OnceCell};

use super::answers::{App, Installation, User};
use crate::forge::{
    GitLogin,
    client::{CallError, Client},
    connection::InvalidConnection,
    repository::Repository,
};

/// How long a token is still good for when it is used.
const SPARE: chrono::TimeDelta = chrono::TimeDelta::minutes(5);

/// As whom GitHub is asked.
#[derive(Debug)]
pub(super) enum Identity {
    /// A token's user.
    User {
        /// Asks.
        crab: Arc<Octocrab>,
        /// For Git.
        token: SecretString,
    },
    /// An App.
    App(Installed),
}

/// An App on a repo.
#[derive(Debug)]
pub(super) struct Installed {
    /// Asks as the App itself.
    pub(super) app: Arc<Octocrab>,
    repository: Repository,
    given: Option<u64>,
    /// Asks as the installation, once that is known.
    crab: Mutex<Option<Arc<Octocrab>>>,
}

impl Identity {
    pub(super) fn new(
        client: Client,
        repository: &Repository,
        credential: &ForgeCredential,
    ) -> Result<Self, InvalidConnection> {
        match credential {
            ForgeCredential::Token(token) => {
                let token = SecretString::from(token.expose());
                let auth = AuthState::AccessToken {
                    token: token.clone(),
                };
                let crab = Arc::new(octocrab(client, auth));
                Ok(Self::User { crab, token })
            }
            ForgeCredential::App {
                id,
                installation,
                private_key,
            } => {
                let key = octocrab::EncodingKey::from_rsa_pem(private_key.expose().as_bytes())
                    .map_err(|error| {
                        let message = "the App's key is no RSA key in PEM, as GitHub makes it";
                        InvalidConnection(format!("{message}: {error}"))
                    })?;
                let app_id = AppId(*id);
                let app = octocrab(client, AuthState::App(AppAuth { app_id, key }));
                Ok(Self::App(Installed {
                    app: Arc::new(app),
                    repository: repository.clone(),
                    given: *installation,
                    crab: Mutex::default(),
                }))
            }
        }
    }

    /// Asks, with a token that is good for some minutes.
    pub(super) async fn crab(&self) -> octocrab::Result<Arc<Octocrab>> {
        match self {
            Self::User { crab, .. } => Ok(crab.clone()),
            Self::App(installed) => Ok(installed.crab().await?.0),
        }
    }

    /// What Git presents:
    /// <https://docs.github.com/en/apps/creating-github-apps/authenticating-with-a-github-app/authenticating-as-a-github-app-installation#about-authentication-as-a-github-app-installation>.
    pub(super) async fn git_login(&self) -> octocrab::Result<GitLogin> {
        let password = match self {
            Self::User { token, .. } => token.clone(),
            Self::App(installed) => installed.crab().await?.1,
        };
        Ok(GitLogin {
            username: "x-access-token".to_owned(),
            password,
        })
    }

    /// Makes the next token anew.
    pub(super) async fn forget(&self) {
        if let Self::App(installed) = self {
            *installed.crab.lock().await = None;
        }
    }

    /// The name under which GitHub shows what we write.
    pub(super) async fn login(&self, known: &OnceCell<String>) -> octocrab::Result<String> {
        let asked = async || match self {
            Self::User { crab, .. } => {
                let user: User = crab.get("/user", None::<&()>).await?;
                octocrab::Result::Ok(user.login)
            }
            Self::App(installed) => {
                let app: App = installed.app.get("/app", None::<&()>).await?;
                Ok(format!("{}[bot]", app.slug))
            }
        };
        known.get_or_try_init(asked).await.cloned()
    }
}

impl Installed {
    /// Asks as the installation, with the token that it asks with.
    async fn crab(&self) -> octocrab::Result<(Arc<Octocrab>, SecretString)> {
        // Held while GitHub is asked: who comes at the same moment gets the same token.
        let mut known = self.crab.lock().await;
        let crab = if let Some(crab) = &*known {
            crab.clone()
        } else {
            let id = match self.given {
                Some(id) => id,
                None => self.installation().await?.id,
            };
            let scoped = self
                .app
                .installation_builder(InstallationId(id))
                .repositories(vec![self.repository.name().to_owned()]);
            Arc::new(scoped.build()?)
        };
        match crab.installation_token_with_buffer(SPARE).await {
            Ok(token) => {
                *known = Some(crab.clone());
                Ok((crab, token))
            }
            Err(error) => {
                // The App may have been installed anew.
                *known = None;
                Err(error)
            }
        }
    }

    /// The installation that has the repo.
    pub(super) async fn installation(&self) -> octocrab::Result<Installation> {
        let route = match self.given {
            Some(id) => format!("/app/installations/{id}"),
            None => format!("/repos/{}/installation", self.repository),
        };
        self.app.get(route, None::<&()>).await
    }
}

/// Octocrab over our own HTTP client.
fn octocrab(client: Client, auth: AuthState) -> Octocrab {
    let client = Arc::new(client);
    let service = tower::service_fn(move |request: Request<OctoBody>| {
        let client = client.clone();
        async move {
            let (mut parts, body) = request.into_parts();
            let media_type = HeaderValue::from_static("application/vnd.github+json");
            parts.headers.insert(ACCEPT, media_type);
            let body = body.collect().await;
            let body = body.map_err(|error| CallError::Unspeakable(Box::new(error)))?;
            let request = Request::<Bytes>::from_parts(parts, body.to_bytes());
            client
                .send(request)
                .await
                .map(|answer| answer.map(Full::new))
        }
    });
    let built = OctocrabBuilder::new_empty()
        .with_service(service)
        .with_auth(auth);
    match built.build() {
        Ok(crab) => crab,
        Err(impossible) => match impossible {},
    }
}
