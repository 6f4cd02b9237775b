//! The broker's functions: imported where the plugin is a component, played by a fake where it is a native test.

#[cfg(not(target_arch = "wasm32"))]
pub(crate) mod fake;
#[cfg(target_arch = "wasm32")]
mod imports;

#[cfg(not(target_arch = "wasm32"))]
pub(crate) use fake::calls::*;
#[cfg(target_arch = "wasm32")]
pub(crate) use imports::*;
