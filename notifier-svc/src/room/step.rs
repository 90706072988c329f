//! Makes one room what it should be, a call at a time, each noted before it is made.

use std::{collections::BTreeSet, time::Duration};

use chassis::{error::Result, id::OrganizationId};
use jiff::Timestamp;

use super::{
    Keeper, again,
    plan::{NAMES, ends, is_ours, moves, name, purpose},
    row::{self, Member, Room, Stage, Standing},
};
use crate::{channel::RoomFault as Fault, settings, wedding};

/// As many people as a wedding may have in a room.
const MEMBERS: u32 = 400;
/// How long to leave a room alone that Slack won't have: somebody has to do something about it.
const HOURS: Duration = Duration::from_secs(6 * 3600);

/// Why a room isn't what it should be.
enum Stop {
    Slack(Fault),
    Store(chassis::error::Error),
}

impl From<Fault> for Stop {
    fn from(fault: Fault) -> Self {
        Self::Slack(fault)
    }
}

impl From<chassis::error::Error> for Stop {
    fn from(error: chassis::error::Error) -> Self {
        Self::Store(error)
    }
}

impl Keeper {
    /// Looks after one room, and says when it is due again.
    pub(super) async fn attend(&self, organization: &OrganizationId, wedding: &str) -> Result<()> {
        let Some(mut room) = row::list(&self.store, organization, wedding, "", 1).await?.pop() else { return Ok(()) };
        let now = self.clock.now();
        let next = match self.bring_about(organization, &mut room, now).await {
            Ok(next) => {
                (room.tries, room.said) = (0, String::new());
                next
            }
            Err(Stop::Store(error)) => {
                // What can't be handled isn't the first in line again.
                let tries = room.tries;
                room.tries = tries + 1;
                row::settle(&self.store, organization, &room, Some(again(now, tries, None))).await?;
                return Err(error);
            }
            Err(Stop::Slack(fault)) => {
                let (after, said) = match fault {
                    Fault::Refused(said) => (Some(HOURS), said),
                    Fault::Later { after, said } => (after, said),
                    Fault::Unsure(said) => (None, said),
                };
                let tries = room.tries;
                (room.tries, room.said) = (tries + 1, said);
                Some(again(now, tries, after))
            }
        };
        row::settle(&self.store, organization, &room, next).await
    }

    /// Every step that is left; gives when it is to be looked at again.
    async fn bring_about(
        &self,
        organization: &OrganizationId,
        room: &mut Room,
        now: Timestamp,
    ) -> Result<Option<Timestamp>, Stop> {
        let settings = settings::read(&self.store, organization).await?;
        let (day, zone) = wedding::day(&self.store, organization, &room.wedding).await?.unwrap_or_default();
        let ends = ends(&day, &zone, settings.slack_archive_days);
        let is_over = ends.is_some_and(|ends| ends <= now);
        if settings.slack_weddings && room.stage == Stage::Archived && ends.is_some_and(|ends| ends > now) {
            self.begin_anew(organization, room).await?;
        }
        if !settings.slack_weddings || room.stage == Stage::Archived || is_over && room.id.is_empty() {
            return Ok(None);
        }
        let wanted = self.wanted(organization, &room.wedding).await?;
        if room.id.is_empty() {
            if wanted.is_empty() {
                return Ok(None);
            }
            self.make(organization, room, now).await?;
        }
        if room.stage == Stage::Made {
            let purpose = purpose(organization, &room.wedding, &self.public_name);
            self.rooms.set_purpose(&room.id, &purpose).await?;
            room.stage = Stage::Open;
            row::save(&self.store, organization, room).await?;
        }
        if is_over {
            self.rooms.archive(&room.id).await?;
            room.stage = Stage::Archived;
            row::save(&self.store, organization, room).await?;
            return Ok(None);
        }
        self.move_members(organization, room, &wanted).await?;
        Ok(ends)
    }

    /// Whom a wedding's room is for: its people, as far as Slack knows them.
    async fn wanted(&self, organization: &OrganizationId, wedding: &str) -> Result<BTreeSet<String>> {
        let people = self.directory.list(organization, wedding, "", MEMBERS).await?;
        Ok(people.into_iter().map(|person| person.contact.slack_user_id).filter(|id| !id.is_empty()).collect())
    }

