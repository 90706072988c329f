//! A wedding's room: a private channel in Slack with the wedding's vendors, where the organization has switched that on.
//!
//! A room is due whenever its wedding, its people or the settings change ([`touch`]), and at its end. Then it is made what
//! it should be: created, marked as ours, its members brought in and taken out, archived some days after the wedding.
//!
//! Invariant: what is about to be asked of Slack is committed before it is asked, and every step may be taken twice: a crash
//! repeats a step, never a room. A room is adopted only if it carries our mark, or if our bot made it, since we asked for
//! that very name, nobody has marked it yet and no other wedding has it. Nobody is taken out whom we didn't bring in.

mod notice;
mod plan;
pub(crate) mod row;
mod step;

use std::{sync::Arc, time::Duration};

use chassis::{clock::Clock, error::Result, id::OrganizationId, store::Store};
use jiff::{SignedDuration, Timestamp};
use tokio_util::sync::CancellationToken;

pub(crate) use self::{
    notice::{as_person, id_of, is_room, leave},
    row::{Member, Room, Stage, Standing, list, members, open, touch, touch_all, touch_of},
};
use crate::{channel::Rooms, recipient::Directory};

/// How often the store is asked whether something became due: a change is acted on within this.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Rooms in one pass.
const PAGE: i64 = 50;
/// The wait after a call that came to nothing doubles from the first to the last.
const FIRST: SignedDuration = SignedDuration::from_secs(10);
const LAST: SignedDuration = SignedDuration::from_hours(1);

/// Keeps the rooms.
pub(crate) struct Keeper {
    pub(crate) store: Store,
    pub(crate) clock: Clock,
    pub(crate) directory: Directory,
    pub(crate) rooms: Rooms,
    pub(crate) public_name: String,
}

/// Does what is due until told to stop.
pub(crate) async fn run(keeper: Arc<Keeper>, stopping: CancellationToken) {
    while !stopping.is_cancelled() {
        if let Err(error) = keeper.due().await {
            tracing::warn!(%error, "the rooms of weddings can't be looked after now");
        }
        stopping.run_until_cancelled(tokio::time::sleep(LOOK_EVERY)).await;
    }
}

impl Keeper {
    /// Takes the step of each room that is due; one room's failure holds up no other.
    async fn due(&self) -> Result<()> {
        let mut failed = None;
        for (organization, wedding) in row::due(&self.store, self.clock.now(), PAGE).await? {
            let attended = self.attend(&OrganizationId::parse(&organization)?, &wedding).await;
            failed = attended.err().or(failed);
        }
        failed.map_or(Ok(()), Err)
    }
}

/// When to try again after so many tries that came to nothing.
fn again(now: Timestamp, tries: i64, after: Option<Duration>) -> Timestamp {
    let doubled = FIRST * (1 << tries.clamp(0, 9));
    let asked = after.and_then(|after| SignedDuration::try_from(after).ok()).unwrap_or_default();
    now.checked_add(doubled.min(LAST).max(asked)).unwrap_or(Timestamp::MAX)
}
