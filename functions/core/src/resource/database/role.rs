//! The login role of a tenant that has its own schema. It owns nothing: it is granted its tables' rows, so that a REVOKE
//! freezes them.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_postgres::{Client, GenericClient, Transaction};

use super::{missing, writable};
use crate::error::StepError;
use crate::migrations::HISTORY;
use crate::migrations::roles::{lock_grants, verifier};
use crate::postgres::quote_identifier;
use crate::tenant::Tenant;

/// Sessions that a tenant's role may hold at once: a server of a few hundred connections serves many tenants.
const CONNECTION_LIMIT: i32 = 20;
/// How long ended sessions may take to be gone.
const SESSIONS_TIMEOUT: Duration = Duration::from_secs(15);
const POLL: Duration = Duration::from_millis(100);

/// What the server has under the role's name.
pub(super) enum Found {
    Absent,
    /// Ours, with what differs from how it is made.
    Ours(Vec<String>),
    Foreign(String),
}

/// Looks at the role.
pub(super) async fn find(client: &impl GenericClient, tenant: &Tenant) -> Result<Found, StepError> {
    let sql = "SELECT rolcanlogin, rolconnlimit, coalesce(rolconfig, '{}'), shobj_description(oid, 'pg_authid'),
                      rolsuper OR rolcreaterole OR rolcreatedb OR rolbypassrls
               FROM pg_roles WHERE rolname = $1";
    let Some(row) = client.query_opt(sql, &[&tenant.database_role()]).await? else {
        return Ok(Found::Absent);
    };
    match row.try_get::<_, Option<String>>(3)? {
        Some(owner) if owner == tenant.ownership_text() => {}
        Some(owner) => return Ok(Found::Foreign(format!("role commented {owner:?}"))),
        None => return Ok(Found::Foreign("role without our comment".into())),
    }
    let mut differs = Vec::new();
    let may_log_in: bool = row.try_get(0)?;
    if may_log_in != writable(tenant) {
        differs.push(if may_log_in { "role may log in" } else { "role may not log in" }.to_owned());
    }
    if row.try_get::<_, i32>(1)? != CONNECTION_LIMIT {
        differs.push(format!("role's connection limit is not {CONNECTION_LIMIT}"));
    }
    let settings: Vec<String> = row.try_get(2)?;
    if settings != [format!("search_path={}", tenant.schema())] {
        differs.push(format!("role's settings are [{}], not its search_path alone", settings.join(", ")));
    }
    if row.try_get::<_, bool>(4)? {
        differs.push("role has attributes of an administrator".to_owned());
    }
    Ok(Found::Ours(differs))
}

/// Creates the role, with its owner's mark in the same transaction, or repairs it; then its grants. `password_changed` says
/// that the server must learn the password again.
pub(super) async fn ensure(
    client: &mut Client,
    tenant: &Tenant,
    password: &str,
    password_changed: bool,
) -> Result<(), StepError> {
    let name = tenant.database_role();
    let role = quote_identifier(&name);
    let transaction = client.transaction().await?;
    lock_grants(&transaction).await?;
    let found = find(&transaction, tenant).await?;
    let (verb, rights) = match &found {
        Found::Foreign(found) => return Err(StepError::Foreign { kind: "role", name, found: found.clone() }),
        Found::Absent => ("CREATE", ""),
        // Only a superuser can change what it has not got itself, so these stay unmentioned where they are not drift.
        Found::Ours(differs) if differs.iter().any(|text| text.contains("administrator")) => {
            ("ALTER", "NOCREATEROLE NOCREATEDB")
        }
        Found::Ours(_) => ("ALTER", ""),
    };
    let as_made = matches!(&found, Found::Ours(differs) if differs.is_empty());
    if !as_made || password_changed {
        let schema = quote_identifier(&tenant.schema());
        transaction
            .batch_execute(&format!(
                "{verb} ROLE {role} {} {rights} CONNECTION LIMIT {CONNECTION_LIMIT} PASSWORD '{}';
                 COMMENT ON ROLE {role} IS '{}';
                 ALTER ROLE {role} RESET ALL;
                 ALTER ROLE {role} SET search_path = {schema}",
                login(tenant),
                verifier(password),
                tenant.ownership_text(),
            ))
            .await?;
    }
    grant(&transaction, tenant).await?;
    transaction.commit().await?;
    Ok(())
}

fn login(tenant: &Tenant) -> &'static str {
    if writable(tenant) { "LOGIN" } else { "NOLOGIN" }
}

