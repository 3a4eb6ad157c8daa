//! What the sweep for the stuck looks for, by the database's clock: tenants that an ended execution still holds, tenants whose
//! next attempt is due, tenants that were paid for and never begun, sign-ups that were never paid for.

use time::OffsetDateTime;
use tokio_postgres::{Client, GenericClient, Row};

use super::audit;
use crate::error::StepError;
use crate::tenant::TenantId;

/// The most tenants that one sweep takes of each kind: what is left is the next sweep's. Of tenants that are held, as many are
/// read at once.
const BATCH: i64 = 50;
/// How long after its payment a tenant that nobody has begun counts as forgotten, in seconds: longer than an event takes.
const FORGOTTEN_SECONDS: f64 = 600.0;

/// A tenant that an attempt is due for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Due {
    /// The tenant.
    pub tenant: TenantId,
    /// Which retry it is, from 1; 0 for one that was never begun.
    pub retry: i32,
}

/// A tenant that an execution holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// The tenant.
    pub tenant: TenantId,
    /// The execution.
    pub execution: String,
    /// Since when.
    pub since: OffsetDateTime,
}

/// Some of the tenants that an execution has held for longer than `seconds`, the longest held first: those that come after one
/// that was read before.
///
/// # Errors
/// When the registry cannot be read.
pub async fn held(client: &impl GenericClient, seconds: f64, after: Option<&Held>) -> Result<Vec<Held>, StepError> {
    let sql = "SELECT id, execution, execution_since FROM tenants
               WHERE execution_since < now() - make_interval(secs => $1)
                 AND ($3::timestamptz IS NULL OR (execution_since, id) > ($3, $4))
               ORDER BY execution_since, id LIMIT $2";
    let (since, id) = (after.map(|held| held.since), after.map(|held| held.tenant.0));
    let rows = client.query(sql, &[&seconds, &BATCH, &since, &id]).await?;
    let read =
        |row: &Row| Ok(Held { tenant: TenantId(row.try_get(0)?), execution: row.try_get(1)?, since: row.try_get(2)? });
    rows.iter().map(read).collect()
}

/// Tenants whose next attempt is due, and those that were paid for and forgotten.
///
/// # Errors
/// When the registry cannot be read.
pub async fn due(client: &Client) -> Result<Vec<Due>, StepError> {
    let sql = "SELECT id, CASE WHEN failed_at IS NULL THEN 0 ELSE retries + 1 END FROM tenants
               WHERE status = 'pending' AND execution IS NULL AND needs_operator IS NULL AND paid_at IS NOT NULL
                 AND (retry_at <= now() OR failed_at IS NULL AND paid_at < now() - make_interval(secs => $1))
               ORDER BY coalesce(retry_at, paid_at) LIMIT $2";
    client.query(sql, &[&FORGOTTEN_SECONDS, &BATCH]).await?.iter().map(read).collect()
}

fn read(row: &Row) -> Result<Due, StepError> {
    Ok(Due { tenant: TenantId(row.try_get(0)?), retry: row.try_get(1)? })
}

/// Counts an attempt as started. Should it be refused before it takes the tenant, the next is due after the next of `pauses`
/// (seconds); one that takes the tenant clears that. Again is a no-op.
///
/// # Errors
/// When the registry cannot be written.
pub async fn started(client: &Client, due: &Due, pauses: &[f64]) -> Result<(), StepError> {
    let sql = "UPDATE tenants SET retries = $2,
                      retry_at = CASE WHEN execution IS NULL THEN now() + make_interval(secs => ($3::float8[])[$2 + 1]) END
               WHERE id = $1 AND retries < $2";
    client.execute(sql, &[&due.tenant.0, &due.retry, &pauses]).await?;
    Ok(())
}

/// Ends the sign-ups that were not paid for within `seconds`: `deprovisioned`, the owner's data erased, the slug free again.
/// Returns whose.
///
/// # Errors
/// When the registry cannot be written; then none has ended.
pub async fn expire(client: &mut Client, seconds: f64, actor: &str) -> Result<Vec<TenantId>, StepError> {
    let transaction = client.transaction().await?;
    audit::act_as(&transaction, actor).await?;
    let sql = "UPDATE tenants SET status = 'deprovisioned' WHERE id IN (
                   SELECT id FROM tenants
                   WHERE status = 'pending' AND paid_at IS NULL AND execution IS NULL AND needs_operator IS NULL
                     AND created_at < now() - make_interval(secs => $1)
                   ORDER BY created_at LIMIT $2 FOR UPDATE SKIP LOCKED)
               RETURNING id";
    let rows = transaction.query(sql, &[&seconds, &BATCH]).await?;
    let expired = rows.iter().map(|row| Ok(TenantId(row.try_get(0)?))).collect::<Result<Vec<_>, StepError>>()?;
    let ids: Vec<_> = expired.iter().map(|id| id.0).collect();
    for table in ["contacts", "billing_accounts"] {
        transaction.execute(&format!("DELETE FROM {table} WHERE tenant_id = ANY($1)"), &[&ids]).await?;
    }
    transaction.commit().await?;
    Ok(expired)
}
