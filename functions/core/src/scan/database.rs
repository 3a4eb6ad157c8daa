//! PostgreSQL: schemas, roles and databases of every server that tenants are placed on, the pool's tables as the auditor sees
//! them, and while it exists a tenant's own server.

use std::collections::BTreeMap;

use async_trait::async_trait;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, GenericClient};

use super::{Finding, Store, Subject, servers};
use crate::environment::Environment;
use crate::error::StepError;
use crate::migrations::POOL;
use crate::migrations::roles::AUDITOR_ROLE;
use crate::postgres::{Database, MAINTENANCE, quote_identifier};
use crate::tenant::{Isolation, Tenant};

/// Every server of the registry's `database_servers`.
pub(super) struct Databases {
    env: Environment,
    registry: Database,
    registry_secret: String,
    own: servers::Servers,
}

impl Databases {
    pub(super) fn from_env(env: &Environment) -> Result<Self, StepError> {
        Ok(Databases {
            env: env.clone(),
            registry: Database::registry(env)?,
            registry_secret: env.required("REGISTRY_SECRET")?,
            own: servers::Servers::from_env(env),
        })
    }

    /// The secrets of all servers, each once. A tenant's own server is one while RDS has the instance.
    async fn secrets(&self, tenant: &Tenant) -> Result<Vec<String>, StepError> {
        let mut secrets = Vec::new();
        let sql = "SELECT DISTINCT secret FROM database_servers ORDER BY secret";
        for row in self.registry.client().await?.query(sql, &[]).await? {
            secrets.push(row.try_get(0)?);
        }
        if tenant.isolation == Isolation::Database && self.own.answers(tenant).await? {
            secrets.push(tenant.server_secret());
        }
        Ok(secrets)
    }
}

#[async_trait]
impl Store for Databases {
    fn name(&self) -> &'static str {
        "database"
    }

    async fn look(&self, subject: &Subject) -> Result<Finding, StepError> {
        let mut counts = BTreeMap::new();
        for secret in self.secrets(&subject.tenant).await? {
            let found = if secret == self.registry_secret {
                look_at(&mut *self.registry.client().await?, &subject.tenant).await
            } else if secret == subject.tenant.server_secret() {
                look_at(&mut session_on_own(&Database::new(&self.env, secret), &subject.tenant).await?, &subject.tenant)
                    .await
            } else {
                let server = Database::new(&self.env, secret);
                look_at(&mut *server.client().await?, &subject.tenant).await
            };
            for (kind, count) in found? {
                *counts.entry(kind).or_default() += count;
            }
        }
        counts.retain(|_, count| *count != 0);
        Ok(Finding { counts, kept: Vec::new() })
    }
}

/// A session on the tenant's own server: in its database, or, where a deletion before this one came as far as to drop that and not
/// further, in the one that every server has.
async fn session_on_own(server: &Database, tenant: &Tenant) -> Result<Client, StepError> {
    let client = server.session_in(MAINTENANCE).await?;
    let sql = "SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)";
    let there: bool = client.query_one(sql, &[&tenant.schema()]).await?.try_get(0)?;
    if there { server.session_in(&tenant.schema()).await } else { Ok(client) }
}

/// What one server has of the tenant, by name or by mark.
async fn look_at(client: &mut Client, tenant: &Tenant) -> Result<BTreeMap<String, i64>, StepError> {
    let sql = "SELECT
        (SELECT count(*) FROM pg_namespace WHERE nspname = $1 OR starts_with(obj_description(oid, 'pg_namespace'), $3)),
        (SELECT count(*) FROM pg_roles WHERE rolname = $2 OR starts_with(shobj_description(oid, 'pg_authid'), $3)),
        (SELECT count(*) FROM pg_database WHERE datname = $1 OR starts_with(shobj_description(oid, 'pg_database'), $3)),
        (SELECT count(*) FROM pg_stat_activity WHERE usename = $2)";
    let marks = [tenant.schema(), tenant.database_role(), tenant.ownership_text()];
    let row = client.query_one(sql, &[&marks[0], &marks[1], &marks[2]]).await?;
    let mut found = BTreeMap::new();
    for (column, kind) in ["schemas", "roles", "databases", "sessions"].into_iter().enumerate() {
        found.insert(kind.to_owned(), row.try_get(column)?);
    }
    let (tables, rows) = own_rows(client, &tenant.schema()).await?;
    found.insert("tables".to_owned(), tables);
    found.insert("rows".to_owned(), rows);
    found.insert("rows in shared tables".to_owned(), shared_rows(client, tenant).await?);
    Ok(found)
}

