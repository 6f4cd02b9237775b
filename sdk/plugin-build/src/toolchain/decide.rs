//! What to do next, as a plain function of what was found and what was tried.

use std::fmt;
use std::path::PathBuf;

use super::{TARGET, ToolchainError};

/// Debian's compiler with the standard library's sources.
const PACKAGES: [&str; 2] = ["rustc-web", "rust-web-src"];
/// Brings a linker for WebAssembly, where no Rust toolchain has one.
const LINKER_PACKAGE: &str = "lld";

/// What is on this machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Probes {
    pub(crate) cargo: bool,
    pub(crate) rustup: bool,
    /// The compiler that cargo uses.
    pub(crate) active: Option<Compiler>,
    /// The distribution's compiler, where that is another one.
    pub(crate) system: Option<Compiler>,
    /// A linker for WebAssembly outside of any toolchain.
    pub(crate) wasm_linker: Option<PathBuf>,
    pub(crate) apt: bool,
    pub(crate) root: bool,
}

/// A compiler.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Compiler {
    pub(crate) path: PathBuf,
    /// As it says itself: `rustc 1.95.0 (...)`.
    pub(crate) version: String,
    /// It has the standard library for the target.
    pub(crate) has_target: bool,
    /// It has the standard library's sources.
    pub(crate) has_sources: bool,
    /// The linker that comes with it.
    pub(crate) linker: Option<PathBuf>,
}

/// What was tried without success, and what came of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tried {
    pub(crate) rustup: Option<String>,
    pub(crate) packages: Option<String>,
}

/// Which toolchains may be taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Route {
    /// Whatever works, in the order of [`Toolchain::find`].
    #[default]
    Auto,
    /// Only one that has the target; rustup may get it.
    Target,
    /// Only one that builds the standard library from its sources; packages may be installed.
    Sources,
}

/// A toolchain that builds for WebAssembly.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Toolchain {
    /// The compiler has the target.
    Target {
        /// None: the one that cargo uses anyway.
        rustc: Option<PathBuf>,
        /// As the compiler says itself.
        version: String,
        /// None: the one that the compiler uses anyway.
        linker: Option<PathBuf>,
    },
    /// The standard library is built along, from its sources.
    Sources {
        /// None: the one that cargo uses anyway.
        rustc: Option<PathBuf>,
        /// As the compiler says itself.
        version: String,
        /// Links WebAssembly.
        linker: PathBuf,
    },
}

/// The next thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Use(Toolchain),
    AddTarget,
    InstallPackages(Vec<&'static str>),
    Fail(ToolchainError),
}

/// The least compiler that the SDK builds with: this workspace's `rust-version`.
const RUST_MIN: (u32, u32) = (1, 95);

impl Compiler {
    /// Whether it is new enough. One that does not say its version in the usual way is tried.
    fn will_do(&self) -> bool {
        self.release().is_none_or(|release| release >= RUST_MIN)
    }

    /// Major and minor of `rustc 1.95.0 (...)`.
    fn release(&self) -> Option<(u32, u32)> {
        let mut parts = self.version.strip_prefix("rustc ")?.split(['.', '-', ' ']);
        Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
    }
}

/// Decides. A compiler that is too old counts as none, but for the words of the error: it is named where nothing newer is here, and
/// where the packages that might have brought a newer one did not.
pub(crate) fn next_step(found: &Probes, tried: &Tried, install: bool, route: Route) -> Step {
    let fit = |compiler: &Option<Compiler>| compiler.clone().filter(Compiler::will_do);
    let usable = Probes { active: fit(&found.active), system: fit(&found.system), ..found.clone() };
    let old: Vec<String> = [&found.active, &found.system]
        .into_iter()
        .flatten()
        .filter(|compiler| !compiler.will_do())
        .map(|compiler| format!("{} ({})", compiler.version, compiler.path.display()))
        .collect();
    let is_to_blame =
        !old.is_empty() && ((usable.active.is_none() && usable.system.is_none()) || tried.packages.is_some());
    match step_with(&usable, tried, install, route) {
        Step::Fail(_) if is_to_blame => Step::Fail(ToolchainError::TooOld {
            found: old.join(", "),
            needed: format!("{}.{}", RUST_MIN.0, RUST_MIN.1),
            command: if found.rustup {
                format!("rustup update stable && rustup target add {TARGET}")
            } else {
                usable.command(false)
            },
            tried: [&tried.rustup, &tried.packages].into_iter().flatten().cloned().collect(),
        }),
        step => step,
    }
}

