//! Why a delivery was refused.

/// Why a delivery was refused. All of them are the sender's doing, and none gets better by sending it again.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The headers are no known host's.
    #[error(
        "the headers are those of no known Git host; sign the call yourself with `X-Longshore-Signature`"
    )]
    UnknownHost,
    /// The headers are those of several hosts, so that it is not clear whose rules hold.
    #[error("the headers are those of several Git hosts")]
    SeveralHosts,
    /// The delivery carries no signature. Set a secret for the webhook on the host.
    #[error("the delivery has no `{0}` header; set the webhook's secret on the Git host")]
    MissingSignature(&'static str),
    /// None of the secrets made this signature, or it is not a signature at all.
    #[error(
        "the delivery's signature does not match; compare the webhook's secret on the Git host"
    )]
    BadSignature,
    /// A header that says what the delivery is about is missing, or is no printable ASCII.
    #[error("the delivery has no readable `{0}` header")]
    BadHeader(&'static str),
    /// The body is signed, but is not what the event promises.
    #[error("the body is not what a `{event}` event holds, at `{at}`")]
    BadBody {
        /// The host's name for the event.
        event: String,
        /// Where: the path of the member, such as `repository.full_name`, or `.` for the body itself.
        at: String,
        /// What is wrong there.
        #[source]
        source: InvalidBody,
    },
}

impl Error {
    /// Whether the sender is not known to have a secret. What is wrong is then not to be told in detail.
    pub fn is_unverified(&self) -> bool {
        match self {
            Self::UnknownHost
            | Self::SeveralHosts
            | Self::MissingSignature(_)
            | Self::BadSignature => true,
            Self::BadHeader(_) | Self::BadBody { .. } => false,
        }
    }
}

/// What is wrong with a body.
#[derive(Debug, thiserror::Error)]
pub enum InvalidBody {
    /// It is not JSON, or a member is missing or of another type.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    /// It is a form. Some hosts offer both; only JSON is taken.
    #[error(
        "the body is a form; set the webhook's content type to `application/json` on the Git host"
    )]
    Form,
    /// A text that must name a commit does not.
    #[error("a commit is 40 or 64 hex digits")]
    Commit,
    /// A text that must be a full ref is not.
    #[error("a ref starts with `refs/`")]
    Ref,
}
