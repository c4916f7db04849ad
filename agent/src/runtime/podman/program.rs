//! The `podman` program: which commands there are, and what they answer.
//!
//! Content goes by stdin; on the command line stand names and labels of ours, and nothing that is secret.

use std::{ffi::OsStr, path::PathBuf, time::Duration};

use longshore_protocol::{DeviceId, message::LogRequest};
use serde::{Deserialize, de::DeserializeOwned};

use super::{
    contents::Volume,
    images::ListedImage,
    labels,
    observed::{Inspected, ObservedPod, ObservedVolume},
};
use crate::process::{Call, Ended, Group, ProcessError, inherited};

/// For what only looks and what starts.
const QUICK: Duration = Duration::from_mins(2);
/// For what unpacks and creates on a slow card.
const SLOW: Duration = Duration::from_mins(5);
/// For images over a thin line.
const PULL: Duration = Duration::from_mins(30);
/// An events stream is ended by us and not by time.
const EVER: Duration = Duration::MAX;
/// The first version with `podman kube play` as it is used here.
pub const LEAST: (u32, u32) = (4, 3);
/// Before this one, containers that prepare a pod are started again by the pod's policy.
const PREPARES_ONCE: (u32, u32) = (5, 0);

/// Why Podman did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub(super) enum PodmanError {
    /// It did not come to an end.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// It said no.
    #[error("`podman {command}` failed: {message}")]
    Failed {
        command: &'static str,
        message: String,
    },
    /// It answered what cannot be read.
    #[error("`podman {command}` answered what cannot be read")]
    Answer {
        command: &'static str,
        #[source]
        source: serde_json::Error,
    },
    /// It is too old.
    #[error("{found} is too old: the agent needs Podman {}.{} or newer", LEAST.0, LEAST.1)]
    TooOld { found: String },
    /// An image may not be pulled.
    #[error("the image {0} is not on this device, and its imagePullPolicy is Never")]
    NoImage(String),
    /// An image could not be pulled a moment ago.
    #[error("{0}")]
    NotPulled(String),
    /// What goes into a volume cannot be packed.
    #[error("cannot pack a volume's files")]
    Pack(#[source] std::io::Error),
}

/// Calls `podman`.
#[derive(Clone, Debug)]
pub(super) struct Program {
    path: PathBuf,
    device: DeviceId,
}

/// What a version of Podman does differently.
#[derive(Clone, Copy, Debug)]
pub(super) struct Version {
    /// Whether containers that prepare a pod run once, whatever its policy is.
    pub(super) prepares_once: bool,
}

impl Program {
    pub(super) fn new(path: PathBuf, device: DeviceId) -> Self {
        Self { path, device }
    }

    /// Its own words: `podman version 5.4.2`.
    pub(super) async fn described(&self) -> Result<String, PodmanError> {
        let ended = self.command("--version", QUICK).run().await?;
        Ok(String::from_utf8_lossy(&ended.output).trim().to_owned())
    }

    pub(super) async fn version(&self) -> Result<Version, PodmanError> {
        let said = self.described().await?;
        let mut numbers = said
            .rsplit(' ')
            .next()
            .unwrap_or_default()
            .split('.')
            .map_while(|number| number.parse::<u32>().ok());
        let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
        if version < LEAST {
            return Err(PodmanError::TooOld { found: said });
        }
        Ok(Version {
            prepares_once: version >= PREPARES_ONCE,
        })
    }

    /// All pods, whoever made them.
    pub(super) async fn pods(&self) -> Result<Vec<ObservedPod>, PodmanError> {
        self.command("pod ps", QUICK).list().await
    }

    /// How these containers are; those that are gone are left out, and those of which a `podman` that was killed has
    /// removed only half.
    pub(super) async fn inspect(&self, ids: &[&str]) -> Result<Vec<Inspected>, PodmanError> {
        let half_removed = |error: &PodmanError| error.to_string().contains("not known");
        match self.inspect_all(ids).await {
            // One of them keeps Podman from telling of any.
            Err(error) if half_removed(&error) => {}
            told => return told,
        }
        let mut all = Vec::new();
        for id in ids {
            match self.inspect_all(&[id]).await {
                Err(error) if half_removed(&error) => {}
                told => all.extend(told?),
            }
        }
        Ok(all)
    }

