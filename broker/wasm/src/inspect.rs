//! A first look at an uploaded component, before a compiler sees it: which world it is of, and whether it imports only what that
//! world may.
//!
//! Only the outermost layer's names are read, and how much memory the modules want to begin with. What the component is made of is validated by the compiler's process, and its
//! functions' types when it is loaded and first started.

use wasmparser::{ComponentExternalKind, Encoding, Parser, Payload};

const PACKAGE: &str = "tidemill:plugin/";
/// The contract's version; patch versions only add functions to import, so all of them have the exports of the first.
const VERSION: &str = "0.1.";
const VERSION_FOR_PEOPLE: &str = "0.1";
const PAGE_BYTES: u64 = 65536;
/// What every WebAssembly binary begins with.
const MAGIC: &[u8] = b"\0asm";

/// Which of the contract's worlds a component is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ComponentKind {
    /// `partitioner-plugin`.
    Partitioner,
    /// `filter-plugin`.
    Filter,
    /// `consumer-plugin`.
    Consumer,
}

/// What a component says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ComponentInfo {
    /// Its world.
    pub kind: ComponentKind,
    /// The interfaces that it imports, in its order.
    pub imports: Vec<String>,
    /// Linear memory that an instance has from its start.
    pub initial_memory_bytes: u64,
}

/// Why a component can't be a plugin.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidComponent {
    /// The bytes are no WebAssembly component.
    #[error("this is not a WebAssembly component: {reason}")]
    NotAComponent {
        /// What it is instead, and what to do.
        reason: String,
    },
    /// The component is of no world of the contract, or of more than one.
    #[error("the component is of no plugin world: {reason}")]
    WrongWorld {
        /// What is missing or too much.
        reason: String,
    },
    /// The component imports something that its world does not offer.
    #[error("the component imports {import}, which a {kind} plugin may not", kind = kind.name())]
    ForbiddenImport {
        /// The import's name.
        import: String,
        /// What the component is otherwise.
        kind: ComponentKind,
    },
}

impl ComponentKind {
    /// `partitioner`, `filter` or `consumer`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Partitioner => "partitioner",
            Self::Filter => "filter",
            Self::Consumer => "consumer",
        }
    }

    const ALL: [Self; 3] = [Self::Partitioner, Self::Filter, Self::Consumer];

    fn offers(self, interface: &str) -> bool {
        match interface {
            "types" | "output" | "log" | "metrics" => true,
            "emit" | "state" | "timers" => self == Self::Consumer,
            _ => false,
        }
    }
}

/// Reads which plugin world a component is of, and what it imports.
pub fn inspect(component: &[u8]) -> Result<ComponentInfo, InvalidComponent> {
    let surface = Surface::read(component)?;
    let kind = surface.kind()?;
    for import in &surface.imports {
        if !interface(import).is_some_and(|interface| kind.offers(interface)) {
            return Err(InvalidComponent::ForbiddenImport { import: import.clone(), kind });
        }
    }
    let initial_memory_bytes = surface.initial_memory_pages.saturating_mul(PAGE_BYTES);
    Ok(ComponentInfo { kind, imports: surface.imports, initial_memory_bytes })
}

/// The name within our package, of our version.
fn interface(name: &str) -> Option<&str> {
    let (interface, version) = name.strip_prefix(PACKAGE)?.split_once('@')?;
    let patch = version.strip_prefix(VERSION)?;
    let is_number = !patch.is_empty() && patch.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then_some(interface)
}

/// What the outermost component imports and exports, by name, and what all modules within ask for before they run.
struct Surface {
    imports: Vec<String>,
    exports: Vec<String>,
    initial_memory_pages: u64,
}

impl Surface {
    fn read(component: &[u8]) -> Result<Self, InvalidComponent> {
        let not_a_component = |reason: String| InvalidComponent::NotAComponent { reason };
        let broken = |error: wasmparser::BinaryReaderError| not_a_component(error.to_string());
        if component.is_empty() {
            return Err(not_a_component("it is empty".to_owned()));
        }
        if !component.starts_with(MAGIC) {
            let first = component.get(..MAGIC.len()).unwrap_or(component).escape_ascii();
            return Err(not_a_component(format!(
                "it begins with `{first}`, not with `\\0asm`; `tidemill plugin build` makes one"
            )));
        }
        let mut surface = Self { imports: Vec::new(), exports: Vec::new(), initial_memory_pages: 0 };
        let mut depth = 0usize;
        for payload in Parser::new(0).parse_all(component) {
            match payload.map_err(broken)? {
                Payload::Version { encoding: Encoding::Module, .. } if depth == 0 => {
                    let hint = "it is a core module; make a component of it with `tidemill plugin build` or `wasm-tools component new`";
                    return Err(not_a_component(hint.to_owned()));
                }
                Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
                Payload::End(_) => depth = depth.saturating_sub(1),
                Payload::MemorySection(section) => {
                    for memory in section {
                        let pages = memory.map_err(broken)?.initial;
                        surface.initial_memory_pages = surface.initial_memory_pages.saturating_add(pages);
                    }
                }
                Payload::ComponentImportSection(section) if depth == 0 => {
                    for import in section {
                        surface.imports.push(import.map_err(broken)?.name.name.to_owned());
                    }
                }
                Payload::ComponentExportSection(section) if depth == 0 => {
                    for export in section {
                        let export = export.map_err(broken)?;
                        if export.kind == ComponentExternalKind::Instance {
                            surface.exports.push(export.name.name.to_owned());
                        }
                    }
                }
                _ => {}
            }
        }
        Ok(surface)
    }

    fn kind(&self) -> Result<ComponentKind, InvalidComponent> {
        let exported = |wanted: &str| self.exports.iter().any(|name| interface(name) == Some(wanted));
        let kinds: Vec<_> = ComponentKind::ALL.into_iter().filter(|kind| exported(kind.name())).collect();
        let reason = match kinds[..] {
            [kind] if exported("lifecycle") => return Ok(kind),
            [kind] => format!("it exports {PACKAGE}{} but not {PACKAGE}lifecycle", kind.name()),
            [] => self.why_none(),
            [first, second, ..] => {
                format!("it exports both {} and {}; make it two plugins", first.name(), second.name())
            }
        };
        Err(InvalidComponent::WrongWorld { reason })
    }

    fn why_none(&self) -> String {
        let of_another_version = self.exports.iter().find(|name| name.starts_with(PACKAGE));
        if let Some(export) = of_another_version {
            return format!(
                "it exports {export}, and this broker serves version {VERSION_FOR_PEOPLE} of the contract"
            );
        }
        let wanted = "it must export one of the interfaces partitioner, filter and consumer";
        format!("{wanted} of tidemill:plugin@{VERSION_FOR_PEOPLE}")
    }
}

#[cfg(test)]
mod tests {
    use super::interface;

    #[test]
    fn interfaces_are_of_our_package_and_version() {
        assert_eq!(interface("tidemill:plugin/log@0.1.0"), Some("log"));
        assert_eq!(interface("tidemill:plugin/log@0.1.12"), Some("log"));
        let others = ["tidemill:plugin/log", "tidemill:plugin/log@0.2.0", "tidemill:plugin/log@0.1.", "log"];
        for other in others.into_iter().chain(["tidemill:plugin/log@0.1.0-rc1", "wasi:cli/stdin@0.1.0"]) {
            assert_eq!(interface(other), None, "{other}");
        }
    }
}
