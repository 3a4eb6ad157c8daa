//! Registering a tenant from a sign-up, once however often the request is delivered.

use tokio_postgres::{Client, Transaction};

use super::contacts::{self, Contact};
use super::payments::lock_request;
use super::{Record, Selector, audit, read};
use crate::error::StepError;
use crate::request::SignUp;
use crate::tenant::{Isolation, TenantId};

/// Registers the tenant that a request asks for, `pending`, or finds the one it registered before.
///
/// # Errors
/// `Conflict` when the slug is another tenant's, or when the request id came before with another body.
pub async fn register(client: &mut Client, request: &SignUp, actor: &str) -> Result<Record, StepError> {
    let transaction = client.transaction().await?;
    audit::act_as(&transaction, actor).await?;
    lock_request(&transaction, request.request_id).await?;
    let known = transaction.query_opt("SELECT id FROM tenants WHERE request_id = $1", &[&request.request_id]).await?;
    let id = match known {
        Some(row) => {
            let id = TenantId(row.try_get(0)?);
            refuse_other_body(&transaction, id, request).await?;
            id
        }
        None => insert(&transaction, request).await?,
    };
    if request.paid {
        let sql = "UPDATE tenants SET paid_at = now() WHERE id = $1 AND paid_at IS NULL";
        transaction.execute(sql, &[&id.0]).await?;
    }
    let record = read(&transaction, &Selector::Id(id)).await?;
    transaction.commit().await?;
    Ok(record)
}

async fn insert(transaction: &Transaction<'_>, request: &SignUp) -> Result<TenantId, StepError> {
    let inserted = transaction
        .query_opt(
            "INSERT INTO tenants (slug, plan, region, isolation, request_id, paid_at)
             SELECT $1, $2::text::plan, $3, coalesce($5::text::isolation, q.default_isolation), $4,
                    (SELECT confirmed_at FROM payments WHERE request_id = $4)
             FROM plan_quotas q WHERE q.plan = $2::text::plan
             ON CONFLICT (slug) WHERE status <> 'deprovisioned' OR activated_at IS NOT NULL DO NOTHING RETURNING id",
            &[
                &request.slug.as_str(),
                &request.plan.as_str(),
                &request.region.as_str(),
                &request.request_id,
                &request.isolation.map(Isolation::as_str),
            ],
        )
        .await?;
    let Some(row) = inserted else {
        return Err(slug_taken(&request.slug));
    };
    let id = TenantId(row.try_get(0)?);
    let sql = "INSERT INTO contacts (tenant_id, name, email) VALUES ($1, $2, $3)";
    transaction.execute(sql, &[&id.0, &request.owner.name, &request.owner.email]).await?;
    let sql = "INSERT INTO billing_accounts (tenant_id, customer, adopted, payment_method)
               VALUES ($1, $2::text, $2::text IS NOT NULL, $3)";
    transaction.execute(sql, &[&id.0, &request.customer, &request.payment_method]).await?;
    Ok(id)
}

/// Whether the request registered a tenant before. If not, its slug must never have been given to another tenant, whether
/// in use or gone but once active.
///
/// # Errors
/// `Conflict` when the slug was given.
pub async fn is_registered(client: &Client, request: &SignUp) -> Result<bool, StepError> {
    let sql = "SELECT coalesce(bool_or(request_id = $2), false), count(*) > 0 FROM tenants
               WHERE request_id = $2 OR slug = $1 AND (status <> 'deprovisioned' OR activated_at IS NOT NULL)";
    let row = client.query_one(sql, &[&request.slug.as_str(), &request.request_id]).await?;
    match (row.try_get(0)?, row.try_get(1)?) {
        (false, true) => Err(slug_taken(&request.slug)),
        (registered, _) => Ok(registered),
    }
}

fn slug_taken(slug: &crate::tenant::Slug) -> StepError {
    StepError::Conflict(format!("slug {slug} belongs to another tenant: choose another slug"))
}

async fn refuse_other_body(transaction: &Transaction<'_>, tenant: TenantId, request: &SignUp) -> Result<(), StepError> {
    let registered = read(transaction, &Selector::Id(tenant)).await?.tenant;
    let mut differs = Vec::new();
    if registered.slug != request.slug {
        differs.push("slug");
    }
    // The plan may have been changed since.
    let sql = "SELECT coalesce((SELECT from_plan FROM plan_changes WHERE tenant_id = $1 ORDER BY id LIMIT 1), plan)
                      = $2::text::plan FROM tenants WHERE id = $1";
    if !transaction.query_one(sql, &[&tenant.0, &request.plan.as_str()]).await?.try_get::<_, bool>(0)? {
        differs.push("plan");
    }
    if request.isolation.is_some_and(|asked| asked != registered.isolation) {
        differs.push("isolation");
    }
    if registered.region != request.region {
        differs.push("region");
    }
    match contacts::owner(transaction, tenant).await? {
        Some(Contact { name, .. }) if name != request.owner.name => differs.push("owner.name"),
        Some(Contact { email, .. }) if email != request.owner.email => differs.push("owner.email"),
        // The same, or erased: then there is nothing left to compare with.
        Some(_) | None => {}
    }
    if differs.is_empty() {
        return Ok(());
    }
    Err(StepError::Conflict(format!(
        "request_id {} registered tenant {tenant} with another {}: send a new request_id for a new tenant",
        request.request_id,
        differs.join(", ")
    )))
}
