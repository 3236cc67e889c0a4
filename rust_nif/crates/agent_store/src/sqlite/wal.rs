//! Finds commits that a damaged write-ahead log would lose.
//!
//! SQLite stops reading its log at the first bad frame and says nothing, so acknowledged commits behind that frame vanish. Frames behind it alone
//! prove nothing: a rolled-back or torn transaction leaves such frames too. But a frame that follows a commit mark was written after that commit
//! was on disk, so a mark with the log's salt at or behind the bad frame, and one more such frame behind the mark, is a loss.

use std::io::{self, BufReader, Read};
use std::path::Path;

const HEADER_BYTES: usize = 32;
const FRAME_HEADER_BYTES: usize = 24;
const MAGIC_LITTLE: u32 = 0x377f_0682;
const MAGIC_BIG: u32 = 0x377f_0683;
const PAGE_BYTES: std::ops::RangeInclusive<usize> = 512..=65_536;

/// Frames, counted from 1, that SQLite would leave out although they were committed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Lost {
    /// The first frame whose checksum is wrong.
    pub first: u64,
    /// The last frame with the salt of the log.
    pub last: u64,
}

/// Walks the log of a database; one that is absent or empty has lost nothing.
pub(super) fn check(log: &Path) -> io::Result<Option<Lost>> {
    match std::fs::File::open(log) {
        Ok(file) => walk(&mut BufReader::new(file)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// Walks a log from its header on, holding one page in memory.
fn walk(log: &mut impl Read) -> io::Result<Option<Lost>> {
    let mut header = [0; HEADER_BYTES];
    if !fill(log, &mut header)? {
        return Ok(None);
    }
    let big = match word(&header, 0) {
        MAGIC_BIG => true,
        MAGIC_LITTLE => false,
        _ => return Ok(None),
    };
    let page = word(&header, 8) as usize;
    let mut sum = add((0, 0), &header[..24], big);
    if !PAGE_BYTES.contains(&page) || !page.is_power_of_two() || sum != (word(&header, 24), word(&header, 28)) {
        return Ok(None);
    }
    let mut frame = vec![0; FRAME_HEADER_BYTES + page];
    let (mut number, mut bad, mut marked, mut last) = (0, None, false, None);
    while fill(log, &mut frame)? {
        number += 1;
        let salted = frame[8..16] == header[16..24];
        if bad.is_none() {
            sum = add(add(sum, &frame[..8], big), &frame[FRAME_HEADER_BYTES..], big);
            if salted && word(&frame, 0) != 0 && sum == (word(&frame, 16), word(&frame, 20)) {
                continue;
            }
            bad = Some(number);
        }
        if salted {
            if marked {
                last = Some(number);
            }
            marked |= word(&frame, 4) != 0;
        }
    }
    Ok(bad.zip(last).map(|(first, last)| Lost { first, last }))
}

/// Whether the whole buffer could be filled; a frame cut off at the end counts as none.
fn fill(log: &mut impl Read, buffer: &mut [u8]) -> io::Result<bool> {
    match log.read_exact(buffer) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(e) => Err(e),
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// SQLite's running checksum over pairs of words.
fn add((mut a, mut b): (u32, u32), bytes: &[u8], big: bool) -> (u32, u32) {
    for pair in bytes.chunks_exact(8) {
        let (x, y) = (word(pair, 0), word(pair, 4));
        let (x, y) = if big { (x, y) } else { (x.swap_bytes(), y.swap_bytes()) };
        a = a.wrapping_add(x).wrapping_add(b);
        b = b.wrapping_add(y).wrapping_add(a);
    }
    (a, b)
}

#[cfg(test)]
mod tests;