    async fn inspect_all(&self, ids: &[&str]) -> Result<Vec<Inspected>, PodmanError> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let format = r#"{"id":{{json .ID}},"restarts":{{.RestartCount}},"state":{{json .State}}}"#;
        let command = self.command("container inspect", QUICK);
        let ended = command
            .with(["--format", format])
            .with(ids)
            .those_left()
            .await?;
        let answers = serde_json::Deserializer::from_slice(&ended.output).into_iter();
        answers
            .collect::<Result<_, _>>()
            .map_err(|source| unreadable("container inspect", source))
    }

    /// All volumes, whoever made them.
    pub(super) async fn volumes(&self) -> Result<Vec<ObservedVolume>, PodmanError> {
        self.command("volume ls", QUICK).list().await
    }

    /// The names of the secrets of this device, with the objects that they are of.
    pub(super) async fn secrets(&self) -> Result<Vec<(String, String)>, PodmanError> {
        let ended = self
            .command("secret ls", QUICK)
            .with(["--quiet"])
            .run()
            .await?;
        let ids = String::from_utf8_lossy(&ended.output).into_owned();
        let ids: Vec<_> = ids.split_whitespace().collect();
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let ended = self
            .command("secret inspect", QUICK)
            .with(ids)
            .those_left()
            .await?;
        let secrets: Vec<InspectedSecret> = serde_json::from_slice(&ended.output)
            .map_err(|source| unreadable("secret inspect", source))?;
        let device = self.device.to_string();
        Ok(secrets
            .into_iter()
            .map(|secret| secret.spec)
            .filter(|spec| spec.labels.get(labels::DEVICE) == Some(&device))
            .map(|mut spec| {
                (
                    spec.name,
                    spec.labels.remove(labels::OBJECT).unwrap_or_default(),
                )
            })
            .collect())
    }

    pub(super) async fn play(&self, manifest: Vec<u8>) -> Result<(), PodmanError> {
        let command = self.command("kube play", SLOW).with(["--quiet", "-"]);
        command.input(manifest).done().await
    }

    pub(super) async fn start(&self, ids: &[&str]) -> Result<(), PodmanError> {
        self.command("start", QUICK).with(ids).done().await
    }

    pub(super) async fn unpause(&self, ids: &[&str]) -> Result<(), PodmanError> {
        self.command("unpause", QUICK).with(ids).done().await
    }

    /// Removes a pod with its containers, which get `grace` seconds to end.
    pub(super) async fn remove_pod(&self, id: &str, grace: u64) -> Result<(), PodmanError> {
        let limit = Duration::from_secs(grace).saturating_add(QUICK);
        let time = grace.to_string();
        let words = ["--force", "--ignore", "--time", &time, id];
        self.command("pod rm", limit).with(words).done().await
    }

    /// Makes a volume of this content in the place of any of that name.
    pub(super) async fn fill_volume(
        &self,
        volume: &Volume,
        object: &str,
        is_there: bool,
    ) -> Result<(), PodmanError> {
        if is_there {
            self.remove_volume(&volume.name).await?;
        }
        let mut command = self
            .command("volume create", QUICK)
            .with(self.labels(object));
        if let Some(options) = &volume.memory {
            let options = format!("o={options}");
            command = command.with([
                "--opt",
                "type=tmpfs",
                "--opt",
                "device=tmpfs",
                "--opt",
                &options,
            ]);
        }
        command.with([&volume.name]).done().await?;
        if volume.files.is_empty() {
            return Ok(());
        }
        let archive = volume.archive().map_err(PodmanError::Pack)?;
        let command = self
            .command("volume import", SLOW)
            .with([&volume.name, "-"]);
        command.input(archive).done().await
    }

    /// Removes a volume that nothing uses.
    pub(super) async fn remove_volume(&self, name: &str) -> Result<(), PodmanError> {
        self.command("volume rm", QUICK).with([name]).done().await
    }

    /// Makes a secret of this content.
    pub(super) async fn make_secret(
        &self,
        name: &str,
        object: &str,
        content: Vec<u8>,
    ) -> Result<(), PodmanError> {
        let command = self
            .command("secret create", QUICK)
            .with(self.labels(object));
        command.with([name, "-"]).input(content).done().await
    }

    pub(super) async fn remove_secret(&self, name: &str) -> Result<(), PodmanError> {
        self.command("secret rm", QUICK).with([name]).done().await
    }

    pub(super) async fn has_image(&self, image: &str) -> Result<bool, PodmanError> {
        let command = self.command("image exists", QUICK).with([image]);
        let ended = command.call.run().await?;
        match ended.status.code() {
            Some(0) => Ok(true),
            Some(1) => Ok(false),
            _ => Err(failed("image exists", &ended)),
        }
    }

    pub(super) async fn pull(&self, image: &str) -> Result<(), PodmanError> {
        self.command("pull", PULL)
            .with(["--quiet", image])
            .done()
            .await
    }

    /// The id of the image that has this name here, or none.
    pub(super) async fn image_id(&self, image: &str) -> Result<Option<String>, PodmanError> {
        if !self.has_image(image).await? {
            return Ok(None);
        }
        let command = self.command("image inspect", QUICK);
        let ended = command.with(["--format", "{{.Id}}", image]).run().await?;
        let id = String::from_utf8_lossy(&ended.output);
        Ok(Some(id.trim().trim_start_matches("sha256:").to_owned()))
    }

    /// All images, whoever brought them. One with several names may be there several times.
    pub(super) async fn images(&self) -> Result<Vec<ListedImage>, PodmanError> {
        let command = self.command("image ls", QUICK);
        command.with(["--all", "--no-trunc"]).list().await
    }

    /// Removes an image with all its names, or nothing where it is used.
    pub(super) async fn remove_image(&self, image: &ListedImage) -> Result<(), PodmanError> {
        let command = self.command("image rm", SLOW);
        let command = if image.names.is_empty() {
            command.with([&image.id])
        } else {
            command.with(&image.names)
        };
        command.done().await
    }

    /// What happens to containers and pods from `since` on, in seconds of the Unix epoch.
    pub(super) fn events(&self, since: u64) -> Result<Group, PodmanError> {
        let since = since.to_string();
        let filters = ["--filter", "type=container", "--filter", "type=pod"];
        let command = self.command("events", EVER).with(filters);
        Ok(command
            .with(["--format", "json", "--since", &since])
            .call
            .start()?)
    }

    /// What a container said, and says from now on where that is asked for. The container's stdout comes on stdout, its
    /// stderr on stderr.
    pub(super) fn logs(&self, id: &str, request: &LogRequest) -> Result<Group, PodmanError> {
        let mut words = Vec::new();
        if request.follow {
            words.push("--follow".to_owned());
        }
        if let Some(lines) = request.tail {
            words.push(format!("--tail={lines}"));
        }
        if let Some(seconds) = request.since {
            words.push(format!("--since={seconds}s"));
        }
        words.push(id.to_owned());
        Ok(self.command("logs", EVER).with(words).call.start()?)
    }

    fn labels(&self, object: &str) -> [String; 4] {
        let label = |name: &str, value: &str| ["--label".to_owned(), format!("{name}={value}")];
        let [a, b] = label(labels::DEVICE, self.device.as_ref());
        let [c, d] = label(labels::OBJECT, object);
        [a, b, c, d]
    }

    fn command(&self, name: &'static str, limit: Duration) -> Command {
        let call = Call::new(&self.path, limit).environment(inherited(is_wanted));
        Command {
            name,
            call: call.arguments(name.split(' ')),
        }
    }
}

