//! Changes of a tenant's plan: who wants which, what everything of the tenant's has to follow, and what was told of it.

use serde_json::{Map, Value, json};
use tokio_postgres::{Client, GenericClient, Row, Transaction};

use super::fence::{self, Actor, check};
use super::{Record, Selector, audit, known, object, outbox, quotas, read, read_for_update};
use crate::error::StepError;
use crate::tenant::{IN_SERVICE, Isolation, Plan, Tenant, TenantId};

/// What somebody wants of a tenant's plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wish {
    /// The plan; the one that the tenant has, or is on its way to, where none is named.
    pub plan: Option<Plan>,
    /// Who wants it.
    pub actor: String,
    /// Why, in a word.
    pub reason: Option<String>,
}

/// A change under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    /// Its number: no two changes have the same.
    pub id: i64,
    /// The plan that the tenant comes from. Its own, where nothing changes but is put right.
    pub from: Plan,
    /// The plan that the tenant has now.
    pub to: Plan,
    /// Whether it was told what does not fit.
    pub reported: bool,
}

/// What becomes of a wish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Begun {
    /// The tenant has the plan and is ours; what is its own has to follow.
    Changing(Change),
    /// Another execution holds the tenant, which has this plan meanwhile. Whether it lives, only Step Functions knows.
    HeldBy(String, Plan),
}

/// What a plan starts a tenant's configuration with, by item.
#[derive(Debug, Clone, PartialEq)]
pub struct Defaults {
    /// Feature flags.
    pub flags: Map<String, Value>,
    /// Rate limits.
    pub rate_limits: Map<String, Value>,
    /// Settings.
    pub settings: Map<String, Value>,
}

/// How much a tenant may use, and what the registry itself knows of its use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Users.
    pub seats: i64,
    /// Bytes in the bucket.
    pub storage_bytes: i64,
    /// Calls in a billing cycle.
    pub api_calls: i64,
    /// Calls that were counted in this cycle.
    pub api_calls_used: i64,
    /// The most isolation of the plan.
    pub isolation: Isolation,
    /// Flags that the plan before had on and this one has not.
    pub flags_lost: Vec<String>,
}

/// Gives a tenant in service the plan that is wanted, under the execution's fence: one transaction, so that whoever finds the
/// plan changed finds an open change too. Again, and after a takeover, it finds the change it began; a wish for another plan
/// replaces one that is not finished.
///
/// # Errors
/// `Conflict` for a tenant that is not in service; `Transient` while a person runs a step by hand.
pub async fn begin(client: &mut Client, tenant: TenantId, execution: &str, wish: &Wish) -> Result<Begun, StepError> {
    let transaction = client.transaction().await?;
    audit::act_as(&transaction, execution).await?;
    let record = read_for_update(&transaction, tenant).await?;
    if let Some(holder) = fence::take(&transaction, &record, execution, IN_SERVICE).await? {
        return Ok(Begun::HeldBy(holder, record.tenant.plan));
    }
    let to = wish.plan.unwrap_or(record.tenant.plan);
    let change = match open(&transaction, tenant).await? {
        Some(change) if change.to == to => change,
        unfinished => insert(&transaction, &record, unfinished, to, wish).await?,
    };
    if record.tenant.plan != to {
        // An enterprise tenant is protected from deletion until an operator lifts that, whichever way it came to be one.
        let sql =
            "UPDATE tenants SET plan = $2::text::plan, deletion_protection = deletion_protection OR $2 = 'enterprise'
                   WHERE id = $1";
        transaction.execute(sql, &[&tenant.0, &to.as_str()]).await?;
        // What it holds may be more than the new plan grants, or no longer be: both are told at once.
        let changed = read(&transaction, &Selector::Id(tenant)).await?.tenant;
        quotas::tell_holdings(&transaction, &changed).await?;
    }
    transaction.commit().await?;
    Ok(Begun::Changing(change))
}

