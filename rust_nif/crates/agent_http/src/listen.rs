//! The listener: accept, HTTP/1.1, drain.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use agent_core::{AgentError, Reason};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};

use crate::{Door, HttpConfig, routes};

/// Connections at once.
const MAX_CONNECTIONS: usize = 10_000;
/// A connection whose next request does not come by then is closed; clients open another one.
const IDLE: Duration = Duration::from_secs(75);
/// Bytes of a request's head.
const HEAD_BYTES: usize = 64 * 1024;
/// Answers under way may take so long to end once the listener stops.
const DRAIN: Duration = Duration::from_secs(30);

/// A running listener; dropping it ends it.
pub struct Listener {
    /// Where it listens.
    pub address: SocketAddr,
    stop: watch::Sender<bool>,
}

impl Listener {
    /// Takes nothing more; answers under way are finished.
    pub fn stop(&self) {
        let _ = self.stop.send(true);
    }
}

/// Binds and serves until stopped; `on_end` hears once. Errors: the address cannot be listened on.
pub async fn serve(config: &HttpConfig, door: Door, on_end: impl FnOnce(String) + Send + 'static) -> Result<Listener, AgentError> {
    let fail = |e: std::io::Error| {
        let what = format!("[server] http_address = \"{}\": {e}; choose another one, or \"off\"", config.address);
        AgentError::new(Reason::StoreUnavailable, what)
    };
    let tcp = TcpListener::bind(&config.address).await.map_err(fail)?;
    let address = tcp.local_addr().map_err(fail)?;
    let (stop, stopped) = watch::channel(false);
    tokio::spawn(async move {
        accept(tcp, door, stopped).await;
        on_end("stopped".to_owned());
    });
    Ok(Listener { address, stop })
}

async fn accept(tcp: TcpListener, door: Door, mut stopped: watch::Receiver<bool>) {
    let (slots, graceful) = (Arc::new(Semaphore::new(MAX_CONNECTIONS)), GracefulShutdown::new());
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(IDLE).max_buf_size(HEAD_BYTES).keep_alive(true);
    loop {
        let stream = tokio::select! {
            // An error: whoever could stop it is gone.
            () = async { let _ = stopped.wait_for(|s| *s).await; } => break,
            accepted = tcp.accept() => match accepted {
                Ok((stream, _)) => stream,
                // Out of descriptors: the next one may go.
                Err(_) => { tokio::time::sleep(Duration::from_millis(50)).await; continue }
            },
        };
        let Ok(slot) = slots.clone().try_acquire_owned() else { continue };
        let _ = stream.set_nodelay(true);
        let door = door.clone();
        let service = service_fn(move |request| {
            let door = door.clone();
            async move { Ok::<_, std::convert::Infallible>(routes::answer(&door, request).await) }
        });
        let connection = graceful.watch(http.serve_connection(TokioIo::new(stream), service));
        tokio::spawn(async move {
            let _slot = slot;
            // A client that goes, or sends what is not HTTP, is its own business.
            let _ = connection.await;
        });
    }
    drop(tcp);
    let _ = tokio::time::timeout(DRAIN, graceful.shutdown()).await;
}
