//! A tenant with a schema of its own: the schema and its tables, the login role that may use them, and the secret with its
//! password. The order of making: schema, secret, role; each is looked at again on every run, so a crash in between is
//! repaired by the next.

use std::path::PathBuf;
use std::sync::Arc;

use serde_json::{Value, json};
use tokio_postgres::{Client, GenericClient};
use uuid::Uuid;

use super::secret::{self, LoginSecret};
use super::{Inspection, Use, missing, role, writable};
use crate::error::StepError;
use crate::migrations::roles::accepts;
use crate::migrations::{PRODUCT_TABLES, tenant as tenant_migrations};
use crate::postgres::{Database, quote_identifier};
use crate::registry::contacts::Contact;
use crate::tenant::Tenant;

/// Tables dropped in one transaction: each takes locks on itself, its indexes and its TOAST table, of the
/// max_locks_per_transaction (64) × max_connections that the server has for everyone.
const DROP_BATCH: i64 = 25;

/// A tenant's own schema on a server.
pub(super) struct OwnSchema {
    pub(super) server: Arc<Database>,
    pub(super) secret: LoginSecret,
    pub(super) ca_bundle: Option<PathBuf>,
}

/// What the server has under the schema's name.
#[derive(PartialEq, Eq)]
enum Found {
    Absent,
    Ours,
    /// Ours, with a removal that began and did not end: some tables may be gone, so it is of no use any more.
    HalfRemoved,
    Foreign(String),
}

impl OwnSchema {
    /// Makes the schema, the secret and the role.
    pub(super) async fn ensure(&self, tenant: &Tenant) -> Result<Value, StepError> {
        let name = tenant.schema();
        let server = self.server.credentials().await?;
        {
            let mut client = self.server.client().await?;
            // Before anything is made: a role of the name that is another's must not leave us with a schema.
            if let role::Found::Foreign(found) = role::find(&*client, tenant).await? {
                return Err(StepError::Foreign { kind: "role", name: tenant.database_role(), found });
            }
            if find(&*client, tenant).await? == Found::HalfRemoved {
                drop_schema(&mut client, tenant).await?;
            }
            ensure_schema(&mut client, tenant).await?;
        }
        let login = self.secret.ensure(tenant, &server).await?;
        let known = {
            let client = self.server.client().await?;
            matches!(role::find(&*client, tenant).await?, role::Found::Ours(_))
        };
        // Only the server knows whether it has this password; a role that is about to be made has none.
        let password_changed = known && writable(tenant) && !accepts(&login, self.ca_bundle.as_deref()).await?;
        role::ensure(&mut *self.server.client().await?, tenant, &login.password, password_changed).await?;
        Ok(json!({
            "isolation": tenant.isolation,
            "schema": name,
            "role": tenant.database_role(),
            "secret": tenant.database_secret(),
        }))
    }

    /// Removes the role's sessions, the schema with all it holds, the role and the secret.
    pub(super) async fn remove(&self, tenant: &Tenant) -> Result<(), StepError> {
        {
            let mut client = self.server.client().await?;
            let role_is_ours = role::retire_if_ours(&mut client, tenant).await?;
            if matches!(find(&*client, tenant).await?, Found::Ours | Found::HalfRemoved) {
                drop_schema(&mut client, tenant).await?;
            }
            if role_is_ours {
                role::drop(&mut client, tenant).await?;
            }
        }
        self.secret.remove(tenant).await
    }

    /// Closes the schema to the tenant's own role, or opens it.
    pub(super) async fn settle(&self, tenant: &Tenant) -> Result<(), StepError> {
        let mut client = self.server.client().await?;
        match find(&*client, tenant).await? {
            Found::Ours => role::settle(&mut client, tenant).await,
            Found::Foreign(found) => Err(StepError::Foreign { kind: "schema", name: tenant.schema(), found }),
            Found::Absent | Found::HalfRemoved => Err(missing("schema", tenant, "create-database")),
        }
    }

