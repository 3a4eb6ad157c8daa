//! How much a tenant may use, and what it is told when it asks for more: the plan's quota, or another that stands for a while.

use serde_json::json;
use tenant_gate::Reason;
use time::OffsetDateTime;
use tokio_postgres::{Client, GenericClient, Transaction};

use super::notices::{self, Level};
use super::{Selector, audit, read, read_for_update, seats, storage, usage};
use crate::error::StepError;
use crate::moment;
use crate::tenant::{Metered, Status, Tenant, TenantId};

/// How much of a resource a tenant holds, and how much it may, in the resource's own unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Balance {
    /// Of what.
    pub resource: Metered,
    /// What is held, and what is promised.
    pub used: i64,
    /// What may be.
    pub quota: i64,
}

/// The answer to a tenant that asks for some of a resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// It has it now.
    Granted(Balance),
    /// It has not, and this is why.
    Refused(Reason, Balance),
}

/// More or less than the plan grants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Override {
    /// In the resource's own unit.
    pub amount: i64,
    /// Until when it stands.
    pub expires_at: OffsetDateTime,
}

/// Takes a tenant for a decision: until the transaction ends, nobody else decides on it, suspends it or gives it another plan.
pub(super) async fn take(transaction: &Transaction<'_>, tenant: &Selector) -> Result<Tenant, StepError> {
    let id = match tenant {
        Selector::Id(id) => *id,
        Selector::Slug(_) => read(transaction, tenant).await?.tenant.id,
    };
    Ok(read_for_update(transaction, id).await?.tenant)
}

/// Why a tenant is not served, as the gate sees it; `None` where it is.
pub(super) async fn not_served(transaction: &Transaction<'_>, tenant: &Tenant) -> Result<Option<Reason>, StepError> {
    if tenant.status == Status::Active {
        return Ok(None);
    }
    let sql = "SELECT standing FROM gate.tenants WHERE id = $1";
    let row = transaction.query_opt(sql, &[&tenant.id.0]).await?;
    let standing = row.map(|row| row.try_get::<_, String>(0)).transpose()?.unwrap_or_default();
    Ok(Reason::of_standing(&standing).or(Some(Reason::NotInService)))
}

/// What a tenant may use of a resource now.
pub(super) async fn quota(client: &impl GenericClient, tenant: &Tenant, resource: Metered) -> Result<i64, StepError> {
    let stands = standing_override(client, tenant.id, resource).await?;
    Ok(stands.map_or(tenant.plan_quota(resource), |stands| stands.amount))
}

/// The override that stands now.
pub(super) async fn standing_override(
    client: &impl GenericClient,
    tenant: TenantId,
    resource: Metered,
) -> Result<Option<Override>, StepError> {
    let sql =
        "SELECT amount, expires_at FROM quota_overrides WHERE tenant_id = $1 AND resource = $2 AND expires_at > now()";
    let row = client.query_opt(sql, &[&tenant.0, &resource.as_str()]).await?;
    row.map(|row| Ok(Override { amount: row.try_get(0)?, expires_at: row.try_get(1)? })).transpose()
}

/// Refuses what does not fit, which tells the tenant, once a cycle. The caller commits: the notice is part of the refusal.
pub(super) async fn does_not_fit(
    transaction: &Transaction<'_>,
    tenant: TenantId,
    balance: Balance,
) -> Result<Decision, StepError> {
    if let Some(cycle) = usage::cycle(transaction, tenant, None).await? {
        notices::tell(transaction, tenant, balance, Level::Exceeded, cycle).await?;
    }
    Ok(Decision::Refused(Reason::QuotaExceeded, balance))
}

/// Gives a tenant more or less than its plan grants, or, with `None`, what the plan grants again; audited. Of seats and storage
/// it is told at once where it holds too much for that; of API calls, by the run that keeps the counters. Again is a no-op.
/// Returns the tenant.
///
/// # Errors
/// `TenantNotFound`; `Conflict` when the tenant is gone.
pub async fn set_override(
    client: &mut Client,
    tenant: &Selector,
    resource: Metered,
    wanted: Option<Override>,
    actor: &str,
) -> Result<Tenant, StepError> {
    let transaction = client.transaction().await?;
    let tenant = take(&transaction, tenant).await?;
    if tenant.status == Status::Deprovisioned {
        return Err(StepError::Conflict(format!(
            "tenant {} ({}) is deprovisioned: it has no quotas",
            tenant.slug, tenant.id
        )));
    }
    let (id, name) = (&tenant.id.0, &resource.as_str());
    let changed = match wanted {
        Some(Override { amount, expires_at }) => {
            let sql = "INSERT INTO quota_overrides AS o (tenant_id, resource, amount, expires_at, actor)
                       VALUES ($1, $2, $3, $4, $5) ON CONFLICT (tenant_id, resource) DO UPDATE
                           SET amount = excluded.amount, expires_at = excluded.expires_at, actor = excluded.actor
                           WHERE (o.amount, o.expires_at) IS DISTINCT FROM (excluded.amount, excluded.expires_at)";
            transaction.execute(sql, &[id, name, &amount, &expires_at, &actor]).await?
        }
        None => {
            let sql = "DELETE FROM quota_overrides WHERE tenant_id = $1 AND resource = $2";
            transaction.execute(sql, &[id, name]).await?
        }
    };
    if changed == 1 {
        let (action, detail) = match wanted {
            Some(Override { amount, expires_at }) => (
                "quota override set",
                json!({ "resource": resource, "amount": amount, "expires_at": moment::text(expires_at)? }),
            ),
            None => ("quota override removed", json!({ "resource": resource })),
        };
        audit::record(&transaction, tenant.id, actor, action, &detail).await?;
        tell_holdings(&transaction, &tenant).await?;
    }
    transaction.commit().await?;
    Ok(tenant)
}

/// Tells a tenant whose quotas may have become smaller where it holds 80 % or all of its seats or its storage: for every
/// transaction that changes them.
pub(super) async fn tell_holdings(transaction: &Transaction<'_>, tenant: &Tenant) -> Result<(), StepError> {
    let Some(cycle) = usage::cycle(transaction, tenant.id, None).await? else { return Ok(()) };
    let held = [
        (Metered::Seats, seats::taken(transaction, tenant.id).await?),
        (Metered::StorageBytes, storage::stored(transaction, tenant.id).await?),
    ];
    for (resource, used) in held {
        let quota = quota(transaction, tenant, resource).await?;
        notices::tell_reached(transaction, tenant.id, Balance { resource, used, quota }, cycle).await?;
    }
    Ok(())
}
