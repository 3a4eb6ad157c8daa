//! What a tenant is at Stripe, as the registry remembers it.

use time::OffsetDateTime;
use tokio_postgres::GenericClient;

use crate::error::StepError;
use crate::tenant::TenantId;

/// A tenant's account, with what a request to Stripe needs besides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// The customer's id; `None` before one was made.
    pub customer: Option<String>,
    /// Whether the sign-up named it: then it is not ours to delete.
    pub adopted: bool,
    /// What the sign-up wants charged. Without one, invoices are sent.
    pub payment_method: Option<String>,
    /// The subscription's id; `None` before one was made.
    pub subscription: Option<String>,
    /// The price of the tenant's plan.
    pub price: String,
    /// Part of every idempotency key: rises when a compensation has finished and when the tenant leaves, and not on resume.
    pub attempt: i32,
    /// Since when its subscription is ended by us; `None` while it has one.
    pub cancelled_by_us_at: Option<OffsetDateTime>,
}

/// Reads a tenant's account.
///
/// # Errors
/// When the registry cannot be read.
pub async fn account(client: &impl GenericClient, tenant: TenantId) -> Result<Account, StepError> {
    let sql =
        "SELECT b.customer, coalesce(b.adopted, false), b.payment_method, b.subscription, q.billing_price, t.attempt,
                b.cancelled_by_us_at
               FROM tenants t JOIN plan_quotas q USING (plan) LEFT JOIN billing_accounts b ON b.tenant_id = t.id
               WHERE t.id = $1";
    let row = client.query_opt(sql, &[&tenant.0]).await?;
    let row = row.ok_or_else(|| StepError::TenantNotFound(tenant.to_string()))?;
    Ok(Account {
        customer: row.try_get(0)?,
        adopted: row.try_get(1)?,
        payment_method: row.try_get(2)?,
        subscription: row.try_get(3)?,
        price: row.try_get(4)?,
        attempt: row.try_get(5)?,
        cancelled_by_us_at: row.try_get(6)?,
    })
}

/// Remembers the customer and the subscription, as far as they are made.
///
/// # Errors
/// When the registry cannot be written.
pub async fn remember(
    client: &impl GenericClient,
    tenant: TenantId,
    customer: &str,
    subscription: Option<&str>,
) -> Result<(), StepError> {
    let sql = "INSERT INTO billing_accounts (tenant_id, customer, subscription) VALUES ($1, $2, $3)
               ON CONFLICT (tenant_id) DO UPDATE SET customer = excluded.customer, subscription = excluded.subscription";
    client.execute(sql, &[&tenant.0, &customer, &subscription]).await?;
    Ok(())
}

/// Marks the subscription as one that we end ourselves, before Stripe is told: what comes of it is nobody's payment that failed,
/// and nobody who leaves. Again changes nothing.
///
/// # Errors
/// When the registry cannot be written.
pub async fn cancelling(client: &impl GenericClient, tenant: TenantId) -> Result<(), StepError> {
    let sql = "UPDATE billing_accounts SET cancelled_by_us = subscription WHERE tenant_id = $1";
    client.execute(sql, &[&tenant.0]).await?;
    Ok(())
}

/// As [`cancelling`], of a tenant that leaves: later requests to Stripe are other ones than before.
///
/// # Errors
/// When the registry cannot be written.
pub async fn mark_cancelled(client: &impl GenericClient, tenant: TenantId) -> Result<(), StepError> {
    let sql = "WITH marked AS (
                   UPDATE billing_accounts SET cancelled_by_us_at = now(), cancelled_by_us = subscription
                   WHERE tenant_id = $1 AND cancelled_by_us_at IS NULL RETURNING tenant_id)
               UPDATE tenants SET attempt = attempt + 1 WHERE id IN (SELECT tenant_id FROM marked)";
    client.execute(sql, &[&tenant.0]).await?;
    Ok(())
}

/// Takes the mark back: the tenant is subscribed again.
///
/// # Errors
/// When the registry cannot be written.
pub async fn unmark_cancelled(client: &impl GenericClient, tenant: TenantId) -> Result<(), StepError> {
    let sql = "UPDATE billing_accounts SET cancelled_by_us_at = NULL WHERE tenant_id = $1";
    client.execute(sql, &[&tenant.0]).await?;
    Ok(())
}

/// Forgets the subscription, and the customer unless it is adopted. What was not paid of it is forgotten with it, where the
/// tenant was not in service yet.
///
/// # Errors
/// When the registry cannot be written.
pub async fn forget(client: &impl GenericClient, tenant: TenantId) -> Result<(), StepError> {
    let sql = "DELETE FROM suspensions s USING tenants t
               WHERE s.tenant_id = $1 AND t.id = s.tenant_id AND s.reason = 'payment_failure' AND t.status = 'provisioning'";
    client.execute(sql, &[&tenant.0]).await?;
    let sql = "UPDATE billing_accounts SET subscription = NULL, customer = CASE WHEN adopted THEN customer END
               WHERE tenant_id = $1";
    client.execute(sql, &[&tenant.0]).await?;
    Ok(())
}
