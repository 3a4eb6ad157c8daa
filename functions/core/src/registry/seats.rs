//! Who has a seat. A tenant's seats are counted while its row is held, so that no two clients take the last one.

use serde_json::json;
use tokio_postgres::{Client, GenericClient};

use super::quotas::{self, Balance, Decision};
use super::{Selector, audit, usage};
use crate::error::StepError;
use crate::tenant::{Metered, Tenant, TenantId};

/// Gives a user a seat. One that has a seat keeps it, whatever became of the quota since. Returns the tenant too.
///
/// # Errors
/// `TenantNotFound`; a refusal is no error.
pub async fn reserve(
    client: &mut Client,
    tenant: &Selector,
    user: &str,
    actor: &str,
) -> Result<(Tenant, Decision), StepError> {
    let transaction = client.transaction().await?;
    let tenant = quotas::take(&transaction, tenant).await?;
    let before = taken(&transaction, tenant.id).await?;
    let quota = quotas::quota(&transaction, &tenant, Metered::Seats).await?;
    let balance = |used| Balance { resource: Metered::Seats, used, quota };
    if let Some(reason) = quotas::not_served(&transaction, &tenant).await? {
        return Ok((tenant, Decision::Refused(reason, balance(before))));
    }
    let sql = "SELECT EXISTS (SELECT FROM seats WHERE tenant_id = $1 AND user_id = $2)";
    let decision = if transaction.query_one(sql, &[&tenant.id.0, &user]).await?.try_get(0)? {
        Decision::Granted(balance(before))
    } else if before >= quota {
        quotas::does_not_fit(&transaction, tenant.id, balance(before)).await?
    } else {
        let sql = "INSERT INTO seats (tenant_id, user_id, actor) VALUES ($1, $2, $3)";
        transaction.execute(sql, &[&tenant.id.0, &user, &actor]).await?;
        usage::note(&transaction, tenant.id, before, balance(before + 1)).await?;
        // Without the user: the trail is kept for ever.
        audit::record(&transaction, tenant.id, actor, "seat taken", &json!({ "seats": before + 1 })).await?;
        Decision::Granted(balance(before + 1))
    };
    transaction.commit().await?;
    Ok((tenant, decision))
}

/// Takes a user's seat back, also from a tenant that is not in service. Again is a no-op. Returns the tenant, whether there was
/// a seat, and what is taken now.
///
/// # Errors
/// `TenantNotFound`.
pub async fn release(
    client: &mut Client,
    tenant: &Selector,
    user: &str,
    actor: &str,
) -> Result<(Tenant, bool, Balance), StepError> {
    let transaction = client.transaction().await?;
    let tenant = quotas::take(&transaction, tenant).await?;
    let before = taken(&transaction, tenant.id).await?;
    let quota = quotas::quota(&transaction, &tenant, Metered::Seats).await?;
    let sql = "DELETE FROM seats WHERE tenant_id = $1 AND user_id = $2";
    let released = transaction.execute(sql, &[&tenant.id.0, &user]).await? == 1;
    let balance = Balance { resource: Metered::Seats, used: before - i64::from(released), quota };
    if released {
        usage::note(&transaction, tenant.id, before, balance).await?;
        audit::record(&transaction, tenant.id, actor, "seat released", &json!({ "seats": balance.used })).await?;
    }
    transaction.commit().await?;
    Ok((tenant, released, balance))
}

/// How many seats are taken.
///
/// # Errors
/// When the registry cannot be read.
pub async fn taken(client: &impl GenericClient, tenant: TenantId) -> Result<i64, StepError> {
    let row = client.query_one("SELECT count(*) FROM seats WHERE tenant_id = $1", &[&tenant.0]).await?;
    Ok(row.try_get(0)?)
}
