//! Program: checks the configuration file and writes the node's Erlang terms.
//!
//! ```text
//! singularity_config check [FILE]
//! singularity_config render [--config FILE] [--data-dir DIR] --out TERMS
//! singularity_config show [FILE]
//! singularity_config default
//! ```
//! Exit code 0: good; 1: the configuration is wrong, every fault on stderr; 2: usage.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use agent_config::{EXAMPLE, Overrides, load};

fn usage() -> ExitCode {
    eprintln!("usage: singularity_config check [FILE] | show [FILE] | default | render [--config FILE] [--data-dir DIR] --out TERMS");
    ExitCode::from(2)
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let mut overrides = Overrides::of_environment();
    let file = |arg: Option<&String>| {
        arg.map(PathBuf::from).or_else(|| std::env::var_os("SINGULARITY_CONFIG").filter(|v| !v.is_empty()).map(PathBuf::from))
    };
    match args.first().map(String::as_str) {
        Some("check") => report(load(file(args.get(1)).as_deref(), &overrides).map(|_| println!("ok"))),
        Some("show") => report(load(file(args.get(1)).as_deref(), &overrides).map(|c| println!("{:#}", c.json()))),
        Some("default") => {
            print!("{EXAMPLE}");
            ExitCode::SUCCESS
        }
        Some("render") => {
            let (mut config, mut out) = (None, None);
            let mut rest = args[1..].iter();
            while let (Some(flag), Some(value)) = (rest.next(), rest.next()) {
                match flag.as_str() {
                    "--config" => config = Some(value),
                    "--data-dir" => overrides.data_dir = Some(value.clone()),
                    "--out" => out = Some(PathBuf::from(value)),
                    _ => return usage(),
                }
            }
            let Some(out) = out else { return usage() };
            let config = config.filter(|c| !c.is_empty());
            report(load(file(config).as_deref(), &overrides).and_then(|c| write(&out, &c.erlang())))
        }
        _ => usage(),
    }
}

/// Whole or not at all; readable by the node's user only, since it names files of keys.
fn write(out: &Path, terms: &str) -> Result<(), Vec<String>> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let new = out.with_extension("new");
    let result = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)
        .and_then(|mut f| f.write_all(terms.as_bytes()))
        .and_then(|()| std::fs::rename(&new, out));
    result.map_err(|e| vec![format!("{}: {e}", out.display())])
}

fn report(result: Result<(), Vec<String>>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(faults) => {
            for fault in faults {
                eprintln!("{fault}");
            }
            ExitCode::FAILURE
        }
    }
}
