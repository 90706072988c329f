//! Stories: what an organization does with its endpoints and integrations, and what comes of it, on the real binary and
//! over its own ports, once on each engine.
//!
//! `story` is the stage (a system, its tenants, their endpoints), `receiver` who gets webhooks, `tab` a browser, `web`
//! plain HTTP, `wire` plain sockets, `linked` the stage of vendors' stories and `whole` a system on a clock that runs faster;
//! each other file tells one subject.

mod again;
mod browser;
mod commit;
mod content;
mod drain;
mod failing;
mod forged;
mod forgery;
mod inbound;
mod inbound_refused;
mod life;
mod linked;
mod linked_down;
mod linked_in;
mod linked_many;
mod linked_out;
mod live;
mod live_feed;
mod live_hostile;
mod live_limits;
mod live_pairs;
mod live_stories;
mod live_tenancy;
mod live_wire;
mod lost;
#[path = "../../deploy/demo/mail.rs"]
#[expect(dead_code, reason = "the demo shows subjects")]
mod mail;
mod observed;
mod people;
#[path = "../../deploy/demo/provider.rs"]
#[expect(dead_code, reason = "the demo shows what was said")]
mod provider;
mod receiver;
mod refused;
mod secure;
mod spooled;
mod story;
mod tab;
mod tenancy;
mod web;
mod whole;
mod wire;
