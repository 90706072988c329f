//! What travels in a lane: a delivery, its attempts, and what an attempt can come to.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;

use crate::id::OrganizationId;

/// One event on its way to one destination.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// Row in the store; given by the dispatcher.
    pub id: i64,
    /// Number of its lane; given by the dispatcher.
    pub lane: i64,
    /// Id of its lane: the destination's own.
    pub lane_id: Arc<str>,
    /// Whose.
    pub organization: OrganizationId,
    /// The event's uid, 16 bytes of a UUID.
    pub event: [u8; 16],
    /// The event's idempotency key.
    pub event_id: String,
    /// The event's type.
    pub event_type: String,
    /// Deliveries of one key keep their order where the lane asks for it.
    pub ordering_key: String,
    /// 1 CRITICAL to 4 LOW.
    pub priority: i64,
    /// `realtime`, `replay`, `test` or `import`.
    pub origin: String,
    /// Attempts that have ended.
    pub attempts: u32,
    /// Attempts that had ended when it was last reopened: its schedule begins there.
    pub reopened_after: u32,
    /// Microseconds since the Unix epoch.
    pub created_at: i64,
    /// The rendered message, in the courier's own form: every attempt sends the same bytes.
    pub content: Bytes,
}

/// Where a delivery stands. The numbers are those of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(i64)]
pub enum State {
    /// To be tried when its time comes and its lane allows.
    Waiting = 0,
    /// An attempt is under way.
    Sending = 1,
    /// Behind an earlier one of the same key.
    Blocked = 2,
    /// Arrived.
    Delivered = 3,
    /// Given up; recoverable.
    Dead = 4,
    /// Its destination is gone.
    Cancelled = 5,
    /// Sent, but nobody can know whether it arrived; never sent again by itself.
    Unknown = 6,
}

impl State {
    /// All of them.
    pub const ALL: [State; 7] =
        [Self::Waiting, Self::Sending, Self::Blocked, Self::Delivered, Self::Dead, Self::Cancelled, Self::Unknown];

    /// From the store's number.
    #[must_use]
    pub fn from_number(number: i64) -> Option<Self> {
        Self::ALL.into_iter().find(|state| *state as i64 == number)
    }

    /// Nothing more happens to it by itself.
    #[must_use]
    pub fn is_final(self) -> bool {
        !matches!(self, Self::Waiting | Self::Sending | Self::Blocked)
    }
}

/// What an attempt came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The destination has it.
    Delivered,
    /// Try again by the schedule, no sooner than `after`.
    Retry {
        /// What the destination asked for.
        after: Option<Duration>,
        /// Who is at fault.
        blame: Blame,
    },
    /// This message will never be taken.
    Permanent,
    /// The destination will never take anything again.
    Gone,
    /// It may have arrived or not, and trying again could tell somebody twice.
    Unknown,
}

/// Whose fault a failure is; only the destination's counts for its breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// It was away, slow, or broken.
    Destination,
    /// It refused this message.
    Message,
}

/// An attempt that has ended, as it is recorded.
#[derive(Clone, Debug)]
pub struct Attempted {
    /// What it came to.
    pub outcome: Outcome,
    /// The answer's status, where one came.
    pub status_code: Option<u16>,
    /// `delivered`, or what went wrong in one word: `timeout`, `status`...
    pub class: &'static str,
    /// In plain words; of one that is delivered: what there is to say of it, mostly nothing.
    pub error: String,
    /// The beginning of the answer's body.
    pub response: Bytes,
}
