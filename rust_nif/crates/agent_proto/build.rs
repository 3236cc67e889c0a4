//! Generates the protobuf types and the descriptor set from `proto/`.

use std::path::{Path, PathBuf};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = Path::new("../../../proto");
    println!("cargo:rerun-if-changed={}", root.display());
    let mut files: Vec<PathBuf> = Vec::new();
    for package in ["agents", "worker"] {
        for entry in std::fs::read_dir(root.join("singularity").join(package).join("v1"))? {
            let path = entry?.path();
            if path.extension().is_some_and(|e| e == "proto") {
                files.push(path);
            }
        }
    }
    files.sort();
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    let mut config = tonic_prost_build::Config::new();
    config.btree_map(["."]);
    tonic_prost_build::configure()
        .codec_path("crate::codec::TypedCodec")
        .file_descriptor_set_path(out.join("descriptor.bin"))
        .compile_with_config(config, &files, &[root.to_path_buf()])?;
    Ok(())
}
