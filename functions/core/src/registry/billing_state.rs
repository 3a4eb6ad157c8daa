//! What billing last said of a tenant's subscription. Whoever follows billing locks the tenant, reads billing and writes here,
//! so that who writes last has read last.

use time::OffsetDateTime;
use tokio_postgres::{Client, GenericClient, Transaction};

use super::known;
use crate::billing_event::{Account, Billed};
use crate::error::StepError;
use crate::subscription::{Standing, Subscription};
use crate::tenant::{Plan, TenantId};

/// The most tenants that one sweep takes: what is left is the next sweep's.
const BATCH: i64 = 50;

/// A tenant's account with billing, and what was last said of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Followed {
    /// The customer and the subscription.
    pub account: Account,
    /// Whether we cancelled that subscription ourselves.
    pub cancelled_by_us: bool,
    /// The newest event in our own form that was applied; `None` where Stripe is asked, or before the first.
    pub sequence: Option<i64>,
    /// The subscription as it was last seen.
    pub seen: Option<Subscription>,
}

/// Whose account it is. With `claim`, that of a customer who has no subscription yet counts too, if it is one tenant's alone.
///
/// # Errors
/// When the registry cannot be read.
pub async fn owner(client: &impl GenericClient, account: &Account, claim: bool) -> Result<Option<TenantId>, StepError> {
    let sql = "SELECT tenant_id FROM billing_accounts WHERE customer = $1 AND subscription = $2
               UNION ALL
               SELECT min(tenant_id::text)::uuid FROM billing_accounts WHERE $3 AND customer = $1
               HAVING count(*) = 1 AND bool_and(subscription IS NULL)";
    let row = client.query_opt(sql, &[&account.customer, &account.subscription, &claim]).await?;
    row.map(|row| Ok(TenantId(row.try_get(0)?))).transpose()
}

/// Keeps others from following this tenant until the transaction ends, and waits for one who does.
///
/// # Errors
/// `Transient` when that takes too long.
pub async fn lock(transaction: &Transaction<'_>, tenant: TenantId) -> Result<(), StepError> {
    let name = format!("billing of tenant {tenant}");
    transaction.execute("SELECT pg_advisory_xact_lock(hashtextextended($1, 0))", &[&name]).await?;
    Ok(())
}

/// Makes a subscription the tenant's own, if it has none yet, and this is not one that it had and left.
///
/// # Errors
/// When the registry cannot be written.
pub async fn claim(transaction: &Transaction<'_>, tenant: TenantId, account: &Account) -> Result<(), StepError> {
    let sql = "UPDATE billing_accounts SET subscription = $3
               WHERE tenant_id = $1 AND customer = $2 AND subscription IS NULL AND cancelled_by_us IS DISTINCT FROM $3";
    transaction.execute(sql, &[&tenant.0, &account.customer, &account.subscription]).await?;
    Ok(())
}

/// Forgets a subscription that billing said is over, of a tenant that came back: the next event names another one, and a late
/// event of this one is nobody's. Again changes nothing.
///
/// # Errors
/// When the registry cannot be written.
pub async fn forget_over(client: &impl GenericClient, tenant: TenantId) -> Result<(), StepError> {
    let sql = "UPDATE billing_accounts SET cancelled_by_us = subscription, subscription = NULL
               WHERE tenant_id = $1 AND standing = ANY($2)";
    let over = [Standing::Cancelled.as_str(), Standing::Lapsed.as_str()];
    client.execute(sql, &[&tenant.0, &over.as_slice()]).await?;
    Ok(())
}

/// A tenant's account. `None` where the tenant has no subscription.
///
/// # Errors
/// When the registry cannot be read.
pub async fn followed(client: &impl GenericClient, tenant: TenantId) -> Result<Option<Followed>, StepError> {
    let sql =
        "SELECT customer, subscription, coalesce(cancelled_by_us = subscription, false) AS cancelled_by_us, sequence,
                      standing, prices, period_start
               FROM billing_accounts WHERE tenant_id = $1 AND customer IS NOT NULL AND subscription IS NOT NULL";
    let Some(row) = client.query_opt(sql, &[&tenant.0]).await? else { return Ok(None) };
    let seen = match row.try_get::<_, Option<&str>>("standing")? {
        None => None,
        Some(_) => Some(Subscription {
            standing: known::<Standing>(&row, "standing")?,
            prices: row.try_get("prices")?,
            period_start: row.try_get("period_start")?,
        }),
    };
    Ok(Some(Followed {
        account: Account { customer: row.try_get("customer")?, subscription: row.try_get("subscription")? },
        cancelled_by_us: row.try_get("cancelled_by_us")?,
        sequence: row.try_get("sequence")?,
        seen,
    }))
}

