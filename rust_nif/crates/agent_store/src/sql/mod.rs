//! What the SQL back ends share: statements, rows, migrations, and the one writer. A back end brings its connection.
//!
//! Statements are written once, with `?1` for a parameter, in the part of SQL that SQLite and PostgreSQL agree on. Integers are 64 bits.

pub(crate) mod blobs;
pub(crate) mod chores;
mod items;
pub(crate) mod journal;
pub(crate) mod ledger;
pub(crate) mod memory;
pub(crate) mod queue;
pub(crate) mod reads;
pub(crate) mod records;
pub(crate) mod schedules;
pub(crate) mod schema;
pub(crate) mod store;
pub(crate) mod tasks;
pub(crate) mod writer;

use std::sync::Arc;

use agent_core::{AgentError, Reason};

use crate::spool::Spool;
use blobs::Blobs;

/// A value that is given to a statement.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Param<'a> {
    /// An integer.
    Int(i64),
    /// A text.
    Text(&'a str),
    /// Bytes.
    Blob(&'a [u8]),
    /// Nothing.
    Null,
}

impl From<i64> for Param<'_> {
    fn from(n: i64) -> Self {
        Param::Int(n)
    }
}

impl From<i32> for Param<'_> {
    fn from(n: i32) -> Self {
        Param::Int(n.into())
    }
}

impl From<u32> for Param<'_> {
    fn from(n: u32) -> Self {
        Param::Int(n.into())
    }
}

impl<'a> From<&'a str> for Param<'a> {
    fn from(text: &'a str) -> Self {
        Param::Text(text)
    }
}

impl<'a> From<&'a String> for Param<'a> {
    fn from(text: &'a String) -> Self {
        Param::Text(text)
    }
}

impl<'a> From<&'a [u8]> for Param<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        Param::Blob(bytes)
    }
}

impl<'a> From<&'a Vec<u8>> for Param<'a> {
    fn from(bytes: &'a Vec<u8>) -> Self {
        Param::Blob(bytes)
    }
}

impl<'a, T: Into<Param<'a>>> From<Option<T>> for Param<'a> {
    fn from(value: Option<T>) -> Self {
        value.map_or(Param::Null, Into::into)
    }
}

/// A row of a result; columns count from 0.
pub(crate) trait Row {
    /// An integer.
    fn int(&self, column: usize) -> Result<i64, AgentError>;
    /// A text.
    fn text(&self, column: usize) -> Result<String, AgentError>;
    /// Bytes, or nothing.
    fn bytes(&self, column: usize) -> Result<Option<Vec<u8>>, AgentError>;

    /// Bytes; nothing is none.
    fn blob(&self, column: usize) -> Result<Vec<u8>, AgentError> {
        Ok(self.bytes(column)?.unwrap_or_default())
    }
}

/// A connection.
pub(crate) trait Db {
    /// Changes; gives the number of rows.
    fn execute(&mut self, sql: &str, params: &[Param<'_>]) -> Result<u64, AgentError>;
    /// Reads row by row.
    fn each(&mut self, sql: &str, params: &[Param<'_>], row: &mut dyn FnMut(&dyn Row) -> Result<(), AgentError>) -> Result<(), AgentError>;
    /// Statements without parameters.
    fn batch(&mut self, sql: &str) -> Result<(), AgentError>;
    /// Changes, and does not say how many rows, so that a server may be told of it together with what follows, at the latest with the
    /// commit. `one`: if it is not exactly one row, somebody else has written, and that is an error; perhaps of the whole batch.
    fn send(&mut self, sql: &str, params: &[Param<'_>], one: bool) -> Result<(), AgentError> {
        match self.execute(sql, params)? {
            rows if one && rows != 1 => Err(overtaken()),
            _ => Ok(()),
        }
    }
}

/// Another writer was faster.
pub(crate) fn overtaken() -> AgentError {
    AgentError::new(Reason::AttemptFenced, "the row was changed by another writer")
}

/// All rows, read by a function.
pub(crate) fn all<T>(
    db: &mut dyn Db,
    sql: &str,
    params: &[Param<'_>],
    read: impl Fn(&dyn Row) -> Result<T, AgentError>,
) -> Result<Vec<T>, AgentError> {
    let mut found = Vec::new();
    db.each(sql, params, &mut |row| {
        found.push(read(row)?);
        Ok(())
    })?;
    Ok(found)
}

/// The first row, if there is one.
pub(crate) fn one<T>(
    db: &mut dyn Db,
    sql: &str,
    params: &[Param<'_>],
    read: impl Fn(&dyn Row) -> Result<T, AgentError>,
) -> Result<Option<T>, AgentError> {
    Ok(all(db, sql, params, read)?.into_iter().next())
}

/// What became of a batch that failed.
pub(crate) enum Mended {
    /// The store has ended, for this reason; whether the batch was committed is not known.
    Ended(AgentError),
    /// The batch had been committed.
    Committed,
    /// It had not; it is to be written again.
    Again,
}

/// The connection of the writer.
pub(crate) trait WriterDb: Db + Send {
    /// Begins the transaction of a batch.
    fn begin(&mut self) -> Result<(), AgentError>;
    /// Commits it: on stable storage when this returns.
    fn commit(&mut self) -> Result<(), AgentError>;
    /// Whether the connection is lost, so that nothing more can be done in this transaction.
    fn lost(&self) -> bool;
    /// Whether a lost connection may come back, so that batches are kept until they are committed.
    fn comes_back(&self) -> bool;
    /// Whether a fault of one item would end the whole transaction, so that each one needs a savepoint of its own.
    fn careful(&self) -> bool {
        false
    }
    /// After a batch failed as a whole: waits until the connection is back, or says that it will not be. `waiting` is called between the
    /// tries, and says whether there is any use in another one.
    fn mend(&mut self, why: AgentError, waiting: &mut dyn FnMut() -> bool) -> Mended;
    /// A batch was committed.
    fn committed(&mut self) -> Result<(), AgentError> {
        Ok(())
    }
    /// Whether there is work of its own that an idle writer should do soon.
    fn untidy(&self) -> bool {
        false
    }
    /// Does that work.
    fn tidy(&mut self) -> Result<(), AgentError> {
        Ok(())
    }
    /// After rows were deleted: gives their room back.
    fn shrink(&mut self) -> Result<(), AgentError> {
        Ok(())
    }
    /// Whether old tasks should go although their time is not over: the volume is nearly full, and of our rows.
    fn crowded(&self) -> bool {
        false
    }
}

/// Connections for reading, beside the writer and never behind it.
pub(crate) trait ReadPool: Send + Sync {
    /// Runs with a connection.
    fn with(&self, f: &mut dyn FnMut(&mut dyn Db) -> Result<(), AgentError>) -> Result<(), AgentError>;
}

/// What a back end gives once it is open.
pub(crate) struct Opened {
    pub writer: Box<dyn WriterDb>,
    pub readers: Arc<dyn ReadPool>,
    /// What is too large for a row.
    pub blobs: Blobs,
    /// Where paid answers are put down while the database is away.
    pub spool: Option<Spool>,
    pub epoch: i64,
    /// Name and version of the database program.
    pub version: String,
}
