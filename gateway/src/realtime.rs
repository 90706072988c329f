//! Live subscriptions for browsers: whose tokens are believed, what their holders may see, and whom a change concerns.

#![expect(dead_code, reason = "the socket that uses these pieces is yet to come")]

mod claims;
mod filter;
mod index;
mod jwks;
mod number;
mod row;
mod token;
