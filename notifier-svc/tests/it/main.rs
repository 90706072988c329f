//! The notifier as a whole: events and calls in, mail and notices out, on each engine, with a real mail server.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod addresses;
mod audit;
mod behind;
mod callback;
mod confirmation;
mod date;
mod digest;
mod directory;
mod inbox;
mod kill;
mod limit;
mod mail;
mod person;
mod preference;
mod provider;
mod room;
mod room_kill;
mod room_notice;
mod router;
mod sealing;
mod slack;
mod smtp;
mod suppression;
mod tell;
mod template;
mod world;
