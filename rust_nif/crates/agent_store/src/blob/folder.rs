//! Blobs of a store that is a file: files of their own in a folder beside it.
//!
//! A blob is written under another name, synced, and renamed; before the row that names it is committed the folder is synced. So a file with
//! an address for a name is whole and stays, unless the disk is damaged; what a crash leaves is a file that no row names. The one thread
//! that writes rows also writes blobs and looks for what no row names, so that neither can be between the other's steps.

use std::fs::{File, OpenOptions, ReadDir};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use agent_core::{AgentError, Reason};

use super::Address;
use crate::fault;

/// Ends the name of a file that is not whole yet.
const PART: &str = ".part";
/// Whoever holds it shared keeps all files where they are: a backup.
const PAUSE: &str = ".pause";
/// Where files that no row names wait for their end.
const TRASH: &str = "trash";
/// They wait so long at most; as long as they had to be old, if that is less.
const TRASH_TIME: Duration = Duration::from_secs(3600);
/// Files that one look goes through.
const LOOK_FILES: usize = 200;

/// The folder.
pub(crate) struct Folder {
    path: PathBuf,
}

fn io(path: &Path, e: &std::io::Error) -> AgentError {
    let reason = match e.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Reason::DiskLow,
        _ => Reason::StoreUnavailable,
    };
    AgentError::new(reason, format!("{}: {e}", path.display())).retry_after(1000)
}

fn sync_folder(path: &Path) -> std::io::Result<()> {
    File::open(path)?.sync_all()
}

impl Folder {
    /// In the folder of a store, which exists; makes what is missing.
    pub(crate) fn open(store: &Path) -> Result<Self, AgentError> {
        let path = store.join("blobs");
        let make = || {
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path.join(TRASH))?;
            OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path.join(PAUSE))?;
            sync_folder(&path)?;
            sync_folder(store)
        };
        make().map_err(|e| io(&path, &e))?;
        Ok(Self { path })
    }

    fn file(&self, address: &Address) -> PathBuf {
        self.path.join(address.to_string())
    }

    /// Puts content in its place; [`Self::sync`] makes it stay. What is there already is touched, what is there and damaged is healed.
    pub(crate) fn put(&self, address: &Address, content: &[u8]) -> Result<(), AgentError> {
        let file = self.file(address);
        if std::fs::read(&file).is_ok_and(|old| old == content) {
            return touch(&file).map_err(|e| io(&file, &e));
        }
        let part = self.path.join(format!("{address}{PART}"));
        let write = || {
            let mut out = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&part)?;
            out.write_all(content)?;
            fault::point("blob", "written");
            out.sync_all()?;
            fault::point("blob", "synced");
            std::fs::rename(&part, &file)
        };
        write().map_err(|e| {
            // The room may be needed by what comes next. What was not synced is never used.
            let _ = std::fs::remove_file(&part);
            io(&part, &e).with("table", "blob")
        })?;
        fault::point("blob", "renamed");
        Ok(())
    }

    /// Makes the names of what was put stay.
    pub(crate) fn sync(&self) -> Result<(), AgentError> {
        sync_folder(&self.path).map_err(|e| io(&self.path, &e))
    }

    /// The content of a blob, not compared with its address; None: it is not there.
    pub(crate) fn get(&self, address: &Address) -> Result<Option<Vec<u8>>, AgentError> {
        let file = self.file(address);
        match std::fs::read(&file) {
            Ok(content) => Ok(Some(content)),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            Err(e) => Err(io(&file, &e)),
        }
    }

    /// Begins to go through all files.
    pub(crate) fn search(&self) -> Result<Search, AgentError> {
        let files = std::fs::read_dir(&self.path).and_then(|here| Ok([here, std::fs::read_dir(self.path.join(TRASH))?]));
        Ok(Search { files: files.map_err(|e| io(&self.path, &e))?.into_iter().collect() })
    }

    /// Goes on with it; true: there is more. What no row names and was not touched for so long is put into the trash, what lies there for
    /// long enough is removed.
    pub(crate) fn look(
        &self,
        search: &mut Search,
        unnamed_for: Duration,
        is_named: &mut dyn FnMut(&Address) -> Result<bool, AgentError>,
    ) -> Result<bool, AgentError> {
        let pause = self.path.join(PAUSE);
        let lock = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&pause).map_err(|e| io(&pause, &e))?;
        if lock.try_lock().is_err() {
            // A backup is made; the next search finds the same.
            search.files.clear();
            return Ok(false);
        }
        for _ in 0..LOOK_FILES {
            let Some(files) = search.files.first_mut() else { return Ok(false) };
            match files.next() {
                Some(Ok(file)) => self.sort_out(&file.path(), unnamed_for, is_named)?,
                Some(Err(e)) => return Err(io(&self.path, &e)),
                None => drop(search.files.remove(0)),
            }
        }
        Ok(true)
    }

    fn sort_out(
        &self,
        file: &Path,
        unnamed_for: Duration,
        is_named: &mut dyn FnMut(&Address) -> Result<bool, AgentError>,
    ) -> Result<(), AgentError> {
        let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let in_trash = file.parent() != Some(self.path.as_path());
        let at_most = if in_trash { unnamed_for.min(TRASH_TIME) } else { unnamed_for };
        let whole = Address::of_name(name);
        if (whole.is_none() && !name.ends_with(PART)) || !older(file, at_most) {
            return Ok(());
        }
        let gone = match whole {
            Some(address) if !in_trash => {
                if is_named(&address)? {
                    return Ok(());
                }
                let trash = self.path.join(TRASH).join(name);
                // From now on it is as old as the trash counts.
                std::fs::rename(file, &trash).and_then(|()| touch(&trash))
            }
            _ => std::fs::remove_file(file),
        };
        gone.map_err(|e| io(file, &e))
    }
}

/// A walk through the folder and its trash.
pub(crate) struct Search {
    files: Vec<ReadDir>,
}

fn touch(file: &Path) -> std::io::Result<()> {
    File::options().write(true).open(file)?.set_modified(SystemTime::now())
}

/// Whether a file was not touched for so long. One from the future was touched now.
fn older(file: &Path, than: Duration) -> bool {
    let touched = std::fs::metadata(file).and_then(|found| found.modified());
    touched.is_ok_and(|at| at.elapsed().unwrap_or_default() >= than)
}

#[cfg(test)]
mod tests;