/// Opens a change. One that is unfinished is closed for it: where nobody was told of that one, the tenant still comes from
/// where it came from.
async fn insert(
    transaction: &Transaction<'_>,
    record: &Record,
    unfinished: Option<Change>,
    to: Plan,
    wish: &Wish,
) -> Result<Change, StepError> {
    let tenant = record.tenant.id;
    let untold = unfinished.filter(|change| !change.reported);
    let from = untold.map(|change| change.from).or(unfinished.map(|change| change.to)).unwrap_or(record.tenant.plan);
    let close = "UPDATE plan_changes SET closed_at = now() WHERE tenant_id = $1 AND closed_at IS NULL";
    transaction.execute(close, &[&tenant.0]).await?;
    let sql = "INSERT INTO plan_changes (tenant_id, from_plan, to_plan, actor, reason, begun_at)
               VALUES ($1, $2::text::plan, $3::text::plan, $4, $5,
                       coalesce((SELECT begun_at FROM plan_changes WHERE id = $6), now()))
               RETURNING id, from_plan::text, to_plan::text, false AS reported";
    let replaced = untold.map(|change| change.id);
    let row = transaction
        .query_one(sql, &[&tenant.0, &from.as_str(), &to.as_str(), &wish.actor, &wish.reason, &replaced])
        .await?;
    let detail = json!({ "from": record.tenant.plan, "to": to, "reason": wish.reason });
    audit::record(transaction, tenant, &wish.actor, "plan change", &detail).await?;
    change(&row)
}

/// The change of a tenant's that is not finished.
///
/// # Errors
/// When the registry cannot be read.
pub async fn open(client: &impl GenericClient, tenant: TenantId) -> Result<Option<Change>, StepError> {
    let sql = "SELECT id, from_plan::text, to_plan::text, reported_at IS NOT NULL AS reported FROM plan_changes
               WHERE tenant_id = $1 AND closed_at IS NULL";
    client.query_opt(sql, &[&tenant.0]).await?.as_ref().map(change).transpose()
}

/// The number of the newest change of a tenant's, finished or not; 0 where there was none.
///
/// # Errors
/// When the registry cannot be read.
pub async fn newest(client: &impl GenericClient, tenant: TenantId) -> Result<i64, StepError> {
    let sql = "SELECT coalesce(max(id), 0) FROM plan_changes WHERE tenant_id = $1";
    Ok(client.query_one(sql, &[&tenant.0]).await?.try_get(0)?)
}

fn change(row: &Row) -> Result<Change, StepError> {
    Ok(Change {
        id: row.try_get("id")?,
        from: known(row, "from_plan")?,
        to: known(row, "to_plan")?,
        reported: row.try_get("reported")?,
    })
}

/// What the plan that the tenant comes from had seeded; `None` where no change is under way.
///
/// # Errors
/// When the registry cannot be read.
pub async fn seeded_before(client: &impl GenericClient, tenant: TenantId) -> Result<Option<Defaults>, StepError> {
    let sql = "SELECT q.flags, q.rate_limits, q.settings FROM plan_changes c JOIN plan_quotas q ON q.plan = c.from_plan
               WHERE c.tenant_id = $1 AND c.closed_at IS NULL";
    let row = client.query_opt(sql, &[&tenant.0]).await?;
    row.map(|row| {
        Ok(Defaults {
            flags: object(&row, "flags")?,
            rate_limits: object(&row, "rate_limits")?,
            settings: object(&row, "settings")?,
        })
    })
    .transpose()
}

