//! Events on their way out: written in the transaction of what they tell of, published afterwards, at least once.

use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio_postgres::{Client, Transaction};
use uuid::Uuid;

use crate::error::StepError;
use crate::moment;
use crate::tenant::TenantId;

/// The namespace of event ids: a UUIDv5 of tenant, type and version, so that a repeated event has the same id.
const EVENT_IDS: Uuid = Uuid::from_u128(0x7d1f_0a52_3c0e_4d7b_9a61_2f6c_54a0_e9b3);

/// An event as it waits to be published.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// Its id, also in the detail.
    pub id: Uuid,
    /// The `detail-type` on the bus: `tenant.provisioned`.
    pub event_type: String,
    /// The whole detail, as `events/schemas` describes it.
    pub detail: Value,
}

/// Adds an event with the tenant's next version. `detail` is what is particular to its type; ids, version and time are
/// added here.
pub(super) async fn enqueue(
    transaction: &Transaction<'_>,
    tenant: TenantId,
    event_type: &str,
    detail: Value,
) -> Result<(), StepError> {
    let sql = "UPDATE tenants SET version = version + 1 WHERE id = $1 RETURNING version, now()";
    let row = transaction.query_one(sql, &[&tenant.0]).await?;
    let version: i64 = row.try_get(0)?;
    let occurred_at: OffsetDateTime = row.try_get(1)?;
    let id = Uuid::new_v5(&EVENT_IDS, format!("{tenant} {event_type} {version}").as_bytes());
    let mut whole = json!({
        "event_id": id,
        "schema_version": 1,
        "version": version,
        "occurred_at": moment::text(occurred_at)?,
        "tenant_id": tenant,
    });
    if let (Value::Object(whole), Value::Object(particular)) = (&mut whole, detail) {
        whole.extend(particular);
    }
    transaction
        .execute(
            "INSERT INTO outbox (id, tenant_id, version, type, occurred_at, detail) VALUES ($1, $2, $3, $4, $5, $6)",
            &[&id, &tenant.0, &version, &event_type, &occurred_at, &whole],
        )
        .await?;
    Ok(())
}

/// Takes up to `limit` unpublished events, oldest first, of one tenant or of all. They stay locked, and are skipped by
/// other takers, until the transaction ends.
///
/// # Errors
/// When the registry cannot be read.
pub async fn take(
    transaction: &Transaction<'_>,
    tenant: Option<TenantId>,
    limit: i64,
) -> Result<Vec<Event>, StepError> {
    let rows = transaction
        .query(
            "SELECT id, type, detail FROM outbox
             WHERE published_at IS NULL AND ($1::uuid IS NULL OR tenant_id = $1)
             ORDER BY occurred_at, version LIMIT $2 FOR UPDATE SKIP LOCKED",
            &[&tenant.map(|id| id.0), &limit],
        )
        .await?;
    rows.iter()
        .map(|row| Ok(Event { id: row.try_get(0)?, event_type: row.try_get(1)?, detail: row.try_get(2)? }))
        .collect()
}

/// Marks events as published.
///
/// # Errors
/// When the registry cannot be written; then they are published again.
pub async fn mark_published(transaction: &Transaction<'_>, published: &[Uuid]) -> Result<(), StepError> {
    transaction.execute("UPDATE outbox SET published_at = now() WHERE id = ANY($1)", &[&published]).await?;
    Ok(())
}

/// How many events wait to be published.
///
/// # Errors
/// When the registry cannot be read.
pub async fn waiting(client: &Client) -> Result<i64, StepError> {
    let row = client.query_one("SELECT count(*) FROM outbox WHERE published_at IS NULL", &[]).await?;
    Ok(row.try_get(0)?)
}
