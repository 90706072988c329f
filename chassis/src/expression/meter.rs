//! How much work one evaluation may do beyond the engine's own steps, which fuel counts.
//!
//! A step can compare two records or join a list; those pay here by the entry and by the byte. Evaluation never leaves
//! its thread, so the count is the thread's.

use std::cell::Cell;

use minijinja::{Error, ErrorKind};

use super::ExpressionError;

const WORK: u64 = 4 * 1024 * 1024;
const TOO_MUCH: &str = "takes too much work or gives too long a result";

thread_local! {
    static LEFT: Cell<u64> = const { Cell::new(0) };
}

/// Runs one evaluation with a fresh allowance.
pub(super) fn run<T>(body: impl FnOnce() -> Result<T, ExpressionError>) -> Result<T, ExpressionError> {
    LEFT.set(WORK);
    let result = body();
    if LEFT.get() == 0 {
        return Err(ExpressionError::new(1, TOO_MUCH));
    }
    result
}

/// Takes `units` from the allowance; false once it is used up. For places that can't fail themselves.
pub(super) fn spend(units: usize) -> bool {
    let left = LEFT.get().saturating_sub(u64::try_from(units).unwrap_or(u64::MAX));
    LEFT.set(left);
    left > 0
}

/// Takes `units` from the allowance, before the work is done.
pub(super) fn charge(units: usize) -> Result<(), Error> {
    if spend(units) { Ok(()) } else { Err(Error::new(ErrorKind::InvalidOperation, TOO_MUCH)) }
}
