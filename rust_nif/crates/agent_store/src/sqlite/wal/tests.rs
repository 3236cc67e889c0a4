use super::*;
use rusqlite::Connection;

const PAGE: usize = 8192;
const COMMITS: usize = 6;

/// A log that SQLite itself wrote, one row a commit.
fn log() -> Vec<u8> {
    let dir = std::env::temp_dir().join(format!("wal-{}", uuid::Uuid::new_v4()));
    std::fs::create_dir_all(&dir).unwrap();
    let path = dir.join("t.db");
    let db = Connection::open(&path).unwrap();
    db.execute_batch("PRAGMA page_size=8192; PRAGMA journal_mode=WAL; PRAGMA wal_autocheckpoint=0; CREATE TABLE t(x)").unwrap();
    for row in 0..COMMITS {
        db.execute("INSERT INTO t VALUES(?1)", [row as i64]).unwrap();
    }
    let bytes = std::fs::read(dir.join("t.db-wal")).unwrap();
    drop(db);
    std::fs::remove_dir_all(&dir).unwrap();
    bytes
}

fn frames(log: &[u8]) -> usize {
    (log.len() - HEADER_BYTES) / (FRAME_HEADER_BYTES + PAGE)
}

/// The log with one bit of the page of a frame flipped.
fn flipped(mut log: Vec<u8>, frame: usize) -> Vec<u8> {
    log[HEADER_BYTES + (frame - 1) * (FRAME_HEADER_BYTES + PAGE) + FRAME_HEADER_BYTES + 100] ^= 1;
    log
}

#[test]
fn a_whole_log_and_one_cut_short_lose_nothing() {
    let log = log();
    assert!(frames(&log) > COMMITS);
    assert_eq!(walk(&mut &log[..]).unwrap(), None);
    assert_eq!(walk(&mut &log[..log.len() - 10]).unwrap(), None);
    assert_eq!(walk(&mut &[][..]).unwrap(), None);
}

#[test]
fn a_flipped_bit_before_later_commits_is_a_loss_with_its_range() {
    let log = log();
    let last = frames(&log);
    for frame in 1..last {
        let lost = walk(&mut &flipped(log.clone(), frame)[..]).unwrap();
        assert_eq!(lost, Some(Lost { first: frame as u64, last: last as u64 }), "frame {frame}");
    }
}

#[test]
fn damage_in_the_last_commit_looks_like_one_that_was_never_acknowledged() {
    let log = log();
    let last = frames(&log);
    assert_eq!(walk(&mut &flipped(log, last)[..]).unwrap(), None);
}

#[test]
fn frames_of_an_older_log_behind_the_end_are_no_loss() {
    let mut log = log();
    let at = HEADER_BYTES + (FRAME_HEADER_BYTES + PAGE);
    for frame in log[at..].chunks_exact_mut(FRAME_HEADER_BYTES + PAGE) {
        frame[8] ^= 1;
    }
    assert_eq!(walk(&mut &log[..]).unwrap(), None);
}
