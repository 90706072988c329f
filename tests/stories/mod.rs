//! Stories: what an organization does with its endpoints and integrations, and what comes of it, on the real binary and
//! over its own ports, once on each engine.
//!
//! `story` is the stage (a system, its tenants, their endpoints), `receiver` who gets webhooks, `web` plain HTTP; each
//! other file tells one subject.

mod again;
mod content;
mod drain;
mod failing;
mod inbound;
mod inbound_refused;
mod life;
mod observed;
mod receiver;
mod refused;
mod story;
mod tenancy;
mod web;
