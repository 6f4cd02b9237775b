//! The compiler's process for this room's tests; a broker starts its own program with a hidden subcommand instead.

fn main() -> std::process::ExitCode {
    tidemill_hosting::compile_worker_main()
}
