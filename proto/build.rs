//! Compiles the protos with protox (no `protoc` needed) and keeps their descriptors for server reflection.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message as _;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=wedsync");
    let mut files = Vec::new();
    for package in ["common", "router", "notifier", "vendorsync"] {
        for entry in fs::read_dir(format!("wedsync/{package}/v1"))? {
            files.push(entry?.path());
        }
    }
    files.sort();
    let descriptors = protox::compile(&files, ["."])?;
    #[expect(clippy::disallowed_methods, reason = "cargo tells build scripts their folder this way")]
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    Ok(())
}