    /// Compares schema, tables, migrations, role, grants and secret with what `ensure` makes.
    pub(super) async fn inspect(&self, tenant: &Tenant) -> Result<Inspection, StepError> {
        let server = self.server.credentials().await?;
        let (mut absent, mut drift) = (0, Vec::new());
        let secret = self.secret.find(tenant).await?;
        let client = self.server.client().await?;
        let schema = find(&*client, tenant).await?;
        match &schema {
            Found::Foreign(found) => return Ok(Inspection::Foreign(found.clone())),
            Found::Absent => {
                absent += 1;
                drift.push("schema is missing".to_owned());
            }
            Found::HalfRemoved => drift.push("schema is half removed".to_owned()),
            Found::Ours => drift.extend(schema_drift(&*client, tenant).await?),
        }
        let role = role::find(&*client, tenant).await?;
        match &role {
            role::Found::Foreign(found) => return Ok(Inspection::Foreign(found.clone())),
            role::Found::Absent => {
                absent += 1;
                drift.push("role is missing".to_owned());
            }
            role::Found::Ours(differs) => {
                drift.extend(differs.iter().cloned());
                if schema == Found::Ours {
                    drift.extend(role::wrong_grants(&*client, tenant).await?);
                }
            }
        }
        drop(client);
        match secret {
            secret::Found::Foreign(found) => return Ok(Inspection::Foreign(format!("secret {found}"))),
            secret::Found::Absent => {
                absent += 1;
                drift.push("secret is missing".to_owned());
            }
            secret::Found::Deleting => drift.push("secret is scheduled for deletion".to_owned()),
            secret::Found::Ours(Some(login)) if self.secret.matches(&login, tenant, &server) => {
                // A frozen tenant's role logs in with no password.
                let known = writable(tenant) && matches!(role, role::Found::Ours(_));
                if known && !accepts(&login, self.ca_bundle.as_deref()).await? {
                    drift.push("role does not log in with the secret's password".to_owned());
                }
            }
            secret::Found::Ours(_) => drift.push("secret does not lead to the schema".to_owned()),
        }
        Ok(match (absent, drift.is_empty()) {
            (3, _) => Inspection::Absent,
            (_, true) => Inspection::Present,
            (_, false) => Inspection::Drifted(drift),
        })
    }
}

/// What the tenant's tables say it uses.
pub(super) async fn usage(client: &Client, tenant: &Tenant) -> Result<Use, StepError> {
    super::usage(client, &tenant.schema()).await
}

/// Makes the tenant's owner one of its users, with every right, under an id; under its own where it is one already. Again changes
/// nothing.
pub(super) async fn add_owner(
    client: &Client,
    tenant: &Tenant,
    user: Uuid,
    owner: &Contact,
) -> Result<Uuid, StepError> {
    let sql = format!(
        "INSERT INTO {}.users (id, email, name, role) VALUES ($1, $2, $3, 'owner')
         ON CONFLICT (lower(email)) DO UPDATE SET role = excluded.role RETURNING id",
        quote_identifier(&tenant.schema())
    );
    Ok(client.query_one(&sql, &[&user, &owner.email, &owner.name]).await?.try_get(0)?)
}

/// Whose the schema is, by its comment.
async fn find(client: &impl GenericClient, tenant: &Tenant) -> Result<Found, StepError> {
    let sql = "SELECT obj_description(oid, 'pg_namespace') FROM pg_namespace WHERE nspname = $1";
    let Some(row) = client.query_opt(sql, &[&tenant.schema()]).await? else {
        return Ok(Found::Absent);
    };
    Ok(match row.try_get::<_, Option<String>>(0)? {
        Some(owner) if owner == tenant.ownership_text() => Found::Ours,
        Some(owner) if owner == half_removed(tenant) => Found::HalfRemoved,
        Some(owner) => Found::Foreign(format!("schema commented {owner:?}")),
        None => Found::Foreign("schema without our comment".into()),
    })
}

fn half_removed(tenant: &Tenant) -> String {
    format!("{}; being removed", tenant.ownership_text())
}

