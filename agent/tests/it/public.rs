//! The enrollment endpoint as a test scripts it, on real TLS and HTTP.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
};

use http::{Request, Response, header};
use http_body_util::{BodyExt as _, Full};
use hyper::{
    body::{Bytes, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use longshore_protocol::api::EnrollRequest;
use rustls::ServerConfig;
use tokio::{net::TcpListener, sync::watch};
use tokio_rustls::TlsAcceptor;
use url::Url;

/// What the endpoint was asked.
#[derive(Clone, Debug)]
pub struct Asked {
    pub authorization: String,
    pub request: EnrollRequest,
}

type Answer = Box<dyn FnOnce(&Asked) -> Response<String> + Send>;

pub struct Public {
    pub url: Url,
    pub asked: watch::Receiver<Vec<Asked>>,
}

/// Serves one answer after the other, and then none.
pub async fn serve(config: ServerConfig, answers: Vec<Answer>) -> Public {
    serve_at("127.0.0.1", config, answers).await
}

/// The same at another address of this machine.
pub async fn serve_at(address: &str, config: ServerConfig, answers: Vec<Answer>) -> Public {
    let listener = TcpListener::bind((address, 0)).await.unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap())
        .parse()
        .unwrap();
    let (record, asked) = watch::channel(Vec::new());
    let answers = Arc::new(Mutex::new(VecDeque::from(answers)));
    let acceptor = TlsAcceptor::from(Arc::new(config));
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let (acceptor, answers, record) = (acceptor.clone(), answers.clone(), record.clone());
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else {
                    return;
                };
                let service =
                    service_fn(move |request| respond(request, answers.clone(), record.clone()));
                let serving = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
                // Whoever asks may hang up.
                drop(serving.await);
            });
        }
    });
    Public { url, asked }
}

async fn respond(
    request: Request<Incoming>,
    answers: Arc<Mutex<VecDeque<Answer>>>,
    record: watch::Sender<Vec<Asked>>,
) -> Result<Response<Full<Bytes>>, std::io::Error> {
    assert_eq!(request.uri().path(), "/v1/enroll");
    let authorization = request.headers()[header::AUTHORIZATION]
        .to_str()
        .unwrap()
        .to_owned();
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let asked = Asked {
        authorization,
        request: serde_json::from_slice(&body).unwrap(),
    };
    let answer = answers.lock().unwrap().pop_front();
    let response = answer.map(|answer| answer(&asked));
    record.send_modify(|all| all.push(asked));
    match response {
        Some(response) => Ok(response.map(|body| Full::new(Bytes::from(body)))),
        None => Err(std::io::Error::other("the script has ended")),
    }
}

/// An answer of this status and body.
pub fn answer(status: u16, body: impl Into<String>) -> Answer {
    let body = body.into();
    Box::new(move |_| Response::builder().status(status).body(body).unwrap())
}

/// An answer with `Retry-After`.
pub fn later(status: u16, seconds: u64) -> Answer {
    Box::new(move |_| {
        let response = Response::builder()
            .status(status)
            .header("retry-after", seconds);
        response.body(String::new()).unwrap()
    })
}

/// A request of any kind.
pub type Call = Request<Bytes>;

/// Serves whatever is asked, by `handle`.
pub async fn handle(
    config: ServerConfig,
    handle: impl Fn(&Call) -> Response<String> + Send + Sync + 'static,
) -> Url {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let handle = Arc::new(handle);
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let Ok(stream) = acceptor.accept(stream).await else {
                continue;
            };
            let handle = handle.clone();
            let service = service_fn(move |request: Request<Incoming>| {
                let handle = handle.clone();
                async move {
                    let (parts, body) = request.into_parts();
                    let body = body.collect().await?.to_bytes();
                    let response = handle(&Request::from_parts(parts, body));
                    Ok::<_, hyper::Error>(response.map(|body| Full::new(Bytes::from(body))))
                }
            });
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    });
    url.parse().unwrap()
}
