//! The whole system, from outside: the real `wedsync` binary as a child process, spoken to over its own ports, by our
//! clients and by public ones in other languages.
//!
//! `make test` runs it with a PostgreSQL server and the public clients; without them (`cargo test`) the tests that need
//! one say that they are skipped, and why.

// `cfg(test)` tells the lints that everything here is test code.
#[cfg(test)]
mod books;
#[cfg(test)]
mod commands;
#[cfg(test)]
#[expect(dead_code, reason = "the benches use more of it")]
mod crash;
#[cfg(test)]
mod durability;
#[cfg(test)]
mod endure;
#[cfg(test)]
mod foreign;
#[cfg(test)]
#[expect(dead_code, reason = "the benches use more of it")]
mod harness;
#[cfg(test)]
mod stories;
#[cfg(test)]
mod tidy;
