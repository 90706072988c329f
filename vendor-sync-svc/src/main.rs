//! The vendor-sync service by itself.

use std::process::ExitCode;

fn main() -> ExitCode {
    chassis::service::main("vendor-sync", vendor_sync_svc::start)
}
