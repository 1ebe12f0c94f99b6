//! The `plastic-host` program.

fn main() -> std::process::ExitCode {
    plastic_host::cli::main()
}
