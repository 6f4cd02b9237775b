//! From a core module to a component, and what a component is.

use std::fmt;
use std::path::PathBuf;

use wit_component::{ComponentEncoder, DecodedWasm};

/// The package of the plugin contract.
const CONTRACT: &str = "tidemill:plugin/";

/// A plugin, built.
#[derive(Clone, Debug)]
pub struct Component {
    /// The plugin's name: its crate's, without `tidemill-`.
    pub name: String,
    /// What it plugs into.
    pub world: World,
    /// Where it was written.
    pub path: PathBuf,
    /// What is uploaded.
    pub bytes: Vec<u8>,
}

/// What a plugin plugs into.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum World {
    /// `partitioner-plugin`
    Partitioner,
    /// `filter-plugin`
    Filter,
    /// `consumer-plugin`
    Consumer,
}

/// What a component exports and imports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    /// The world whose exports it has.
    pub world: World,
    /// The interfaces that it imports, by full name.
    pub imports: Vec<String>,
    /// The interfaces that it exports, by full name.
    pub exports: Vec<String>,
}

/// Why something is not a plugin's component.
#[derive(Debug, thiserror::Error)]
pub enum ComponentError {
    /// The crate exports nothing, or was built with another kit.
    #[error(
        "this module can't become a component ({reason}): does lib.rs end with a line such as export_filter!(MyFilter);?"
    )]
    Encode {
        /// What the encoder says.
        reason: String,
    },
    /// The bytes are no component.
    #[error("this is not a component: {reason}")]
    Decode {
        /// What the decoder says.
        reason: String,
    },
    /// None of the plugin worlds fits.
    #[error(
        "this component exports {}, which is none of a plugin's worlds: those export lifecycle and one of partitioner, filter, consumer",
        if exports.is_empty() { "nothing".to_owned() } else { exports.join(", ") }
    )]
    World {
        /// What it exports.
        exports: Vec<String>,
    },
    /// It wants what the broker does not grant.
    #[error(
        "this component imports {import}, which the broker does not grant: a dependency may be built for another kind of host"
    )]
    Import {
        /// The interface.
        import: String,
    },
}

/// Wraps a core module that holds the plugin's world as a component, and checks that it is one.
pub fn component_of(module: &[u8]) -> Result<Vec<u8>, ComponentError> {
    let encoded =
        ComponentEncoder::default().validate(true).module(module).and_then(|encoder| encoder.encode());
    encoded.map_err(|error| ComponentError::Encode { reason: format!("{error:#}") })
}

/// Says what a component is; an error where it is no plugin that a broker without further grants can run.
pub fn inspect(component: &[u8]) -> Result<Shape, ComponentError> {
    let decoded = wit_component::decode(component)
        .map_err(|error| ComponentError::Decode { reason: format!("{error:#}") })?;
    let DecodedWasm::Component(resolve, world) = decoded else {
        return Err(ComponentError::Decode { reason: "it is an interface description".to_owned() });
    };
    let world = &resolve.worlds[world];
    let imports: Vec<String> = world.imports.keys().map(|key| resolve.name_world_key(key)).collect();
    let exports: Vec<String> = world.exports.keys().map(|key| resolve.name_world_key(key)).collect();
    if let Some(import) = imports.iter().find(|import| !import.starts_with(CONTRACT)) {
        return Err(ComponentError::Import { import: import.clone() });
    }
    match world_of(&exports) {
        Some(world) => Ok(Shape { world, imports, exports }),
        None => Err(ComponentError::World { exports }),
    }
}

fn world_of(exports: &[String]) -> Option<World> {
    let has = |interface: &str| {
        exports.iter().any(|export| {
            export
                .strip_prefix(CONTRACT)
                .and_then(|rest| rest.split('@').next())
                .is_some_and(|name| name == interface)
        })
    };
    let worlds = [World::Partitioner, World::Filter, World::Consumer];
    let mut fitting = worlds.into_iter().filter(|world| has(world.interface()));
    let world = fitting.next()?;
    (has("lifecycle") && fitting.next().is_none()).then_some(world)
}

impl World {
    fn interface(self) -> &'static str {
        match self {
            Self::Partitioner => "partitioner",
            Self::Filter => "filter",
            Self::Consumer => "consumer",
        }
    }
}

impl fmt::Display for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.interface())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exports(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| format!("tidemill:plugin/{name}@0.1.0")).collect()
    }

    #[test]
    fn a_plugin_has_one_world() {
        assert_eq!(world_of(&exports(&["lifecycle", "filter"])), Some(World::Filter));
        assert_eq!(world_of(&exports(&["filter"])), None);
        assert_eq!(world_of(&exports(&["lifecycle"])), None);
        assert_eq!(world_of(&exports(&["lifecycle", "filter", "consumer"])), None);
        assert_eq!(world_of(&exports(&["lifecycle", "filters"])), None);
    }

    #[test]
    fn what_is_no_plugin_is_told_why() {
        assert!(matches!(inspect(b"\0asm"), Err(ComponentError::Decode { .. })));
        let empty = wat::parse_str("(component)").unwrap();
        assert!(matches!(inspect(&empty), Err(ComponentError::World { .. })));
        let wasi = wat::parse_str(r#"(component (import "wasi:cli/exit@0.2.0" (instance)))"#).unwrap();
        assert!(
            matches!(inspect(&wasi), Err(ComponentError::Import { import }) if import.starts_with("wasi:cli/exit"))
        );
        let module = wat::parse_str(r#"(module (import "env" "f" (func)))"#).unwrap();
        assert!(component_of(&module).unwrap_err().to_string().contains("export_filter!"));
    }
}