fn step_with(found: &Probes, tried: &Tried, install: bool, route: Route) -> Step {
    if !found.cargo || (found.active.is_none() && found.system.is_none()) {
        return Step::Fail(ToolchainError::NoRust);
    }
    let (by_target, by_sources) = (route != Route::Sources, route != Route::Target);
    if by_target {
        if let Some(toolchain) = found.with_target() {
            return Step::Use(toolchain);
        }
        if found.rustup && tried.rustup.is_none() {
            return Step::AddTarget;
        }
    }
    if by_sources {
        if let Some(toolchain) = found.with_sources() {
            return Step::Use(toolchain);
        }
        if install && found.apt && found.root && tried.packages.is_none() {
            return Step::InstallPackages(found.packages());
        }
    }
    Step::Fail(ToolchainError::NoTarget {
        command: found.command(by_sources),
        tried: [&tried.rustup, &tried.packages].into_iter().flatten().cloned().collect(),
    })
}

impl Probes {
    fn with_target(&self) -> Option<Toolchain> {
        let target = |compiler: &Compiler, rustc: Option<PathBuf>| Toolchain::Target {
            // A distribution's compiler may come without the linker that it looks for.
            linker: if compiler.linker.is_some() { None } else { self.any_linker() },
            rustc,
            version: compiler.version.clone(),
        };
        let active = self
            .active
            .as_ref()
            .filter(|compiler| compiler.has_target)
            .map(|compiler| target(compiler, None));
        let system = || {
            let compiler = self.system.as_ref().filter(|compiler| compiler.has_target)?;
            Some(target(compiler, Some(compiler.path.clone())))
        };
        active.or_else(system)
    }

    fn with_sources(&self) -> Option<Toolchain> {
        let linker = self.any_linker()?;
        let sources = |compiler: &Compiler, rustc| Toolchain::Sources {
            rustc,
            version: compiler.version.clone(),
            linker: linker.clone(),
        };
        let active = self
            .active
            .as_ref()
            .filter(|compiler| compiler.has_sources)
            .map(|compiler| sources(compiler, None));
        let system = || {
            let compiler = self.system.as_ref().filter(|compiler| compiler.has_sources)?;
            Some(sources(compiler, Some(compiler.path.clone())))
        };
        active.or_else(system)
    }

    fn any_linker(&self) -> Option<PathBuf> {
        let own =
            [&self.active, &self.system].into_iter().flatten().find_map(|compiler| compiler.linker.clone());
        own.or_else(|| self.wasm_linker.clone())
    }

