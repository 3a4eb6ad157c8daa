//! Systems outside this stack that hold tenants' data: which there are, which were asked to delete a tenant's, and which
//! confirmed it.

use serde_json::json;
use time::OffsetDateTime;
use tokio_postgres::{Client, GenericClient};

use super::{Selector, outbox, read};
use crate::error::{Problem, StepError};
use crate::moment;
use crate::tenant::{Tenant, TenantId};

/// What a system answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The system's name.
    pub system: String,
    /// What kind of system it is.
    pub kind: String,
    /// When it confirmed; `None` while it has not.
    pub confirmed_at: Option<OffsetDateTime>,
    /// How many records it says it deleted.
    pub records: Option<i64>,
}

/// Who has not confirmed yet, and for how many more seconds they are waited for (negative when the time is over).
#[derive(Debug, Clone, PartialEq)]
pub struct Waiting {
    /// The systems' names.
    pub systems: Vec<String>,
    /// Seconds since they were asked.
    pub asked_for: f64,
}

/// Registers a system, or retires it, audited. Again changes nothing.
///
/// # Errors
/// `Conflict` when one of that name is of another kind.
pub async fn register(client: &mut Client, name: &str, kind: &str, retire: bool, actor: &str) -> Result<(), StepError> {
    let transaction = client.transaction().await?;
    let sql = "INSERT INTO downstream_systems (name, kind, retired_at) VALUES ($1, $2, CASE WHEN $3 THEN now() END)
               ON CONFLICT (name) DO UPDATE
               SET retired_at = CASE WHEN $3 THEN coalesce(downstream_systems.retired_at, now()) END
               WHERE downstream_systems.kind = excluded.kind";
    if transaction.execute(sql, &[&name, &kind, &retire]).await? == 0 {
        return Err(StepError::Conflict(format!(
            "downstream system {name} is registered as another kind: give this one another name"
        )));
    }
    let action = if retire { "downstream system retired" } else { "downstream system registered" };
    let detail = json!({ "system": name, "kind": kind });
    let sql = "INSERT INTO audit (actor, action, detail) VALUES ($1, $2, $3)";
    transaction.execute(sql, &[&actor, &action, &detail]).await?;
    transaction.commit().await?;
    Ok(())
}

/// Asks every registered system to delete the tenant's data: a row for each, and `tenant.deletion_requested` in the outbox,
/// answerable for so many seconds. Again changes nothing. Returns who was asked.
///
/// # Errors
/// When the registry cannot be written.
pub async fn ask(client: &mut Client, tenant: TenantId, seconds: f64) -> Result<Vec<String>, StepError> {
    let transaction = client.transaction().await?;
    let sql = "UPDATE deletions SET downstream_asked_at = now() WHERE tenant_id = $1 AND downstream_asked_at IS NULL
               RETURNING now() + make_interval(secs => $2)";
    if let Some(row) = transaction.query_opt(sql, &[&tenant.0, &seconds]).await? {
        let respond_by: OffsetDateTime = row.try_get(0)?;
        let respond_by = moment::text(respond_by)?;
        let sql = "INSERT INTO downstream_requests (tenant_id, system)
                   SELECT $1, name FROM downstream_systems WHERE retired_at IS NULL";
        transaction.execute(sql, &[&tenant.0]).await?;
        let systems = asked(&transaction, tenant).await?;
        let Tenant { slug, plan, region, .. } = read(&transaction, &Selector::Id(tenant)).await?.tenant;
        let detail = json!({
            "slug": slug, "plan": plan, "region": region, "systems": systems, "respond_by": respond_by,
        });
        outbox::enqueue(&transaction, tenant, "tenant.deletion_requested", detail).await?;
        transaction.commit().await?;
        return Ok(systems);
    }
    asked(&transaction, tenant).await
}

async fn asked(client: &impl GenericClient, tenant: TenantId) -> Result<Vec<String>, StepError> {
    Ok(requests(client, tenant).await?.into_iter().map(|request| request.system).collect())
}

/// Every system that was asked about the tenant, and what it answered.
///
/// # Errors
/// When the registry cannot be read.
pub async fn requests(client: &impl GenericClient, tenant: TenantId) -> Result<Vec<Request>, StepError> {
    let sql = "SELECT r.system, s.kind, r.confirmed_at, r.records
               FROM downstream_requests r JOIN downstream_systems s ON s.name = r.system
               WHERE r.tenant_id = $1 ORDER BY r.system";
    let rows = client.query(sql, &[&tenant.0]).await?;
    rows.iter()
        .map(|row| {
            Ok(Request {
                system: row.try_get(0)?,
                kind: row.try_get(1)?,
                confirmed_at: row.try_get(2)?,
                records: row.try_get(3)?,
            })
        })
        .collect()
}

/// Who is waited for.
///
/// # Errors
/// `Conflict` when nobody was asked yet.
pub async fn waiting(client: &Client, tenant: TenantId) -> Result<Waiting, StepError> {
    let sql = "SELECT extract(epoch FROM now() - downstream_asked_at)::float8 FROM deletions
               WHERE tenant_id = $1 AND downstream_asked_at IS NOT NULL";
    let row = client.query_opt(sql, &[&tenant.0]).await?;
    let row = row.ok_or_else(|| {
        StepError::Conflict(format!("no downstream system was asked about tenant {tenant}: run ask-downstream first"))
    })?;
    let requests = requests(client, tenant).await?.into_iter().filter(|request| request.confirmed_at.is_none());
    Ok(Waiting { systems: requests.map(|request| request.system).collect(), asked_for: row.try_get(0)? })
}

/// Records that a system has deleted the tenant's data; the first confirmation counts.
///
/// # Errors
/// `InvalidRequest` when that system was not asked about that tenant.
pub async fn confirm(client: &Client, tenant: TenantId, system: &str, records: Option<i64>) -> Result<(), StepError> {
    let sql = "UPDATE downstream_requests
               SET confirmed_at = coalesce(confirmed_at, now()),
                   records = CASE WHEN confirmed_at IS NULL THEN $3 ELSE records END
               WHERE tenant_id = $1 AND system = $2";
    if client.execute(sql, &[&tenant.0, &system, &records]).await? == 1 {
        return Ok(());
    }
    Err(StepError::InvalidRequest(vec![Problem {
        field: "system".into(),
        rule: format!("must be one that was asked to delete the data of tenant {tenant}"),
    }]))
}
