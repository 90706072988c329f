//! The gateway as it runs, on a real port, before services that are fakes of one file each side of the documented contract.

mod api;
mod callbacks;
mod edge;
mod inspector;
mod links;
mod oauth;
mod peers;
mod webhooks;
mod world;
