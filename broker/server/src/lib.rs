//! The broker: router, handlers, configuration, metrics, wiring.
