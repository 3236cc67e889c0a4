//! Connections to the server.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use agent_core::{AgentError, Reason};
use futures::TryStreamExt;
use parking_lot::{Condvar, Mutex};
use tokio_postgres::types::{IsNull, ToSql, Type, private::BytesMut};
use tokio_postgres::{Client, Statement};

use super::{Failed, Server, away, lock, number_of, unavailable};
use crate::sql::{Db, Mended, Param, ReadPool, Row, WriterDb, overtaken};

/// A statement that changes something, and a commit, answer within this.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);
/// A statement that reads.
const READ_TIMEOUT: Duration = Duration::from_secs(15);
/// A server that was away for so long is given up: the store ends, and is started anew.
const GIVE_UP: Duration = Duration::from_secs(600);
/// Between two tries to reach it; the second half of it is chance.
const TRY_EVERY: Duration = Duration::from_millis(500);
/// Connections for reading.
const READERS: usize = 8;
/// A reader waits for a free one, then the store is unavailable.
const READER_WAIT: Duration = Duration::from_secs(5);

/// A connection that remembers its statements.
pub(super) struct Connection {
    server: Arc<Server>,
    /// None after a statement was not answered in time: what came next could be its answer, and the server should end what it does for us.
    client: Option<Client>,
    statements: HashMap<String, Statement>,
}

impl Connection {
    pub(super) fn new(server: Arc<Server>, client: Client) -> Self {
        Self { server, client: Some(client), statements: HashMap::new() }
    }

    fn lost(&self) -> bool {
        self.client.as_ref().is_none_or(Client::is_closed)
    }

    /// Asks, and waits for the answer.
    fn ask<T>(
        &mut self,
        limit: Duration,
        question: impl AsyncFnOnce(&Client) -> Result<T, tokio_postgres::Error>,
    ) -> Result<T, AgentError> {
        let client = self.client.take().ok_or_else(|| Failed::Silent.error())?;
        let answer = self.server.wait(limit, question(&client));
        if !matches!(answer, Err(Failed::Silent)) {
            self.client = Some(client);
        }
        answer.map_err(|e| e.error())
    }

    fn prepared(&mut self, sql: &str) -> Result<Statement, AgentError> {
        if let Some(known) = self.statements.get(sql) {
            return Ok(known.clone());
        }
        let statement = self.ask(WRITE_TIMEOUT, async |client| client.prepare(&sql.replace('?', "$")).await)?;
        self.statements.insert(sql.to_owned(), statement.clone());
        Ok(statement)
    }
}

impl ToSql for Param<'_> {
    fn to_sql(&self, ty: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        match self {
            Param::Int(n) => n.to_sql(ty, out),
            Param::Text(text) => text.to_sql(ty, out),
            Param::Blob(bytes) => bytes.to_sql(ty, out),
            Param::Null => Ok(IsNull::Yes),
        }
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    tokio_postgres::types::to_sql_checked!();
}

impl Row for tokio_postgres::Row {
    fn int(&self, column: usize) -> Result<i64, AgentError> {
        self.try_get(column).map_err(|e| unavailable(&e))
    }

    fn text(&self, column: usize) -> Result<String, AgentError> {
        self.try_get(column).map_err(|e| unavailable(&e))
    }

    fn bytes(&self, column: usize) -> Result<Option<Vec<u8>>, AgentError> {
        self.try_get(column).map_err(|e| unavailable(&e))
    }
}