/// What a tenant may use on the plan that it has, overrides counted.
///
/// # Errors
/// When the registry cannot be read.
pub async fn limits(client: &impl GenericClient, tenant: TenantId) -> Result<Limits, StepError> {
    let sql = "SELECT q.max_isolation::text AS isolation,
                      coalesce((SELECT amount FROM granted WHERE resource = 'seats'), q.seats) AS seats,
                      coalesce((SELECT amount FROM granted WHERE resource = 'storage_bytes'), q.storage_bytes) AS storage_bytes,
                      coalesce((SELECT amount FROM granted WHERE resource = 'api_calls'), q.api_calls_per_month) AS api_calls,
                      coalesce((SELECT counted FROM gate.tenants g WHERE g.id = t.id), 0) AS api_calls_used,
                      ARRAY(SELECT flag FROM plan_changes c JOIN plan_quotas before ON before.plan = c.from_plan,
                                LATERAL jsonb_each(before.flags) AS had (flag, was)
                            WHERE c.tenant_id = t.id AND c.closed_at IS NULL AND was = 'true'
                              AND q.flags -> flag IS DISTINCT FROM 'true' ORDER BY flag) AS flags_lost
               FROM tenants t JOIN plan_quotas q USING (plan) WHERE t.id = $1";
    let granted =
        "WITH granted AS (SELECT resource, amount FROM quota_overrides WHERE tenant_id = $1 AND expires_at > now())";
    let row = client.query_opt(&format!("{granted} {sql}"), &[&tenant.0]).await?;
    let row = row.ok_or_else(|| StepError::TenantNotFound(tenant.to_string()))?;
    Ok(Limits {
        seats: row.try_get("seats")?,
        storage_bytes: row.try_get("storage_bytes")?,
        api_calls: row.try_get("api_calls")?,
        api_calls_used: row.try_get("api_calls_used")?,
        isolation: known(&row, "isolation")?,
        flags_lost: row.try_get("flags_lost")?,
    })
}

/// Tells, once a change, what of the tenant's does not fit (a list of objects): in the audit trail, and where the plan is
/// another than before, as `tenant.plan_changed`. Again is a no-op.
///
/// # Errors
/// `Superseded` when the execution does not hold the tenant.
pub async fn report(
    client: &mut Client,
    tenant: TenantId,
    execution: &str,
    does_not_fit: &[Value],
) -> Result<(), StepError> {
    let transaction = client.transaction().await?;
    audit::act_as(&transaction, execution).await?;
    let record = read_for_update(&transaction, tenant).await?;
    check(&record, &Actor::Execution(execution.to_owned()), IN_SERVICE)?;
    let Some(change) = open(&transaction, tenant).await?.filter(|change| !change.reported) else { return Ok(()) };
    let list = json!(does_not_fit);
    let sql = "UPDATE plan_changes SET reported_at = now(), does_not_fit = $2 WHERE id = $1";
    transaction.execute(sql, &[&change.id, &list]).await?;
    let detail = json!({ "plan": change.to, "does_not_fit": list });
    audit::record(&transaction, tenant, execution, "plan fit", &detail).await?;
    if change.from != change.to {
        let Tenant { slug, region, .. } = &record.tenant;
        let detail = json!({
            "slug": slug, "region": region, "from": change.from, "to": change.to, "fits": does_not_fit.is_empty(),
            "does_not_fit": list,
        });
        outbox::enqueue(&transaction, tenant, "tenant.plan_changed", detail).await?;
    }
    transaction.commit().await?;
    Ok(())
}

/// Finishes a change and gives the tenant back, in one transaction. What the tenant was flagged for during the change is put
/// right with it. Again is a no-op.
///
/// # Errors
/// `Superseded` when another execution holds the tenant.
pub async fn close(client: &mut Client, tenant: TenantId, execution: &str) -> Result<(), StepError> {
    let transaction = client.transaction().await?;
    let sql = "WITH closed AS (
                   UPDATE plan_changes c SET closed_at = now() FROM tenants t
                   WHERE t.id = $1 AND t.execution = $2 AND c.tenant_id = t.id AND c.closed_at IS NULL
                   RETURNING c.begun_at)
               UPDATE tenants SET needs_operator = NULL, failed_step = NULL, failed_error = NULL, failed_message = NULL,
                      failed_at = NULL
               FROM closed WHERE id = $1 AND failed_at >= closed.begun_at";
    transaction.execute(sql, &[&tenant.0, &execution]).await?;
    fence::give_back(&transaction, tenant, execution).await?;
    transaction.commit().await?;
    Ok(())
}
