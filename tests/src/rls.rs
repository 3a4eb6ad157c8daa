//! Row-level security: as the product's own role, in one tenant's context, no statement reads, changes or refers to
//! another's rows; and in no context none at all.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail, ensure};
use futures::StreamExt;
use tenantry_core::migrations::PRODUCT_TABLES;
use tenantry_core::resource::Resource;
use tenantry_core::resource::database::TenantDatabase;
use tenantry_core::tenant::{Plan, Tenant};
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;
use uuid::Uuid;

use crate::database::{in_context, names};
use crate::registry::registered;
use crate::world::{Case, World};

pub const CASES: &[(&str, Case)] = &[
    ("every_table_is_divided_and_the_application_owns_nothing", |world| Box::pin(catalog(world))),
    ("a_context_reads_its_own_rows_only", |world| Box::pin(reading(world))),
    ("a_context_changes_its_own_rows_only", |world| Box::pin(changing(world))),
    ("a_context_refers_to_its_own_rows_only", |world| Box::pin(referring(world))),
    ("without_a_context_there_are_no_rows", |world| Box::pin(no_context(world))),
    ("there_is_no_way_around_the_policies", |world| Box::pin(ways_around(world))),
];

/// Two tenants of the pool, each with rows in every table; theirs are a project and a user of `b`.
struct Pair {
    a: Tenant,
    b: Tenant,
    their_project: Uuid,
    their_user: Uuid,
}

async fn catalog(world: &World) -> Result<()> {
    let registry = world.registry().await?;
    let open = names(
        &registry,
        "SELECT relname::text FROM pg_class WHERE relnamespace = 'pool'::regnamespace AND relkind IN ('r', 'p', 'v', 'm', 'f')
         AND has_table_privilege('tenantry_app', oid, 'SELECT, INSERT, UPDATE, DELETE')",
    )
    .await?;
    let open: BTreeSet<String> = open.into_iter().collect();
    let expected: BTreeSet<String> = PRODUCT_TABLES.iter().chain(&["tenants"]).map(|&name| name.to_owned()).collect();
    ensure!(open == expected, "the application may touch {open:?}, and the product has {expected:?}");
    for (what, sql) in [
        (
            "a table that is not divided",
            "SELECT relname::text FROM pg_class WHERE relnamespace = 'pool'::regnamespace AND relkind IN ('r', 'p')
             AND has_table_privilege('tenantry_app', oid, 'SELECT') AND NOT (relrowsecurity AND relforcerowsecurity)",
        ),
        (
            "a right that looks past the policies, or a table outside the pool",
            "SELECT oid::regclass::text FROM pg_class WHERE relkind IN ('r', 'p', 'v', 'm', 'f')
             AND relnamespace NOT IN ('pg_catalog'::regnamespace, 'information_schema'::regnamespace)
             AND (has_table_privilege('tenantry_app', oid, 'TRUNCATE, REFERENCES, TRIGGER')
                  OR (relnamespace <> 'pool'::regnamespace
                      AND has_table_privilege('tenantry_app', oid, 'SELECT, INSERT, UPDATE, DELETE')))",
        ),
        (
            "a role that the application is a member of",
            "SELECT roleid::regrole::text FROM pg_auth_members WHERE member = 'tenantry_app'::regrole",
        ),
        (
            "an attribute of the application's role",
            "SELECT rolname::text FROM pg_roles WHERE rolname = 'tenantry_app'
             AND (rolsuper OR rolbypassrls OR rolcreaterole OR rolcreatedb OR rolreplication)",
        ),
        (
            "something that the application owns",
            "SELECT classid::regclass || ' ' || objid FROM pg_shdepend
             WHERE refobjid = 'tenantry_app'::regrole AND deptype = 'o'",
        ),
        (
            // The gate asks one by name: for one tenant's standing, whose slug the asker has to know.
            "a function that acts with another's rights",
            "SELECT oid::regprocedure::text FROM pg_proc WHERE prosecdef AND oid <> 'gate.tenant(text)'::regprocedure
             AND pronamespace NOT IN ('pg_catalog'::regnamespace, 'information_schema'::regnamespace)
             AND has_function_privilege('tenantry_app', oid, 'EXECUTE')",
        ),
    ] {
        let found = names(&registry, sql).await?;
        ensure!(found.is_empty(), "{what}: {found:?}");
    }
    Ok(())
}

