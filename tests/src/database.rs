//! The tenant's place in PostgreSQL, against the real server and Secrets Manager: both isolations, made twice, removed twice,
//! repaired, and left alone where they are another's. And the deploy's migrations.

use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use tenantry_core::error::StepError;
use tenantry_core::migrations::PRODUCT_TABLES;
use tenantry_core::migrations::custom_resource::ApplyMigrations;
use tenantry_core::postgres::{self, Credentials, Database};
use tenantry_core::resource::database::TenantDatabase;
use tenantry_core::resource::{Inspection, Resource};
use tenantry_core::tenant::{Plan, Status, Tenant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_postgres::Client;

use crate::registry::registered;
use crate::world::{Case, World, connect};

/// Every test of this file.
pub const CASES: &[(&str, Case)] = &[
    ("migrations_again_change_nothing", |world| Box::pin(migrations_again_change_nothing(world))),
    ("the_servers_certificate_is_verified", |world| Box::pin(the_servers_certificate_is_verified(world))),
    ("a_failed_migration_fails_the_deploy", |world| Box::pin(a_failed_migration_fails_the_deploy(world))),
    ("a_shared_tenant_is_made_and_removed", |world| Box::pin(a_shared_tenant_is_made_and_removed(world))),
    ("a_schema_is_made_and_removed", |world| Box::pin(a_schema_is_made_and_removed(world))),
    ("a_tenants_login_is_confined", |world| Box::pin(a_tenants_login_is_confined(world))),
    ("drift_is_named_and_repaired", |world| Box::pin(drift_is_named_and_repaired(world))),
    ("a_lost_table_is_not_papered_over", |world| Box::pin(a_lost_table_is_not_papered_over(world))),
    ("a_crash_anywhere_is_repaired", |world| Box::pin(a_crash_anywhere_is_repaired(world))),
    ("a_frozen_tenant_stays_frozen", |world| Box::pin(a_frozen_tenant_stays_frozen(world))),
    ("what_is_anothers_is_left_alone", |world| Box::pin(what_is_anothers_is_left_alone(world))),
    ("sessions_are_ended", |world| Box::pin(sessions_are_ended(world))),
    ("twenty_at_once", |world| Box::pin(twenty_at_once(world))),
    ("a_server_of_its_own_is_made_and_removed", |world| Box::pin(a_server_of_its_own_is_made_and_removed(world))),
];

async fn migrations_again_change_nothing(world: &World) -> Result<()> {
    let migrations = ApplyMigrations::from_env(&world.env)?;
    // Two deploys at once.
    let (one, two) = (json!({}), json!({}));
    let (one, two) = futures::future::try_join(migrations.handle(&one), migrations.handle(&two)).await?;
    ensure!(one == two && one == json!({"applied": {"registry": [], "pool": []}}), "{one} {two}");
    // The password that the application has is still the one it had.
    world.application().await?;
    let client = world.registry().await?;
    let servers = client.query("SELECT isolation::text FROM database_servers WHERE state = 'open'", &[]).await?;
    for isolation in ["shared", "schema"] {
        ensure!(servers.iter().any(|row| row.get::<_, &str>(0) == isolation), "no open server for {isolation}");
    }
    Ok(())
}

/// Functions speak TLS, to a server that the CA bundle vouches for under the name they call it by, and to no other.
async fn the_servers_certificate_is_verified(world: &World) -> Result<()> {
    let kept = Database::registry(&world.env)?;
    // The server itself, not what these tests put in front of it.
    let url: url::Url = world.export("REGISTRY_DATABASE_URL")?.parse()?;
    let port = url.port().context("no port")?;
    let login = Credentials { port, ..kept.credentials().await? };
    let own = PathBuf::from(world.env.required("POSTGRES_CA_BUNDLE")?);
    let client = postgres::connect(&login, Some(&own)).await?;
    let encrypted = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    ensure!(client.query_one(encrypted, &[]).await?.get::<_, bool>(0), "the connection is in the clear");

    let mut other = rcgen::CertificateParams::new(Vec::new())?;
    other.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let other = other.self_signed(&rcgen::KeyPair::generate()?)?.pem();
    let stranger = std::env::temp_dir().join(format!("tenantry-ca-{}.pem", uuid::Uuid::new_v4()));
    std::fs::write(&stranger, other)?;
    let by_another_name = Credentials { host: "localhost".into(), port, ..kept.credentials().await? };
    let refused =
        [postgres::connect(&login, Some(&stranger)).await, postgres::connect(&by_another_name, Some(&own)).await];
    std::fs::remove_file(&stranger)?;
    for outcome in refused {
        match outcome {
            Err(StepError::Misconfigured(text)) if text.contains("does not vouch for the server") => {}
            Err(error) => bail!("refused, but as {}: {error}", error.name()),
            Ok(_) => bail!("a server that the bundle does not vouch for was trusted"),
        }
    }
    Ok(())
}

async fn a_failed_migration_fails_the_deploy(world: &World) -> Result<()> {
    for (secret, status, reason) in [
        (world.env.required("APP_DATABASE_SECRET")?, "SUCCESS", ""),
        (world.env.required("REGISTRY_SECRET")?, "FAILED", "the application's database secret names role"),
        ("tenantry/no-such-secret".into(), "FAILED", "tenantry/no-such-secret"),
    ] {
        let env = world.env.clone().with("APP_DATABASE_SECRET", &secret);
        let answers = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let event = json!({
            "RequestType": "Update",
            "ResponseURL": format!("http://{}/answer?signature=x", answers.local_addr()?),
            "StackId": "stack", "RequestId": "request", "LogicalResourceId": "Migrations", "PhysicalResourceId": "kept",
        });
        let migrations = ApplyMigrations::from_env(&env)?;
        let (handled, told) = futures::future::join(migrations.handle(&event), one_put(&answers)).await;
        let (handled, told) = (handled?, told?);
        ensure!(handled == told, "told CloudFormation {told}, returned {handled}");
        ensure!(
            told["Status"] == status && told["PhysicalResourceId"] == "kept" && told["RequestId"] == "request",
            "{told}"
        );
        ensure!(told["Reason"].as_str().unwrap_or_default().contains(reason), "{told}");
    }
    Ok(())
}

async fn a_shared_tenant_is_made_and_removed(world: &World) -> Result<()> {
    let (tenant, database) = tenant_of(world, Plan::Starter).await?;
    ensure!(database.inspect(&tenant).await? == Inspection::Absent);
    let made = database.ensure(&tenant).await?;
    ensure!(made["schema"] == "pool" && made["isolation"] == "shared", "{made}");
    ensure!(database.inspect(&tenant).await? == Inspection::Present);

    let app = in_context(world, &tenant).await?;
    let roles = names(&app, "SELECT name FROM pool.roles ORDER BY name").await?;
    ensure!(roles == ["admin", "member", "owner"], "{roles:?}");
    // The tenant's own choice of what members may do is not undone by the next run.
    app.execute("DELETE FROM pool.role_permissions WHERE role = 'member' AND permission = 'files.manage'", &[]).await?;
    let before = names(&app, "SELECT xmin::text || role || permission FROM pool.role_permissions ORDER BY 1").await?;
    ensure!(database.ensure(&tenant).await? == made, "the second run made something else");
    let after = names(&app, "SELECT xmin::text || role || permission FROM pool.role_permissions ORDER BY 1").await?;
    ensure!(before == after, "the second run wrote");

    app.batch_execute(
        "INSERT INTO pool.users (tenant_id, email, name) VALUES (pool.current_tenant(), 'a@b.example', 'A');
         INSERT INTO pool.projects (tenant_id, name, owner_id) SELECT tenant_id, 'p', id FROM pool.users;
         INSERT INTO pool.tasks (tenant_id, project_id, title) SELECT tenant_id, id, 't' FROM pool.projects, generate_series(1, 6000)",
    )
    .await?;
    database.remove(&tenant).await?;
    ensure!(database.inspect(&tenant).await? == Inspection::Absent);
    for table in PRODUCT_TABLES {
        let left = names(&app, &format!("SELECT 'x' FROM pool.{table}")).await?;
        ensure!(left.is_empty(), "{} rows left in {table}", left.len());
    }
    database.remove(&tenant).await?;
    // And once more from the beginning: nothing stands in the way of a second life.
    database.ensure(&tenant).await?;
    ensure!(database.inspect(&tenant).await? == Inspection::Present);
    database.remove(&tenant).await?;
    Ok(())
}

async fn a_schema_is_made_and_removed(world: &World) -> Result<()> {
    let (tenant, database) = tenant_of(world, Plan::Growth).await?;
    let registry = world.registry().await?;
    ensure!(database.inspect(&tenant).await? == Inspection::Absent);
    let made = database.ensure(&tenant).await?;
    ensure!(made["schema"] == tenant.schema() && made["secret"] == tenant.database_secret(), "{made}");
    ensure!(!made.to_string().contains("password"), "{made}");
    ensure!(database.inspect(&tenant).await? == Inspection::Present);
    let mut tables =
        names(&registry, &format!("SELECT tablename::text FROM pg_tables WHERE schemaname = '{}'", tenant.schema()))
            .await?;
    tables.sort();
    let mut wanted: Vec<&str> = PRODUCT_TABLES.iter().copied().chain(["refinery_schema_history"]).collect();
    wanted.sort_unstable();
    ensure!(tables == wanted, "{tables:?}");

    let before = traces(world, &registry, &tenant).await?;
    ensure!(database.ensure(&tenant).await? == made, "the second run made something else");
    ensure!(traces(world, &registry, &tenant).await? == before, "the second run wrote");

    database.remove(&tenant).await?;
    ensure!(database.inspect(&tenant).await? == Inspection::Absent);
    ensure!(
        traces(world, &registry, &tenant).await?.is_empty(),
        "left behind: {:?}",
        traces(world, &registry, &tenant).await?
    );
    database.remove(&tenant).await?;
    database.ensure(&tenant).await?;
    ensure!(database.inspect(&tenant).await? == Inspection::Present);
    database.remove(&tenant).await?;
    Ok(())
}

async fn a_tenants_login_is_confined(world: &World) -> Result<()> {
    let (tenant, database) = tenant_of(world, Plan::Growth).await?;
    let (other, _) = tenant_of(world, Plan::Growth).await?;
    database.ensure(&tenant).await?;
    database.ensure(&other).await?;
    let client = log_in(world, &tenant).await?;
    client
        .batch_execute(
            "INSERT INTO users (email, name, role) VALUES ('a@b.example', 'A', 'owner');
             UPDATE users SET name = 'B'; INSERT INTO projects (name) VALUES ('p'); DELETE FROM projects",
        )
        .await
        .context("the tenant's own rows")?;
    for sql in [
        &format!("SELECT FROM {}.users", other.schema()),
        "SELECT FROM public.tenants",
        "SELECT FROM pool.tenants",
        "SELECT FROM refinery_schema_history",
        "TRUNCATE users CASCADE",
        "CREATE TABLE mine (id int)",
        "CREATE TABLE public.mine (id int)",
        "CREATE TEMPORARY TABLE mine (id int)",
        "CREATE FUNCTION f() RETURNS int LANGUAGE sql RETURN 1",
        "DROP TABLE users CASCADE",
        "ALTER TABLE users DISABLE TRIGGER ALL",
        "SET ROLE tenantry_provisioner",
        "SET ROLE tenantry_auditor",
        "CREATE ROLE another",
        "CREATE DATABASE another",
        "CREATE SCHEMA another",
    ] {
        match client.batch_execute(sql).await {
            Err(error) if error.code().is_some_and(|code| code.code() == "42501") => {}
            outcome => bail!("{sql}: {outcome:?}"),
        }
    }
    let registry = world.registry().await?;
    let owned = names(
        &registry,
        &format!(
            "SELECT refobjid::regrole::text FROM pg_shdepend WHERE deptype = 'o' AND refobjid = '{}'::regrole",
            tenant.database_role()
        ),
    )
    .await?;
    ensure!(owned.is_empty(), "the role owns {} things", owned.len());
    database.remove(&tenant).await?;
    database.remove(&other).await?;
    Ok(())
}

async fn drift_is_named_and_repaired(world: &World) -> Result<()> {
    let (tenant, database) = tenant_of(world, Plan::Growth).await?;
    let registry = world.registry().await?;
    database.ensure(&tenant).await?;
    let (role, schema) = (tenant.database_role(), tenant.schema());
    for (sql, named) in [
        (format!("REVOKE INSERT ON {schema}.tasks FROM {role}"), "grant missing: INSERT on tasks"),
        (format!("GRANT TRUNCATE ON {schema}.tasks TO {role}"), "grant too much: TRUNCATE on tasks"),
        (format!("REVOKE USAGE ON SCHEMA {schema} FROM {role}"), "grant missing: USAGE on schema"),
        (format!("ALTER ROLE {role} SET search_path = public"), "search_path"),
        (format!("ALTER ROLE {role} NOLOGIN"), "may not log in"),
        (format!("ALTER ROLE {role} CONNECTION LIMIT 1000"), "connection limit"),
        (format!("ALTER ROLE {role} PASSWORD 'another'"), "does not log in with the secret's password"),
    ] {
        registry.batch_execute(&sql).await.context(sql.clone())?;
        drifted_then_repaired(&database, &tenant, named).await.context(sql)?;
    }
    let secrets = aws_sdk_secretsmanager::Client::new(&world.env.aws);
    let name = tenant.database_secret();
    secrets.delete_secret().secret_id(&name).recovery_window_in_days(7).send().await?;
    drifted_then_repaired(&database, &tenant, "secret is scheduled for deletion").await?;
    secrets.delete_secret().secret_id(&name).force_delete_without_recovery(true).send().await?;
    drifted_then_repaired(&database, &tenant, "secret is missing").await?;
    secrets.put_secret_value().secret_id(&name).secret_string("{}").send().await?;
    drifted_then_repaired(&database, &tenant, "secret does not lead to the schema").await?;
    log_in(world, &tenant).await?;

    registry.batch_execute(&format!("DELETE FROM {schema}.refinery_schema_history")).await?;
    match database.inspect(&tenant).await? {
        Inspection::Drifted(drift) if drift == ["migration V1__product is missing"] => {}
        found => bail!("a schema without its history: {found:?}"),
    }
    database.remove(&tenant).await?;
    Ok(())
}

async fn a_lost_table_is_not_papered_over(world: &World) -> Result<()> {
    let (tenant, database) = tenant_of(world, Plan::Growth).await?;
    database.ensure(&tenant).await?;
    world.registry().await?.batch_execute(&format!("DROP TABLE {}.tasks", tenant.schema())).await?;
    match database.inspect(&tenant).await? {
        Inspection::Drifted(drift) if drift == ["table tasks is missing"] => {}
        found => bail!("{found:?}"),
    }
    match database.ensure(&tenant).await {
        Err(StepError::NeedsOperator(text)) if text.contains("tasks") => {}
        outcome => bail!("{outcome:?}"),
    }
    database.remove(&tenant).await?;
    ensure!(database.inspect(&tenant).await? == Inspection::Absent);
    Ok(())
}

/// Every combination of what a crashed `ensure` or `remove` can leave.
async fn a_crash_anywhere_is_repaired(world: &World) -> Result<()> {
    let registry = world.registry().await?;
    let secrets = aws_sdk_secretsmanager::Client::new(&world.env.aws);
    let (tenant, database) = tenant_of(world, Plan::Growth).await?;
    let (role, schema) = (tenant.database_role(), tenant.schema());
    for without in 0..16 {
        for repair in [true, false] {
            database.ensure(&tenant).await?;
            if without & 1 != 0 {
                let revoke = format!(
                    "REVOKE ALL ON ALL TABLES IN SCHEMA {schema} FROM {role}; REVOKE ALL ON SCHEMA {schema} FROM {role}"
                );
                registry.batch_execute(&format!("{revoke}; DROP ROLE {role}")).await?;
            }
            if without & 2 != 0 {
                registry.batch_execute(&format!("DROP SCHEMA {schema} CASCADE")).await?;
            }
            if without & 4 != 0 {
                let delete = secrets.delete_secret().secret_id(tenant.database_secret());
                delete.force_delete_without_recovery(true).send().await?;
            }
            if without & 10 == 8 {
                let removing = format!("{}; being removed", tenant.ownership_text());
                let sql =
                    format!("COMMENT ON SCHEMA {schema} IS '{removing}'; DROP TABLE {schema}.files, {schema}.tasks");
                registry.batch_execute(&sql).await?;
            }
            if repair {
                database.ensure(&tenant).await.with_context(|| format!("repairing {without:b}"))?;
                let found = database.inspect(&tenant).await?;
                ensure!(found == Inspection::Present, "repairing {without:b}: {found:?}");
                log_in(world, &tenant).await?;
            }
            database.remove(&tenant).await.with_context(|| format!("removing {without:b}"))?;
            ensure!(traces(world, &registry, &tenant).await?.is_empty(), "removing {without:b} left something");
        }
    }
    Ok(())
}

async fn a_frozen_tenant_stays_frozen(world: &World) -> Result<()> {
    for plan in [Plan::Starter, Plan::Growth] {
        let (tenant, database) = tenant_of(world, plan).await?;
        database.ensure(&tenant).await?;
        let frozen = Tenant { status: Status::Suspended, frozen: true, ..tenant.clone() };
        ensure!(matches!(database.inspect(&frozen).await?, Inspection::Drifted(_)), "{plan}: not frozen, and no drift");
        let (open, table) = match plan {
            Plan::Starter => (in_context(world, &tenant).await?, "pool.roles"),
            _ => (log_in(world, &tenant).await?, "roles"),
        };
        database.ensure(&frozen).await?;
        ensure!(database.inspect(&frozen).await? == Inspection::Present);
        // Of its own rows in the pool the product may still show some; a role of its own is let nowhere.
        let read = names(&open, &format!("SELECT name FROM {table}")).await;
        ensure!(read.is_ok_and(|names| !names.is_empty()) == (plan == Plan::Starter), "{plan}: what can be read");
        let written = open.execute(&format!("UPDATE {table} SET description = 'x'"), &[]).await;
        // A role that may not look into the schema finds no such table; the product is refused the row.
        let expected = if plan == Plan::Starter { "42501" } else { "42P01" };
        ensure!(
            written.is_err_and(|error| error.code().is_some_and(|code| code.code() == expected)),
            "{plan}: written"
        );
        let deleted = open.execute(&format!("DELETE FROM {table}"), &[]).await;
        ensure!(deleted.map_or_else(|_| true, |rows| rows == 0), "{plan}: deleted");
        ensure!(plan == Plan::Starter || log_in(world, &tenant).await.is_err(), "{plan}: it logs in");
        database.ensure(&tenant).await?;
        let client = match plan {
            Plan::Starter => in_context(world, &tenant).await?,
            _ => log_in(world, &tenant).await?,
        };
        ensure!(client.execute(&format!("UPDATE {table} SET description = 'x'"), &[]).await? == 3);
        database.remove(&tenant).await?;
    }
    Ok(())
}

async fn what_is_anothers_is_left_alone(world: &World) -> Result<()> {
    let registry = world.registry().await?;
    let secrets = aws_sdk_secretsmanager::Client::new(&world.env.aws);
    let (tenant, database) = tenant_of(world, Plan::Growth).await?;
    let (role, schema, secret) = (tenant.database_role(), tenant.schema(), tenant.database_secret());
    // Placed, so that every question goes to the server.
    database.ensure(&tenant).await?;
    database.remove(&tenant).await?;
    let exists = [
        format!("SELECT 'x' FROM pg_namespace WHERE nspname = '{schema}'"),
        format!("SELECT 'x' FROM pg_roles WHERE rolname = '{role}'"),
    ];
    for (index, (make, unmake)) in [
        (format!("CREATE SCHEMA {schema}"), format!("DROP SCHEMA {schema}")),
        (format!("CREATE ROLE {role}"), format!("DROP ROLE {role}")),
    ]
    .iter()
    .enumerate()
    {
        registry.batch_execute(make).await?;
        foreign(&database, &tenant).await.context(make.clone())?;
        database.remove(&tenant).await?;
        ensure!(names(&registry, &exists[index]).await?.len() == 1, "{make}: removed");
        ensure!(names(&registry, &exists[1 - index]).await?.is_empty(), "{make}: something was made beside it");
        registry.batch_execute(unmake).await?;
    }
    secrets.create_secret().name(&secret).secret_string("theirs").send().await?;
    foreign(&database, &tenant).await.context("a secret")?;
    database.remove(&tenant).await?;
    let kept = secrets.get_secret_value().secret_id(&secret).send().await?;
    ensure!(kept.secret_string() == Some("theirs"), "another's secret was changed");
    secrets.delete_secret().secret_id(&secret).force_delete_without_recovery(true).send().await?;

    // In the pool: the slug under another tenant's id.
    let (mine, database) = tenant_of(world, Plan::Starter).await?;
    let (theirs, _) = tenant_of(world, Plan::Starter).await?;
    database.ensure(&theirs).await?;
    let squatter = Tenant { slug: theirs.slug.clone(), ..mine };
    match database.ensure(&squatter).await {
        Err(StepError::Foreign { .. }) => {}
        outcome => bail!("{outcome:?}"),
    }
    ensure!(matches!(database.inspect(&squatter).await?, Inspection::Foreign(_)));
    database.remove(&squatter).await?;
    ensure!(database.inspect(&theirs).await? == Inspection::Present, "another's rows were removed");
    database.remove(&theirs).await?;
    Ok(())
}

async fn sessions_are_ended(world: &World) -> Result<()> {
    let (tenant, database) = tenant_of(world, Plan::Growth).await?;
    database.ensure(&tenant).await?;
    let client = log_in(world, &tenant).await?;
    client.batch_execute("BEGIN; INSERT INTO projects (name) VALUES ('open')").await?;
    database.remove(&tenant).await?;
    ensure!(client.batch_execute("COMMIT").await.is_err(), "the tenant's session lived on");
    ensure!(database.inspect(&tenant).await? == Inspection::Absent);
    Ok(())
}

async fn twenty_at_once(world: &World) -> Result<()> {
    let mut tenants = Vec::new();
    for n in 0..20 {
        tenants.push(tenant_of(world, if n % 4 == 0 { Plan::Starter } else { Plan::Growth }).await?);
    }
    // Each on connections of its own, as 20 Lambdas would be; and each twice, as a retry that overtakes its first attempt.
    let again: Vec<TenantDatabase> =
        tenants.iter().map(|_| TenantDatabase::from_env(&world.env)).collect::<Result<_, _>>()?;
    let firsts = tenants.iter().map(|(tenant, database)| retried(database, tenant));
    let seconds = tenants.iter().zip(&again).map(|((tenant, _), database)| retried(database, tenant));
    futures::future::try_join_all(firsts.chain(seconds)).await?;
    for (tenant, database) in &tenants {
        let found = database.inspect(tenant).await?;
        ensure!(found == Inspection::Present, "{}: {found:?}", tenant.slug);
    }
    futures::future::try_join_all(tenants.iter().map(|(tenant, database)| database.remove(tenant))).await?;
    let registry = world.registry().await?;
    for (tenant, _) in &tenants {
        let left = traces(world, &registry, tenant).await?;
        ensure!(left.is_empty(), "{}: {left:?}", tenant.slug);
    }
    Ok(())
}

async fn a_server_of_its_own_is_made_and_removed(world: &World) -> Result<()> {
    let (tenant, database) = tenant_of(world, Plan::Enterprise).await?;
    ensure!(database.inspect(&tenant).await? == Inspection::Absent);
    let made = database.ensure(&tenant).await?;
    ensure!(database.ensure(&tenant).await? == made && database.inspect(&tenant).await? == Inspection::Present);
    let rds = aws_sdk_rds::Client::new(&world.env.aws);
    let name = tenant.database_instance();
    let described = rds.describe_db_instances().db_instance_identifier(&name).send().await?;
    let instance = described.db_instances().first().context("no instance")?;
    ensure!(instance.storage_encrypted() == Some(true) && instance.deletion_protection() == Some(true));

    // The tenant's login reaches its database, and no other on that server.
    let login = Database::new(&world.env, tenant.database_secret()).credentials().await?;
    let bundle = PathBuf::from(world.env.required("POSTGRES_CA_BUNDLE")?);
    let own = postgres::connect(&login, Some(&bundle)).await?;
    own.execute("INSERT INTO projects (name) VALUES ('first')", &[]).await?;
    ensure!(own.batch_execute("CREATE TABLE mine ()").await.is_err(), "the tenant's role may make tables");
    let (other, others) = tenant_of(world, Plan::Enterprise).await?;
    others.ensure(&other).await?;
    let elsewhere = Credentials { dbname: other.schema(), ..login };
    ensure!(
        matches!(postgres::connect(&elsewhere, Some(&bundle)).await, Err(StepError::Denied(_))),
        "let in elsewhere"
    );

    // Drift is named, and mended.
    let modify = rds.modify_db_instance().db_instance_identifier(&name).deletion_protection(false);
    modify.apply_immediately(true).send().await?;
    let server = crate::world::connect(world.export("DEDICATED_DATABASE_URL")?).await?;
    server.batch_execute(&format!("GRANT CONNECT ON DATABASE {} TO PUBLIC", tenant.schema())).await?;
    match database.inspect(&tenant).await? {
        Inspection::Drifted(drift) if drift.len() == 2 => {}
        found => bail!("{found:?}"),
    }
    database.ensure(&tenant).await?;
    ensure!(database.inspect(&tenant).await? == Inspection::Present);

    // A session, a snapshot and the protection are in the way of the removal.
    let snapshot = rds.create_db_snapshot().db_instance_identifier(&name);
    snapshot.db_snapshot_identifier(format!("kept-{}", tenant.id)).send().await?;
    database.remove(&tenant).await?;
    ensure!(database.inspect(&tenant).await? == Inspection::Absent);
    database.remove(&tenant).await?;
    let sql = "SELECT count(*) FROM pg_database WHERE datname = $1";
    ensure!(server.query_one(sql, &[&tenant.schema()]).await?.get::<_, i64>(0) == 0, "the database is left");
    ensure!(others.inspect(&other).await? == Inspection::Present, "the neighbour was touched");
    others.remove(&other).await?;

    // Another's instance is neither taken nor removed.
    let foreign =
        rds.create_db_instance().db_instance_identifier(&name).engine("postgres").db_instance_class("db.t4g.micro");
    foreign.master_username("x").master_user_password("not-a-secret").allocated_storage(20).send().await?;
    ensure!(matches!(database.ensure(&tenant).await, Err(StepError::Foreign { .. })));
    database.remove(&tenant).await?;
    ensure!(matches!(database.inspect(&tenant).await?, Inspection::Foreign(_)));
    rds.delete_db_instance().db_instance_identifier(&name).skip_final_snapshot(true).send().await?;
    Ok(())
}

/// `ensure`, tried again as the state machine would.
async fn retried(database: &TenantDatabase, tenant: &Tenant) -> Result<Value> {
    for _ in 0..5 {
        match database.ensure(tenant).await {
            Err(StepError::Transient(_)) => {}
            outcome => return Ok(outcome?),
        }
    }
    bail!("tenant {} stays transient", tenant.slug)
}

/// A registered tenant of a plan, and the resource on connections of its own.
async fn tenant_of(world: &World, plan: Plan) -> Result<(Tenant, TenantDatabase)> {
    let tenant = registered(world, &mut world.registry().await?, plan, true).await?.tenant;
    Ok((tenant, TenantDatabase::from_env(&world.env)?))
}

/// The application's connection, in the tenant's context.
pub async fn in_context(world: &World, tenant: &Tenant) -> Result<Client> {
    let app = world.application().await?;
    app.execute("SELECT set_config('app.current_tenant_id', $1, false)", &[&tenant.id.to_string()]).await?;
    Ok(app)
}

/// A connection with the login that the tenant's secret holds.
pub async fn log_in(world: &World, tenant: &Tenant) -> Result<Client> {
    let secrets = aws_sdk_secretsmanager::Client::new(&world.env.aws);
    let value = secrets.get_secret_value().secret_id(tenant.database_secret()).send().await?;
    let login: Value = serde_json::from_str(value.secret_string().unwrap_or_default())?;
    let text = |key: &str| login[key].as_str().unwrap_or_default().to_owned();
    let (user, password, host, name) = (text("username"), text("password"), text("host"), text("dbname"));
    connect(&format!("postgresql://{user}:{password}@{host}:{}/{name}", login["port"])).await
}

async fn drifted_then_repaired(database: &TenantDatabase, tenant: &Tenant, named: &str) -> Result<()> {
    match database.inspect(tenant).await? {
        Inspection::Drifted(drift) if drift.iter().any(|text| text.contains(named)) => {}
        found => bail!("{named:?} is not named: {found:?}"),
    }
    database.ensure(tenant).await?;
    let found = database.inspect(tenant).await?;
    ensure!(found == Inspection::Present, "not repaired: {found:?}");
    Ok(())
}

async fn foreign(database: &TenantDatabase, tenant: &Tenant) -> Result<()> {
    let found = database.inspect(tenant).await?;
    ensure!(matches!(found, Inspection::Foreign(_)), "inspect: {found:?}");
    match database.ensure(tenant).await {
        Err(StepError::Foreign { .. }) => Ok(()),
        outcome => bail!("ensure: {outcome:?}"),
    }
}

/// Everything of a tenant's own schema in the real systems, each with what changes whenever it is written.
async fn traces(world: &World, registry: &Client, tenant: &Tenant) -> Result<Vec<String>> {
    let (schema, role) = (tenant.schema(), tenant.database_role());
    let mut traces = names(
        registry,
        &format!(
            "SELECT 'schema ' || oid || ' ' || xmin FROM pg_namespace WHERE nspname = '{schema}'
             UNION ALL
             SELECT relname || ' ' || c.oid || ' ' || c.xmin FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
             WHERE nspname = '{schema}'
             UNION ALL
             SELECT 'role ' || r.oid || ' ' || coalesce(d.xmin::text, '') FROM pg_roles r
             LEFT JOIN pg_shdescription d ON d.objoid = r.oid WHERE rolname = '{role}'
             UNION ALL
             SELECT 'settings ' || s.xmin FROM pg_db_role_setting s JOIN pg_roles r ON r.oid = setrole WHERE rolname = '{role}'
             ORDER BY 1"
        ),
    )
    .await?;
    let secrets = aws_sdk_secretsmanager::Client::new(&world.env.aws);
    if let Ok(secret) = secrets.describe_secret().secret_id(tenant.database_secret()).send().await {
        traces.push(format!("secret {:?}", secret.version_ids_to_stages()));
    }
    Ok(traces)
}

/// The texts that a query answers with, in its order.
pub async fn names(client: &Client, sql: &str) -> Result<Vec<String>> {
    let rows = client.query(sql, &[]).await.with_context(|| sql.to_owned())?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Answers one PUT as S3 does, and returns its body.
async fn one_put(listener: &tokio::net::TcpListener) -> Result<Value> {
    let (mut stream, _) = listener.accept().await?;
    let mut received = Vec::new();
    loop {
        let mut chunk = [0; 4096];
        let read = stream.read(&mut chunk).await?;
        received.extend_from_slice(&chunk[..read]);
        let text = String::from_utf8_lossy(&received).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            ensure!(head.starts_with("PUT /answer?signature=x "), "{head}");
            if let Ok(answer) = serde_json::from_str(body) {
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await?;
                return Ok(answer);
            }
        }
        ensure!(read > 0, "the connection ended early: {text}");
    }
}
