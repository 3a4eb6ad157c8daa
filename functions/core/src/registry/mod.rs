//! The tenant registry: what is known of every tenant, who may act on it, and what has been done.
//!
//! Each function runs its own SQL on a connection it is given; the database itself refuses what must never happen.

pub mod audit;
pub mod billing;
pub mod billing_state;
pub mod contacts;
pub mod deletions;
pub mod downstream;
pub mod erasure;
pub mod exports;
pub mod fence;
pub mod hold_sweep;
pub mod holds;
pub mod invites;
pub mod journal;
pub mod lifecycle;
pub mod notices;
pub mod offboarding;
pub mod outbox;
pub mod payments;
pub mod placement;
pub mod plans;
pub mod quotas;
pub mod retries;
pub mod seats;
pub mod signup;
pub mod storage;
pub mod suspensions;
pub mod usage;

use serde_json::{Map, Value};
use tokio_postgres::{GenericClient, Row};
use uuid::Uuid;

use crate::error::StepError;
use crate::tenant::{PlanQuotas, Region, Tenant, TenantId};

/// How a caller names a tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selector {
    /// By id, as machines do.
    Id(TenantId),
    /// By slug, as people do.
    Slug(String),
}

impl std::fmt::Display for Selector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Selector::Id(id) => id.fmt(f),
            Selector::Slug(slug) => f.write_str(slug),
        }
    }
}

/// A tenant's row: the tenant, and what the registry alone is concerned with.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// The tenant as steps see it.
    pub tenant: Tenant,
    /// The id of the request that registered it.
    pub request_id: Uuid,
    /// Whether it is paid for.
    pub paid: bool,
    /// The fence: the execution that alone may act on it.
    pub execution: Option<String>,
    /// How often its fence was taken over since somebody took it from nobody.
    pub takeovers: i32,
    /// Why only an operator may go on.
    pub needs_operator: Option<String>,
}

/// The columns of [`Record`]; every query that reads one selects these, from `tenants t JOIN plan_quotas q USING (plan)`.
const RECORD: &str = "t.id, t.slug, t.plan::text, t.isolation::text, t.region, t.status::text, t.request_id, \
    EXISTS (SELECT FROM holds h WHERE h.tenant_id = t.id AND h.state IN ('exporting', 'held', 'deleting')) AS frozen, \
    t.paid_at IS NOT NULL AS paid, t.execution, t.takeovers, t.needs_operator, q.storage_bytes, q.api_calls_per_month, \
    q.seats, q.cpu_millis, q.memory_mib, q.max_pods, q.max_objects, q.noncurrent_version_days, \
    q.infrequent_access_days, q.default_isolation::text, q.flags, q.rate_limits, q.settings";

/// Reads a tenant.
///
/// # Errors
/// `TenantNotFound` when there is none.
pub async fn read(client: &impl GenericClient, tenant: &Selector) -> Result<Record, StepError> {
    let row = match tenant {
        Selector::Id(id) => {
            let sql = format!("SELECT {RECORD} FROM tenants t JOIN plan_quotas q USING (plan) WHERE t.id = $1");
            client.query_opt(&sql, &[&id.0]).await?
        }
        Selector::Slug(slug) => {
            let sql = format!(
                "SELECT {RECORD} FROM tenants t JOIN plan_quotas q USING (plan) WHERE t.slug = $1
                               ORDER BY t.status <> 'deprovisioned' DESC, t.created_at DESC LIMIT 1"
            );
            client.query_opt(&sql, &[slug]).await?
        }
    };
    row.as_ref().map(record).ok_or_else(|| StepError::TenantNotFound(tenant.to_string()))?
}

/// Reads a tenant and keeps its row from changing until the transaction ends. Rows that refer to it can still be written: its key
/// never changes.
async fn read_for_update(transaction: &tokio_postgres::Transaction<'_>, tenant: TenantId) -> Result<Record, StepError> {
    let sql = format!(
        "SELECT {RECORD} FROM tenants t JOIN plan_quotas q USING (plan) WHERE t.id = $1 FOR NO KEY UPDATE OF t"
    );
    let row = transaction.query_opt(&sql, &[&tenant.0]).await?;
    row.as_ref().map(record).ok_or_else(|| StepError::TenantNotFound(tenant.to_string()))?
}

fn record(row: &Row) -> Result<Record, StepError> {
    Ok(Record {
        tenant: Tenant {
            id: TenantId(row.try_get("id")?),
            slug: known(row, "slug")?,
            plan: known(row, "plan")?,
            isolation: known(row, "isolation")?,
            region: known::<Region>(row, "region")?,
            status: known(row, "status")?,
            frozen: row.try_get("frozen")?,
            quotas: PlanQuotas {
                storage_bytes: row.try_get("storage_bytes")?,
                api_calls_per_month: row.try_get("api_calls_per_month")?,
                seats: row.try_get("seats")?,
                cpu_millis: row.try_get("cpu_millis")?,
                memory_mib: row.try_get("memory_mib")?,
                max_pods: row.try_get("max_pods")?,
                max_objects: row.try_get("max_objects")?,
                noncurrent_version_days: row.try_get("noncurrent_version_days")?,
                infrequent_access_days: row.try_get("infrequent_access_days")?,
                default_isolation: known(row, "default_isolation")?,
                flags: object(row, "flags")?,
                rate_limits: object(row, "rate_limits")?,
                settings: object(row, "settings")?,
            },
        },
        request_id: row.try_get("request_id")?,
        paid: row.try_get("paid")?,
        execution: row.try_get("execution")?,
        takeovers: row.try_get("takeovers")?,
        needs_operator: row.try_get("needs_operator")?,
    })
}

/// A column whose text one of our types must accept: the registry holds nothing else.
fn known<T: std::str::FromStr<Err = crate::tenant::InvalidName>>(row: &Row, column: &str) -> Result<T, StepError> {
    let text: &str = row.try_get(column)?;
    text.parse().map_err(|rule| StepError::Unexpected(format!("registry: {column} {text:?} {rule}")))
}

fn object(row: &Row, column: &str) -> Result<Map<String, Value>, StepError> {
    match row.try_get(column)? {
        Value::Object(map) => Ok(map),
        other => Err(StepError::Unexpected(format!("registry: plan_quotas.{column} must be an object, is {other}"))),
    }
}
