//! The write-ahead log, segments, indexes and the file-system seam.
//!
//! This room knows positions and bytes; it knows neither topics nor clients.
