//! The compiler's process on its own, for tests and benchmarks. A broker starts itself with a hidden subcommand instead.

fn main() -> std::process::ExitCode {
    tidemill_wasm::compile_worker_main()
}
