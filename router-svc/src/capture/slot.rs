//! The replication slot: what is there, what we know of it, and so whether to go on with it, to take it as it is, or to
//! make a new one. Each new slot, and each that is not where we left it, begins a new generation.
//!
//! A slot is lost when it is gone or invalidated (`wal_status = lost`), and when it is further than we ever told it: then
//! somebody else read from it, or made it anew under its name. What changed meanwhile was never seen here. That is
//! counted and logged as an error, subscribers get a notice, and the chosen tables are read anew where a slot is made.
//!
//! A standby that was promoted keeps its system's name, and may bring the slot along. It goes on where all that was
//! acknowledged is in its log too; where its log left before that, places beyond mean something else there, and what
//! was told may never have happened: that is a loss as well.

use super::{
    CaptureError, Session,
    config::{Source, identifier, literal},
    notice,
    position::{Fork, Lsn, Origin},
    publication, snapshot,
    state::{Known, Phase},
    wire::{Connection, Row},
};

/// The slot as the server has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Slot {
    confirmed: Lsn,
    /// The server has thrown away what it stood for.
    is_invalid: bool,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Decision {
    /// It is where we left it.
    GoOn,
    /// Take it as it is, as a new generation.
    Adopt { lost: &'static str },
    /// Make a new one, after dropping the one that is there.
    Make { lost: String, drops: bool },
    /// A person must.
    Wait(&'static str),
}

const GONE: &str = "the slot was dropped";
const INVALID: &str = "the server invalidated the slot";
const MOVED: &str = "the slot was moved or made anew by somebody else";
const ELSEWHERE: &str = "the database is another server's";
const BEHIND: &str = "the server was replaced by one that may lack its last changes";

/// Pure.
fn decide(known: Option<&Known>, server: &Origin, slot: Option<Slot>, source: &Source) -> Decision {
    let lost = match (known, slot) {
        (Some(known), _) if known.phase == Phase::Preparing && source.manage => {
            return Decision::Make { lost: known.lost.clone(), drops: slot.is_some() };
        }
        (Some(_), None) => GONE,
        (_, Some(slot)) if slot.is_invalid => INVALID,
        (Some(known), Some(_)) if known.system != server.system => ELSEWHERE,
        (Some(known), Some(_)) if lacks(server, known) => BEHIND,
        (Some(known), Some(slot)) if slot.confirmed > known.acknowledged => MOVED,
        (Some(_), Some(_)) => return Decision::GoOn,
        (None, _) => "",
    };
    match slot {
        // Without a snapshot a new slot would only lose more.
        Some(slot) if !slot.is_invalid && (lost.is_empty() || !source.manage || source.snapshot.is_empty()) => {
            Decision::Adopt { lost }
        }
        _ if source.manage => Decision::Make { lost: lost.to_owned(), drops: slot.is_some() },
        None => Decision::Wait("the slot doesn't exist: create it, or set manage = true"),
        Some(_) => Decision::Wait("the slot is invalidated: drop and create it, or set manage = true"),
    }
}

/// Whether a server's log left the one that was read before the place that was acknowledged.
fn lacks(server: &Origin, known: &Known) -> bool {
    known.timeline.and_then(|timeline| server.shares(timeline)).is_some_and(|shared| shared < known.acknowledged)
}

/// Gets the source ready to stream, with its snapshot and every notice durable; gives whose places they are, and where
/// streaming begins.
pub(super) async fn open(
    session: &mut Session<'_>,
    connection: &mut Connection,
) -> Result<(Origin, Lsn), CaptureError> {
    let server = identify(connection).await?;
    let known = session.state.read().await?;
    publication::ensure(session.source, connection).await?;
    session.load_types(connection).await?;
    let slot = find(session.source, connection).await?;
    let generation = known.as_ref().map_or(0, |known| known.generation);
    let origin = |generation| Origin { generation, ..server.clone() };
    let decision = decide(known.as_ref(), &server, slot, session.source);
    let (lost, drops) = match (decision, known, slot) {
        (Decision::GoOn, Some(known), _) => {
            let start = known.acknowledged;
            session.state.write(&Known { timeline: Some(server.timeline), ..known }).await?;
            return Ok((origin(generation), start));
        }
        (Decision::Wait(why), ..) => return Err(CaptureError::Source(why.to_owned())),
        (Decision::Adopt { lost }, _, Some(slot)) => {
            let origin = origin(generation + 1);
            let known = preparing(&origin, lost, slot.confirmed);
            if !session.source.snapshot.is_empty() {
                tracing::warn!(source = session.source.name, "the slot was there already: no snapshot is taken");
            }
            tell(session, &origin, lost).await?;
            session.state.write(&Known { phase: Phase::Streaming, ..known }).await?;
            return Ok((origin, slot.confirmed));
        }
        (Decision::Make { lost, drops }, ..) => (lost, drops),
        _ => return Err(CaptureError::Source("there is nothing to go on with".to_owned())),
    };
    let origin = origin(generation + 1);
    let start = make(session, connection, &origin, &lost, drops).await?;
    Ok((origin, start))
}

/// A new slot, the notice of what was lost, and the snapshot. Killed anywhere in between, all of it is done again, as
/// another generation.
async fn make(
    session: &mut Session<'_>,
    connection: &mut Connection,
    origin: &Origin,
    lost: &str,
    drops: bool,
) -> Result<Lsn, CaptureError> {
    let source = session.source;
    session.state.write(&preparing(origin, lost, Lsn(0))).await?;
    if drops {
        connection.query(&format!("DROP_REPLICATION_SLOT {}", identifier(&source.slot))).await?;
    }
    let create = format!("CREATE_REPLICATION_SLOT {} LOGICAL pgoutput EXPORT_SNAPSHOT", identifier(&source.slot));
    let rows = connection.query(&create).await?;
    let start = rows.first().and_then(|row| Lsn::parse(&text(row, 1)));
    let start = start.ok_or_else(|| CaptureError::Source("the server made no slot".to_owned()))?;
    let exported = rows.first().map(|row| text(row, 2)).unwrap_or_default();
    tell(session, origin, lost).await?;
    if !source.snapshot.is_empty() {
        snapshot::take(session, origin, start, &exported).await?;
    }
    let known = preparing(origin, lost, start);
    session.state.write(&Known { phase: Phase::Streaming, ..known }).await?;
    tracing::info!(source = source.name, %start, generation = origin.generation, "made the replication slot");
    Ok(start)
}

fn preparing(origin: &Origin, lost: &str, acknowledged: Lsn) -> Known {
    let (system, timeline, generation) = (origin.system.clone(), Some(origin.timeline), origin.generation);
    Known { system, timeline, generation, phase: Phase::Preparing, lost: lost.to_owned(), acknowledged }
}

/// Everybody whose changes may be missing hears it.
async fn tell(session: &mut Session<'_>, origin: &Origin, lost: &str) -> Result<(), CaptureError> {
    if lost.is_empty() {
        return Ok(());
    }
    tracing::error!(source = session.source.name, reason = lost, "changes were lost: a new generation begins");
    metrics::counter!("capture_slots_lost_total", "source" => session.source.name.clone()).increment(1);
    notice::resync(session, origin, lost).await
}

/// Whose log it is, before a slot on it has a generation.
async fn identify(connection: &mut Connection) -> Result<Origin, CaptureError> {
    let unknown = || CaptureError::Source("the server doesn't say who it is".to_owned());
    let rows = connection.query("IDENTIFY_SYSTEM").await?;
    let row = rows.first().ok_or_else(unknown)?;
    let (system, timeline) = (text(row, 0), text(row, 1).parse::<u32>().map_err(|_| unknown())?);
    if system.is_empty() || system.len() > 20 || !system.bytes().all(|b| b.is_ascii_digit()) {
        return Err(unknown());
    }
    // The first has come from nowhere, and has no such file.
    let forks = match timeline {
        ..=1 => Vec::new(),
        _ => {
            let history = connection.query(&format!("TIMELINE_HISTORY {timeline}")).await?;
            history.first().map(|row| Fork::parse_all(&text(row, 1))).unwrap_or_default()
        }
    };
    Ok(Origin { system, timeline, forks, generation: 0 })
}

async fn find(source: &Source, connection: &mut Connection) -> Result<Option<Slot>, CaptureError> {
    let rows = connection
        .query(&format!(
            "SELECT plugin, database = current_database(), confirmed_flush_lsn, wal_status FROM pg_replication_slots WHERE slot_name = {}",
            literal(&source.slot)
        ))
        .await?;
    let Some(row) = rows.first() else { return Ok(None) };
    if text(row, 0) != "pgoutput" || text(row, 1) != "t" {
        return Err(CaptureError::Source(
            "the slot is another plugin's or another database's: choose another".to_owned(),
        ));
    }
    let confirmed = Lsn::parse(&text(row, 2));
    Ok(Some(Slot {
        confirmed: confirmed.unwrap_or_default(),
        is_invalid: confirmed.is_none() || text(row, 3) == "lost",
    }))
}

/// A column of an answer; null is empty.
pub(super) fn text(row: &Row, column: usize) -> String {
    let cell = row.get(column).and_then(Option::as_ref);
    cell.map(|cell| String::from_utf8_lossy(cell).into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::config::sources;

    fn source(further: &str) -> Source {
        let text =
            format!("[s]\nurl = 'postgres://u@127.0.0.1/d'\ntables = {{ t = {{ organization = 'a' }} }}\n{further}");
        sources(&toml::from_str(&text).unwrap()).unwrap().remove(0)
    }

    fn known(phase: Phase) -> Known {
        let (system, lost) = ("1".to_owned(), String::new());
        Known { system, timeline: Some(1), generation: 1, phase, lost, acknowledged: Lsn(100) }
    }

    fn server(system: &str, timeline: u32, forks: &[(u32, u64)]) -> Origin {
        let forks = forks.iter().map(|(timeline, at)| Fork { timeline: *timeline, at: Lsn(*at) }).collect();
        Origin { system: system.to_owned(), timeline, forks, generation: 0 }
    }

    fn slot(confirmed: u64) -> Option<Slot> {
        Some(Slot { confirmed: Lsn(confirmed), is_invalid: false })
    }

    fn make(lost: &str, drops: bool) -> Decision {
        Decision::Make { lost: lost.to_owned(), drops }
    }

    #[test]
    fn a_slot_that_is_where_it_was_left_goes_on_and_any_other_is_a_loss() {
        let (plain, reads, given) = (source(""), source("snapshot = ['t']"), source("manage = false"));
        let (streaming, one) = (known(Phase::Streaming), server("1", 1, &[]));
        let invalid = Some(Slot { confirmed: Lsn(1), is_invalid: true });
        for source in [&plain, &reads, &given] {
            assert_eq!(decide(Some(&streaming), &one, slot(100), source), Decision::GoOn);
            assert_eq!(decide(Some(&streaming), &one, slot(7), source), Decision::GoOn, "it missed our last word");
            assert_eq!(decide(None, &one, slot(7), source), Decision::Adopt { lost: "" });
        }
        assert_eq!(decide(Some(&streaming), &one, slot(101), &plain), Decision::Adopt { lost: MOVED });
        assert_eq!(decide(Some(&streaming), &one, slot(101), &reads), make(MOVED, true));
        assert_eq!(decide(Some(&streaming), &one, slot(101), &given), Decision::Adopt { lost: MOVED });
        assert_eq!(decide(Some(&streaming), &server("2", 1, &[]), slot(9), &reads), make(ELSEWHERE, true));
        assert_eq!(decide(Some(&streaming), &one, None, &plain), make(GONE, false));
        assert_eq!(decide(Some(&streaming), &one, invalid, &reads), make(INVALID, true));
        assert_eq!(decide(None, &one, None, &plain), make("", false));
        for slot in [None, invalid] {
            assert!(matches!(decide(Some(&streaming), &one, slot, &given), Decision::Wait(_)));
        }
    }

    #[test]
    fn a_promoted_server_goes_on_only_if_it_has_all_that_was_acknowledged() {
        let (plain, reads) = (source(""), source("snapshot = ['t']"));
        let streaming = known(Phase::Streaming);
        for forks in [&[(1, 100)][..], &[(1, 101), (2, 300)]] {
            let promoted = server("1", 3, forks);
            assert_eq!(decide(Some(&streaming), &promoted, slot(7), &reads), Decision::GoOn);
        }
        // It left before, it is no descendant, or it is the one that was replaced, come back.
        let other = Known { timeline: Some(2), ..streaming.clone() };
        for (known, server) in [
            (&streaming, server("1", 2, &[(1, 99)])),
            (&other, server("1", 3, &[(1, 200)])),
            (&other, server("1", 1, &[])),
        ] {
            assert_eq!(decide(Some(known), &server, slot(7), &plain), Decision::Adopt { lost: BEHIND });
            assert_eq!(decide(Some(known), &server, slot(7), &reads), make(BEHIND, true));
        }
        let untold = Known { timeline: None, ..streaming };
        assert_eq!(decide(Some(&untold), &server("1", 2, &[(1, 99)]), slot(7), &plain), Decision::GoOn);
    }

    #[test]
    fn what_was_begun_and_not_finished_is_begun_anew_with_its_reason() {
        let begun = Known { lost: GONE.to_owned(), ..known(Phase::Preparing) };
        let one = server("1", 1, &[]);
        assert_eq!(decide(Some(&begun), &one, slot(7), &source("")), make(GONE, true));
        assert_eq!(decide(Some(&begun), &one, None, &source("")), make(GONE, false));
    }
}