    fn packages(&self) -> Vec<&'static str> {
        let mut packages = PACKAGES.to_vec();
        if self.any_linker().is_none() {
            packages.push(LINKER_PACKAGE);
        }
        packages
    }

    /// The one command that makes it work.
    fn command(&self, by_sources: bool) -> String {
        if by_sources && self.apt {
            let sudo = if self.root { "" } else { "sudo " };
            let packages = self.packages().join(" ");
            return format!(
                "{sudo}apt-get update && {sudo}apt-get install -y --no-install-recommends {packages}"
            );
        }
        if self.rustup {
            return format!("rustup target add {TARGET}");
        }
        format!("curl --proto '=https' -sSf https://sh.rustup.rs | sh -s -- -y --target {TARGET}")
    }
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (version, how) = match self {
            Self::Target { version, .. } => (version, format!("which has {TARGET}")),
            Self::Sources { version, .. } => {
                (version, format!("building the standard library for {TARGET} from its sources"))
            }
        };
        match self {
            Self::Target { rustc: Some(rustc), .. } | Self::Sources { rustc: Some(rustc), .. } => {
                write!(f, "{version} ({}), {how}", rustc.display())
            }
            _ => write!(f, "{version}, {how}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn active() -> Compiler {
        Compiler {
            path: "rustc".into(),
            version: "rustc 1.95.0".into(),
            linker: Some("/lld".into()),
            ..Compiler::default()
        }
    }

    fn system() -> Compiler {
        Compiler {
            path: "/usr/bin/rustc".into(),
            version: "rustc 1.96.0".into(),
            has_sources: true,
            ..Compiler::default()
        }
    }

    fn rustup() -> Probes {
        Probes { cargo: true, rustup: true, active: Some(active()), ..Probes::default() }
    }

    fn failed() -> Tried {
        Tried { rustup: Some("rustup target add: no reach".into()), packages: None }
    }

    fn command(step: Step) -> String {
        match step {
            Step::Fail(ToolchainError::NoTarget { command, .. }) => command,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_toolchain_with_the_target_is_taken_at_once() {
        let found = Probes {
            active: Some(Compiler { has_target: true, ..active() }),
            system: Some(system()),
            ..rustup()
        };
        let expected = Toolchain::Target { rustc: None, version: "rustc 1.95.0".into(), linker: None };
        assert_eq!(next_step(&found, &Tried::default(), false, Route::Auto), Step::Use(expected));
        let found = Probes { system: Some(Compiler { has_target: true, ..system() }), ..rustup() };
        let expected = Toolchain::Target {
            rustc: Some("/usr/bin/rustc".into()),
            version: "rustc 1.96.0".into(),
            linker: Some("/lld".into()),
        };
        assert_eq!(next_step(&found, &Tried::default(), false, Route::Auto), Step::Use(expected));
    }

    #[test]
    fn rustup_is_asked_before_anything_is_built_from_sources() {
        let found = Probes { system: Some(system()), ..rustup() };
        assert_eq!(next_step(&found, &Tried::default(), true, Route::Auto), Step::AddTarget);
        let expected = Toolchain::Sources {
            rustc: Some("/usr/bin/rustc".into()),
            version: "rustc 1.96.0".into(),
            linker: "/lld".into(),
        };
        assert_eq!(next_step(&found, &failed(), false, Route::Auto), Step::Use(expected));
    }

    #[test]
    fn the_active_compiler_builds_from_its_own_sources() {
        let found = Probes {
            active: Some(Compiler { has_sources: true, ..active() }),
            system: Some(system()),
            ..rustup()
        };
        let expected =
            Toolchain::Sources { rustc: None, version: "rustc 1.95.0".into(), linker: "/lld".into() };
        assert_eq!(next_step(&found, &failed(), false, Route::Auto), Step::Use(expected));
    }

    #[test]
    fn packages_are_installed_by_root_and_only_where_allowed() {
        let found = Probes { apt: true, root: true, ..rustup() };
        let packages = vec!["rustc-web", "rust-web-src"];
        assert_eq!(next_step(&found, &failed(), true, Route::Auto), Step::InstallPackages(packages));
        assert!(
            command(next_step(&found, &failed(), false, Route::Auto))
                .starts_with("apt-get update && apt-get install")
        );
        let found = Probes { root: false, ..found };
        assert!(command(next_step(&found, &failed(), true, Route::Auto)).starts_with("sudo apt-get update"));
    }

    #[test]
    fn a_missing_linker_is_installed_along() {
        let compiler = Compiler { linker: None, ..active() };
        let found =
            Probes { active: Some(compiler), system: Some(system()), apt: true, root: true, ..rustup() };
        assert_eq!(
            next_step(&found, &failed(), true, Route::Auto),
            Step::InstallPackages(vec!["rustc-web", "rust-web-src", "lld"])
        );
        let found = Probes { wasm_linker: Some("/usr/bin/wasm-ld".into()), ..found };
        assert!(matches!(
            next_step(&found, &failed(), true, Route::Auto),
            Step::Use(Toolchain::Sources { .. })
        ));
    }

    #[test]
    fn a_compiler_that_is_too_old_is_not_taken_and_the_error_says_so() {
        let too_old = Compiler { version: "rustc 1.85.0 (4d91de4e4 2025-02-17)".into(), ..system() };
        let found = Probes { system: Some(too_old), apt: true, root: true, ..rustup() };
        // Beside one that wants but the target it is not what is missing.
        assert!(command(next_step(&found, &failed(), false, Route::Auto)).contains("apt-get install"));
        let tried = Tried { packages: Some("the packages are installed, but do not do".into()), ..failed() };
        let Step::Fail(error) = next_step(&found, &tried, true, Route::Auto) else { panic!() };
        let message = error.to_string();
        assert!(message.contains("rustc 1.85.0") && message.contains("/usr/bin/rustc"), "{message}");
        assert!(message.contains("needs 1.95") && message.contains("Run: rustup update stable"), "{message}");
        // Beside one that will do it does no harm; and the packages may bring a newer one.
        let found = Probes { active: Some(Compiler { has_target: true, ..active() }), ..found };
        assert!(matches!(next_step(&found, &Tried::default(), false, Route::Auto), Step::Use(_)));
        let old_alone = Probes {
            active: Some(Compiler { version: "rustc 1.85.0".into(), has_sources: true, ..active() }),
            rustup: false,
            system: None,
            ..found
        };
        assert_eq!(
            next_step(&old_alone, &Tried::default(), false, Route::Auto),
            Step::Fail(ToolchainError::TooOld {
                found: "rustc 1.85.0 (rustc)".into(),
                needed: "1.95".into(),
                command: "curl --proto '=https' -sSf https://sh.rustup.rs | sh -s -- -y --target wasm32-unknown-unknown"
                    .into(),
                tried: Vec::new(),
            })
        );
    }

    #[test]
    fn versions_are_read_as_compilers_say_them() {
        let says = |version: &str| Compiler { version: version.into(), ..active() };
        for (version, will_do) in [
            ("rustc 1.95.0 (abc 2026-04-14)", true),
            ("rustc 1.96.0-nightly (abc 2026-03-01)", true),
            ("rustc 2.0.0", true),
            ("rustc 1.94.1 (abc 2026-03-01) (built from a source tarball)", false),
            ("rustc 1.85.0", false),
            ("another compiler", true),
        ] {
            assert_eq!(says(version).will_do(), will_do, "{version}");
        }
        let manifest = env!("CARGO_PKG_RUST_VERSION");
        assert_eq!(says(&format!("rustc {manifest}")).release(), Some(RUST_MIN), "as the workspace has it");
    }

    #[test]
    fn nothing_is_tried_twice() {
        let found = Probes { apt: true, root: true, ..rustup() };
        let tried = Tried { packages: Some("apt-get: E: unable to locate package".into()), ..failed() };
        let Step::Fail(error) = next_step(&found, &tried, true, Route::Auto) else { panic!() };
        let message = error.to_string();
        assert!(
            message.contains("no reach; apt-get: E: unable") && message.contains("Run: apt-get update"),
            "{message}"
        );
    }

    #[test]
    fn without_apt_the_command_is_rustups() {
        assert_eq!(
            command(next_step(&rustup(), &failed(), true, Route::Auto)),
            "rustup target add wasm32-unknown-unknown"
        );
        let found = Probes { rustup: false, ..rustup() };
        assert!(command(next_step(&found, &Tried::default(), true, Route::Auto)).contains("sh.rustup.rs"));
        assert_eq!(
            next_step(&Probes::default(), &failed(), true, Route::Auto),
            Step::Fail(ToolchainError::NoRust)
        );
    }

    #[test]
    fn a_route_leaves_the_other_alone() {
        let found = Probes {
            active: Some(Compiler { has_target: true, ..active() }),
            system: Some(system()),
            apt: true,
            root: true,
            ..rustup()
        };
        assert!(matches!(
            next_step(&found, &failed(), true, Route::Sources),
            Step::Use(Toolchain::Sources { .. })
        ));
        let found = Probes { active: Some(active()), ..found };
        assert_eq!(next_step(&found, &Tried::default(), true, Route::Target), Step::AddTarget);
        assert_eq!(
            command(next_step(&found, &failed(), true, Route::Target)),
            "rustup target add wasm32-unknown-unknown"
        );
    }
}
