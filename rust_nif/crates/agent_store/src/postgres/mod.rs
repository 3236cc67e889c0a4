//! The back end on a server: PostgreSQL 15 or newer.
//!
//! One connection writes, and holds an advisory lock while it lives, so that a second node is refused. Every transaction checks the epoch of
//! this boot: a node that was overtaken can write nothing more. When the server is away its connection is made anew, and a row that every
//! batch writes tells whether the last one had been committed; so no outcome is ever in doubt while the node lives.

mod db;

use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use agent_core::{AgentError, Reason};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use tokio::runtime::{Handle, Runtime};
use tokio_postgres::config::{Host, SslMode};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Config, NoTls};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::durable::refuse;
use crate::spool::Spool;
use crate::sql::blobs::{self, Blobs, Shelf};
use crate::sql::{Db, Opened, Param, all, schema};
use db::{Connection, ServerReaders, ServerWriter};

/// For making a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Oldest server.
const OLDEST: i64 = 150_000;
/// Key of the advisory lock: one node writes to a database.
const LOCK: i64 = 0x5347_4C52_0001;
/// A lock of a node that was just killed is waited for.
const LOCK_TRIES: u32 = 20;
const LOCK_PAUSE: Duration = Duration::from_millis(250);

/// Where the server is, and what drives the connections to it.
pub(super) struct Server {
    config: Config,
    /// None: the way there is trusted.
    tls: Option<MakeRustlsConnect>,
    runtime: Option<Runtime>,
}

