//! The write-ahead log, segments, indexes and the file-system seam.
//!
//! This room knows positions and bytes; it knows neither topics nor clients.

// A core: see clippy.toml.
#![cfg_attr(not(test), warn(clippy::disallowed_methods))]
#![warn(clippy::unwrap_used, clippy::indexing_slicing)]
#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::indexing_slicing,
        reason = "a test that fails here has found something"
    )
)]

pub mod background;
pub mod fs;
pub mod segment;
pub mod wal;
