//! The sync engine: what happened, brought to the vendors that are to know it.

pub(crate) mod letter;
