//! The running router over gRPC, on each engine: what it promises to publishers, consumers, subscribers and managers.

mod access;
mod consume;
mod credit;
mod faults;
mod log;
mod refusals;
mod restart;
mod routes;
mod subscribe;
mod weddings;
mod world;
