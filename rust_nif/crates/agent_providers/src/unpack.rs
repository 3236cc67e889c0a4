//! Bodies that come packed: bytes in, as many bytes out as these give, bounded.

use std::io::{self, Write};

use brotli::DecompressorWriter;
use bytes::Bytes;
use flate2::write::MultiGzDecoder;

/// What is asked for, and what can be read.
pub(crate) const ACCEPTED: &str = "gzip, br";
/// Bytes that brotli unpacks at once.
const STEP: usize = 8 * 1024;

/// Why a body cannot be read on.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Unreadable {
    TooLarge,
    Damaged,
}

/// Takes bytes until there are too many: a small body may unpack to any size.
struct Room {
    bytes: Vec<u8>,
    limit: usize,
    over: bool,
}

impl Write for Room {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.over = self.bytes.len() + bytes.len() > self.limit;
        if self.over {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

enum Kind {
    Gzip(Box<MultiGzDecoder<Room>>),
    Brotli(Box<DecompressorWriter<Room>>),
}

/// Unpacks one body.
pub(crate) struct Unpacker(Kind);

impl Unpacker {
    /// For a `content-encoding`; none: the body is read as it comes. At most `limit` bytes come of one piece.
    pub(crate) fn of(encoding: &str, limit: usize) -> Option<Self> {
        let room = Room { bytes: Vec::new(), limit, over: false };
        match encoding.trim().to_ascii_lowercase().as_str() {
            "gzip" | "x-gzip" => Some(Self(Kind::Gzip(Box::new(MultiGzDecoder::new(room))))),
            "br" => Some(Self(Kind::Brotli(Box::new(DecompressorWriter::new(room, STEP))))),
            _ => None,
        }
    }

    /// What these bytes unpack to.
    pub(crate) fn feed(&mut self, bytes: &[u8]) -> Result<Bytes, Unreadable> {
        let done = match &mut self.0 {
            Kind::Gzip(gzip) => gzip.write_all(bytes).and_then(|()| gzip.flush()),
            Kind::Brotli(brotli) => brotli.write_all(bytes).and_then(|()| brotli.flush()),
        };
        self.taken(done)
    }

    /// What is left at the end of the body; an error: it is not whole.
    pub(crate) fn finish(&mut self) -> Result<Bytes, Unreadable> {
        let done = match &mut self.0 {
            Kind::Gzip(gzip) => gzip.try_finish(),
            Kind::Brotli(brotli) => brotli.close(),
        };
        self.taken(done)
    }

    fn taken(&mut self, done: io::Result<()>) -> Result<Bytes, Unreadable> {
        let room = match &mut self.0 {
            Kind::Gzip(gzip) => gzip.get_mut(),
            Kind::Brotli(brotli) => brotli.get_mut(),
        };
        match done {
            Ok(()) => Ok(std::mem::take(&mut room.bytes).into()),
            Err(_) if room.over => Err(Unreadable::TooLarge),
            Err(_) => Err(Unreadable::Damaged),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packed(encoding: &str, plain: &[u8]) -> Vec<u8> {
        if encoding == "gzip" {
            let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            packer.write_all(plain).unwrap();
            packer.finish().unwrap()
        } else {
            let mut packer = brotli::CompressorWriter::new(Vec::new(), 4096, 5, 20);
            packer.write_all(plain).unwrap();
            packer.into_inner()
        }
    }

    #[test]
    fn a_body_comes_whole_however_it_is_cut_and_a_part_of_one_is_damaged() {
        let plain = "data: words and words\n\n".repeat(500);
        for encoding in ["gzip", "br"] {
            let bytes = packed(encoding, plain.as_bytes());
            for size in [1, 7, bytes.len()] {
                let mut unpacker = Unpacker::of(encoding, plain.len()).unwrap();
                let mut out: Vec<u8> = bytes.chunks(size).flat_map(|c| unpacker.feed(c).unwrap()).collect();
                out.extend(unpacker.finish().unwrap());
                assert_eq!(out, plain.as_bytes(), "{encoding} in pieces of {size}");
            }
            let mut unpacker = Unpacker::of(encoding, plain.len()).unwrap();
            let half = unpacker.feed(&bytes[..bytes.len() / 2]).and_then(|_| unpacker.finish());
            assert_eq!(half, Err(Unreadable::Damaged), "{encoding}");
        }
    }

    #[test]
    fn a_small_body_of_any_size_is_refused() {
        for encoding in ["gzip", "br"] {
            let bytes = packed(encoding, &vec![0; 1024 * 1024]);
            let mut unpacker = Unpacker::of(encoding, 64 * 1024).unwrap();
            let all = unpacker.feed(&bytes).and_then(|_| unpacker.finish());
            assert_eq!(all, Err(Unreadable::TooLarge), "{encoding}");
        }
        assert!(Unpacker::of("identity", 1).is_none());
    }
}
