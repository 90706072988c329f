//! On which day a wedding is, on its venue's clocks: learnt from its row, as the router learns it.
//!
//! On that day, and until six in the morning after, its people are told at once; nothing has to end that, the clock does.

use chassis::{error::Result, id::OrganizationId, store::Store, with};
use jiff::{Timestamp, civil::Date, tz::TimeZone};

use crate::{
    event::{Event, Operation, text},
    recipient::{check_id, learn::is_news},
    room,
    when::is_wedding_day,
};

/// Takes in what a change of a wedding's row says of its day; columns that it doesn't carry leave what was known.
pub(crate) async fn learn(store: &Store, event: &Event, now: i64) -> Result<()> {
    let is_wedding = event.change.as_ref().filter(|change| change.table == "wedding_details");
    let (Some(change), Some(id)) = (is_wedding, text(event.row(), &["id"])) else { return Ok(()) };
    let row = event.row();
    if check_id("id", &id).is_err() || !(row.contains_key("wedding_date") || row.contains_key("time_zone")) {
        return Ok(());
    }
    let column = |name: &str| row.contains_key(name).then(|| text(row, &[name]).unwrap_or_default());
    let day = column("wedding_date").map(|date| date.get(..10).unwrap_or_default().to_owned());
    let (day, zone) = match change.operation {
        Operation::Delete => (Some(String::new()), Some(String::new())),
        Operation::Insert | Operation::Update => (day, column("time_zone").map(|zone| zone.chars().take(64).collect())),
    };
    let mut tx = store.begin().await?;
    if !is_news(&mut tx, &event.organization, &format!("wedding_days/{id}"), &event.position).await? {
        return Ok(());
    }
    with!(tx.on(), c => sqlx::query(
        "INSERT INTO wedding_days (organization_id, wedding_id, day, time_zone) VALUES ($1, $2, COALESCE($3, ''), COALESCE($4, ''))
         ON CONFLICT (organization_id, wedding_id) DO UPDATE SET day = COALESCE($3, wedding_days.day),
             time_zone = COALESCE($4, wedding_days.time_zone)",
    ).bind(event.organization.as_str()).bind(&id).bind(day).bind(zone).execute(c).await.map(drop))?;
    room::touch(&mut tx, &event.organization, &id, now).await?;
    tx.commit().await
}

/// A wedding's day and time zone, as far as they are known.
pub(crate) async fn day(
    store: &Store,
    organization: &OrganizationId,
    wedding: &str,
) -> Result<Option<(String, String)>> {
    Ok(with!(store.reader(), c => sqlx::query_as(
        "SELECT day, time_zone FROM wedding_days WHERE organization_id = $1 AND wedding_id = $2",
    ).bind(organization.as_str()).bind(wedding).fetch_optional(c).await)?)
}

/// Whether it is this wedding's day.
pub(crate) async fn is_its_day(
    store: &Store,
    organization: &OrganizationId,
    wedding: Option<&str>,
    now: Timestamp,
) -> Result<bool> {
    let Some(wedding) = wedding else { return Ok(false) };
    let Some((day, zone)) = day(store, organization, wedding).await? else { return Ok(false) };
    let zone = TimeZone::get(&zone).unwrap_or(TimeZone::UTC);
    Ok(day.parse::<Date>().is_ok_and(|day| is_wedding_day(day, now, &zone)))
}
