//! `<think>…</think>` at the start of the content, for endpoints that put their reasoning there.

const OPEN: &str = "<think>";
const CLOSE: &str = "</think>";

#[derive(Default, PartialEq, Eq)]
enum At {
    #[default]
    Start,
    Inside,
    Behind,
    Text,
}

/// Splits text as it comes; a tag may be cut anywhere.
#[derive(Default)]
pub(crate) struct Splitter {
    at: At,
    held: String,
}

impl Splitter {
    /// Reasoning and visible text that are certain now.
    pub(crate) fn feed(&mut self, piece: &str) -> (String, String) {
        self.held.push_str(piece);
        let (mut reasoning, mut text) = (String::new(), String::new());
        loop {
            match self.at {
                At::Start => {
                    let seen = self.held.trim_start();
                    if let Some(rest) = seen.strip_prefix(OPEN) {
                        self.held = rest.trim_start_matches('\n').to_owned();
                        self.at = At::Inside;
                    } else if OPEN.starts_with(seen) {
                        return (reasoning, text);
                    } else {
                        self.at = At::Text;
                    }
                }
                At::Inside => match self.held.find(CLOSE) {
                    Some(end) => {
                        reasoning.push_str(self.held[..end].trim_end_matches('\n'));
                        self.held = self.held[end + CLOSE.len()..].to_owned();
                        self.at = At::Behind;
                    }
                    None => {
                        // The end may be the beginning of the closing tag, or the line break before it.
                        let keep = (0..=self.held.len())
                            .filter(|i| self.held.is_char_boundary(*i))
                            .find(|i| CLOSE.starts_with(self.held[*i..].trim_start_matches('\n')))
                            .unwrap_or(self.held.len());
                        reasoning.push_str(&self.held[..keep]);
                        self.held.drain(..keep);
                        return (reasoning, text);
                    }
                },
                At::Behind => {
                    self.held = self.held.trim_start().to_owned();
                    if self.held.is_empty() {
                        return (reasoning, text);
                    }
                    self.at = At::Text;
                }
                At::Text => {
                    text.push_str(&std::mem::take(&mut self.held));
                    return (reasoning, text);
                }
            }
        }
    }

    /// What was held back, at the end.
    pub(crate) fn finish(&mut self) -> (String, String) {
        let held = std::mem::take(&mut self.held);
        if self.at == At::Inside { (held, String::new()) } else { (String::new(), held) }
    }
}
