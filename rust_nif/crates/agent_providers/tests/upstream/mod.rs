//! An HTTP server on loopback whose answers a test decides, with TLS where it wants that.
#![allow(dead_code, missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::convert::Infallible;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Got {
    pub version: hyper::Version,
    pub uri: String,
    pub headers: hyper::HeaderMap,
    pub body: Value,
}

pub type Answer = hyper::Response<Full<Bytes>>;

/// Serves until the test ends; gives the address.
pub async fn serve<F, R>(tls: Option<TlsAcceptor>, answer: F) -> String
where
    F: Fn(Got) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = Answer> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            stream.set_nodelay(true).unwrap();
            let (tls, answer) = (tls.clone(), answer.clone());
            tokio::spawn(async move {
                let service = service_fn(move |request: hyper::Request<Incoming>| {
                    let answer = answer.clone();
                    async move {
                        let (head, body) = request.into_parts();
                        let bytes = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
                        let body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
                        let got = Got { version: head.version, uri: head.uri.to_string(), headers: head.headers, body };
                        Ok::<_, Infallible>(answer(got).await)
                    }
                });
                let builder = Builder::new(TokioExecutor::new());
                let _ = match tls {
                    Some(tls) => match tls.accept(stream).await {
                        Ok(stream) => builder.serve_connection(TokioIo::new(stream), service).await,
                        Err(_) => Ok(()),
                    },
                    None => builder.serve_connection(TokioIo::new(stream), service).await,
                };
            });
        }
    });
    address
}

/// An answer of chat completions.
pub fn chat(text: &str) -> Answer {
    let body = json!({
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 5},
    });
    json_answer(200, &body)
}

/// A stream of these events, with its end mark where it is whole.
pub fn events(all: &[Value], whole: bool) -> Answer {
    let text: String = all.iter().map(|event| format!("data: {event}\n\n")).collect();
    let text = if whole { text + "data: [DONE]\n\n" } else { text };
    hyper::Response::builder().header("content-type", "text/event-stream").body(Full::new(Bytes::from(text))).unwrap()
}

pub fn json_answer(status: u16, body: &Value) -> Answer {
    let answer = hyper::Response::builder().status(status).header("content-type", "application/json");
    answer.body(Full::new(Bytes::from(body.to_string()))).unwrap()
}

/// A certificate authority of the test's own, and a server with a certificate of it for `localhost`. Gives its file.
pub fn authority(folder: &Path) -> (PathBuf, TlsAcceptor) {
    std::fs::create_dir_all(folder).unwrap();
    let at = |name: &str| folder.join(name).to_string_lossy().into_owned();
    let run = |arguments: &[&str]| {
        let out = Command::new("openssl").args(arguments).output().expect("openssl is installed");
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    };
    let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
    let (ca, ca_key, csr, pem, server_key, extensions) =
        (at("ca.pem"), at("ca.key"), at("server.csr"), at("server.pem"), at("server.key"), at("extensions"));
    std::fs::write(&extensions, "subjectAltName=DNS:localhost,IP:127.0.0.1\n").unwrap();
    run(&[&["req", "-x509"], &key[..], &["-keyout", &ca_key, "-out", &ca, "-days", "2", "-subj", "/CN=test authority"]].concat());
    run(&[&["req"], &key[..], &["-keyout", &server_key, "-out", &csr, "-subj", "/CN=localhost"]].concat());
    run(&[
        "x509",
        "-req",
        "-in",
        &csr,
        "-CA",
        &ca,
        "-CAkey",
        &ca_key,
        "-CAcreateserial",
        "-out",
        &pem,
        "-days",
        "2",
        "-extfile",
        &extensions,
    ]);
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(&pem).unwrap().map(Result::unwrap).collect();
    let _ = tokio_rustls::rustls::crypto::ring::default_provider().install_default();
    let mut config =
        ServerConfig::builder().with_no_client_auth().with_single_cert(chain, PrivateKeyDer::from_pem_file(&server_key).unwrap()).unwrap();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    (ca.into(), TlsAcceptor::from(Arc::new(config)))
}
