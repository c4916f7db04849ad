//! What Git presents to a repo, against real hosts: `git http-backend` behind a password, and OpenSSH's server.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    process::Stdio,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::{Request, State},
    http::{HeaderMap, Response, StatusCode},
    response::IntoResponse as _,
};
use longshore_controller::{
    forge::{
        Forge, GitLogin,
        client::{Client, Http},
        connection::ForgeSettings,
        github::GitHub,
    },
    source::{
        access::Credential,
        git::GitError,
        mirror::{Edit, Mirror},
    },
    store::fleets::Fleet,
};
use longshore_protocol::api::connection::{ForgeCredential, ForgeKind};
use tempfile::TempDir;
use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpListener, TcpStream},
    process::{Child, Command},
};

use crate::repo::Repo;

const PASSWORD: &str = "hush-hush";
/// `deploy:hush-hush`, and `x-access-token:hush-hush`.
const ALLOWED: [&str; 2] = [
    "ZGVwbG95Omh1c2gtaHVzaA==",
    "eC1hY2Nlc3MtdG9rZW46aHVzaC1odXNo",
];

fn password(password: &str) -> Credential {
    Credential::Password(GitLogin {
        username: "deploy".to_owned(),
        password: password.into(),
    })
}

struct Reached {
    mirror: Mirror,
    directory: TempDir,
}

impl Reached {
    async fn at(url: &str, trusted: bool, credential: Option<Credential>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let fleet = Fleet {
            repo: url.to_owned(),
            branch: "main".to_owned(),
            trusted,
            ..crate::store::samples::fleet("default", "shops")
        };
        // A name that a shell and ssh would take apart.
        let place = directory.path().join("it's 100% \"m\".git");
        let mirror = Mirror::open(place, &fleet, credential).await.unwrap();
        Self { mirror, directory }
    }

    /// Fetches, pushes a commit, and tells where the branch was before and is now.
    async fn fetch_and_push(&self) -> (git2::Oid, git2::Oid) {
        let before = self.mirror.fetch().await.unwrap().tracked.unwrap().id;
        let edit = Edit {
            path: "b".to_owned(),
            content: Some("2".to_owned()),
        };
        let commit = self
            .mirror
            .commit(Some(before), vec![edit], "Add b".to_owned());
        let commit = commit.await.unwrap();
        self.mirror
            .push_tracked(commit, Some(before))
            .await
            .unwrap();
        (before, commit)
    }

    async fn refusal(&self) -> String {
        let error = self.mirror.fetch().await.unwrap_err();
        format!("{error} {error:?}")
    }

    /// Keys that lie about.
    fn keys(&self) -> Vec<PathBuf> {
        let mirror = fs::read_dir(self.directory.path())
            .unwrap()
            .next()
            .unwrap()
            .unwrap();
        fs::read_dir(mirror.path())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| {
                path.file_name()
                    .unwrap()
                    .to_str()
                    .unwrap()
                    .starts_with("ssh-")
            })
            .collect()
    }
}

/// A Git host that wants a password.
struct Host {
    url: String,
    shared: Arc<Shared>,
}

struct Shared {
    root: PathBuf,
    redirect: Option<String>,
    seen: Mutex<Vec<(String, HeaderMap)>>,
    /// What other users of the machine could have read.
    arguments: Mutex<String>,
}

