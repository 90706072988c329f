//! The notifier as a whole: events and calls in, mail and notices out, on each engine, with a real mail server.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod addresses;
mod directory;
mod inbox;
mod mail;
mod router;
mod sealing;
mod smtp;
mod tell;
mod world;