/// Takes a frozen tenant's role its logins, its grants and its sessions, or gives the first two back.
pub(super) async fn settle(client: &mut Client, tenant: &Tenant) -> Result<(), StepError> {
    let name = tenant.database_role();
    let role = quote_identifier(&name);
    let transaction = client.transaction().await?;
    lock_grants(&transaction).await?;
    match find(&transaction, tenant).await? {
        Found::Foreign(found) => return Err(StepError::Foreign { kind: "role", name, found }),
        Found::Absent => return Err(missing("database role", tenant, "create-database")),
        Found::Ours(_) => {}
    }
    transaction.batch_execute(&format!("ALTER ROLE {role} {}", login(tenant))).await?;
    grant(&transaction, tenant).await?;
    transaction.commit().await?;
    if writable(tenant) {
        return Ok(());
    }
    retire(client, tenant).await?;
    let transaction = client.transaction().await?;
    lock_grants(&transaction).await?;
    transaction.batch_execute(&format!("REVOKE {role} FROM CURRENT_USER")).await?;
    transaction.commit().await?;
    Ok(())
}

/// Grants the rows of every table of the tenant's schema, where the grants are not that already; nothing while it is frozen.
async fn grant(transaction: &Transaction<'_>, tenant: &Tenant) -> Result<(), StepError> {
    if wrong_grants(transaction, tenant).await?.is_empty() {
        return Ok(());
    }
    let (role, schema) = (quote_identifier(&tenant.database_role()), quote_identifier(&tenant.schema()));
    let mut statements = format!(
        "REVOKE ALL ON ALL TABLES IN SCHEMA {schema} FROM {role};
         REVOKE ALL ON SCHEMA {schema} FROM {role};"
    );
    if writable(tenant) {
        statements += &format!(
            "GRANT USAGE ON SCHEMA {schema} TO {role};
             GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO {role};
             REVOKE ALL ON {schema}.{HISTORY} FROM {role}"
        );
    }
    transaction.batch_execute(&statements).await?;
    Ok(())
}

/// What the role's grants have too much or too little, on its schema and on each table. The schema must exist.
pub(super) async fn wrong_grants(client: &impl GenericClient, tenant: &Tenant) -> Result<Vec<String>, StepError> {
    let rows = client
        .query(
            "SELECT CASE WHEN wanted THEN 'grant missing: ' ELSE 'grant too much: ' END || what FROM (
                SELECT 'USAGE on schema' AS what, $4 AS wanted,
                       has_schema_privilege($1, $2::text::regnamespace, 'USAGE') AS has
                UNION ALL
                SELECT 'CREATE on schema', false, has_schema_privilege($1, $2::text::regnamespace, 'CREATE')
                UNION ALL
                SELECT format('%s on %s', p, c.relname),
                       $4 AND c.relname <> $3 AND p IN ('SELECT', 'INSERT', 'UPDATE', 'DELETE'),
                       has_table_privilege($1, c.oid, p)
                FROM pg_class c,
                     unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'REFERENCES', 'TRIGGER']) AS p
                WHERE c.relnamespace = $2::text::regnamespace AND c.relkind IN ('r', 'p', 'v', 'm')
             ) AS grants WHERE wanted <> has ORDER BY 1",
            &[&tenant.database_role(), &tenant.schema(), &HISTORY, &writable(tenant)],
        )
        .await?;
    rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
}

/// Keeps the role from logging in and ends its sessions; returns when they are gone.
pub(super) async fn retire(client: &mut Client, tenant: &Tenant) -> Result<(), StepError> {
    let name = tenant.database_role();
    let role = quote_identifier(&name);
    let transaction = client.transaction().await?;
    lock_grants(&transaction).await?;
    // Membership lets the provisioner end the role's sessions; it goes with the role.
    transaction.batch_execute(&format!("ALTER ROLE {role} NOLOGIN; GRANT {role} TO CURRENT_USER")).await?;
    transaction.commit().await?;
    let since = Instant::now();
    loop {
        let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = $1";
        if client.query(sql, &[&name]).await?.is_empty() {
            return Ok(());
        }
        if since.elapsed() > SESSIONS_TIMEOUT {
            return Err(StepError::Transient(format!("role {name} has sessions that do not end")));
        }
        sleep(POLL).await;
    }
}

/// As [`retire`], where the role is there and the tenant's; returns whether it is.
pub(super) async fn retire_if_ours(client: &mut Client, tenant: &Tenant) -> Result<bool, StepError> {
    let ours = matches!(find(&*client, tenant).await?, Found::Ours(_));
    if ours {
        retire(client, tenant).await?;
    }
    Ok(ours)
}

/// Drops the role. Its grants must be gone, with the objects they were on.
pub(super) async fn drop(client: &mut Client, tenant: &Tenant) -> Result<(), StepError> {
    let name = tenant.database_role();
    let transaction = client.transaction().await?;
    lock_grants(&transaction).await?;
    let dropped = transaction.batch_execute(&format!("DROP ROLE IF EXISTS {}", quote_identifier(&name))).await;
    dropped.map_err(|error| {
        let detail =
            error.as_db_error().and_then(tokio_postgres::error::DbError::detail).unwrap_or_default().to_owned();
        match StepError::from(error).during(&format!("dropping role {name}")) {
            StepError::Unexpected(text) if !detail.is_empty() => StepError::Unexpected(format!("{text} ({detail})")),
            error => error,
        }
    })?;
    transaction.commit().await?;
    Ok(())
}
