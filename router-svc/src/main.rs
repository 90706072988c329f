//! The router by itself.

fn main() -> std::process::ExitCode {
    chassis::service::main("router", router_svc::start)
}
