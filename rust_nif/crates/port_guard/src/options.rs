//! Command lines: `--name value` pairs, then what stands behind `--`.

/// Parsed options.
#[derive(Debug, Default)]
pub(crate) struct Options {
    pairs: Vec<(String, String)>,
    /// Behind `--`.
    pub(crate) rest: Vec<String>,
}

impl Options {
    pub(crate) fn parse(args: &[String]) -> Option<Self> {
        let mut options = Self::default();
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            if arg == "--" {
                options.rest = args.cloned().collect();
                break;
            }
            options.pairs.push((arg.strip_prefix("--")?.to_owned(), args.next()?.clone()));
        }
        Some(options)
    }

    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.pairs.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    pub(crate) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.pairs.iter().filter(move |(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    pub(crate) fn number(&self, name: &str) -> Option<i64> {
        self.get(name)?.parse().ok()
    }
}
