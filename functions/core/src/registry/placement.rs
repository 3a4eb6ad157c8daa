//! Where a tenant's data is placed: one of `database_servers`, chosen once and remembered.

use tokio_postgres::{Client, GenericClient};

use crate::error::{Problem, StepError};
use crate::tenant::{Plan, Tenant};

/// A server that holds tenants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// Its name in the registry.
    pub name: String,
    /// The secret with the provisioner's login.
    pub secret: String,
}

/// The server that holds the tenant, chosen now if none was before: of those of its isolation that are open and have room,
/// the one with the most. What was chosen is kept, whatever becomes of the server's state.
///
/// # Errors
/// `NeedsOperator` when no server has room; `TenantNotFound`.
pub async fn place(client: &mut Client, tenant: &Tenant) -> Result<Server, StepError> {
    if let Some(server) = placed(client, tenant).await? {
        return Ok(server);
    }
    let transaction = client.transaction().await?;
    // One at a time, so that the last place of a server is given once: the count below must see every other placement.
    transaction.execute("SELECT pg_advisory_xact_lock(hashtextextended('tenantry placement', 0))", &[]).await?;
    transaction
        .execute(
            "UPDATE tenants SET database_server = (
                SELECT s.name FROM database_servers s,
                    LATERAL (SELECT s.capacity - count(*) AS room FROM tenants t
                             WHERE t.database_server = s.name AND t.status <> 'deprovisioned') r
                WHERE s.isolation = $2::text::isolation AND s.state = 'open' AND r.room > 0
                ORDER BY r.room DESC, s.name LIMIT 1)
             WHERE id = $1 AND database_server IS NULL",
            &[&tenant.id.0, &tenant.isolation.as_str()],
        )
        .await?;
    let server = placed(&transaction, tenant).await?;
    transaction.commit().await?;
    server.ok_or_else(|| {
        StepError::NeedsOperator(format!(
            "no database server has room for tenant {} ({}): add one with isolation '{}' to the registry's \
             database_servers, or raise the capacity of one that is open, then run again",
            tenant.slug, tenant.id, tenant.isolation
        ))
    })
}

/// The server that was chosen for the tenant, if one was.
///
/// # Errors
/// When the registry cannot be read.
pub async fn placed(client: &impl GenericClient, tenant: &Tenant) -> Result<Option<Server>, StepError> {
    let sql = "SELECT s.name, s.secret FROM tenants t JOIN database_servers s ON s.name = t.database_server
               WHERE t.id = $1";
    let row = client.query_opt(sql, &[&tenant.id.0]).await?;
    row.map(|row| Ok(Server { name: row.try_get(0)?, secret: row.try_get(1)? })).transpose()
}

/// Refuses a plan whose tenants have nowhere to be placed: no server of its isolation is open.
///
/// # Errors
/// `InvalidRequest` for the field `plan`.
pub async fn refuse_without_server(client: &Client, plan: Plan) -> Result<(), StepError> {
    let sql = "SELECT q.default_isolation::text FROM plan_quotas q WHERE q.plan = $1::text::plan AND NOT EXISTS
               (SELECT FROM database_servers s WHERE s.isolation = q.default_isolation AND s.state = 'open')";
    let Some(row) = client.query_opt(sql, &[&plan.as_str()]).await? else { return Ok(()) };
    let isolation: &str = row.try_get(0)?;
    Err(StepError::InvalidRequest(vec![Problem {
        field: "plan".into(),
        rule: format!("{plan} is not offered here: no database server for isolation '{isolation}' is open"),
    }]))
}
