//! PostgreSQL roles: the product's application role, the auditor, and what every login role needs.

use std::path::Path;

use tokio_postgres::{Client, Transaction};

use crate::error::StepError;
use crate::postgres::{self, Credentials, quote_identifier};

/// The product's role: bound by row-level security, owns nothing.
pub const APP_ROLE: &str = "tenantry_app";
/// The role that reads every row of the pool. The provisioner is a member and takes it on where it must see everything.
pub const AUDITOR_ROLE: &str = "tenantry_auditor";

/// Creates the application role and the auditor where they are missing, and takes from everyone what only PostgreSQL's
/// defaults gave them. Again is a no-op.
///
/// # Errors
/// `Misconfigured` when the application's secret names another role, or when that role could look past row-level security.
pub async fn ensure(client: &mut Client, app: &Credentials, set_app_password: bool) -> Result<(), StepError> {
    if app.username != APP_ROLE {
        return Err(StepError::Misconfigured(format!(
            "the application's database secret names role {:?}: the pool's policies are for {APP_ROLE}",
            app.username
        )));
    }
    let transaction = client.transaction().await?;
    lock_grants(&transaction).await?;
    ensure_app(&transaction, app, set_app_password).await?;
    ensure_auditor(&transaction).await?;
    // The public schema holds the registry, which the product's roles must not even see. TEMPORARY would let them own tables.
    transaction
        .batch_execute(&format!(
            "REVOKE ALL ON SCHEMA public FROM PUBLIC;
             REVOKE CREATE, TEMPORARY ON DATABASE {} FROM PUBLIC",
            quote_identifier(&app.dbname)
        ))
        .await
        .map_err(|error| StepError::from(error).during("revoking the defaults of PUBLIC"))?;
    transaction.commit().await?;
    Ok(())
}

async fn ensure_app(transaction: &Transaction<'_>, app: &Credentials, set_password: bool) -> Result<(), StepError> {
    let sql = "SELECT rolsuper OR rolbypassrls OR rolcreaterole FROM pg_roles WHERE rolname = $1";
    let existing = transaction.query_opt(sql, &[&APP_ROLE]).await?;
    let verb = match existing {
        None => "CREATE",
        Some(row) if row.try_get::<_, bool>(0)? => {
            return Err(StepError::Misconfigured(format!(
                "role {APP_ROLE} is SUPERUSER, BYPASSRLS or CREATEROLE: take that from it, or tenants see each other's rows"
            )));
        }
        Some(_) if set_password => "ALTER",
        Some(_) => return Ok(()),
    };
    transaction
        .batch_execute(&format!(
            "{verb} ROLE {APP_ROLE} LOGIN PASSWORD '{}'; ALTER ROLE {APP_ROLE} SET search_path = pool",
            verifier(&app.password)
        ))
        .await
        .map_err(|error| StepError::from(error).during("creating the application's role"))
}

async fn ensure_auditor(transaction: &Transaction<'_>) -> Result<(), StepError> {
    let doing = |error| StepError::from(error).during("creating the auditor's role");
    let sql = "SELECT 1 FROM pg_roles WHERE rolname = $1";
    if transaction.query_opt(sql, &[&AUDITOR_ROLE]).await?.is_none() {
        transaction.batch_execute(&format!("CREATE ROLE {AUDITOR_ROLE} NOLOGIN")).await.map_err(doing)?;
    }
    // Since 16 a role's maker may administer it without being able to act as it; before, membership is one thing.
    let sql = "SELECT EXISTS (SELECT FROM pg_auth_members m JOIN pg_roles r ON r.oid = m.roleid
                  WHERE r.rolname = $1 AND m.member = current_user::regrole
                    AND coalesce((to_jsonb(m) ->> 'set_option')::boolean, true)),
               current_setting('server_version_num')::int >= 160000";
    let row = transaction.query_one(sql, &[&AUDITOR_ROLE]).await?;
    if !row.try_get::<_, bool>(0)? {
        let how = if row.try_get::<_, bool>(1)? { "WITH INHERIT FALSE, SET TRUE" } else { "" };
        let sql = format!("GRANT {AUDITOR_ROLE} TO CURRENT_USER {how}");
        transaction.batch_execute(&sql).await.map_err(doing)?;
    }
    Ok(())
}

/// Serializes changes of roles and grants until the transaction ends: PostgreSQL answers `tuple concurrently updated` to
/// those that meet on one row of a catalog.
///
/// # Errors
/// `Transient` when the turn does not come in time.
pub async fn lock_grants(transaction: &Transaction<'_>) -> Result<(), StepError> {
    transaction.execute("SELECT pg_advisory_xact_lock(hashtextextended('tenantry grants', 0))", &[]).await?;
    Ok(())
}

/// What the server is told instead of a password: a SCRAM-SHA-256 verifier (RFC 5802), so that neither its log nor anyone
/// who reads its statements learns the password. Holds no quote.
pub fn verifier(password: &str) -> String {
    postgres_protocol::password::scram_sha_256(password.as_bytes())
}

/// Whether the server lets a role log in with these credentials.
///
/// # Errors
/// When the server cannot be asked.
pub async fn accepts(credentials: &Credentials, ca_bundle: Option<&Path>) -> Result<bool, StepError> {
    match postgres::connect(credentials, ca_bundle).await {
        Ok(_) => Ok(true),
        // Wrong password (28P01); no such role, or not permitted to log in (28000).
        Err(StepError::Denied(_)) => Ok(false),
        // The role is at its connection limit, which is looked at after the password.
        Err(StepError::Transient(text)) if text.contains("53300") => Ok(true),
        Err(error) => Err(error),
    }
}
