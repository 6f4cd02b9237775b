//! QUIC endpoint, TLS, connections, streams.
