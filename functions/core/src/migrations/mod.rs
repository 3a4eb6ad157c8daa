//! The migrations of the registry, of the pool and of tenants' own schemas (`infra/migrations`), embedded in the binaries and
//! applied with refinery: one history table a schema.

pub mod custom_resource;
pub mod roles;
pub mod tenant;

use refinery::Runner;
use serde::Serialize;
use tokio_postgres::Client;

use crate::error::StepError;
use crate::postgres::Credentials;

mod registry_sql {
    refinery::embed_migrations!("../../infra/migrations/registry");
}
mod pool_sql {
    refinery::embed_migrations!("../../infra/migrations/pool");
}
mod tenant_sql {
    refinery::embed_migrations!("../../infra/migrations/tenant");
}

/// The table, in each migrated schema, that says what was applied. The name is refinery's own.
pub const HISTORY: &str = "refinery_schema_history";
/// The schema of the tenants that share their tables. No tenant's own schema can have this name: they begin with `tenant_`.
pub const POOL: &str = "pool";
/// The product's tables, each before those it refers to: rows can be deleted in this order. A test compares the list with
/// the catalog.
pub const PRODUCT_TABLES: &[&str] =
    &["files", "tasks", "projects", "users", "role_permissions", "roles", "permissions"];

/// The longest one migration may run: apply-migrations' `Timeout` of 300 s (`infra/template.yaml`), less what is needed to
/// report.
const MIGRATION_TIMEOUT_MS: u32 = 240_000;
/// How long a deploy waits for another deploy's migrations.
const TURN_TIMEOUT_MS: u32 = 120_000;
/// Tenants that the registry's own server may hold, shared and with schemas of their own. A schema is 46 files and a role;
/// a cell ends at 5,000 tenants anyway (IAM roles an account).
const OWN_SERVER: &[(&str, &str, i32)] = &[("registry-shared", "shared", 5000), ("registry-schema", "schema", 1000)];

/// What a deploy applied: the versions and names of migrations that were new.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Applied {
    /// Of the registry.
    pub registry: Vec<String>,
    /// Of the pool.
    pub pool: Vec<String>,
}

/// Brings the registry's database to what this build expects: roles, tables, grants, and the registry's own server among
/// `database_servers`. Deploys that run at once wait for one another. Again is a no-op.
///
/// `client` is the provisioner's connection, to be closed afterwards: its settings change, and it holds a lock. `app` is the
/// application role's login, `set_app_password` whether the server is to learn its password, and `registry_secret` the name
/// of the secret of this very server.
///
/// # Errors
/// `Unexpected`, naming the migration, when one fails; nothing of that one is kept.
pub async fn apply(
    client: &mut Client,
    app: &Credentials,
    set_app_password: bool,
    registry_secret: &str,
) -> Result<Applied, StepError> {
    client
        .batch_execute(&format!(
            "SET statement_timeout = {MIGRATION_TIMEOUT_MS}; SET lock_timeout = {TURN_TIMEOUT_MS};
             SELECT pg_advisory_lock(hashtextextended('tenantry migrations', 0));
             SET search_path = public"
        ))
        .await
        .map_err(|error| StepError::from(error).during("waiting for another deploy's migrations"))?;
    roles::ensure(client, app, set_app_password).await?;
    let registry = run(client, registry_sql::migrations::runner(), "public", "registry").await?;
    client
        .batch_execute(&format!("CREATE SCHEMA IF NOT EXISTS {POOL}"))
        .await
        .map_err(|error| StepError::from(error).during("creating the pool's schema"))?;
    let pool = run(client, pool_sql::migrations::runner(), POOL, "pool").await?;
    seed_own_server(client, registry_secret).await?;
    Ok(Applied { registry, pool })
}

async fn run(client: &mut Client, mut runner: Runner, schema: &str, name: &str) -> Result<Vec<String>, StepError> {
    runner.set_migration_table_name(format!("{schema}.{HISTORY}"));
    let report = runner.run_async(client).await.map_err(|error| failed(name, &error))?;
    Ok(report.applied_migrations().iter().map(ToString::to_string).collect())
}

fn failed(name: &str, error: &refinery::Error) -> StepError {
    match error.kind() {
        refinery::error::Kind::Connection(doing, source) => {
            let why = match source.downcast_ref::<tokio_postgres::Error>().and_then(tokio_postgres::Error::as_db_error)
            {
                Some(db) => format!("PostgreSQL {}: {}", db.code().code(), db.message()),
                None => source.to_string(),
            };
            StepError::Unexpected(format!("{name} migrations: {doing}: {why}"))
        }
        kind => StepError::Unexpected(format!("{name} migrations: {kind}")),
    }
}

/// Registers the registry's own server for shared tenants and for schemas. Its capacity and state are the operator's once
/// it is there; the secret's name follows the stack's.
async fn seed_own_server(client: &Client, secret: &str) -> Result<(), StepError> {
    for (name, isolation, capacity) in OWN_SERVER {
        client
            .execute(
                "INSERT INTO database_servers (name, isolation, secret, capacity)
                 VALUES ($1, $2::text::isolation, $3, $4)
                 ON CONFLICT (name) DO UPDATE SET secret = excluded.secret
                 WHERE database_servers.secret <> excluded.secret",
                &[name, isolation, &secret, capacity],
            )
            .await
            .map_err(|error| StepError::from(error).during("registering the registry's own server"))?;
    }
    Ok(())
}
