//! Tidemill's client: producers, consumers and administration over QUIC.
