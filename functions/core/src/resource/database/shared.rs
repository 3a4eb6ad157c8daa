//! A tenant among the pool's: its row of `pool.tenants`, its rows everywhere else.
//!
//! The provisioner owns the pool's tables and is bound by their policies all the same: it works in the tenant's context. To
//! see what the context would hide (a row of the same slug that is another's, rows left behind) it takes on the auditor.

use serde_json::{Value, json};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Transaction};
use uuid::Uuid;

use super::{Inspection, Use, missing, writable};
use crate::error::StepError;
use crate::migrations::roles::{APP_ROLE, AUDITOR_ROLE};
use crate::migrations::{HISTORY, POOL, PRODUCT_TABLES};
use crate::registry::contacts::Contact;
use crate::resource::wait::until_done;
use crate::tenant::Tenant;

/// Rows deleted in one transaction: well within the statement timeout on the slowest server, indexes and all.
const DELETE_BATCH: i64 = 5000;

/// What the pool has under a tenant's id or slug.
enum Entry {
    Absent,
    Ours { writable: bool },
    Foreign(String),
}

/// Registers the tenant in the pool with the default roles and permissions.
pub(super) async fn ensure(client: &mut Client, tenant: &Tenant) -> Result<Value, StepError> {
    let transaction = begin(client, tenant).await?;
    if let Entry::Foreign(found) = entry(&transaction, tenant).await? {
        return Err(StepError::Foreign { kind: "pool tenant", name: tenant.slug.to_string(), found });
    }
    transaction
        .execute(
            "INSERT INTO pool.tenants (id, slug, owner, writable) VALUES ($1, $2, $3, $4)
             ON CONFLICT (id) DO UPDATE SET writable = excluded.writable WHERE tenants.writable <> excluded.writable",
            &[&tenant.id.0, &tenant.slug.as_str(), &tenant.ownership_text(), &writable(tenant)],
        )
        .await
        .map_err(|error| {
            // Of two at once, one may meet the other's row in the index of slugs, which ON CONFLICT (id) does not look at:
            // a retry sees whose it is.
            passes_if(&SqlState::UNIQUE_VIOLATION, error, &format!("registering tenant {} in the pool", tenant.slug))
        })?;
    // With the tenant's row, so that a crash leaves both or neither; afterwards the roles are the tenant's own to change.
    transaction.execute("SELECT pool.seed_defaults()", &[]).await?;
    transaction.commit().await?;
    Ok(json!({ "isolation": tenant.isolation, "schema": POOL }))
}

/// Makes the tenant's owner one of its users, with every right, under an id; under its own where it is one already. Again changes
/// nothing.
pub(super) async fn add_owner(
    client: &mut Client,
    tenant: &Tenant,
    user: Uuid,
    owner: &Contact,
) -> Result<Uuid, StepError> {
    let transaction = begin(client, tenant).await?;
    let sql = "INSERT INTO pool.users (tenant_id, id, email, name, role) VALUES ($1, $2, $3, $4, 'owner')
               ON CONFLICT (tenant_id, lower(email)) DO UPDATE SET role = excluded.role RETURNING id";
    let row = transaction.query_one(sql, &[&tenant.id.0, &user, &owner.email, &owner.name]).await?;
    transaction.commit().await?;
    Ok(row.try_get(0)?)
}

/// What the tenant's rows say it uses.
pub(super) async fn usage(client: &mut Client, tenant: &Tenant) -> Result<Use, StepError> {
    let transaction = begin(client, tenant).await?;
    super::usage(&transaction, POOL).await
}

/// Removes every row of the tenant, its row of `pool.tenants` last.
pub(super) async fn remove(client: &mut Client, tenant: &Tenant) -> Result<(), StepError> {
    let transaction = begin(client, tenant).await?;
    let Entry::Ours { .. } = entry(&transaction, tenant).await? else {
        return Ok(());
    };
    transaction.execute("UPDATE pool.tenants SET writable = false WHERE id = $1 AND writable", &[&tenant.id.0]).await?;
    transaction.commit().await?;
    for table in PRODUCT_TABLES {
        let sql = format!(
            "DELETE FROM {POOL}.{table} WHERE ctid = ANY (ARRAY(
                SELECT ctid FROM {POOL}.{table} WHERE tenant_id = $1 LIMIT {DELETE_BATCH}))"
        );
        loop {
            let transaction = begin(client, tenant).await?;
            let deleted = transaction.execute(&sql, &[&tenant.id.0]).await?;
            transaction.commit().await?;
            if deleted == 0 {
                break;
            }
        }
    }
    let transaction = begin(client, tenant).await?;
    let deleted = transaction.execute("DELETE FROM pool.tenants WHERE id = $1", &[&tenant.id.0]).await;
    deleted.map_err(|error| {
        // A transaction that began before the freeze can commit rows after it; none begins any more.
        passes_if(&SqlState::FOREIGN_KEY_VIOLATION, error, &format!("removing tenant {} from the pool", tenant.slug))
    })?;
    transaction.commit().await?;
    Ok(())
}