/// Creates the schema, its owner's mark and its tables in one message, which is one transaction; or applies what migrations
/// it lacks.
async fn ensure_schema(client: &mut Client, tenant: &Tenant) -> Result<(), StepError> {
    let name = tenant.schema();
    let schema = quote_identifier(&name);
    let transaction = client.transaction().await?;
    // Two runs at once: the second finds what the first made.
    let lock = format!("database of tenant {}", tenant.id);
    transaction.execute("SELECT pg_advisory_xact_lock(hashtextextended($1, 0))", &[&lock]).await?;
    let mut message = match find(&transaction, tenant).await? {
        Found::Foreign(found) => return Err(StepError::Foreign { kind: "schema", name, found }),
        Found::HalfRemoved => {
            return Err(StepError::Transient(format!("schema {name} is being removed")));
        }
        Found::Ours => String::new(),
        Found::Absent => {
            format!("CREATE SCHEMA {schema}; COMMENT ON SCHEMA {schema} IS '{}';\n", tenant.ownership_text())
        }
    };
    let pending = tenant_migrations::pending(&transaction, &name).await?;
    if !pending.is_empty() {
        message += &format!("SET LOCAL search_path = {schema};\n");
        message += &tenant_migrations::script(&name, &pending)?;
        transaction
            .batch_execute(&message)
            .await
            .map_err(|error| StepError::from(error).during(&format!("creating schema {name}")))?;
    }
    let missing = missing_tables(&transaction, tenant).await?;
    if !missing.is_empty() {
        return Err(StepError::NeedsOperator(format!(
            "schema {name} lacks tables that its history says were made ({}), and their rows with them: restore them from a \
             backup; an empty table in their place would hide the loss",
            missing.join(", ")
        )));
    }
    transaction.commit().await?;
    Ok(())
}

async fn schema_drift(client: &impl GenericClient, tenant: &Tenant) -> Result<Vec<String>, StepError> {
    let mut drift = Vec::new();
    let missing = missing_tables(client, tenant).await?;
    drift.extend(missing.iter().map(|table| format!("table {table} is missing")));
    let pending = tenant_migrations::pending(client, &tenant.schema()).await?;
    drift.extend(pending.iter().map(|migration| format!("migration {migration} is missing")));
    Ok(drift)
}

async fn missing_tables(client: &impl GenericClient, tenant: &Tenant) -> Result<Vec<String>, StepError> {
    let sql = "SELECT t FROM unnest($2::text[]) AS t
               WHERE NOT EXISTS (SELECT FROM pg_tables WHERE schemaname = $1 AND tablename = t) ORDER BY t";
    let rows = client.query(sql, &[&tenant.schema(), &PRODUCT_TABLES]).await?;
    rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
}

/// Drops the schema, its tables first and in batches: one statement for a large schema would run out of locks. The mark of
/// what is being removed comes first, so that a half removed schema is never taken for a whole one.
async fn drop_schema(client: &mut Client, tenant: &Tenant) -> Result<(), StepError> {
    let name = tenant.schema();
    let schema = quote_identifier(&name);
    let doing = |error: tokio_postgres::Error| StepError::from(error).during(&format!("dropping schema {name}"));
    client.batch_execute(&format!("COMMENT ON SCHEMA {schema} IS '{}'", half_removed(tenant))).await.map_err(doing)?;
    loop {
        let sql = "SELECT relname FROM pg_class WHERE relnamespace = $1::text::regnamespace AND relkind IN ('r', 'p')
                   ORDER BY relname LIMIT $2";
        let rows = client.query(sql, &[&name, &DROP_BATCH]).await.map_err(doing)?;
        if rows.is_empty() {
            break;
        }
        let mut tables = Vec::with_capacity(rows.len());
        for row in &rows {
            tables.push(format!("{schema}.{}", quote_identifier(row.try_get(0)?)));
        }
        client.batch_execute(&format!("DROP TABLE IF EXISTS {} CASCADE", tables.join(", "))).await.map_err(doing)?;
    }
    client.batch_execute(&format!("DROP SCHEMA {schema} CASCADE")).await.map_err(doing)
}
