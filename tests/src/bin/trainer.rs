//! The trainer, as the scenarios run it.

fn main() -> std::process::ExitCode {
    rondo_trainer::main()
}
