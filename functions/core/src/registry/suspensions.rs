//! Why tenants are suspended. A tenant is in service only when no reason is left; its status follows.

use serde_json::json;
use tokio_postgres::{Client, Transaction};

use super::{Record, Selector, audit, holds, outbox, read, read_for_update};
use crate::error::StepError;
use crate::tenant::{Reason, Status, Tenant, TenantId};

/// Suspends a tenant for a reason: a row, the status, and `tenant.suspended` in one transaction. One that is not in service
/// yet is suspended when it comes to be. Again is a no-op. Returns the tenant as it is then.
///
/// # Errors
/// `Conflict` when the tenant is gone.
pub async fn suspend(client: &mut Client, tenant: &Selector, reason: Reason, actor: &str) -> Result<Tenant, StepError> {
    let id = read(client, tenant).await?.tenant.id;
    let transaction = client.transaction().await?;
    let tenant = suspend_in(&transaction, id, reason, actor).await?;
    transaction.commit().await?;
    Ok(tenant)
}

/// [`suspend`], in a transaction that does more.
///
/// # Errors
/// As [`suspend`].
pub async fn suspend_in(
    transaction: &Transaction<'_>,
    id: TenantId,
    reason: Reason,
    actor: &str,
) -> Result<Tenant, StepError> {
    audit::act_as(transaction, actor).await?;
    let record = read_for_update(transaction, id).await?;
    refuse_gone(&record)?;
    add(transaction, &record, reason, actor).await?;
    Ok(read(transaction, &Selector::Id(id)).await?.tenant)
}

/// Adds a reason, in a transaction that has read the tenant's row to change it. Again is a no-op.
pub(super) async fn add(
    transaction: &Transaction<'_>,
    record: &Record,
    reason: Reason,
    actor: &str,
) -> Result<(), StepError> {
    let id = record.tenant.id;
    let sql = "INSERT INTO suspensions (tenant_id, reason, actor) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING";
    if transaction.execute(sql, &[&id.0, &reason.as_str(), &actor]).await? == 1 {
        audit::record(transaction, id, actor, "suspended", &json!({ "reason": reason })).await?;
        if record.tenant.status == Status::Active {
            set_status(transaction, record, Status::Suspended).await?;
        }
        if matches!(record.tenant.status, Status::Active | Status::Suspended) {
            outbox::enqueue(transaction, id, "tenant.suspended", detail(record, reason)).await?;
        }
    }
    Ok(())
}

/// Lifts one reason. When it was the last, the tenant is in service again, and `tenant.reactivated` goes out. Again is a
/// no-op. Returns the tenant as it is then, and the reasons that are left.
///
/// # Errors
/// `Conflict` when the tenant is gone, or on its way out: what was withdrawn from it has to be given back first.
pub async fn lift(
    client: &mut Client,
    tenant: &Selector,
    reason: Reason,
    actor: &str,
) -> Result<(Tenant, Vec<String>), StepError> {
    let id = read(client, tenant).await?.tenant.id;
    let transaction = client.transaction().await?;
    let lifted = lift_in(&transaction, id, reason, actor).await?;
    transaction.commit().await?;
    Ok(lifted)
}

/// [`lift`], in a transaction that does more.
///
/// # Errors
/// As [`lift`].
pub async fn lift_in(
    transaction: &Transaction<'_>,
    id: TenantId,
    reason: Reason,
    actor: &str,
) -> Result<(Tenant, Vec<String>), StepError> {
    audit::act_as(transaction, actor).await?;
    let record = read_for_update(transaction, id).await?;
    refuse_gone(&record)?;
    if reason == Reason::Offboarding {
        refuse_withdrawn(transaction, &record).await?;
    }
    let sql = "DELETE FROM suspensions WHERE tenant_id = $1 AND reason = $2";
    let lifted = transaction.execute(sql, &[&id.0, &reason.as_str()]).await? == 1;
    let left = reasons(transaction, &record).await?;
    if lifted {
        audit::record(transaction, id, actor, "suspension lifted", &json!({ "reason": reason, "left": left })).await?;
    }
    // Also where nothing was lifted: a tenant that is suspended for no reason would stay so for ever.
    if left.is_empty() && record.tenant.status == Status::Suspended {
        set_status(transaction, &record, Status::Active).await?;
        outbox::enqueue(transaction, id, "tenant.reactivated", detail(&record, reason)).await?;
    }
    Ok((read(transaction, &Selector::Id(id)).await?.tenant, left))
}

/// Applies what was recorded before a tenant came into service, in the transaction that brings it there. Returns whether the
/// tenant is suspended now.
pub(super) async fn apply_recorded(transaction: &Transaction<'_>, record: &Record) -> Result<bool, StepError> {
    let recorded = reasons(transaction, record).await?;
    if recorded.is_empty() {
        return Ok(false);
    }
    set_status(transaction, record, Status::Suspended).await?;
    for reason in recorded {
        let reason = reason.parse().map_err(|rule| StepError::Unexpected(format!("registry: suspension {rule}")))?;
        outbox::enqueue(transaction, record.tenant.id, "tenant.suspended", detail(record, reason)).await?;
    }
    Ok(true)
}

async fn reasons(transaction: &Transaction<'_>, record: &Record) -> Result<Vec<String>, StepError> {
    let sql = "SELECT reason FROM suspensions WHERE tenant_id = $1 ORDER BY reason";
    let rows = transaction.query(sql, &[&record.tenant.id.0]).await?;
    rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
}

async fn set_status(transaction: &Transaction<'_>, record: &Record, status: Status) -> Result<(), StepError> {
    let sql = "UPDATE tenants SET status = $2::text::tenant_status WHERE id = $1";
    transaction.execute(sql, &[&record.tenant.id.0, &status.as_str()]).await?;
    Ok(())
}

fn detail(record: &Record, reason: Reason) -> serde_json::Value {
    let Tenant { slug, plan, region, .. } = &record.tenant;
    json!({ "slug": slug, "plan": plan, "region": region, "reason": reason })
}

/// Refuses to bring a tenant back whose hold is open, or cancelled with its systems still closed.
async fn refuse_withdrawn(transaction: &Transaction<'_>, record: &Record) -> Result<(), StepError> {
    let Tenant { slug, id, .. } = &record.tenant;
    let what = match holds::latest(transaction, *id).await? {
        None => return Ok(()),
        Some(hold) if hold.state == holds::State::Cancelled && hold.thawed => return Ok(()),
        Some(hold) if hold.state == holds::State::Cancelled => "what its hold had withdrawn is not given back yet",
        Some(hold) if hold.state == holds::State::Deleting => "it is being deleted, and cannot come back",
        Some(_) => "it is on its way out",
    };
    Err(StepError::Conflict(format!(
        "tenant {slug} ({id}): {what}. Only the reactivate-tenant machine brings back a tenant that was leaving: start it \
         with {{\"tenant_id\": \"{id}\", \"reason\": \"offboarding\"}}"
    )))
}

fn refuse_gone(record: &Record) -> Result<(), StepError> {
    let Tenant { slug, id, status, .. } = &record.tenant;
    if *status == Status::Deprovisioned {
        return Err(StepError::Conflict(format!("tenant {slug} ({id}) is deprovisioned: it cannot come back")));
    }
    Ok(())
}