/// The error as it is, but transient where PostgreSQL answered with the code that a race gives here.
fn passes_if(race: &SqlState, error: tokio_postgres::Error, doing: &str) -> StepError {
    let raced = error.code() == Some(race);
    let error = StepError::from(error).during(doing);
    if raced { StepError::Transient(error.to_string()) } else { error }
}

/// Freezes the tenant's rows, or lets them be written again. Sessions that are open ask at each statement; what began before,
/// and so may still see the rows as writable, is waited for.
pub(super) async fn settle(client: &mut Client, tenant: &Tenant) -> Result<(), StepError> {
    let transaction = begin(client, tenant).await?;
    match entry(&transaction, tenant).await? {
        Entry::Ours { .. } => {}
        Entry::Absent => return Err(missing("row of pool.tenants", tenant, "create-database")),
        Entry::Foreign(found) => {
            return Err(StepError::Foreign { kind: "pool tenant", name: tenant.slug.to_string(), found });
        }
    }
    let sql = "UPDATE pool.tenants SET writable = $2 WHERE id = $1 AND writable <> $2";
    transaction.execute(sql, &[&tenant.id.0, &writable(tenant)]).await?;
    let moment: String = transaction.query_one("SELECT pg_current_xact_id()::xid::text", &[]).await?.try_get(0)?;
    transaction.commit().await?;
    if writable(tenant) {
        return Ok(());
    }
    let (client, moment) = (&*client, &moment);
    until_done(&format!("freezing the rows of tenant {}", tenant.slug), || async move {
        // Whose xid or snapshot is as old as the freeze. These two columns are shown to every role.
        let sql = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND usename = $1
                   AND (age(backend_xid) >= age($2::text::xid) OR age(backend_xmin) >= age($2::text::xid)) LIMIT 1";
        let older = client.query_opt(sql, &[&APP_ROLE, moment]).await?;
        older
            .map(|row| {
                Ok(format!(
                    "session {} of the product is in a transaction that began before",
                    row.try_get::<_, i32>(0)?
                ))
            })
            .transpose()
    })
    .await
}

/// Looks at the tenant's row, and at the policies that divide it from the others.
pub(super) async fn inspect(client: &mut Client, tenant: &Tenant) -> Result<Inspection, StepError> {
    let transaction = begin(client, tenant).await?;
    let may_write = match entry(&transaction, tenant).await? {
        Entry::Absent => return Ok(Inspection::Absent),
        Entry::Foreign(found) => return Ok(Inspection::Foreign(found)),
        Entry::Ours { writable } => writable,
    };
    let mut drift = Vec::new();
    if may_write != writable(tenant) {
        drift.push(if may_write { "rows are writable" } else { "rows are frozen" }.to_owned());
    }
    let sql = "SELECT EXISTS (SELECT FROM pool.role_permissions WHERE tenant_id = $1)";
    if !transaction.query_one(sql, &[&tenant.id.0]).await?.try_get::<_, bool>(0)? {
        drift.push("default roles and permissions are missing".into());
    }
    let sql = "SELECT relname FROM pg_class WHERE relnamespace = $1::text::regnamespace AND relkind IN ('r', 'p')
               AND relname <> $2 AND NOT (relrowsecurity AND relforcerowsecurity) ORDER BY relname";
    for row in transaction.query(sql, &[&POOL, &HISTORY]).await? {
        drift.push(format!("table {} is not under forced row-level security", row.try_get::<_, String>(0)?));
    }
    Ok(if drift.is_empty() { Inspection::Present } else { Inspection::Drifted(drift) })
}

/// A transaction in the tenant's context.
async fn begin<'a>(client: &'a mut Client, tenant: &Tenant) -> Result<Transaction<'a>, StepError> {
    let transaction = client.transaction().await?;
    let id = tenant.id.to_string();
    transaction.execute("SELECT set_config('app.current_tenant_id', $1, true)", &[&id]).await?;
    Ok(transaction)
}

/// Reads as the auditor, whom no policy hides rows from.
async fn entry(transaction: &Transaction<'_>, tenant: &Tenant) -> Result<Entry, StepError> {
    transaction.batch_execute(&format!("SET LOCAL ROLE {AUDITOR_ROLE}")).await?;
    let sql = "SELECT id::text, slug, owner, writable FROM pool.tenants WHERE id = $1 OR slug = $2";
    let rows = transaction.query(sql, &[&tenant.id.0, &tenant.slug.as_str()]).await?;
    transaction.batch_execute("SET LOCAL ROLE NONE").await?;
    let mut entry = Entry::Absent;
    for row in rows {
        let (id, slug, owner): (String, String, String) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
        if id != tenant.id.to_string() || slug != tenant.slug.as_str() || owner != tenant.ownership_text() {
            return Ok(Entry::Foreign(format!("pool.tenants has {slug} as {id}, marked {owner:?}")));
        }
        entry = Entry::Ours { writable: row.try_get(3)? };
    }
    Ok(entry)
}