impl Drop for Server {
    fn drop(&mut self) {
        // Dropped on a thread of another runtime it would be waited for, which is forbidden there.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Server {
    fn new(url: &str, ca: Option<&Path>) -> Result<Self, AgentError> {
        let refused = |why: &str| refuse(AgentError::new(Reason::StoreUnavailable, format!("[store] url: {why}")));
        // The parser's own words could hold the password.
        let mut config = Config::from_str(url).map_err(|_| refused("is no PostgreSQL URL, as in postgres://user@host/database"))?;
        let local = |host: &Host| match host {
            Host::Tcp(name) => matches!(name.as_str(), "localhost" | "127.0.0.1" | "::1"),
            Host::Unix(_) => true,
        };
        // Across a network a server proves who it is, unless somebody has said that this network is trusted.
        if config.get_ssl_mode() == SslMode::Prefer {
            config.ssl_mode(if config.get_hosts().iter().all(local) { SslMode::Disable } else { SslMode::Require });
        }
        let tls = (config.get_ssl_mode() != SslMode::Disable).then(|| tls(ca)).transpose().map_err(|why| refused(&why))?;
        config.connect_timeout(CONNECT_TIMEOUT).keepalives_idle(Duration::from_secs(10)).application_name("singularity");
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("store-server")
            .enable_all()
            .build()
            .map_err(|e| refused(&e.to_string()))?;
        Ok(Self { config, tls, runtime: Some(runtime) })
    }

    /// Waits for an answer, whatever thread it is asked on; a server that is silent for so long counts as away.
    fn wait<T>(&self, limit: Duration, answer: impl Future<Output = Result<T, tokio_postgres::Error>>) -> Result<T, Failed> {
        let Some(runtime) = &self.runtime else { return Err(Failed::Silent) };
        let block = || runtime.block_on(async { tokio::time::timeout(limit, answer).await });
        let inside = Handle::try_current().is_ok();
        match if inside { tokio::task::block_in_place(block) } else { block() } {
            Ok(answer) => answer.map_err(Failed::Said),
            Err(_) => Err(Failed::Silent),
        }
    }

    fn connect(self: &Arc<Self>) -> Result<Connection, AgentError> {
        let runtime = self.runtime.as_ref().map(Runtime::handle);
        let connected = self.wait(CONNECT_TIMEOUT * 2, async {
            let client = match self.tls.clone() {
                Some(tls) => driven(runtime, self.config.connect(tls).await?),
                None => driven(runtime, self.config.connect(NoTls).await?),
            };
            // A commit that was answered is on stable storage, whatever the server's default is.
            client.batch_execute("SET synchronous_commit = on; SET idle_in_transaction_session_timeout = '60s'").await?;
            Ok(client)
        });
        Ok(Connection::new(self.clone(), connected.map_err(|e| e.error())?))
    }
}

/// Starts what drives a connection.
fn driven<S, T>(runtime: Option<&Handle>, (client, connection): (Client, tokio_postgres::Connection<S, T>)) -> Client
where
    tokio_postgres::Connection<S, T>: Future + Send + 'static,
    <tokio_postgres::Connection<S, T> as Future>::Output: Send,
{
    if let Some(runtime) = runtime {
        runtime.spawn(connection);
    }
    client
}

/// TLS that asks the server for a certificate; those of the file, or of the system, may vouch for it.
fn tls(ca: Option<&Path>) -> Result<MakeRustlsConnect, String> {
    let mut trusted = RootCertStore::empty();
    match ca {
        Some(file) => {
            let unreadable = |e: &dyn std::fmt::Display| format!("ca {}: {e}", file.display());
            for certificate in CertificateDer::pem_file_iter(file).map_err(|e| unreadable(&e))? {
                trusted.add(certificate.map_err(|e| unreadable(&e))?).map_err(|e| unreadable(&e))?;
            }
        }
        None => {
            trusted.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .with_root_certificates(trusted)
        .with_no_client_auth();
    Ok(MakeRustlsConnect::new(config))
}

/// Why there is no answer.
enum Failed {
    /// The server, or the connection to it, gave an error.
    Said(tokio_postgres::Error),
    /// Nothing came in time.
    Silent,
}

impl Failed {
    fn error(&self) -> AgentError {
        match self {
            Failed::Said(e) => unavailable(e),
            Failed::Silent => away("PostgreSQL does not answer"),
        }
    }
}

fn away(why: &str) -> AgentError {
    AgentError::new(Reason::StoreUnavailable, why).retry_after(1000)
}

/// The server's words without their details, which may quote a row.
fn unavailable(e: &tokio_postgres::Error) -> AgentError {
    let Some(said) = e.as_db_error() else {
        let cause = std::error::Error::source(e).map_or_else(String::new, |cause| format!(": {cause}"));
        return away(&format!("PostgreSQL: {e}{cause}"));
    };
    let reason = match *said.code() {
        SqlState::DISK_FULL => Reason::DiskLow,
        SqlState::DATA_CORRUPTED | SqlState::INDEX_CORRUPTED => Reason::StoreCorrupt,
        _ => Reason::StoreUnavailable,
    };
    AgentError::new(reason, format!("PostgreSQL answered {}: {}", said.code().code(), said.message())).retry_after(1000)
}

/// Opens the database and brings its tables up to date; it belongs to one node at a time.
pub(crate) fn open(url: &str, spool: &Path, ca: Option<&Path>) -> Result<Opened, AgentError> {
    let server = Arc::new(Server::new(url, ca)?);
    let mut db = server.connect()?;
    let number = setting(&mut db, "server_version_num")?.parse().unwrap_or(0);
    if number < OLDEST {
        let old = format!("PostgreSQL {number} is too old; 15 or newer is needed");
        return Err(refuse(AgentError::new(Reason::StoreUnavailable, old)));
    }
    let version = format!("PostgreSQL {}, fsync {}", setting(&mut db, "server_version")?, setting(&mut db, "fsync")?);
    for tries in 1.. {
        if lock(&mut db)? {
            break;
        }
        if tries == LOCK_TRIES {
            return Err(refuse(AgentError::new(Reason::StoreUnavailable, "the database is in use by another node")));
        }
        std::thread::sleep(LOCK_PAUSE);
    }
    db.batch("BEGIN")?;
    migrate(&mut db)?;
    let epoch = number_of(&mut db, "UPDATE meta SET value = value + 1 WHERE key = 'epoch' RETURNING value")?;
    let batch = number_of(&mut db, "SELECT value FROM meta WHERE key = 'batch'")?;
    let blobs = Blobs::new(blobs::secret(&mut db)?, Shelf::Table);
    db.batch("COMMIT")?;
    Ok(Opened {
        writer: Box::new(ServerWriter::new(db, epoch, batch)),
        readers: Arc::new(ServerReaders::new(server)),
        blobs,
        spool: Some(Spool::new(spool)),
        epoch,
        version,
    })
}

/// Whether this connection now holds the lock of the one node.
fn lock(db: &mut Connection) -> Result<bool, AgentError> {
    Ok(number_of(db, &format!("SELECT CASE WHEN pg_try_advisory_lock({LOCK}) THEN 1::bigint ELSE 0::bigint END"))? == 1)
}

fn migrate(db: &mut Connection) -> Result<(), AgentError> {
    let known = number_of(db, "SELECT count(*) FROM pg_tables WHERE tablename = 'meta' AND schemaname = current_schema()")?;
    let version = if known == 0 { 0 } else { number_of(db, "SELECT value FROM meta WHERE key = 'schema'")? };
    for migration in schema::missing(version)? {
        db.batch(&schema::for_postgres(migration))?;
    }
    if version == 0 {
        db.batch("INSERT INTO meta VALUES('schema', 0), ('batch', 0)")?;
    }
    db.execute("UPDATE meta SET value = ?1 WHERE key = 'schema'", &[schema::SCHEMA.into()]).map(|_| ())
}

fn number_of(db: &mut Connection, sql: &str) -> Result<i64, AgentError> {
    all(db, sql, &[], |r| r.int(0))?.pop().ok_or_else(|| away("a row is missing in the table meta"))
}

fn setting(db: &mut Connection, name: &str) -> Result<String, AgentError> {
    let found = all(db, "SELECT current_setting(?1)", &[Param::Text(name)], |r| r.text(0))?;
    Ok(found.into_iter().next().unwrap_or_default())
}

/// For tests: an empty database on a server.
#[cfg(test)]
pub(crate) fn make_database(url: &str, name: &str) -> Result<(), AgentError> {
    Arc::new(Server::new(url, None)?).connect()?.batch(&format!("CREATE DATABASE \"{name}\""))
}

/// For tests: what a query gives.
#[cfg(test)]
pub(crate) fn number(url: &str, sql: &str) -> i64 {
    let server = Arc::new(Server::new(url, None).unwrap_or_else(|e| panic!("{e}")));
    server.connect().and_then(|mut db| number_of(&mut db, sql)).unwrap_or_else(|e| panic!("{e}"))
}