impl Host {
    async fn of(repo: &Repo, redirect: Option<String>) -> Self {
        let shared = Arc::new(Shared {
            root: repo.path().parent().unwrap().to_owned(),
            redirect,
            seen: Mutex::default(),
            arguments: Mutex::default(),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/fleet.git", listener.local_addr().unwrap());
        let app = Router::new().fallback(serve).with_state(shared.clone());
        tokio::spawn(async move { axum::serve(listener, app).await });
        Self { url, shared }
    }

    fn seen(&self) -> usize {
        self.shared.seen.lock().unwrap().len()
    }
}

async fn serve(State(host): State<Arc<Shared>>, request: Request<Body>) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path().to_owned();
    host.seen
        .lock()
        .unwrap()
        .push((path.clone(), parts.headers.clone()));
    for process in fs::read_dir("/proc").unwrap().flatten() {
        let arguments = fs::read(process.path().join("cmdline")).unwrap_or_default();
        host.arguments
            .lock()
            .unwrap()
            .push_str(&String::from_utf8_lossy(&arguments));
    }
    let header = |name: &str| {
        let value = parts
            .headers
            .get(name)
            .and_then(|value| value.to_str().ok());
        value.unwrap_or_default().to_owned()
    };
    if let Some(elsewhere) = &host.redirect {
        let there = format!(
            "{elsewhere}{path}?{}",
            parts.uri.query().unwrap_or_default()
        );
        return (StatusCode::FOUND, [("location", there)]).into_response();
    }
    let shown = header("authorization");
    if !ALLOWED
        .iter()
        .any(|allowed| shown == format!("Basic {allowed}"))
    {
        // A bad host repeats what it was told.
        let asks = [("www-authenticate", "Basic realm=\"git\"")];
        return (StatusCode::UNAUTHORIZED, asks, shown).into_response();
    }
    let body = to_bytes(body, usize::MAX).await.unwrap();
    let mut backend = Command::new("git")
        .arg("http-backend")
        .env("GIT_PROJECT_ROOT", &host.root)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("GIT_CONFIG_COUNT", "1")
        .env("GIT_CONFIG_KEY_0", "safe.directory")
        .env("GIT_CONFIG_VALUE_0", "*")
        .env("REMOTE_USER", "deploy")
        .env("REQUEST_METHOD", parts.method.as_str())
        .env("PATH_INFO", &path)
        .env("QUERY_STRING", parts.uri.query().unwrap_or_default())
        .env("CONTENT_TYPE", header("content-type"))
        .env("CONTENT_LENGTH", body.len().to_string())
        .env("HTTP_CONTENT_ENCODING", header("content-encoding"))
        .env("GIT_PROTOCOL", header("git-protocol"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = backend.stdin.take().unwrap();
    stdin.write_all(&body).await.unwrap();
    drop(stdin);
    let output = backend.wait_with_output().await.unwrap().stdout;
    let end = output.windows(4).position(|it| it == b"\r\n\r\n").unwrap();
    let mut answer = Response::new(Body::from(output[end + 4..].to_vec()));
    for line in String::from_utf8_lossy(&output[..end]).lines() {
        let (name, value) = line.split_once(": ").unwrap();
        if name == "Status" {
            *answer.status_mut() = value[..3].parse().unwrap();
        } else {
            let name: http::HeaderName = name.parse().unwrap();
            answer.headers_mut().insert(name, value.parse().unwrap());
        }
    }
    answer
}

fn repo() -> Repo {
    let repo = Repo::new();
    repo.commit("main", &[("a", Some("1"))]);
    repo
}

#[tokio::test]
async fn a_password_opens_a_repo_and_nobody_else_hears_it() {
    let repo = repo();
    let host = Host::of(&repo, None).await;
    let reached = Reached::at(&host.url, true, Some(password(PASSWORD))).await;
    let (_, pushed) = reached.fetch_and_push().await;
    assert_eq!(repo.tip("main"), Some(pushed));
    let arguments = host.shared.arguments.lock().unwrap().clone();
    assert!(
        arguments.contains("fleet.git"),
        "git's own arguments were seen"
    );
    assert!(!arguments.contains(PASSWORD) && !arguments.contains(ALLOWED[0]));
    let config = fs::read_dir(reached.directory.path())
        .unwrap()
        .next()
        .unwrap()
        .unwrap();
    let config = fs::read_to_string(config.path().join("config")).unwrap();
    assert!(!config.contains("extraHeader"), "{config}");
}

#[tokio::test]
async fn a_forges_token_opens_its_repos() {
    let repo = repo();
    let host = Host::of(&repo, None).await;
    let settings = ForgeSettings {
        kind: ForgeKind::GitHub,
        url: host.url.parse().unwrap(),
        repository: "acme/fleet".parse().unwrap(),
        credential: ForgeCredential::Token(PASSWORD.to_owned().into()),
    };
    let client = Client::new(&Http::default(), settings.url.clone()).unwrap();
    let forge: Arc<dyn Forge> = Arc::new(GitHub::new(client, &settings).unwrap());
    let reached = Reached::at(&host.url, true, Some(Credential::Forge(forge))).await;
    let (_, pushed) = reached.fetch_and_push().await;
    assert_eq!(repo.tip("main"), Some(pushed));
}

#[tokio::test]
async fn a_wrong_password_is_refused_and_not_repeated() {
    let repo = repo();
    let host = Host::of(&repo, None).await;
    let reached = Reached::at(&host.url, true, Some(password("hush-wrong"))).await;
    let refusal = reached.refusal().await;
    assert!(refusal.contains("git fetch"), "{refusal}");
    assert!(
        !refusal.contains("hush") && !refusal.contains("ZGVwbG95"),
        "{refusal}"
    );
    let nobody = Reached::at(&host.url, true, None).await;
    assert!(nobody.refusal().await.contains("could not read Username"));
}

#[tokio::test]
async fn a_password_is_not_sent_to_where_a_host_points() {
    let repo = repo();
    let elsewhere = Host::of(&repo, None).await;
    let base = elsewhere.url.strip_suffix("/fleet.git").unwrap().to_owned();
    let host = Host::of(&repo, Some(base)).await;
    let reached = Reached::at(&host.url, true, Some(password(PASSWORD))).await;
    reached.refusal().await;
    assert_eq!((host.seen(), elsewhere.seen()), (1, 0));
}

#[tokio::test]
async fn plain_http_is_for_administrators_on_this_machine() {
    let repo = repo();
    let host = Host::of(&repo, None).await;
    let tenants = Reached::at(&host.url, false, Some(password(PASSWORD))).await;
    let refusal = tenants.refusal().await;
    assert!(
        refusal.contains("transport 'http' not allowed"),
        "{refusal}"
    );
    let outside = Reached::at("http://192.0.2.1/fleet.git", true, Some(password(PASSWORD))).await;
    let refusal = outside.refusal().await;
    assert!(
        refusal.contains("transport 'http' not allowed"),
        "{refusal}"
    );
    assert_eq!(host.seen(), 0);
}

/// OpenSSH's server on this machine, for one key of this user.
struct Sshd {
    directory: TempDir,
    port: u16,
    _server: Child,
}

impl Sshd {
    async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        for key in ["host", "deploy", "stranger"] {
            let file = path.join(key);
            let arguments = ["-q", "-t", "ed25519", "-N", "", "-C", key, "-f"];
            let made = std::process::Command::new("ssh-keygen")
                .args(arguments)
                .arg(file)
                .status();
            assert!(made.unwrap().success());
        }
        fs::copy(path.join("deploy.pub"), path.join("authorized_keys")).unwrap();
        if rustix::process::getuid().is_root() {
            // Where its package is installed and no service ever ran, this is missing.
            fs::create_dir_all("/run/sshd").unwrap();
        }
        let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let config = format!(
            "ListenAddress 127.0.0.1\nPort {port}\nHostKey {0}/host\nAuthorizedKeysFile {0}/authorized_keys\n\
             PidFile none\nUsePAM no\nStrictModes no\nPasswordAuthentication no\n\
             KbdInteractiveAuthentication no\nPermitRootLogin yes\n",
            path.display()
        );
        fs::write(path.join("config"), config).unwrap();
        let log = fs::File::create(path.join("log")).unwrap();
        let server = Command::new("/usr/sbin/sshd")
            .args(["-D", "-e", "-f"])
            .arg(path.join("config"))
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .expect("scripts/bootstrap installs what this test needs");
        let listening = async {
            while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), listening)
            .await
            .unwrap();
        Self {
            directory,
            port,
            _server: server,
        }
    }

    fn url(&self, repo: &Repo) -> String {
        let output = std::process::Command::new("id")
            .arg("-un")
            .output()
            .unwrap();
        let user = String::from_utf8(output.stdout).unwrap();
        format!(
            "ssh://{}@127.0.0.1:{}{}",
            user.trim(),
            self.port,
            repo.path().display()
        )
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.directory.path().join(name)).unwrap()
    }

