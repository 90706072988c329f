//! The vendors, held against what is real: their own descriptions served by Prism, and servers on loopback that behave as
//! theirs do (`testing/vendor`).

mod carried;
mod contract;
mod described;
mod forged;
mod golden;
mod marketing;
mod peers;
#[path = "../../tests/harness/prism.rs"]
mod prism;
mod rig;
mod table;
