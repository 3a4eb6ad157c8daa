//! Invitations of first administrators.

use time::OffsetDateTime;
use tokio_postgres::GenericClient;
use uuid::Uuid;

use crate::error::StepError;
use crate::tenant::TenantId;

/// An invitation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invite {
    /// Its id.
    pub id: Uuid,
    /// Whose administrator it makes.
    pub tenant: TenantId,
    /// Which of its links counts: each new link is another generation.
    pub generation: i32,
    /// SHA-256 of the link's token.
    pub token_hash: Vec<u8>,
    /// When its link ends.
    pub expires_at: OffsetDateTime,
    /// Where it stands.
    pub state: State,
}

/// Where an invitation stands, by the database's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Its link works.
    Open,
    /// Its link came too late.
    Expired,
    /// Its administrator exists.
    Accepted,
    /// It was undone.
    Revoked,
}

/// Reads an invitation.
///
/// # Errors
/// When the registry cannot be read.
pub async fn find(client: &impl GenericClient, invite: Uuid) -> Result<Option<Invite>, StepError> {
    let sql = "SELECT id, tenant_id, generation, token_hash, expires_at,
                      CASE WHEN accepted_at IS NOT NULL THEN 'accepted' WHEN revoked_at IS NOT NULL THEN 'revoked'
                           WHEN expires_at <= now() THEN 'expired' ELSE 'open' END
               FROM invites WHERE id = $1";
    let Some(row) = client.query_opt(sql, &[&invite]).await? else { return Ok(None) };
    let state = match row.try_get(5)? {
        "accepted" => State::Accepted,
        "revoked" => State::Revoked,
        "expired" => State::Expired,
        _ => State::Open,
    };
    Ok(Some(Invite {
        id: row.try_get(0)?,
        tenant: TenantId(row.try_get(1)?),
        generation: row.try_get(2)?,
        token_hash: row.try_get(3)?,
        expires_at: row.try_get(4)?,
        state,
    }))
}

/// Opens an invitation in this generation, for so many seconds; one that was accepted stays as it is.
///
/// # Errors
/// When the registry cannot be written.
pub async fn open(
    client: &impl GenericClient,
    invite: Uuid,
    tenant: TenantId,
    generation: i32,
    token_hash: &[u8],
    seconds: f64,
) -> Result<(), StepError> {
    let sql = "INSERT INTO invites (id, tenant_id, generation, token_hash, expires_at)
               VALUES ($1, $2, $3, $4, now() + make_interval(secs => $5))
               ON CONFLICT (id) DO UPDATE SET generation = excluded.generation, token_hash = excluded.token_hash,
                   expires_at = excluded.expires_at, revoked_at = NULL
               WHERE invites.accepted_at IS NULL";
    client.execute(sql, &[&invite, &tenant.0, &generation, &token_hash, &seconds]).await?;
    Ok(())
}

/// Records that an open invitation was accepted; false when it is not open (any more).
///
/// # Errors
/// When the registry cannot be written.
pub async fn accept(client: &impl GenericClient, invite: &Invite) -> Result<bool, StepError> {
    let sql = "UPDATE invites SET accepted_at = now() WHERE id = $1 AND generation = $2
               AND accepted_at IS NULL AND revoked_at IS NULL AND expires_at > now()";
    Ok(client.execute(sql, &[&invite.id, &invite.generation]).await? == 1)
}

/// Ends the link of an invitation that was not accepted.
///
/// # Errors
/// When the registry cannot be written.
pub async fn revoke(client: &impl GenericClient, invite: Uuid) -> Result<(), StepError> {
    let sql = "UPDATE invites SET revoked_at = now() WHERE id = $1 AND accepted_at IS NULL AND revoked_at IS NULL";
    client.execute(sql, &[&invite]).await?;
    Ok(())
}