/// Tables and rows of the tenant's own schema. A table that takes too long to count is counted as the planner estimates it.
async fn own_rows(client: &Client, schema: &str) -> Result<(i64, i64), StepError> {
    let sql = "SELECT c.relname::text, greatest(c.reltuples, 0)::bigint FROM pg_class c
               JOIN pg_namespace n ON n.oid = c.relnamespace
               WHERE n.nspname = $1 AND c.relkind IN ('r', 'p') AND NOT c.relispartition ORDER BY 1";
    let tables = client.query(sql, &[&schema]).await?;
    let mut rows = 0;
    for table in &tables {
        let (name, estimate): (String, i64) = (table.try_get(0)?, table.try_get(1)?);
        let sql = format!("SELECT count(*) FROM {}.{}", quote_identifier(schema), quote_identifier(&name));
        rows += match client.query_one(&sql, &[]).await {
            Ok(row) => row.try_get(0)?,
            Err(error) if error.code() == Some(&SqlState::QUERY_CANCELED) => estimate,
            // Not ours to read, in a schema of the tenant's name: that it is there is enough.
            Err(error) if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => 0,
            Err(error) => return Err(error.into()),
        };
    }
    Ok((super::count(tables.len()), rows))
}

/// Rows of the tenant in every table of the pool that says whose a row is, read as the auditor. A table that the auditor does not
/// see whole is an error: a filter would hide what is left.
async fn shared_rows(client: &mut Client, tenant: &Tenant) -> Result<i64, StepError> {
    let transaction = client.transaction().await?;
    let sql = "SELECT c.relname::text, a.attname::text,
                      NOT c.relrowsecurity OR EXISTS (SELECT FROM pg_policies p WHERE p.schemaname = $1 AND p.tablename = c.relname
                          AND p.permissive = 'PERMISSIVE' AND p.qual = 'true' AND $2 = ANY (p.roles) AND p.cmd IN ('SELECT', 'ALL'))
                      AND NOT EXISTS (SELECT FROM pg_policies p WHERE p.schemaname = $1 AND p.tablename = c.relname
                          AND p.permissive = 'RESTRICTIVE' AND p.roles && ARRAY[$2, 'public']::name[] AND p.cmd IN ('SELECT', 'ALL'))
               FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_attribute a ON a.attrelid = c.oid
               WHERE n.nspname = $1 AND c.relkind IN ('r', 'p') AND NOT a.attisdropped
                   AND (a.attname = 'tenant_id' OR c.relname = 'tenants' AND a.attname = 'id')";
    let tables = transaction.query(sql, &[&POOL, &AUDITOR_ROLE]).await?;
    if tables.is_empty() {
        return Ok(0);
    }
    transaction.batch_execute(&format!("SET LOCAL ROLE {AUDITOR_ROLE}")).await?;
    let mut rows = 0;
    for table in &tables {
        let (name, column): (String, String) = (table.try_get(0)?, table.try_get(1)?);
        if !table.try_get::<_, bool>(2)? {
            return Err(StepError::Misconfigured(format!(
                "{POOL}.{name} hides rows from {AUDITOR_ROLE}: divide it with {POOL}.divide(), which lets the auditor see all"
            )));
        }
        rows += rows_of(&transaction, &name, &column, tenant).await?;
    }
    transaction.commit().await?;
    Ok(rows)
}

async fn rows_of(client: &impl GenericClient, table: &str, column: &str, tenant: &Tenant) -> Result<i64, StepError> {
    let sql =
        format!("SELECT count(*) FROM {POOL}.{} WHERE {} = $1", quote_identifier(table), quote_identifier(column));
    Ok(client.query_one(&sql, &[&tenant.id.0]).await?.try_get(0)?)
}