/// What the price of a plan, or a price itself, is at billing.
///
/// # Errors
/// When the registry cannot be read.
pub async fn price(client: &impl GenericClient, billed: &Billed) -> Result<String, StepError> {
    match billed {
        Billed::Price(price) => Ok(price.clone()),
        Billed::Plan(plan) => {
            let sql = "SELECT billing_price FROM plan_quotas WHERE plan = $1::text::plan";
            Ok(client.query_one(sql, &[&plan.as_str()]).await?.try_get(0)?)
        }
    }
}

/// Keeps what was seen of the tenant's subscription, and since when it is owed for. Returns whether the plan's grace is over;
/// `None` when the subscription is the tenant's no more, or we are cancelling it: then nothing was kept.
///
/// # Errors
/// When the registry cannot be written.
pub async fn keep(
    transaction: &Transaction<'_>,
    tenant: TenantId,
    subscription: &str,
    seen: &Subscription,
    sequence: Option<i64>,
) -> Result<Option<bool>, StepError> {
    let sql = "UPDATE billing_accounts b
               SET standing = $3, prices = $4, period_start = $5, sequence = coalesce($6, sequence), looked_at = now(),
                   past_due_since = CASE WHEN $3 = 'owing' THEN coalesce(past_due_since, now()) END
               FROM tenants t JOIN plan_quotas q USING (plan)
               WHERE t.id = b.tenant_id AND b.tenant_id = $1 AND subscription = $2
                 AND cancelled_by_us IS DISTINCT FROM subscription
               RETURNING coalesce(past_due_since + make_interval(secs => payment_grace_seconds) <= now(), false)";
    let standing = seen.standing.as_str();
    let values: [&(dyn tokio_postgres::types::ToSql + Sync); 6] =
        [&tenant.0, &subscription, &standing, &seen.prices, &seen.period_start, &sequence];
    let row = transaction.query_opt(sql, &values).await?;
    row.map(|row| Ok(row.try_get(0)?)).transpose()
}

/// Makes the tenant's billing cycles begin with the subscription's. What begins with one of the cycles that are known already,
/// shorter months included, changes nothing.
///
/// # Errors
/// When the registry cannot be written.
pub async fn anchor(client: &impl GenericClient, tenant: TenantId, start: OffsetDateTime) -> Result<(), StepError> {
    let sql = "UPDATE tenants SET cycle_anchor = $2
               WHERE id = $1 AND (cycle_boundary(cycle_anchor, cycle_number(cycle_anchor, $2)) = $2) IS NOT TRUE";
    client.execute(sql, &[&tenant.0, &start]).await?;
    Ok(())
}

/// The plan that one of these prices is for: `own`, where one of them is its price. `None` for prices of no plan.
///
/// # Errors
/// When the registry cannot be read.
pub async fn plan_of(client: &impl GenericClient, own: Plan, prices: &[String]) -> Result<Option<Plan>, StepError> {
    let sql = "SELECT plan::text AS plan FROM plan_quotas WHERE billing_price = ANY($1)
               ORDER BY plan <> $2::text::plan, plan LIMIT 1";
    let row = client.query_opt(sql, &[&prices, &own.as_str()]).await?;
    row.map(|row| known(&row, "plan")).transpose()
}

/// Tenants that billing is to be asked about: those whose grace is over and who are still in service, and those that it was not
/// asked about for a day, should an event have been lost. Those that wait longest come first.
///
/// # Errors
/// When the registry cannot be read.
pub async fn to_look_at(client: &Client) -> Result<Vec<TenantId>, StepError> {
    let sql = "SELECT b.tenant_id FROM billing_accounts b JOIN tenants t ON t.id = b.tenant_id JOIN plan_quotas q USING (plan)
               WHERE b.subscription IS NOT NULL AND b.cancelled_by_us IS DISTINCT FROM b.subscription
                 AND t.status <> 'deprovisioned'
                 AND (b.looked_at < now() - interval '1 day'
                      OR b.past_due_since + make_interval(secs => q.payment_grace_seconds) <= now() AND NOT EXISTS (
                          SELECT FROM suspensions s WHERE s.tenant_id = t.id AND s.reason = 'payment_failure'))
               ORDER BY b.looked_at LIMIT $1";
    let rows = client.query(sql, &[&BATCH]).await?;
    rows.iter().map(|row| Ok(TenantId(row.try_get(0)?))).collect()
}
