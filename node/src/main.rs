//! The Rondo daemon.

fn main() -> std::process::ExitCode {
    rondo_node::main()
}