    /// Its day was corrected after it was archived: Slack lets no bot open that one again, so there is another, by the next
    /// name.
    async fn begin_anew(&self, organization: &OrganizationId, room: &mut Room) -> Result<(), Stop> {
        row::drop_members(&self.store, organization, &room.wedding).await?;
        (room.stage, room.id, room.taken, room.asked_at) = (Stage::Wanted, String::new(), room.taken + 1, None);
        Ok(row::save(&self.store, organization, room).await?)
    }

    /// Makes the room, or finds that it was made.
    async fn make(&self, organization: &OrganizationId, room: &mut Room, now: Timestamp) -> Result<(), Stop> {
        while room.taken < NAMES {
            if room.asked_at.is_none() {
                room.name = name(organization, &room.wedding, room.taken);
                room.asked_at = Some(now);
                row::save(&self.store, organization, room).await?;
            }
            let id = match self.rooms.create(&room.name).await {
                Err(Fault::Refused(error)) if error == "name_taken" => self.taken(organization, room, now).await?,
                made => Some(made?),
            };
            match id {
                Some(id) => {
                    (room.id, room.stage) = (id, Stage::Made);
                    row::save(&self.store, organization, room).await?;
                    return Ok(());
                }
                None => (room.taken, room.asked_at) = (room.taken + 1, None),
            }
        }
        Err(Fault::Refused("every name for the room is taken".to_owned()).into())
    }

    /// The room under a taken name, if it is ours.
    async fn taken(&self, organization: &OrganizationId, room: &Room, now: Timestamp) -> Result<Option<String>, Stop> {
        let Some(found) = self.rooms.find(&room.name).await? else { return Ok(None) };
        let bot = self.rooms.whoami().await?;
        let ours = is_ours(&found, organization, &room.wedding, &bot, room.asked_at.unwrap_or(now));
        // Another wedding of that name may have made it a moment ago, and not marked it yet.
        Ok(if ours && !row::is_known(&self.store, &found.id).await? { Some(found.id) } else { None })
    }

    async fn move_members(
        &self,
        organization: &OrganizationId,
        room: &Room,
        wanted: &BTreeSet<String>,
    ) -> Result<(), Stop> {
        let members = row::members(&self.store, organization, &room.wedding).await?;
        let (come, go) = moves(wanted, &members);
        for user in come {
            self.bring_in(organization, room, user).await?;
        }
        // Whoever can't be taken out keeps nobody else in.
        let mut refused = None;
        for user in go {
            let was_skipped = members.iter().any(|member| member.user == user && member.standing == Standing::Skipped);
            let stays = if was_skipped { None } else { self.take_out(organization, room, &user).await? };
            if stays.is_none() {
                row::drop_member(&self.store, organization, &room.wedding, &user).await?;
            }
            refused = refused.or(stays);
        }
        refused.map_or(Ok(()), |said| Err(Fault::Refused(said).into()))
    }

    async fn bring_in(&self, organization: &OrganizationId, room: &Room, user: String) -> Result<(), Stop> {
        let mut member = Member { user, standing: Standing::Asked, said: String::new() };
        row::put_member(&self.store, organization, &room.wedding, &member).await?;
        match self.rooms.invite(&room.id, &member.user).await {
            Ok(()) => member.standing = Standing::In,
            Err(Fault::Refused(said)) if is_about_the_room(&said) => return Err(Fault::Refused(said).into()),
            Err(Fault::Refused(said)) => (member.standing, member.said) = (Standing::Skipped, said),
            Err(fault) => return Err(fault.into()),
        }
        row::put_member(&self.store, organization, &room.wedding, &member).await?;
        Ok(())
    }

    /// Gives why somebody can't be taken out, where that is about them.
    async fn take_out(&self, organization: &OrganizationId, room: &Room, user: &str) -> Result<Option<String>, Stop> {
        let mut member = Member { user: user.to_owned(), standing: Standing::Leaving, said: String::new() };
        row::put_member(&self.store, organization, &room.wedding, &member).await?;
        match self.rooms.remove(&room.id, user).await {
            Ok(()) => return Ok(None),
            Err(Fault::Refused(said)) if !is_about_the_room(&said) => member.said = said,
            Err(fault) => return Err(fault.into()),
        }
        row::put_member(&self.store, organization, &room.wedding, &member).await?;
        Ok(Some(member.said))
    }
}

/// What is wrong with the room, and not with whom it is for.
fn is_about_the_room(error: &str) -> bool {
    matches!(
        error,
        "channel_not_found"
            | "is_archived"
            | "not_in_channel"
            | "method_not_supported_for_channel_type"
            | "restricted_action"
            | "no_permission"
    )
}
