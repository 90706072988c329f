//! The lane dispatcher: one promise for webhooks, e-mails and calls to vendors alike. What is offered is recorded, tried
//! at once where its lane allows, retried by its schedule, limited, broken and ended, with every attempt on record.
//!
//! A lane is one destination. Deliveries wait in the store, never in memory: the dispatcher schedules lanes (a turn, a
//! timer, a breaker, a limit, a window of slots each) and loads only what it can send now.
//!
//! - [`backoff`], [`breaker`], [`limit`], `window`, `turns` decide, and are pure.
//! - `dispatcher` owns every lane in one task; `recorder` commits in groups what it learnt; [`rows`] holds the queries.
//!
//! Guarantees: an offer that was answered is durable, with one delivery per (event, lane). A delivery that is not final
//! is tried again after any crash where the receiver can drop a repeat; where it can't, its `sending` row is committed
//! before the attempt, and a crash in between leaves it `unknown`, never sent twice. A failing lane never delays another.

pub mod backoff;
pub mod breaker;
mod delivery;
mod dispatcher;
pub mod limit;
pub mod overdue;
mod recorder;
pub mod retention;
pub mod rows;
mod turns;
mod window;

use crate::store::Migrations;

pub use self::{
    backoff::Schedule,
    delivery::{Attempted, Blame, Delivery, Outcome, State},
    dispatcher::{Courier, Dispatcher, Durable, Offer, Settings, Slots},
};

/// Tables of the lanes, for the services that dispatch.
pub static MIGRATIONS: Migrations = Migrations {
    sqlite: sqlx::migrate!("./migrations/lane/sqlite"),
    postgres: sqlx::migrate!("./migrations/lane/postgres"),
};
