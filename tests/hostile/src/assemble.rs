//! From the text of a core module to a component of a world.

use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

/// The contract, as it is written in the one place where it is.
pub(crate) const CONTRACT: &str = include_str!("../../../wit/plugin.wit");

/// Assembles a component from a core module that follows the canonical ABI of a world.
///
/// `packages` are texts in WIT, each of which may use those before it; `world` is of the last one.
///
/// # Panics
///
/// If the text is wrong: a mistake of the test's author.
pub(crate) fn component(packages: &[&str], world: &str, core: &str) -> Vec<u8> {
    let mut module = core_module(core);
    let mut resolve = Resolve::default();
    let mut last = None;
    for (at, package) in packages.iter().enumerate() {
        let pushed = resolve.push_str(format!("package-{at}.wit"), package);
        last = Some(pushed.unwrap_or_else(|error| panic!("package {at} is not good WIT: {error:#}")));
    }
    let package = last.expect("at least one package");
    let world = resolve.select_world(&[package], Some(world)).expect("the world is in the last package");
    embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8, false)
        .expect("the world fits a module");
    ComponentEncoder::default()
        .module(&module)
        .and_then(|encoder| encoder.encode())
        .unwrap_or_else(|error| panic!("the module does not fit its world: {error:#}\n{core}"))
}

/// Assembles a core module.
///
/// # Panics
///
/// If the text is wrong.
pub(crate) fn core_module(core: &str) -> Vec<u8> {
    wat::parse_str(core).unwrap_or_else(|error| panic!("not good WAT: {error}\n{core}"))
}