/// One call of `podman`.
struct Command {
    name: &'static str,
    call: Call,
}

impl Command {
    fn with(mut self, words: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.call = self.call.arguments(words);
        self
    }

    fn input(mut self, input: Vec<u8>) -> Self {
        self.call = self.call.input(input);
        self
    }

    async fn run(self) -> Result<Ended, PodmanError> {
        let ended = self.call.run().await?;
        if ended.status.success() {
            Ok(ended)
        } else {
            Err(failed(self.name, &ended))
        }
    }

    async fn done(self) -> Result<(), PodmanError> {
        self.run().await.map(drop)
    }

    /// What it answers for those that are there: it fails where one of those that it was asked for is gone.
    async fn those_left(self) -> Result<Ended, PodmanError> {
        let ended = self.call.run().await?;
        if ended.status.success() || ended.errors.contains("no such") {
            Ok(ended)
        } else {
            Err(failed(self.name, &ended))
        }
    }

    async fn list<T: DeserializeOwned>(self) -> Result<Vec<T>, PodmanError> {
        let name = self.name;
        let ended = self.with(["--format", "json"]).run().await?;
        // Some versions print nothing, others `null`, where there is nothing.
        let answer = ended.output.trim_ascii();
        if answer.is_empty() {
            return Ok(Vec::new());
        }
        let answer: Option<Vec<T>> =
            serde_json::from_slice(answer).map_err(|source| unreadable(name, source))?;
        Ok(answer.unwrap_or_default())
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct InspectedSecret {
    spec: SecretSpec,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct SecretSpec {
    name: String,
    #[serde(default, deserialize_with = "super::observed::or_default")]
    labels: super::observed::Labels,
}

fn failed(command: &'static str, ended: &Ended) -> PodmanError {
    PodmanError::Failed {
        command,
        message: what_matters(&ended.errors)
            .unwrap_or_else(|| format!("{}, without a word", ended.status)),
    }
}

fn unreadable(command: &'static str, source: serde_json::Error) -> PodmanError {
    PodmanError::Answer { command, source }
}

/// The errors without the log lines of Podman's own around them, where there are any.
fn what_matters(errors: &str) -> Option<String> {
    const MOST: usize = 600;
    let lines = || {
        errors
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty())
    };
    let mut kept: Vec<_> = lines()
        .filter(|line| !line.starts_with("time=\""))
        .collect();
    if kept.is_empty() {
        kept = lines().collect();
    }
    let text = kept.join("; ");
    let text = text.strip_prefix("Error: ").unwrap_or(&text);
    (!text.is_empty()).then(|| text.chars().take(MOST).collect())
}

/// Where Podman finds itself, its registries and its user. Not `NOTIFY_SOCKET`, which it would hand to containers.
fn is_wanted(name: &str) -> bool {
    const PREFIXES: [&str; 6] = [
        "CONTAINERS_",
        "CONTAINER_",
        "PODMAN_",
        "STORAGE_",
        "XDG_",
        "LC_",
    ];
    const NAMES: [&str; 11] = [
        "PATH",
        "HOME",
        "USER",
        "LOGNAME",
        "LANG",
        "TMPDIR",
        "TZ",
        "DBUS_SESSION_BUS_ADDRESS",
        "REGISTRY_AUTH_FILE",
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
    ];
    const PROXIES: [&str; 3] = ["http_proxy", "https_proxy", "no_proxy"];
    NAMES.contains(&name)
        || PROXIES.contains(&name.to_ascii_lowercase().as_str())
        || PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}
