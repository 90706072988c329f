//! What every service is bolted onto: configuration, time, storage, credentials, secrets, the guarded way out, the lane
//! dispatcher, gRPC, telemetry and the orderly stop. It names no wedding, vendor or channel.

pub mod auth;
pub mod clock;
pub mod config;
pub mod consume;
pub mod descriptors;
pub mod error;
pub mod expression;
pub mod fail;
pub mod grpc;
pub mod health;
pub mod id;
pub mod lane;
pub mod outbound;
pub mod purge;
pub mod sealed_row;
pub mod secret;
pub mod service;
pub mod signature;
pub mod store;
pub mod tasks;
pub mod telemetry;
#[cfg(feature = "testing")]
pub mod testing;
pub mod trace;
