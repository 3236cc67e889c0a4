//! Server-sent events, incrementally: bytes in, `data` of whole events out. Bounded.

/// Largest event.
pub(crate) const MAX_EVENT_BYTES: usize = 1024 * 1024;

#[derive(Default)]
pub(crate) struct Decoder {
    line: Vec<u8>,
    data: Vec<u8>,
    has_data: bool,
    after_cr: bool,
}

impl Decoder {
    /// Events completed by these bytes; Err when one is over the limit or not UTF-8.
    pub(crate) fn feed(&mut self, bytes: &[u8]) -> Result<Vec<String>, &'static str> {
        let mut events = Vec::new();
        for &b in bytes {
            match b {
                b'\n' if self.after_cr => self.after_cr = false,
                b'\n' | b'\r' => {
                    self.after_cr = b == b'\r';
                    self.end_of_line(&mut events)?;
                }
                _ => {
                    self.after_cr = false;
                    self.line.push(b);
                    if self.line.len() + self.data.len() > MAX_EVENT_BYTES {
                        return Err("an event is too large");
                    }
                }
            }
        }
        Ok(events)
    }

    fn end_of_line(&mut self, events: &mut Vec<String>) -> Result<(), &'static str> {
        let line = std::mem::take(&mut self.line);
        if line.is_empty() {
            if std::mem::take(&mut self.has_data) {
                let data = std::mem::take(&mut self.data);
                events.push(String::from_utf8(data).map_err(|_| "an event is not UTF-8")?);
            }
        } else if let Some(value) = line.strip_prefix(b"data:") {
            if self.has_data {
                self.data.push(b'\n');
            }
            self.has_data = true;
            self.data.extend_from_slice(value.strip_prefix(b" ").unwrap_or(value));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_whole_however_the_bytes_are_cut() {
        let text = ": ping\r\ndata: a\r\n\r\nevent: x\ndata:b\ndata: c\n\nid: 1\n\ndata: d\n";
        for size in 1..text.len() {
            let mut decoder = Decoder::default();
            let events: Vec<String> = text.as_bytes().chunks(size).flat_map(|c| decoder.feed(c).unwrap()).collect();
            assert_eq!(events, ["a", "b\nc"], "pieces of {size}");
        }
    }

    #[test]
    fn an_endless_event_is_refused() {
        let mut decoder = Decoder::default();
        let flood = vec![b'x'; 64 * 1024];
        assert!((0..20).any(|_| decoder.feed(&flood).is_err()));
    }
}
