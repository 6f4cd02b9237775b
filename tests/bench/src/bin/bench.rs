//! See `tidemill_bench::run`.

fn main() -> std::process::ExitCode {
    tidemill_bench::run()
}
