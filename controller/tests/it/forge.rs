//! What the controller asks of Git hosts, and what it makes of their answers.

mod contract;
mod gitea;
mod github;
mod gitlab;
mod server;

use std::sync::LazyLock;

use longshore_controller::forge::{
    CommitStatus, ForgeError, PullRequestText, StatusState, connection::ForgeSettings,
};
use longshore_protocol::api::connection::{ForgeCredential, ForgeKind, Secret};

/// What the forge is asked with, in every test; it must never be seen anywhere else.
const TOKEN: &str = "ghp_hush";

fn secret(text: &str) -> Secret {
    text.to_owned().into()
}

fn settings(kind: ForgeKind, url: &str, credential: ForgeCredential) -> ForgeSettings {
    ForgeSettings {
        kind,
        url: url.parse().unwrap(),
        repository: "acme/kiosks".parse().unwrap(),
        credential,
    }
}

fn token() -> ForgeCredential {
    ForgeCredential::Token(secret(TOKEN))
}

/// A GitHub App's key.
static APP_KEY: LazyLock<String> = LazyLock::new(|| {
    rcgen::KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256)
        .unwrap()
        .serialize_pem()
});

fn app(installation: Option<u64>) -> ForgeCredential {
    ForgeCredential::App {
        id: 17,
        installation,
        private_key: secret(&APP_KEY),
    }
}

fn text() -> PullRequestText {
    PullRequestText {
        title: "Enroll store-0001".to_owned(),
        body: "It has the key **abc**.".to_owned(),
    }
}

fn status(description: &str) -> CommitStatus {
    CommitStatus {
        context: "longshore/sync".to_owned(),
        state: StatusState::Pending,
        description: description.to_owned(),
        url: Some("https://longshore.example/fleets/kiosks".to_owned()),
    }
}

const COMMIT: &str = "6dcb09b5b57875f334f61aebed695e2e4193db5e";

/// What kind of refusal an error is.
fn kind(error: &ForgeError) -> &'static str {
    match error {
        ForgeError::Unauthorized { .. } => "unauthorized",
        ForgeError::Forbidden { .. } => "forbidden",
        ForgeError::RateLimited { .. } => "rate limited",
        ForgeError::NotFound { .. } => "not found",
        ForgeError::Exists { .. } => "exists",
        ForgeError::Refused { .. } => "refused",
        ForgeError::Unavailable { .. } => "unavailable",
    }
}
