//! The sync engine: what happened, brought to the vendors that are to know it.
//!
//! [`read`] says what an event tells of a record, [`offer`] brings it into the record and offers it to each integration of
//! the kinds that its plan names, [`courier`] carries it. [`account`] knows every integration that is linked; [`poll`] asks
//! vendors that tell nothing by themselves. What comes in is `resolve`'s.

pub(crate) mod account;
pub(crate) mod carry;
pub(crate) mod courier;
pub(crate) mod known;
pub(crate) mod letter;
pub(crate) mod offer;
pub(crate) mod poll;
pub(crate) mod read;
pub(crate) mod reread;
pub(crate) mod stub;
