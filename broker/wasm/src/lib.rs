//! The WebAssembly engine: compilation, artifact cache, limits, instance pools, bindings.