async fn reading(world: &World) -> Result<()> {
    let Pair { a, b, .. } = pair(world).await?;
    let (ours, theirs) = (in_context(world, &a).await?, in_context(world, &b).await?);
    for (table, key) in tables() {
        let own = count(&ours, &format!("SELECT FROM pool.{table} WHERE {key} = '{}'", a.id)).await?;
        ensure!(own > 0, "{table}: there is nothing to see");
        ensure!(count(&theirs, &format!("SELECT FROM pool.{table} WHERE {key} = '{}'", b.id)).await? > 0);
        for sql in [
            format!("SELECT FROM pool.{table}"),
            format!("SELECT FROM pool.{table} FOR KEY SHARE"),
            format!("SELECT FROM pool.{table} WHERE {key} = ANY (SELECT id FROM pool.tenants)"),
            format!("SELECT FROM pool.{table} x WHERE EXISTS (SELECT FROM pool.{table} y WHERE y.{key} = x.{key})"),
            // An expression that is evaluated for a hidden row would tell of it by its error.
            format!("SELECT 1 / (CASE WHEN {key} = '{}' THEN 0 ELSE 1 END) FROM pool.{table}", b.id),
        ] {
            // FOR KEY SHARE asks for UPDATE, which the application has on all but the tenants themselves.
            if table == "tenants" && sql.ends_with("SHARE") {
                continue;
            }
            let seen = count(&ours, &sql).await.with_context(|| sql.clone())?;
            ensure!(seen == own, "{sql}: {seen} rows, of which {own} are the context's");
        }
        let others = format!("SELECT FROM pool.{table} WHERE {key} <> '{}'", a.id);
        ensure!(count(&ours, &others).await? == 0, "{others}");
        let copied = ours.copy_out(&format!("COPY (SELECT {key} FROM pool.{table}) TO STDOUT")).await?;
        let copied: Vec<_> = copied.collect().await;
        for row in copied {
            ensure!(row?.starts_with(a.id.to_string().as_bytes()), "COPY of {table} gave another's row");
        }
    }
    // Planned in one context and run in another.
    let statement = ours.prepare("SELECT DISTINCT tenant_id FROM pool.users").await?;
    for tenant in [&a, &b, &a] {
        ours.execute("SELECT set_config('app.current_tenant_id', $1, false)", &[&tenant.id.to_string()]).await?;
        let seen: Vec<Uuid> = ours.query(&statement, &[]).await?.iter().map(|row| row.get(0)).collect();
        ensure!(seen == [tenant.id.0], "{seen:?} in the context of {}", tenant.id);
    }
    // What the planner keeps about all rows.
    world.registry().await?.batch_execute("ANALYZE pool.users").await?;
    ensure!(
        count(&ours, "SELECT FROM pg_stats WHERE schemaname = 'pool'").await? == 0,
        "pg_stats tells of others' rows"
    );
    Ok(())
}

