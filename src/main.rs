//! The `rowcast` binary: arguments in, exit code out.

fn main() -> std::process::ExitCode {
    rowcast::cli::main()
}
