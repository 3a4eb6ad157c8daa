//! Deletions: one row a tenant, from the point of no return to the certificate.

use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio_postgres::{Client, GenericClient};

use super::fence::{Actor, check};
use super::holds::{self, Hold, State};
use super::{Record, audit, outbox, read_for_update};
use crate::error::{Problem, StepError};
use crate::tenant::{Status, Tenant, TenantId};

/// What the tenant was at Stripe, as it was known before it was forgotten.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Billed {
    /// The customer's id.
    pub customer: Option<String>,
    /// Whether the sign-up named the customer: then it is not ours to delete.
    pub adopted: bool,
    /// The subscription's id.
    pub subscription: Option<String>,
}

/// A deletion, as far as it has come.
#[derive(Debug, Clone, PartialEq)]
pub struct Deletion {
    /// When it began.
    pub begun_at: OffsetDateTime,
    /// What there was, by store; `None` before it was counted.
    pub counts: Option<Value>,
    /// What the tenant was at Stripe.
    pub billed: Billed,
    /// What the newest scan found, by store, and what stays by rule.
    pub scan: Option<Value>,
    /// When it looked.
    pub scanned_at: Option<OffsetDateTime>,
    /// Whether it found nothing.
    pub clean: bool,
    /// How often everything was removed once more.
    pub rounds: i32,
    /// The signed envelope.
    pub certificate: Option<String>,
}

/// The hold under which the actor deletes the tenant. An execution deletes a tenant that it holds, with its hold `deleting`;
/// a person does one step of a deletion that no execution works on.
///
/// # Errors
/// `Superseded` for an execution, `InvalidRequest` for a person, where that is not so.
pub async fn under_way(client: &impl GenericClient, record: &Record, actor: &Actor) -> Result<Hold, StepError> {
    check(record, actor, &[Status::Suspended])?;
    let Tenant { id, slug, status, .. } = &record.tenant;
    let hold = holds::open_hold(client, *id).await?.filter(|hold| hold.state == State::Deleting);
    match (hold, actor) {
        (Some(hold), Actor::Manual(_)) => Ok(hold),
        (Some(hold), Actor::Execution(execution)) if hold.execution.as_ref() == Some(execution) => Ok(hold),
        (_, Actor::Execution(execution)) => {
            Err(StepError::Superseded(format!("tenant {slug} ({id}) is not being deleted by {execution}")))
        }
        (None, Actor::Manual(_)) => Err(StepError::InvalidRequest(vec![Problem {
            field: "execution".into(),
            rule: format!(
                "must be the execution that deletes tenant {slug}: it is {status}, and by hand only what is left of a \
                 deletion that began is deleted"
            ),
        }])),
    }
}

/// Opens the deletion's row, with what the tenant is at Stripe. Again changes nothing.
///
/// # Errors
/// When the registry cannot be written.
pub async fn begin(client: &Client, hold: &Hold, execution: &str) -> Result<(), StepError> {
    let sql = "INSERT INTO deletions (tenant_id, hold_id, customer, adopted, subscription)
               SELECT t.id, $2, b.customer, b.adopted, b.subscription
               FROM tenants t LEFT JOIN billing_accounts b ON b.tenant_id = t.id WHERE t.id = $1
               ON CONFLICT (tenant_id) DO NOTHING";
    if client.execute(sql, &[&hold.tenant.0, &hold.id]).await? == 1 {
        // Takeovers are counted anew: those of onboarding say nothing about this.
        client.execute("UPDATE tenants SET takeovers = 0 WHERE id = $1", &[&hold.tenant.0]).await?;
        let detail = json!({ "hold": hold.id, "kind": hold.kind.as_str(), "reason": hold.reason });
        audit::record(client, hold.tenant, execution, "deletion begun", &detail).await?;
    }
    Ok(())
}

/// Reads a tenant's deletion.
///
/// # Errors
/// `Conflict` when there is none.
pub async fn read(client: &impl GenericClient, tenant: TenantId) -> Result<Deletion, StepError> {
    let sql =
        "SELECT begun_at, counts, customer, coalesce(adopted, false), subscription, scan, scanned_at, clean, rounds,
                      certificate
               FROM deletions WHERE tenant_id = $1";
    let row = client.query_opt(sql, &[&tenant.0]).await?;
    let row = row.ok_or_else(|| StepError::Conflict(format!("tenant {tenant} is not being deleted, and never was")))?;
    Ok(Deletion {
        begun_at: row.try_get(0)?,
        counts: row.try_get(1)?,
        billed: Billed { customer: row.try_get(2)?, adopted: row.try_get(3)?, subscription: row.try_get(4)? },
        scan: row.try_get(5)?,
        scanned_at: row.try_get(6)?,
        clean: row.try_get(7)?,
        rounds: row.try_get(8)?,
        certificate: row.try_get(9)?,
    })
}