async fn changing(world: &World) -> Result<()> {
    let Pair { a, b, .. } = pair(world).await?;
    let registry = world.registry().await?;
    let before = fingerprint(&registry, &b).await?;
    let mut ours = in_context(world, &a).await?;
    for table in PRODUCT_TABLES {
        let own = count(&ours, &format!("SELECT FROM pool.{table}")).await?;
        let touch = format!("UPDATE pool.{table} SET tenant_id = tenant_id");
        let touched = ours.execute(&touch, &[]).await?;
        ensure!(touched == own && own > 0, "{touch}: {touched} rows, of which {own} are the context's");
        for sql in [
            format!("UPDATE pool.{table} SET tenant_id = tenant_id WHERE tenant_id = '{}'", b.id),
            format!("DELETE FROM pool.{table} WHERE tenant_id = '{}'", b.id),
        ] {
            ensure!(ours.execute(&sql, &[]).await? == 0, "{sql} found rows");
        }
        // A row of ours given to them, a copy of one of ours made theirs, and the same once more where their row of that
        // key exists: refused alike, so that the answer does not tell whether it does.
        let theirs = format!("jsonb_build_object('tenant_id', '{}')", b.id);
        let copy = format!(
            "INSERT INTO pool.{table} SELECT (jsonb_populate_record(NULL::pool.{table}, to_jsonb(r) || {theirs})).*
             FROM pool.{table} r"
        );
        for sql in [
            format!("UPDATE pool.{table} SET tenant_id = '{}'", b.id),
            copy.clone(),
            format!("{copy} ON CONFLICT DO NOTHING"),
        ] {
            refused(&ours, &sql, &SqlState::INSUFFICIENT_PRIVILEGE).await?;
        }
    }
    for name in ["owner", "nobody-has-this"] {
        let upsert = format!(
            "INSERT INTO pool.roles (tenant_id, name, description) VALUES ('{}', '{name}', 'taken over')
             ON CONFLICT (tenant_id, name) DO UPDATE SET description = excluded.description",
            b.id
        );
        refused(&ours, &upsert, &SqlState::INSUFFICIENT_PRIVILEGE).await?;
    }
    // Everything that can be deleted, in an order that the references allow.
    let all = ours.transaction().await?;
    for table in PRODUCT_TABLES {
        all.execute(&format!("DELETE FROM pool.{table}"), &[]).await.with_context(|| format!("emptying {table}"))?;
    }
    all.commit().await?;
    for table in PRODUCT_TABLES {
        let sql = format!("SELECT FROM pool.{table} WHERE tenant_id = '{}'", a.id);
        ensure!(count(&registry, &sql).await? == 0, "{table} was not emptied");
    }
    let after = fingerprint(&registry, &b).await?;
    ensure!(after == before, "the other tenant's rows changed: {before:?} became {after:?}");
    Ok(())
}

async fn referring(world: &World) -> Result<()> {
    let Pair { a, b, their_project, their_user } = pair(world).await?;
    let registry = world.registry().await?;
    let theirs = in_context(world, &b).await?;
    let role = "INSERT INTO pool.roles (tenant_id, name, description) VALUES ($1, 'theirs', '')";
    theirs.execute(role, &[&b.id.0]).await?;
    let before = fingerprint(&registry, &b).await?;
    let ours = in_context(world, &a).await?;
    let tenant = a.id;
    for sql in [
        format!("INSERT INTO pool.tasks (tenant_id, project_id, title) VALUES ('{tenant}', '{their_project}', '')"),
        format!(
            "INSERT INTO pool.files (tenant_id, project_id, object_key, name, bytes)
             VALUES ('{tenant}', '{their_project}', 'k2', 'k', 1)"
        ),
        format!("INSERT INTO pool.users (tenant_id, email, name, role) VALUES ('{tenant}', 'x@y', 'x', 'theirs')"),
        format!("UPDATE pool.projects SET owner_id = '{their_user}'"),
        format!("UPDATE pool.tasks SET assignee_id = '{their_user}'"),
        format!("UPDATE pool.tasks SET project_id = '{their_project}'"),
        format!("UPDATE pool.files SET uploader_id = '{their_user}'"),
        "UPDATE pool.users SET role = 'theirs'".to_owned(),
    ] {
        refused(&ours, &sql, &SqlState::FOREIGN_KEY_VIOLATION).await?;
    }
    // The same ids in both tenants: what cascades from ours stops at ours.
    let project = "INSERT INTO pool.projects (tenant_id, id, name) VALUES ($1, $2, 'same id')";
    ours.execute(project, &[&tenant.0, &their_project]).await.context("their id must be no obstacle to ours")?;
    let user = "INSERT INTO pool.users (tenant_id, id, email, name) VALUES ($1, $2, 'same@id', 'same id')";
    ours.execute(user, &[&tenant.0, &their_user]).await.context("their id must be no obstacle to ours")?;
    ours.execute("DELETE FROM pool.projects WHERE id = $1", &[&their_project]).await?;
    ours.execute("DELETE FROM pool.users WHERE id = $1", &[&their_user]).await?;
    let after = fingerprint(&registry, &b).await?;
    ensure!(after == before, "the other tenant's rows changed: {before:?} became {after:?}");
    Ok(())
}

