//! The listener: own accept loop, TLS, limits, drain.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use agent_core::{AgentError, Reason};
use agent_proto::FILE_DESCRIPTOR_SET;
use agent_proto::agents::v1 as pb;
use serde::Deserialize;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc, watch};

use crate::conn::{Clocks, Io, Stream};
use crate::{
    Shared, agents::Agents, frameworks::Frameworks, memories::Memories, providers::ProviderCalls, schedules::Schedules, tasks::Tasks,
    workers,
};

/// Streams of one connection.
const MAX_STREAMS: u32 = 100;
/// Largest message on the wire; our own codec refuses above 4 MiB with a typed error.
const WIRE_DECODE_BYTES: usize = 8 * 1024 * 1024;
/// Largest answer.
const WIRE_ENCODE_BYTES: usize = 16 * 1024 * 1024;
/// A worker's frame with what protobuf puts around it.
const WIRE_FRAME_BYTES: usize = workers::MAX_FRAME_BYTES + 64;
/// Bytes that a client may send on one connection before they are read.
const CONNECTION_WINDOW: u32 = 1024 * 1024;
const KEEPALIVE: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
const TLS_HANDSHAKE: Duration = Duration::from_secs(5);
const MAX_CONNECTION_AGE: Duration = Duration::from_secs(3600);
/// What is under way on a connection of that age may take so long to end.
const MAX_CONNECTION_AGE_GRACE: Duration = Duration::from_secs(300);
/// From the accept to the whole preface of HTTP/2.
const PREFACE_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections at once.
const MAX_CONNECTIONS: usize = 10_000;

/// `server` of the native configuration.
#[derive(Clone, Debug, Deserialize)]
pub struct ServerConfig {
    /// Host and port; port 0: any.
    pub address: String,
    /// None only on loopback.
    #[serde(default)]
    pub tls: Option<Tls>,
    /// A connection without a request is closed after so many ms.
    #[serde(default = "default_idle_ms")]
    pub idle_timeout_ms: u64,
}

fn default_idle_ms() -> u64 {
    300_000
}

/// Files of the server's certificate.
#[derive(Clone, Debug, Deserialize)]
pub struct Tls {
    /// PEM chain.
    pub cert: String,
    /// PEM key.
    pub key: String,
    /// PEM of the authority whose clients are let in; none: any client.
    #[serde(default)]
    pub client_ca: Option<String>,
}

/// A running listener; dropping it ends it.
pub struct Listener {
    /// Where it listens.
    pub address: SocketAddr,
    stop: watch::Sender<bool>,
    health: tonic_health::server::HealthReporter,
}

impl Listener {
    /// Says NOT_SERVING to whoever asks; calls under way go on.
    pub async fn drain(&self) {
        for service in SERVICES {
            self.health.set_service_status(*service, tonic_health::ServingStatus::NotServing).await;
        }
    }

    /// Ends the listener; streams get UNAVAILABLE.
    pub fn stop(&self) {
        let _ = self.stop.send(true);
    }
}

const SERVICES: &[&str] = &[
    "",
    "singularity.agents.v1.TaskService",
    "singularity.agents.v1.AgentService",
    "singularity.agents.v1.FrameworkService",
    "singularity.agents.v1.ProviderService",
];

