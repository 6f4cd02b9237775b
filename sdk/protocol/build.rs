//! Compiles `proto/tidemill.proto` with protox, so that no `protoc` is needed.

use std::error::Error;

const PROTO: &str = "proto/tidemill.proto";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed={PROTO}");
    let descriptors = protox::compile([PROTO], ["proto"])?;
    prost_build::Config::new()
        // Slices of the frame instead of copies of it.
        .bytes(["."])
        // Maps in key order: equal messages have equal bytes.
        .btree_map(["."])
        // Doc comments of the schema are prose, not Rust doc tests.
        .format(false)
        .compile_fds(descriptors)?;
    Ok(())
}
