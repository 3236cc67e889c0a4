//! The guardian program between the node and each worker process tree (`docs/port_protocol.md`).
//!
//! ```text
//! node == port (fds 3, 4) == guard `worker` ---- zygote's socket ---- zygote (Python, framework imported)
//!                              |                                        | fork
//!                              +---- the same connection ---- keeper `keep` (subreaper)
//!                                                               +-- init `init` (pid 1 of the worker's namespace, if there is one)
//!                                                               +-- worker (Python)
//! ```
//! The guard is all that Erlang opens; no worker can write to it. Guard and keeper watch each other and the node: whichever ends first, the
//! worker's tree ends with it, and the keeper, its parent and subreaper, proves it by having reaped everything.

mod control;
mod init;
mod keeper;
mod options;
mod probe;
mod run;
mod sys;
mod tree;
mod worker;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let code = match args.split_first() {
        Some((mode, rest)) if mode == "worker" => worker::main(rest),
        Some((mode, rest)) if mode == "run" => run::main(rest),
        Some((mode, rest)) if mode == "keep" => keeper::main(rest),
        Some((mode, _)) if mode == "init" => init::main(),
        Some((mode, _)) if mode == "probe" => probe::main(),
        _ => {
            eprintln!("usage: port_guard worker|run|probe …  (docs/port_protocol.md, section 3)");
            2
        }
    };
    std::process::exit(code);
}