/// Binds and serves until stopped; `on_end` hears once.
pub async fn serve(config: &ServerConfig, shared: Shared, on_end: impl FnOnce(String) + Send + 'static) -> Result<Listener, AgentError> {
    let fail = |what: &str, e: &dyn std::fmt::Display| AgentError::new(Reason::StoreUnavailable, format!("{what}: {e}"));
    let tls = config.tls.as_ref().map(acceptor).transpose()?;
    let tcp = TcpListener::bind(&config.address).await.map_err(|e| fail(&format!("cannot listen on {}", config.address), &e))?;
    let address = tcp.local_addr().map_err(|e| fail("no local address", &e))?;
    let (stop, stopped) = watch::channel(false);
    let (health, health_service) = tonic_health::server::health_reporter();
    for service in SERVICES {
        health.set_service_status(*service, tonic_health::ServingStatus::Serving).await;
    }
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let v1 = reflection().build_v1().map_err(|e| fail("reflection", &e))?;
    let v1alpha = reflection().build_v1alpha().map_err(|e| fail("reflection", &e))?;
    macro_rules! sized {
        ($service:expr) => {
            $service.max_decoding_message_size(WIRE_DECODE_BYTES).max_encoding_message_size(WIRE_ENCODE_BYTES)
        };
    }
    let router = tonic::transport::Server::builder()
        .max_concurrent_streams(MAX_STREAMS)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .max_connection_age(MAX_CONNECTION_AGE)
        .max_connection_age_grace(MAX_CONNECTION_AGE_GRACE)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .add_service(health_service)
        .add_service(v1)
        .add_service(v1alpha)
        .add_service(sized!(pb::task_service_server::TaskServiceServer::new(Tasks(shared.clone()))))
        .add_service(sized!(pb::agent_service_server::AgentServiceServer::new(Agents(shared.clone()))))
        .add_service(sized!(pb::framework_service_server::FrameworkServiceServer::new(Frameworks(shared.clone()))))
        .add_service(sized!(pb::provider_service_server::ProviderServiceServer::new(ProviderCalls(shared.clone()))))
        .add_service(sized!(pb::memory_service_server::MemoryServiceServer::new(Memories(shared.clone()))))
        .add_service(sized!(pb::schedule_service_server::ScheduleServiceServer::new(Schedules(shared.clone()))))
        .add_service(
            pb::worker_service_server::WorkerServiceServer::new(workers::Workers(shared.clone()))
                .max_decoding_message_size(WIRE_FRAME_BYTES)
                .max_encoding_message_size(WIRE_FRAME_BYTES),
        );
    let (accepted, incoming) = mpsc::channel::<Result<Io, std::io::Error>>(64);
    let clocks = Clocks { preface: PREFACE_TIMEOUT, idle: Duration::from_millis(config.idle_timeout_ms) };
    tokio::spawn(accept(tcp, tls, clocks, accepted, stopped.clone()));
    let mut until = stopped;
    tokio::spawn(async move {
        let signal = async move {
            let _ = until.wait_for(|s| *s).await;
        };
        let result = router.serve_with_incoming_shutdown(tokio_stream::wrappers::ReceiverStream::new(incoming), signal).await;
        on_end(result.err().map_or_else(|| "stopped".to_owned(), |e| e.to_string()));
    });
    Ok(Listener { address, stop, health })
}

async fn accept(
    tcp: TcpListener,
    tls: Option<tokio_rustls::TlsAcceptor>,
    clocks: Clocks,
    accepted: mpsc::Sender<Result<Io, std::io::Error>>,
    mut stopped: watch::Receiver<bool>,
) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let stream = tokio::select! {
            () = async { let _ = stopped.wait_for(|s| *s).await; } => return,
            () = accepted.closed() => return,
            result = tcp.accept() => match result {
                Ok((stream, _)) => stream,
                // Out of descriptors: the next one may go.
                Err(_) => { tokio::time::sleep(Duration::from_millis(50)).await; continue }
            },
        };
        // Number 10,001 is closed at once.
        let Ok(slot) = slots.clone().try_acquire_owned() else { continue };
        let _ = stream.set_nodelay(true);
        match tls.clone() {
            None => {
                if accepted.send(Ok(Io::new(Stream::Plain(stream), clocks, slot))).await.is_err() {
                    return;
                }
            }
            Some(tls) => {
                let accepted = accepted.clone();
                tokio::spawn(async move {
                    if let Ok(Ok(stream)) = tokio::time::timeout(TLS_HANDSHAKE, tls.accept(stream)).await {
                        let _ = accepted.send(Ok(Io::new(Stream::Tls(Box::new(stream)), clocks, slot))).await;
                    }
                });
            }
        }
    }
}

fn acceptor(tls: &Tls) -> Result<tokio_rustls::TlsAcceptor, AgentError> {
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    let bad = |what: &str, path: &str, e: &dyn std::fmt::Display| {
        AgentError::new(Reason::InvalidField, format!("[server] tls.{what} = \"{path}\": {e}"))
    };
    let chain = CertificateDer::pem_file_iter(&tls.cert)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|e| bad("cert", &tls.cert, &e))?;
    let key = PrivateKeyDer::from_pem_file(&tls.key).map_err(|e| bad("key", &tls.key, &e))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|e| bad("cert", &tls.cert, &e))?;
    let builder = match &tls.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = rustls::RootCertStore::empty();
            for cert in CertificateDer::pem_file_iter(path).map_err(|e| bad("client_ca", path, &e))? {
                roots.add(cert.map_err(|e| bad("client_ca", path, &e))?).map_err(|e| bad("client_ca", path, &e))?;
            }
            let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                .build()
                .map_err(|e| bad("client_ca", path, &e))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config = builder.with_single_cert(chain, key).map_err(|e| bad("cert", &tls.cert, &e))?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(tokio_rustls::TlsAcceptor::from(Arc::new(config)))
}
