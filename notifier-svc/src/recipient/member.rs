//! Who belongs to which wedding, by who says so.

use chassis::{
    error::Result,
    id::OrganizationId,
    store::{Store, Tx},
    with,
};

/// That someone belongs to a wedding, and who says so.
pub(super) struct Membership<'a> {
    pub(super) wedding: &'a str,
    pub(super) source: &'static str,
    pub(super) member: &'a str,
    pub(super) recipient: &'a str,
    pub(super) vendor_type: &'a str,
}

/// Puts a member into a wedding.
pub(super) async fn join(tx: &mut Tx, organization: &OrganizationId, membership: &Membership<'_>) -> Result<()> {
    with!(tx.on(), c => sqlx::query(
        "INSERT INTO wedding_recipients (organization_id, wedding_id, source, member, recipient_id, vendor_type)
         VALUES ($1, $2, $3, $4, $5, $6)
         ON CONFLICT (organization_id, wedding_id, source, member) DO UPDATE SET recipient_id = excluded.recipient_id,
             vendor_type = excluded.vendor_type",
    )
    .bind(organization.as_str())
    .bind(membership.wedding)
    .bind(membership.source)
    .bind(membership.member)
    .bind(membership.recipient)
    .bind(membership.vendor_type)
    .execute(c).await.map(drop))?;
    Ok(())
}

/// Takes a member out of a wedding; all that the source named, if `member` is empty.
pub(super) async fn leave(
    tx: &mut Tx,
    organization: &OrganizationId,
    wedding: &str,
    source: &str,
    member: &str,
) -> Result<()> {
    with!(tx.on(), c => sqlx::query(
        "DELETE FROM wedding_recipients WHERE organization_id = $1 AND wedding_id = $2 AND source = $3 AND ($4 = '' OR member = $4)",
    )
    .bind(organization.as_str())
    .bind(wedding)
    .bind(source)
    .bind(member)
    .execute(c).await.map(drop))?;
    Ok(())
}

/// Whether somebody belongs to a wedding, whoever says so.
pub(crate) async fn belongs(
    store: &Store,
    organization: &OrganizationId,
    wedding: &str,
    recipient: &str,
) -> Result<bool> {
    let named: i64 = with!(store.reader(), c => sqlx::query_scalar(
        "SELECT COUNT(*) FROM wedding_recipients WHERE organization_id = $1 AND wedding_id = $2 AND recipient_id = $3",
    ).bind(organization.as_str()).bind(wedding).bind(recipient).fetch_one(c).await)?;
    Ok(named > 0)
}