/// Keeps what there was. Only the first count is kept: a deletion that goes on finds less.
///
/// # Errors
/// When the registry cannot be written.
pub async fn keep_counts(client: &Client, tenant: TenantId, counts: &Value) -> Result<(), StepError> {
    let sql = "UPDATE deletions SET counts = $2, counted_at = now() WHERE tenant_id = $1 AND counts IS NULL";
    client.execute(sql, &[&tenant.0, counts]).await?;
    Ok(())
}

/// Keeps what a scan found. A certificate of an earlier scan counts no more.
///
/// # Errors
/// When the registry cannot be written.
pub async fn keep_scan(client: &Client, tenant: TenantId, scan: &Value, clean: bool) -> Result<(), StepError> {
    let sql = "UPDATE deletions SET scan = $2, scanned_at = now(), clean = $3, certificate = NULL, signed_at = NULL
               WHERE tenant_id = $1";
    client.execute(sql, &[&tenant.0, scan, &clean]).await?;
    Ok(())
}

/// Counts that everything is removed once more, up to so many times; false when that was done often enough.
///
/// # Errors
/// When the registry cannot be written.
pub async fn another_round(client: &Client, tenant: TenantId, most: i32) -> Result<bool, StepError> {
    let sql = "UPDATE deletions SET rounds = rounds + 1 WHERE tenant_id = $1 AND rounds < $2";
    Ok(client.execute(sql, &[&tenant.0, &most]).await? == 1)
}

/// Keeps the signed envelope, unless one is kept already, and returns the one that is.
///
/// # Errors
/// `Conflict` when the newest scan was not clean.
pub async fn keep_certificate(client: &Client, tenant: TenantId, envelope: &str) -> Result<String, StepError> {
    let sql = "UPDATE deletions SET certificate = coalesce(certificate, $2), signed_at = coalesce(signed_at, now())
               WHERE tenant_id = $1 AND clean RETURNING certificate";
    match client.query_opt(sql, &[&tenant.0, &envelope]).await? {
        Some(row) => Ok(row.try_get(0)?),
        None => Err(StepError::Conflict(format!(
            "tenant {tenant}: nothing certifies that it is gone. Run scan-tenant first, and what it asks for"
        ))),
    }
}

/// Ends the deletion in one transaction: the hold `deleted`, the tenant `deprovisioned`, the fence given back, and
/// `tenant.deleted` in the outbox. What it was at Stripe is forgotten. Again is a no-op. Returns the tenant.
///
/// # Errors
/// `Conflict` without a certificate; `Superseded` when the actor does not delete the tenant.
pub async fn close(client: &mut Client, tenant: TenantId, actor: &Actor) -> Result<Tenant, StepError> {
    let transaction = client.transaction().await?;
    audit::act_as(&transaction, &actor.to_string()).await?;
    let record = read_for_update(&transaction, tenant).await?;
    if closed_by(&transaction, &record, actor).await? {
        return Ok(record.tenant);
    }
    let hold = under_way(&transaction, &record, actor).await?;
    if read(&transaction, tenant).await?.certificate.is_none() {
        return Err(StepError::Conflict(format!("tenant {tenant} has no certificate yet: run sign-certificate first")));
    }
    holds::finish(&transaction, tenant, hold.execution.as_deref().unwrap_or_default()).await?;
    let sql =
        "UPDATE tenants SET status = 'deprovisioned', execution = NULL, execution_since = NULL, needs_operator = NULL,
                      failed_step = NULL, failed_error = NULL, failed_message = NULL, failed_at = NULL, retry_at = NULL
               WHERE id = $1";
    transaction.execute(sql, &[&tenant.0]).await?;
    let sql = "UPDATE deletions SET customer = NULL, adopted = NULL, subscription = NULL WHERE tenant_id = $1";
    transaction.execute(sql, &[&tenant.0]).await?;
    let Tenant { slug, plan, region, .. } = &record.tenant;
    let detail =
        json!({ "slug": slug, "plan": plan, "region": region, "kind": hold.kind.as_str(), "reason": hold.reason });
    outbox::enqueue(&transaction, tenant, "tenant.deleted", detail).await?;
    let tenant = read_for_update(&transaction, tenant).await?.tenant;
    transaction.commit().await?;
    Ok(tenant)
}

/// Whether this execution has ended the deletion before, and only did not hear of it.
async fn closed_by(client: &impl GenericClient, record: &Record, actor: &Actor) -> Result<bool, StepError> {
    if record.tenant.status != Status::Deprovisioned {
        return Ok(false);
    }
    let hold = holds::latest(client, record.tenant.id).await?;
    Ok(hold.is_some_and(|hold| hold.state == State::Deleted && hold.execution == Some(actor.to_string())))
}
