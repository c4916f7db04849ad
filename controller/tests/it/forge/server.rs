//! A Git host that answers by a script, well or badly.

use std::{
    collections::HashMap,
    fmt::Write as _,
    sync::{Arc, Mutex},
};

use longshore_controller::forge::client::{Client, Http};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

/// The host. What it is asked and not told to answer is answered with 501.
#[derive(Debug)]
pub struct Server {
    pub url: String,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Shared {
    script: Mutex<Vec<(String, Answer)>>,
    heard: Mutex<Vec<Heard>>,
}

/// A call that came.
#[derive(Clone, Debug)]
pub struct Heard {
    /// Method, path and query.
    pub line: String,
    /// By lower-case name.
    pub headers: HashMap<String, String>,
    /// Null where there was none.
    pub body: Value,
}

/// What to answer.
#[derive(Clone, Debug)]
pub struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: String,
    fault: Fault,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    None,
    Half,
    Silence,
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "a script reads better without borrows"
)]
impl Answer {
    pub fn new(status: u16, body: impl ToString) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: body.to_string(),
            fault: Fault::None,
        }
    }

    pub fn header(mut self, name: &str, value: impl ToString) -> Self {
        self.headers.push((name.to_owned(), value.to_string()));
        self
    }

    /// Breaks off in the middle of the body.
    pub fn half(mut self) -> Self {
        self.fault = Fault::Half;
        self
    }

    /// Never answers.
    pub fn silence() -> Self {
        Self {
            fault: Fault::Silence,
            ..Self::new(200, "")
        }
    }
}

impl Server {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let shared: Arc<Shared> = Arc::default();
        let serving = shared.clone();
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let shared = serving.clone();
                tokio::spawn(async move { shared.serve(stream).await });
            }
        });
        Self { url, shared, task }
    }

    /// The next call that begins like this is answered so; each answer is given once.
    pub fn on(&self, line: &str, answer: Answer) -> &Self {
        let mut script = self.shared.script.lock().unwrap();
        script.push((line.to_owned(), answer));
        self
    }

    pub fn heard(&self) -> Vec<Heard> {
        self.shared.heard.lock().unwrap().clone()
    }

    pub fn lines(&self) -> Vec<String> {
        self.heard().into_iter().map(|heard| heard.line).collect()
    }

    pub fn last(&self) -> Heard {
        self.heard().pop().unwrap()
    }

    pub fn client(&self) -> Client {
        Client::new(&Http::default(), self.url.parse().unwrap()).unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Shared {
    /// One call per connection is enough here.
    async fn serve(&self, stream: TcpStream) -> Option<()> {
        let mut stream = BufReader::new(stream);
        let mut head = Vec::new();
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line).await.ok()? == 0 {
                return None;
            }
            if line.trim().is_empty() {
                break;
            }
            head.push(line.trim().to_owned());
        }
        let line = head.remove(0).strip_suffix(" HTTP/1.1")?.to_owned();
        let headers: HashMap<_, _> = head
            .iter()
            .filter_map(|header| header.split_once(": "))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
            .collect();
        let length = headers
            .get("content-length")
            .map_or(0, |it| it.parse().unwrap());
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await.ok()?;
        let answer = {
            let mut script = self.script.lock().unwrap();
            let found = script
                .iter()
                .position(|(key, _)| line.starts_with(key.as_str()));
            found.map(|found| script.remove(found).1)
        };
        self.heard.lock().unwrap().push(Heard {
            line: line.clone(),
            headers,
            body: serde_json::from_slice(&body).unwrap_or_default(),
        });
        let answer =
            answer.unwrap_or_else(|| Answer::new(501, format!("not in the script: {line}")));
        let mut head = format!(
            "HTTP/1.1 {} x\r\nconnection: close\r\ncontent-length: {}\r\n",
            answer.status,
            answer.body.len()
        );
        for (name, value) in &answer.headers {
            write!(head, "{name}: {value}\r\n").unwrap();
        }
        let body = match answer.fault {
            Fault::None => answer.body.as_str(),
            Fault::Half => &answer.body[..answer.body.len() / 2],
            Fault::Silence => {
                std::future::pending::<()>().await;
                ""
            }
        };
        stream
            .write_all(format!("{head}\r\n{body}").as_bytes())
            .await
            .ok()?;
        stream.shutdown().await.ok()
    }
}