async fn no_context(world: &World) -> Result<()> {
    let Pair { a, .. } = pair(world).await?;
    let registry = world.registry().await?;
    let before = fingerprint(&registry, &a).await?;
    let mut client = world.application().await?;
    for context in
        [None, Some("SET app.current_tenant_id = ''"), Some("RESET app.current_tenant_id"), Some("RESET ALL")]
    {
        client.batch_execute(context.unwrap_or_default()).await?;
        for (table, key) in tables() {
            let select = format!("SELECT FROM pool.{table}");
            ensure!(count(&client, &select).await? == 0, "{select} after {context:?} found rows");
            if table == "tenants" {
                continue;
            }
            for sql in [format!("UPDATE pool.{table} SET {key} = {key}"), format!("DELETE FROM pool.{table}")] {
                ensure!(client.execute(&sql, &[]).await? == 0, "{sql} after {context:?} found rows");
            }
        }
        let insert = format!("INSERT INTO pool.roles (tenant_id, name, description) VALUES ('{}', 'x', '')", a.id);
        refused(&client, &insert, &SqlState::INSUFFICIENT_PRIVILEGE).await?;
    }
    // A context that names no tenant is an error, not a guess.
    for nonsense in ["acme", "%", "' OR true --", "00000000"] {
        client.execute("SELECT set_config('app.current_tenant_id', $1, false)", &[&nonsense]).await?;
        refused(&client, "SELECT FROM pool.users", &SqlState::INVALID_TEXT_REPRESENTATION).await?;
    }
    // A context of a transaction ends with it.
    client.batch_execute("RESET app.current_tenant_id").await?;
    let transaction = client.transaction().await?;
    transaction.execute("SELECT set_config('app.current_tenant_id', $1, true)", &[&a.id.to_string()]).await?;
    ensure!(!transaction.query("SELECT FROM pool.users", &[]).await?.is_empty(), "there is nothing to see");
    transaction.commit().await?;
    ensure!(count(&client, "SELECT FROM pool.users").await? == 0, "the context outlived its transaction");
    let after = fingerprint(&registry, &a).await?;
    ensure!(after == before, "rows changed: {before:?} became {after:?}");
    Ok(())
}

async fn ways_around(world: &World) -> Result<()> {
    let Pair { a, b, .. } = pair(world).await?;
    let registry = world.registry().await?;
    let before = fingerprint(&registry, &b).await?;
    let ours = in_context(world, &a).await?;
    let denied = &SqlState::INSUFFICIENT_PRIVILEGE;
    for sql in [
        "TRUNCATE pool.tasks",
        "ALTER TABLE pool.users DISABLE ROW LEVEL SECURITY",
        "ALTER TABLE pool.users NO FORCE ROW LEVEL SECURITY",
        "DROP POLICY app_rows ON pool.users",
        "ALTER POLICY app_rows ON pool.users USING (true)",
        "CREATE POLICY everything ON pool.users USING (true)",
        "SET ROLE tenantry_provisioner",
        "SET ROLE tenantry_auditor",
        "SET SESSION AUTHORIZATION tenantry_auditor",
        "SET row_security = off; SELECT FROM pool.users",
        "SET session_replication_role = replica",
        "CREATE TABLE pool.own (id int)",
        "CREATE TEMPORARY TABLE own (id int)",
        "CREATE SCHEMA own",
        "CREATE VIEW pool.everything AS SELECT * FROM pool.users",
        "CREATE FUNCTION pool.leak(text) RETURNS bool LANGUAGE sql AS 'SELECT true'",
        "CREATE FUNCTION pool.current_tenant() RETURNS uuid LANGUAGE sql AS 'SELECT NULL::uuid'",
        "CREATE TRIGGER spy AFTER INSERT ON pool.users EXECUTE FUNCTION suppress_redundant_updates_trigger()",
        "CREATE RULE spy AS ON INSERT TO pool.users DO ALSO NOTHING",
        "SELECT pool.seed_defaults()",
        "SELECT pool.divide('pool.users')",
        "INSERT INTO pool.tenants (id, slug, owner) VALUES (gen_random_uuid(), 'mine', 'mine')",
        "UPDATE pool.tenants SET writable = true",
        "DELETE FROM pool.tenants",
        "SELECT FROM public.tenants",
        "SELECT FROM public.contacts",
        "SELECT FROM public.audit",
        "COPY pool.users TO PROGRAM 'cat'",
        "SELECT pg_read_file('PG_VERSION')",
        "DO $$ BEGIN EXECUTE 'ALTER TABLE pool.users DISABLE ROW LEVEL SECURITY'; END $$",
    ] {
        refused(&ours, sql, denied).await?;
        ours.batch_execute("RESET row_security").await?;
    }
    // COPY would insert without looking at the policies, so PostgreSQL does not offer it.
    refused(&ours, "COPY pool.roles FROM STDIN", &SqlState::FEATURE_NOT_SUPPORTED).await?;
    // Rows that a client could reach by what other sessions show of themselves.
    let activity = "SELECT FROM pg_stat_activity WHERE usename <> current_user AND query <> '<insufficient privilege>'
                    AND query IS NOT NULL";
    ensure!(count(&ours, activity).await? == 0, "other roles' statements can be read");
    let after = fingerprint(&registry, &b).await?;
    ensure!(after == before, "the other tenant's rows changed: {before:?} became {after:?}");
    Ok(())
}