fn references<'a>(params: &'a [Param<'a>]) -> impl ExactSizeIterator<Item = &'a (dyn ToSql + Sync)> {
    params.iter().map(|p| p as &(dyn ToSql + Sync))
}

impl Db for Connection {
    fn execute(&mut self, sql: &str, params: &[Param<'_>]) -> Result<u64, AgentError> {
        let statement = self.prepared(sql)?;
        self.ask(WRITE_TIMEOUT, async |client| client.execute_raw(&statement, references(params)).await)
    }

    fn each(&mut self, sql: &str, params: &[Param<'_>], row: &mut dyn FnMut(&dyn Row) -> Result<(), AgentError>) -> Result<(), AgentError> {
        let statement = self.prepared(sql)?;
        let found =
            self.ask(READ_TIMEOUT, async |client| client.query_raw(&statement, references(params)).await?.try_collect::<Vec<_>>().await)?;
        found.iter().try_for_each(|found| row(found))
    }

    fn batch(&mut self, sql: &str) -> Result<(), AgentError> {
        self.ask(WRITE_TIMEOUT, async |client| client.batch_execute(sql).await)
    }
}

/// A value that waits to be sent.
enum Owned {
    Int(i64),
    Text(String),
    Blob(Vec<u8>),
    Null,
}

impl From<&Param<'_>> for Owned {
    fn from(param: &Param<'_>) -> Self {
        match param {
            Param::Int(n) => Owned::Int(*n),
            Param::Text(text) => Owned::Text((*text).to_owned()),
            Param::Blob(bytes) => Owned::Blob(bytes.to_vec()),
            Param::Null => Owned::Null,
        }
    }
}

impl Owned {
    fn param(&self) -> Param<'_> {
        match self {
            Owned::Int(n) => Param::Int(*n),
            Owned::Text(text) => Param::Text(text),
            Owned::Blob(bytes) => Param::Blob(bytes),
            Owned::Null => Param::Null,
        }
    }
}

/// A statement that waits to be sent with others.
struct Pending {
    statement: Statement,
    params: Vec<Owned>,
    one: bool,
}

/// The writer's connection. What needs no answer at once is sent together with the next statement that does, so that a batch waits for a
/// few answers, not for one after each of its statements. Then a fault of one item is seen too late to be taken back alone: the batch is
/// written again, carefully.
pub(super) struct ServerWriter {
    db: Connection,
    epoch: i64,
    /// Number of the batch that is written.
    batch: i64,
    failing_since: Option<Instant>,
    pending: Vec<Pending>,
    careful: bool,
}

impl ServerWriter {
    pub(super) fn new(db: Connection, epoch: i64, batch: i64) -> Self {
        Self { db, epoch, batch, failing_since: None, pending: Vec::new(), careful: false }
    }

    fn overtaken() -> AgentError {
        AgentError::new(Reason::StoreUnavailable, "another node has taken over the database")
    }

    /// Sends what waits, and then asks; the answers come in the same order.
    fn flush<T>(
        &mut self,
        limit: Duration,
        question: impl AsyncFnOnce(&Client) -> Result<T, tokio_postgres::Error>,
    ) -> Result<T, AgentError> {
        let pending = std::mem::take(&mut self.pending);
        let params: Vec<Vec<Param<'_>>> = pending.iter().map(|p| p.params.iter().map(Owned::param).collect()).collect();
        let (rows, answer) = self.db.ask(limit, async |client| {
            let sent = pending.iter().zip(&params).map(|(p, params)| client.execute_raw(&p.statement, references(params)));
            // Polled in this order, and so sent in it.
            futures::future::try_join(futures::future::try_join_all(sent), question(client)).await
        })?;
        match rows.iter().zip(&pending).all(|(rows, p)| !p.one || *rows == 1) {
            true => Ok(answer),
            false => Err(overtaken()),
        }
    }

    /// A new connection with the lock, and whether the last batch had been committed; None: not yet.
    fn again(&mut self) -> Result<Option<bool>, AgentError> {
        let mut db = self.db.server.connect()?;
        if number_of(&mut db, "SELECT value FROM meta WHERE key = 'epoch'")? != self.epoch {
            return Ok(None);
        }
        if !lock(&mut db)? {
            return Err(away("the server still holds the lost connection"));
        }
        let last = number_of(&mut db, "SELECT value FROM meta WHERE key = 'batch'")?;
        self.db = db;
        Ok(Some(last == self.batch))
    }
}

impl Db for ServerWriter {
    fn execute(&mut self, sql: &str, params: &[Param<'_>]) -> Result<u64, AgentError> {
        let statement = self.db.prepared(sql)?;
        self.flush(WRITE_TIMEOUT, async |client| client.execute_raw(&statement, references(params)).await)
    }

    fn each(&mut self, sql: &str, params: &[Param<'_>], row: &mut dyn FnMut(&dyn Row) -> Result<(), AgentError>) -> Result<(), AgentError> {
        let statement = self.db.prepared(sql)?;
        let found =
            self.flush(READ_TIMEOUT, async |client| client.query_raw(&statement, references(params)).await?.try_collect::<Vec<_>>().await)?;
        found.iter().try_for_each(|found| row(found))
    }

    fn batch(&mut self, sql: &str) -> Result<(), AgentError> {
        self.flush(WRITE_TIMEOUT, async |client| client.batch_execute(sql).await)
    }

    fn send(&mut self, sql: &str, params: &[Param<'_>], one: bool) -> Result<(), AgentError> {
        let statement = self.db.prepared(sql)?;
        self.pending.push(Pending { statement, params: params.iter().map(Owned::from).collect(), one });
        // While each item stands alone, it hears of its own faults.
        if self.careful { self.flush(WRITE_TIMEOUT, async |_| Ok(())) } else { Ok(()) }
    }
}

impl WriterDb for ServerWriter {
    fn begin(&mut self) -> Result<(), AgentError> {
        self.batch += 1;
        self.send("BEGIN", &[], false)?;
        let sql = "UPDATE meta SET value = ?1 WHERE key = 'batch' AND EXISTS (SELECT 1 FROM meta WHERE key = 'epoch' AND value = ?2)";
        let numbers = [self.batch.into(), self.epoch.into()];
        if !self.careful {
            return self.send(sql, &numbers, true);
        }
        match self.execute(sql, &numbers)? {
            1 => Ok(()),
            _ => Err(Self::overtaken()),
        }
    }

    fn commit(&mut self) -> Result<(), AgentError> {
        // Only when every statement has changed what it should.
        self.flush(WRITE_TIMEOUT, async |_| Ok(()))?;
        self.db.batch("COMMIT")
    }

    fn careful(&self) -> bool {
        self.careful
    }

    fn lost(&self) -> bool {
        self.db.lost()
    }

    fn comes_back(&self) -> bool {
        true
    }

    fn mend(&mut self, why: AgentError, waiting: &mut dyn FnMut() -> bool) -> Mended {
        self.pending.clear();
        if !self.careful && !self.db.lost() && self.db.batch("ROLLBACK").is_ok() {
            self.careful = true;
            return Mended::Again;
        }
        // The server gives the lock back when it has ended the old connection, and with it whatever was under way there.
        self.db.client = None;
        let since = *self.failing_since.get_or_insert_with(Instant::now);
        loop {
            if !waiting() || since.elapsed() > GIVE_UP {
                return Mended::Ended(why);
            }
            match self.again() {
                Ok(Some(true)) => return Mended::Committed,
                Ok(Some(false)) => return Mended::Again,
                Ok(None) => return Mended::Ended(Self::overtaken()),
                Err(_) => {
                    let chance = u64::from(uuid::Uuid::new_v4().as_bytes()[0]);
                    std::thread::sleep(TRY_EVERY / 2 + TRY_EVERY.mul_f64(chance as f64 / 512.0));
                }
            }
        }
    }

    fn committed(&mut self) -> Result<(), AgentError> {
        self.failing_since = None;
        self.careful = false;
        Ok(())
    }
}

/// A bounded number of connections for reading.
pub(super) struct ServerReaders {
    server: Arc<Server>,
    pool: Mutex<Pool>,
    freed: Condvar,
}

#[derive(Default)]
struct Pool {
    idle: Vec<Connection>,
    out: usize,
}

impl ServerReaders {
    pub(super) fn new(server: Arc<Server>) -> Self {
        Self { server, pool: Mutex::default(), freed: Condvar::new() }
    }

    fn take(&self) -> Result<Option<Connection>, AgentError> {
        let until = Instant::now() + READER_WAIT;
        let mut pool = self.pool.lock();
        while pool.out >= READERS {
            if self.freed.wait_until(&mut pool, until).timed_out() {
                return Err(away("every connection for reading is in use"));
            }
        }
        pool.out += 1;
        Ok(pool.idle.pop())
    }
}

impl ReadPool for ServerReaders {
    fn with(&self, f: &mut dyn FnMut(&mut dyn Db) -> Result<(), AgentError>) -> Result<(), AgentError> {
        let idle = self.take()?.filter(|db| !db.lost());
        let mut back = None;
        let result = idle.map_or_else(|| self.server.connect(), Ok).and_then(|mut db| {
            let result = f(&mut db);
            back = Some(db).filter(|db| !db.lost());
            result
        });
        let mut pool = self.pool.lock();
        pool.out -= 1;
        pool.idle.extend(back);
        drop(pool);
        self.freed.notify_one();
        result
    }
}
