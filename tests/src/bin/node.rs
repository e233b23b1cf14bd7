//! The daemon, as the scenarios run it.

fn main() -> std::process::ExitCode {
    rondo_node::main()
}
