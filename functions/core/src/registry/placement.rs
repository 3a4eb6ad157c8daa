//! Where a tenant's data is placed: one of `database_servers`, chosen once and remembered.

use tokio_postgres::{Client, GenericClient};

use crate::error::{Problem, StepError};
use crate::request::SignUp;
use crate::tenant::{Isolation, Tenant};

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

/// The isolation that a sign-up will have: the one it asks for, where its plan allows it, or else its plan's.
///
/// # Errors
/// `InvalidRequest` for the field `isolation` or `plan`; `NeedsOperator` when no database server has room.
pub async fn isolation_of(client: &Client, request: &SignUp) -> Result<Isolation, StepError> {
    let plan = request.plan;
    let sql = "SELECT q.default_isolation::text, q.max_isolation::text,
                      coalesce($2::text::isolation BETWEEN q.default_isolation AND q.max_isolation, true),
                      s.state IS NOT NULL, coalesce(bool_or(s.state = 'open' AND s.capacity > (
                          SELECT count(*) FROM tenants t WHERE t.database_server = s.name AND t.status <> 'deprovisioned')), false)
               FROM plan_quotas q LEFT JOIN database_servers s
                   ON s.isolation = coalesce($2::text::isolation, q.default_isolation) AND s.state = 'open'
               WHERE q.plan = $1::text::plan GROUP BY q.plan, s.state";
    let row = client.query_one(sql, &[&plan.as_str(), &request.isolation.map(Isolation::as_str)]).await?;
    let (default, most): (&str, &str) = (row.try_get(0)?, row.try_get(1)?);
    let refused = |field: &str, rule: String| StepError::InvalidRequest(vec![Problem { field: field.into(), rule }]);
    if !row.try_get::<_, bool>(2)? {
        let range = if default == most { default.to_owned() } else { format!("between {default} and {most}") };
        return Err(refused("isolation", format!("must be {range} on plan {plan}")));
    }
    let isolation = request.isolation.map_or_else(|| default.parse(), Ok);
    let isolation = isolation.map_err(|rule| StepError::Unexpected(format!("plan {plan}: isolation {rule}")))?;
    match (isolation, row.try_get(3)?, row.try_get(4)?) {
        (Isolation::Database, ..) | (_, true, true) => Ok(isolation),
        (_, false, _) => Err(refused(
            "plan",
            format!("{plan} is not offered here: no database server for isolation '{isolation}' is open"),
        )),
        (_, true, false) => Err(StepError::NeedsOperator(format!(
            "no database server for isolation '{isolation}' has room, and nothing was made: add one to the registry's \
             database_servers, or raise the capacity of one that is open; then send the request again"
        ))),
    }
}
