//! Builds plugin crates to components, and writes new ones. Used by `tidemill plugin build|new` and by the repository's own commands.
//!
//! A plugin crate is built for `wasm32-unknown-unknown`, which needs no system interface at all, and wrapped as a component. The
//! target is what a plain Rust toolchain lacks; see [`Toolchain::find`] for where it comes from.
//!
//! ```no_run
//! use std::path::Path;
//! use tidemill_plugin_build::{Options, build_crate};
//!
//! let build = build_crate(Path::new("my-filter"), &Options::from_env(), &mut |line| eprintln!("{line}"))?;
//! for component in &build.components {
//!     println!("{} is a {}: {} bytes in {}", component.name, component.world, component.bytes.len(), component.path.display());
//! }
//! # Ok::<(), tidemill_plugin_build::BuildError>(())
//! ```

mod cargo;
mod command;
mod component;
#[cfg(test)]
mod manifest;
mod new;
mod toolchain;

pub use cargo::{Build, BuildError, Options, SHIPPED_PLUGINS, build_crate, build_shipped_plugins};
pub use component::{Component, ComponentError, Shape, World, component_of, inspect};
pub use new::{Kind, NewCrate, NewError, new_crate};
pub use toolchain::{Route, TARGET, Toolchain, ToolchainError};

/// The SDK's sources, as a crate's `vendor/` and `wit/` hold them.
mod embedded {
    include!(concat!(env!("OUT_DIR"), "/embedded.rs"));
}
