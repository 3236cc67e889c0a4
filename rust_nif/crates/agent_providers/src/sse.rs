//! Server-sent events, incrementally: bytes in, `data` of whole events out. Bounded.

/// What a stream says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// The `data` lines of an event, joined.
    Data(String),
    /// A line `error: …`, which some servers send outside of any event.
    Error(String),
}

/// Why a stream cannot be read on.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Broken {
    TooLarge,
    NotUtf8,
}

pub(crate) struct Decoder {
    line: Vec<u8>,
    data: Vec<u8>,
    has_data: bool,
    after_cr: bool,
    at_start: bool,
    limit: usize,
}

impl Decoder {
    /// Events of at most `limit` bytes.
    pub(crate) fn new(limit: usize) -> Self {
        Self { line: Vec::new(), data: Vec::new(), has_data: false, after_cr: false, at_start: true, limit }
    }

    /// Events completed by these bytes.
    pub(crate) fn feed(&mut self, mut bytes: &[u8]) -> Result<Vec<Event>, Broken> {
        let mut events = Vec::new();
        while let Some(first) = bytes.first() {
            if std::mem::take(&mut self.after_cr) && *first == b'\n' {
                bytes = &bytes[1..];
                continue;
            }
            let end = bytes.iter().position(|b| matches!(b, b'\n' | b'\r'));
            self.line.extend_from_slice(&bytes[..end.unwrap_or(bytes.len())]);
            if self.line.len() + self.data.len() > self.limit {
                return Err(Broken::TooLarge);
            }
            let Some(end) = end else { break };
            self.after_cr = bytes[end] == b'\r';
            self.end_of_line(&mut events)?;
            bytes = &bytes[end + 1..];
        }
        Ok(events)
    }

    /// What the end of the bytes completes: a last event needs no empty line.
    pub(crate) fn finish(&mut self) -> Result<Vec<Event>, Broken> {
        let mut events = Vec::new();
        if !self.line.is_empty() {
            self.end_of_line(&mut events)?;
        }
        self.end_of_line(&mut events)?;
        Ok(events)
    }

    fn end_of_line(&mut self, events: &mut Vec<Event>) -> Result<(), Broken> {
        let mut line = std::mem::take(&mut self.line);
        if std::mem::take(&mut self.at_start) && line.starts_with(b"\xef\xbb\xbf") {
            line.drain(..3);
        }
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).map_err(|_| Broken::NotUtf8);
        if line.is_empty() {
            let data = std::mem::take(&mut self.data);
            if std::mem::take(&mut self.has_data) && !data.is_empty() {
                events.push(Event::Data(text(data)?));
            }
        } else if let Some(value) = line.strip_prefix(b"data:") {
            if self.has_data {
                self.data.push(b'\n');
            }
            self.has_data = true;
            self.data.extend_from_slice(value.strip_prefix(b" ").unwrap_or(value));
        } else if let Some(value) = line.strip_prefix(b"error:") {
            events.push(Event::Error(text(value.trim_ascii().to_vec())?));
        }
        // Its memory serves the next line.
        line.clear();
        self.line = line;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_whole_however_the_bytes_are_cut() {
        let text = "\u{feff}: ping\r\ndata: a\r\n\r\nevent: x\ndata:b\ndata: c\n\nid: 1\n\nerror: {}\ndata: d";
        for size in 1..text.len() {
            let mut decoder = Decoder::new(1000);
            let mut events: Vec<Event> = text.as_bytes().chunks(size).flat_map(|c| decoder.feed(c).unwrap()).collect();
            events.extend(decoder.finish().unwrap());
            let data = |t: &str| Event::Data(t.into());
            assert_eq!(events, [data("a"), data("b\nc"), Event::Error("{}".into()), data("d")], "pieces of {size}");
        }
    }

    #[test]
    fn an_endless_event_is_refused() {
        let mut decoder = Decoder::new(1024 * 1024);
        let flood = vec![b'x'; 64 * 1024];
        assert!((0..20).any(|_| decoder.feed(&flood) == Err(Broken::TooLarge)));
    }
}
