//! Blobs as the writer and the readers see them: files beside a store that is a file, rows of the table `blob` on a server.

use std::sync::Arc;
use std::time::Duration;

use agent_core::{AgentError, Reason};
use agent_proto::agents::v1 as pb;
use prost::Message;

use super::{Db, all, one};
use crate::blob::folder::{Folder, Search};
use crate::blob::{Address, Addresses, BLOB_BYTES, Parts};
use crate::fault;
use crate::record::Record;

/// Rows that one look goes through.
const LOOK_ROWS: i64 = 200;
/// Whether a row names an address; each column has an index of what is not null.
const NAMED: [&str; 3] = [
    "SELECT 1 FROM task WHERE spec_blob = ?1 LIMIT 1",
    "SELECT 1 FROM task WHERE result_blob = ?1 LIMIT 1",
    "SELECT 1 FROM journal WHERE blob = ?1 LIMIT 1",
];

/// Where blobs are kept.
#[derive(Clone)]
pub(crate) enum Shelf {
    /// In files.
    Folder(Arc<Folder>),
    /// In the table `blob`: in the transaction of the row that names them.
    Table,
}

/// The blobs of one store.
#[derive(Clone)]
pub(crate) struct Blobs {
    addresses: Addresses,
    shelf: Shelf,
}

/// How far a search for what no row names has come.
pub(super) enum Searched {
    Files(Search),
    Rows(Vec<u8>),
}

/// The secret behind the addresses of a database, made with it.
pub(crate) fn secret(db: &mut dyn Db) -> Result<Addresses, AgentError> {
    db.execute("INSERT INTO secret VALUES('blobs', ?1) ON CONFLICT (name) DO NOTHING", &[Addresses::new_secret().as_slice().into()])?;
    let found = one(db, "SELECT data FROM secret WHERE name = 'blobs'", &[], |r| r.blob(0))?;
    let secret = found.and_then(|bytes| bytes.try_into().ok());
    secret.map(Addresses::new).ok_or_else(|| AgentError::new(Reason::StoreCorrupt, "the secret of the blobs is damaged"))
}

impl Blobs {
    pub(crate) fn new(addresses: Addresses, shelf: Shelf) -> Self {
        Self { addresses, shelf }
    }

    /// Puts a message into a blob if it is too large for a row.
    pub(super) fn put_message(
        &self,
        db: &mut dyn Db,
        tenant: &str,
        message: &impl Message,
        now_ms: i64,
    ) -> Result<Option<Address>, AgentError> {
        if message.encoded_len() <= BLOB_BYTES {
            return Ok(None);
        }
        self.put(db, tenant, &message.encode_to_vec(), now_ms)
    }

    /// Puts content into a blob if it is too large for a row.
    pub(super) fn put(&self, db: &mut dyn Db, tenant: &str, content: &[u8], now_ms: i64) -> Result<Option<Address>, AgentError> {
        if content.len() <= BLOB_BYTES {
            return Ok(None);
        }
        let address = self.addresses.of(tenant, content);
        match &self.shelf {
            Shelf::Folder(folder) => folder.put(&address, content)?,
            Shelf::Table => db.send(
                "INSERT INTO blob VALUES(?1, ?2, ?3, ?4) ON CONFLICT (address) DO UPDATE SET touched_ms = excluded.touched_ms",
                &[address.0.as_slice().into(), tenant.into(), now_ms.into(), content.into()],
                false,
            )?,
        }
        Ok(Some(address))
    }

    /// What was put stays, from now on; before the commit of the rows that name it.
    pub(super) fn seal(&self) -> Result<(), AgentError> {
        if let Shelf::Folder(folder) = &self.shelf {
            folder.sync()?;
        }
        fault::point("blob", "sealed");
        Ok(())
    }

    /// The content of a blob. Errors: STORE_CORRUPT if it is missing or not what it was.
    pub(super) fn get(&self, db: &mut dyn Db, tenant: &str, address: &Address) -> Result<Vec<u8>, AgentError> {
        let found = match &self.shelf {
            Shelf::Folder(folder) => folder.get(address)?,
            Shelf::Table => one(db, "SELECT data FROM blob WHERE address = ?1", &[address.0.as_slice().into()], |r| r.blob(0))?,
        };
        let content = found.ok_or_else(|| address.corrupt("missing"))?;
        if self.addresses.of(tenant, &content) == *address { Ok(content) } else { Err(address.corrupt("damaged")) }
    }

    /// Puts into a task what its row does not hold.
    pub(super) fn fill(&self, db: &mut dyn Db, tenant: &str, parts: &Parts, task: &mut pb::Task) -> Result<(), AgentError> {
        if let Some(address) = &parts.spec {
            task.spec = Some(self.message(db, tenant, address)?);
        }
        if let Some(address) = &parts.result {
            task.result = Some(self.message(db, tenant, address)?);
        }
        Ok(())
    }

    /// The same for a record.
    pub(super) fn fill_record(&self, db: &mut dyn Db, record: &mut Record) -> Result<(), AgentError> {
        self.fill(db, &record.tenant, &record.parts, &mut record.task)
    }

    fn message<M: Message + Default>(&self, db: &mut dyn Db, tenant: &str, address: &Address) -> Result<M, AgentError> {
        M::decode(self.get(db, tenant, address)?.as_slice()).map_err(|_| address.corrupt("damaged"))
    }

    /// Begins to look for what no row names.
    pub(super) fn search(&self) -> Result<Searched, AgentError> {
        Ok(match &self.shelf {
            Shelf::Folder(folder) => Searched::Files(folder.search()?),
            Shelf::Table => Searched::Rows(Vec::new()),
        })
    }

    /// Goes on with it, for the writer alone: nothing is between its blob and its row meanwhile. True: there is more.
    pub(super) fn look(&self, db: &mut dyn Db, searched: &mut Searched, unnamed_for: Duration, now_ms: i64) -> Result<bool, AgentError> {
        match (&self.shelf, searched) {
            (Shelf::Folder(folder), Searched::Files(search)) => folder.look(search, unnamed_for, &mut |address| is_named(db, address)),
            (_, Searched::Rows(from)) => {
                let before = now_ms - i64::try_from(unnamed_for.as_millis()).unwrap_or(i64::MAX);
                let page = "SELECT address FROM blob WHERE address > ?1 ORDER BY address LIMIT ?2";
                let page = all(db, page, &[(&*from).into(), LOOK_ROWS.into()], |r| r.blob(0))?;
                let Some(to) = page.last() else { return Ok(false) };
                db.execute(
                    "DELETE FROM blob WHERE address > ?1 AND address <= ?2 AND touched_ms <= ?3
                        AND NOT EXISTS (SELECT 1 FROM task WHERE spec_blob = blob.address)
                        AND NOT EXISTS (SELECT 1 FROM task WHERE result_blob = blob.address)
                        AND NOT EXISTS (SELECT 1 FROM journal WHERE journal.blob = blob.address)",
                    &[(&*from).into(), to.into(), before.into()],
                )?;
                from.clone_from(to);
                Ok(true)
            }
            (Shelf::Table, Searched::Files(_)) => Ok(false),
        }
    }
}

fn is_named(db: &mut dyn Db, address: &Address) -> Result<bool, AgentError> {
    for sql in NAMED {
        if one(db, sql, &[address.0.as_slice().into()], |_| Ok(()))?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}
