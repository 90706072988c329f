//! The notifier by itself.

fn main() -> std::process::ExitCode {
    chassis::service::main("notifier", notifier_svc::start)
}
