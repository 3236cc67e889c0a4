//! The library is never unloaded: its threads outlive a purge of the module.

fn main() {
    println!("cargo:rustc-link-arg=-Wl,-z,nodelete");
    println!("cargo:rerun-if-changed=build.rs");
}