/// The divided tables, each with the column that divides it.
fn tables() -> impl Iterator<Item = (&'static str, &'static str)> {
    PRODUCT_TABLES.iter().map(|&table| (table, "tenant_id")).chain([("tenants", "id")])
}

async fn pair(world: &World) -> Result<Pair> {
    let (a, _) = populated(world).await?;
    let (b, (their_project, their_user)) = populated(world).await?;
    Ok(Pair { a, b, their_project, their_user })
}

/// A tenant of the pool with rows in every table, written as the product would; and a project and a user of it.
async fn populated(world: &World) -> Result<(Tenant, (Uuid, Uuid))> {
    let tenant = registered(world, &mut world.registry().await?, Plan::Starter, true).await?.tenant;
    TenantDatabase::from_env(&world.env)?.ensure(&tenant).await?;
    let client = in_context(world, &tenant).await?;
    let id = tenant.id.0;
    let user = "INSERT INTO pool.users (tenant_id, email, name, role) VALUES ($1, 'a@b', 'a', 'owner') RETURNING id";
    let user: Uuid = client.query_one(user, &[&id]).await?.get(0);
    let project = "INSERT INTO pool.projects (tenant_id, name, owner_id) VALUES ($1, 'p', $2) RETURNING id";
    let project: Uuid = client.query_one(project, &[&id, &user]).await?.get(0);
    let task = "INSERT INTO pool.tasks (tenant_id, project_id, assignee_id, title) VALUES ($1, $2, $3, 't')";
    client.execute(task, &[&id, &project, &user]).await?;
    let file = "INSERT INTO pool.files (tenant_id, project_id, uploader_id, object_key, name, bytes)
                VALUES ($1, $2, $3, 'k', 'f', 1)";
    client.execute(file, &[&id, &project, &user]).await?;
    Ok((tenant, (project, user)))
}

/// What a superuser, whom no policy binds, sees of a tenant in each table.
async fn fingerprint(registry: &Client, tenant: &Tenant) -> Result<BTreeMap<&'static str, String>> {
    let mut rows = BTreeMap::new();
    for (table, key) in tables() {
        let sql = format!("SELECT string_agg(t::text, ' ' ORDER BY t::text) FROM pool.{table} t WHERE {key} = $1");
        let row = registry.query_one(&sql, &[&tenant.id.0]).await?;
        rows.insert(table, row.get::<_, Option<String>>(0).with_context(|| format!("{table} holds nothing"))?);
    }
    Ok(rows)
}

async fn count(client: &Client, select: &str) -> Result<u64> {
    Ok(client.execute(select, &[]).await?)
}

async fn refused(client: &Client, sql: &str, expected: &SqlState) -> Result<()> {
    match client.batch_execute(sql).await {
        Err(error) if error.code() == Some(expected) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("{sql}: refused, but not with {expected:?}")),
        Ok(()) => bail!("{sql}: not refused"),
    }
}