    /// The key `key`, and the host known by the key `host`.
    fn credential(&self, key: &str, host: &str) -> Credential {
        let host = self.read(&format!("{host}.pub"));
        Credential::Ssh {
            private_key: self.read(key).into(),
            known_hosts: format!("[127.0.0.1]:{} {host}", self.port),
        }
    }
}

#[tokio::test]
async fn a_key_opens_a_repo_on_the_host_that_is_known() {
    let repo = repo();
    let sshd = Sshd::start().await;
    let url = sshd.url(&repo);
    let credential = sshd.credential("deploy", "host");
    let reached = Reached::at(&url, false, Some(credential.clone())).await;
    let (_, pushed) = reached.fetch_and_push().await;
    assert_eq!(repo.tip("main"), Some(pushed), "{}", sshd.read("log"));
    assert_eq!(
        reached.keys(),
        Vec::<PathBuf>::new(),
        "the key does not stay"
    );

    let of_another = Reached::at(&url, true, Some(sshd.credential("deploy", "stranger"))).await;
    let refusal = of_another.refusal().await;
    assert!(
        refusal.contains("Host key verification failed"),
        "{refusal}"
    );

    let stranger = Reached::at(&url, true, Some(sshd.credential("stranger", "host"))).await;
    let refusal = stranger.refusal().await;
    assert!(refusal.contains("Permission denied"), "{refusal}");
    assert_eq!(stranger.keys(), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn over_ssh_a_tenants_fleet_needs_a_key_of_its_own() {
    let reached = Reached::at("ssh://git@127.0.0.1:1/fleet.git", false, None).await;
    let error = reached.mirror.fetch().await.unwrap_err();
    assert!(matches!(error, GitError::NoKey), "{error:?}");
}

#[tokio::test]
async fn a_key_that_a_killed_controller_left_is_deleted() {
    let directory = tempfile::tempdir().unwrap();
    let fleet = crate::store::samples::fleet("default", "shops");
    let place = directory.path().join("m.git");
    Mirror::open(place.clone(), &fleet, None).await.unwrap();
    let left = place.join("ssh-left");
    fs::create_dir(&left).unwrap();
    fs::write(left.join("key"), "hush").unwrap();
    fs::set_permissions(left.join("key"), fs::Permissions::from_mode(0o600)).unwrap();
    Mirror::open(place, &fleet, None).await.unwrap();
    assert!(!left.exists());
}
