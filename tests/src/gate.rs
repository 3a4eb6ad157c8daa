//! The gate on a real Redis and the real registry, which it reads as the product's own role.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use axum::routing::get;
use axum::{Extension, Router};
use futures::future::join_all;
use redis::AsyncCommands;
use serde_json::{Value, json};
use tenant_gate::{Gate, GateLayer, PostgresRegistry, Projection, Reason, RegistryError, Tenant, Verdict};
use tenantry_core::step::Step;
use tenantry_core::steps::reconcile::ReconcileGate;
use tenantry_local::redis::Redis;
use tenantry_local::stack::BASE_DOMAIN;
use tenantry_local::tools::{Tools, checkout};
use tokio::time::timeout;

use crate::suspension::{in_service, suspend};
use crate::world::{Case, World};

pub const CASES: &[(&str, Case)] = &[
    ("sixty_four_clients_over_the_edge_are_admitted_exactly_the_quota", |world| Box::pin(edge(world))),
    ("the_boundary_itself_begins_the_next_cycle", |world| Box::pin(boundary(world))),
    ("cycles_keep_the_anchors_day_through_short_months_and_leap_years", |world| Box::pin(months(world))),
    ("a_host_that_is_nobodys_is_refused_and_served_once_it_is_somebodys", |world| Box::pin(nobody(world))),
    ("an_older_projection_never_replaces_a_newer_one", |world| Box::pin(versions(world))),
    ("an_override_stands_until_its_end_and_lifts_the_limit_at_once", |world| Box::pin(overrides(world))),
    ("redis_may_die_and_come_back_empty", |world| Box::pin(redis_dies(world))),
    ("what_differs_in_redis_is_repaired", |world| Box::pin(repaired(world))),
    ("a_service_behind_the_layer_knows_whom_it_serves", |world| Box::pin(layer(world))),
];

/// More than any wait here takes.
const PATIENCE: Duration = Duration::from_secs(30);
const DAY: i64 = 86_400_000;

/// A gate as a service of the product has it.
pub fn gate(world: &World) -> Result<Gate> {
    gate_at(world, world.export("REDIS_URL")?)
}

/// The same over another Redis.
pub fn gate_at(world: &World, redis: &str) -> Result<Gate> {
    let url = world.export("APP_DATABASE_URL")?.to_owned();
    let registry = PostgresRegistry::new(move || connect(url.clone()));
    Ok(Gate::builder(redis, BASE_DOMAIN).registry(registry).build()?)
}

async fn connect(url: String) -> Result<tokio_postgres::Client, RegistryError> {
    let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

async fn redis(world: &World) -> Result<redis::aio::MultiplexedConnection> {
    Ok(redis::Client::open(world.export("REDIS_URL")?)?.get_multiplexed_async_connection().await?)
}

/// Gives a tenant so many calls, until in an hour.
pub async fn grant(world: &World, tenant: &tenantry_core::tenant::Tenant, calls: i64) -> Result<()> {
    let sql = "INSERT INTO quota_overrides VALUES ($1, 'api_calls', $2, now() + interval '1 hour', 'test')
               ON CONFLICT (tenant_id, resource) DO UPDATE SET amount = excluded.amount, expires_at = excluded.expires_at";
    world.registry().await?.execute(sql, &[&tenant.id.0, &calls]).await?;
    projection(world, tenant.slug.as_str()).await?.write(&mut redis(world).await?).await?;
    Ok(())
}

async fn projection(world: &World, slug: &str) -> Result<Projection> {
    let registry = world.application().await?;
    Projection::read(&registry, slug).await?.with_context(|| format!("no tenant {slug}"))
}

async fn edge(world: &World) -> Result<()> {
    let tenant = in_service(world).await?;
    let (slug, calls) = (tenant.slug.as_str(), 1000);
    grant(world, &tenant, calls).await?;
    let gate = gate(world)?;
    let clients = (0..64).map(|_| {
        let gate = gate.clone();
        async move {
            let mut admitted = 0;
            for _ in 0..20 {
                match gate.decide(slug, 1).await {
                    Verdict::Admitted(..) => admitted += 1,
                    Verdict::Refused(refusal) => {
                        ensure!(refusal.reason == Reason::QuotaExceeded, "{refusal:?}");
                        let month = refusal.retry_after().is_some_and(|seconds| (1..=31 * 86_400).contains(&seconds));
                        ensure!(month, "{refusal:?}");
                    }
                }
            }
            Ok(admitted)
        }
    });
    let admitted: i64 = join_all(clients).await.into_iter().sum::<Result<i64>>()?;
    ensure!(admitted == calls, "{admitted} of {calls} were admitted");
    // Looking costs nothing, and is not refused for it.
    ensure!(matches!(gate.decide(slug, 0).await, Verdict::Admitted(..)), "a login is refused for the calls of others");
    // A larger quota lifts it at once.
    grant(world, &tenant, calls + 1).await?;
    ensure!(matches!(gate.decide(slug, 1).await, Verdict::Admitted(..)), "a larger quota is not seen");
    ensure!(matches!(gate.decide(slug, 1).await, Verdict::Refused(..)), "one call too many");
    Ok(())
}

async fn boundary(world: &World) -> Result<()> {
    let tenant = in_service(world).await?;
    let slug = tenant.slug.as_str();
    // A cycle that ends at midnight.
    let sql = "UPDATE tenants SET cycle_anchor = date_trunc('day', now() - interval '3 days') WHERE id = $1";
    world.registry().await?.execute(sql, &[&tenant.id.0]).await?;
    grant(world, &tenant, 3).await?;
    // The grant ends within the hour: after that, the plan's own limit stands.
    let long = "UPDATE quota_overrides SET expires_at = now() + interval '2 years' WHERE tenant_id = $1";
    world.registry().await?.execute(long, &[&tenant.id.0]).await?;
    let projection = projection(world, slug).await?;
    projection.write(&mut redis(world).await?).await?;
    let gate = gate(world)?;
    for cycle in projection.boundaries.windows(2).skip(1).take(12) {
        let (last, first) = (cycle[1] - 1, cycle[0]);
        ensure!(last % DAY == DAY - 1 && first % DAY == 0, "not 23:59:59.999: {last}");
        for moment in [first, first + DAY, last] {
            let verdict = gate.decide_at(slug, 1, moment).await;
            ensure!(matches!(verdict, Verdict::Admitted(..)), "{moment} of {cycle:?}: {verdict:?}");
        }
        let verdict = gate.decide_at(slug, 1, last).await;
        let Verdict::Refused(refusal) = &verdict else { anyhow::bail!("a fourth call in {cycle:?}") };
        // The next cycle is a millisecond away.
        ensure!(refusal.retry_after() == Some(1), "{refusal:?}");
    }
    // Calls of the cycle before, which are counted late.
    let first = gate.decide_at(slug, 3, projection.boundaries[1] - 1).await;
    ensure!(matches!(first, Verdict::Admitted(..)), "{first:?}");
    Ok(())
}

async fn months(world: &World) -> Result<()> {
    let registry = world.registry().await?;
    // Whatever the session's time zone is.
    registry.batch_execute("SET TIME ZONE 'Pacific/Auckland'").await?;
    for (anchor, moment, starts, ends) in [
        ("2026-01-31T00:00:00Z", "2026-02-28T00:00:00Z", "2026-02-28T00:00:00Z", "2026-03-31T00:00:00Z"),
        ("2026-01-31T00:00:00Z", "2026-02-27T23:59:59.999Z", "2026-01-31T00:00:00Z", "2026-02-28T00:00:00Z"),
        ("2026-01-31T00:00:00Z", "2026-03-30T23:59:59.999Z", "2026-02-28T00:00:00Z", "2026-03-31T00:00:00Z"),
        ("2024-02-29T12:00:00Z", "2027-02-28T12:00:00Z", "2027-02-28T12:00:00Z", "2027-03-29T12:00:00Z"),
        ("2024-02-29T12:00:00Z", "2028-02-29T11:59:59.999Z", "2028-01-29T12:00:00Z", "2028-02-29T12:00:00Z"),
        ("2024-02-29T12:00:00Z", "2028-02-29T12:00:00Z", "2028-02-29T12:00:00Z", "2028-03-29T12:00:00Z"),
        ("2026-12-15T08:30:00Z", "2027-01-15T08:29:59.999Z", "2026-12-15T08:30:00Z", "2027-01-15T08:30:00Z"),
        // Before the anchor, which a plan change may move.
        ("2026-03-31T00:00:00Z", "2026-02-28T00:00:00Z", "2026-02-28T00:00:00Z", "2026-03-31T00:00:00Z"),
    ] {
        let sql = "SELECT cycle_boundary(a, cycle_number(a, m)) = $3::text::timestamptz,
                          cycle_boundary(a, cycle_number(a, m) + 1) = $4::text::timestamptz,
                          cycle_boundary(a, cycle_number(a, m))::text
                   FROM (SELECT $1::text::timestamptz AS a, $2::text::timestamptz AS m) AS given";
        let row = registry.query_one(sql, &[&anchor, &moment, &starts, &ends]).await?;
        let holds = row.get::<_, bool>(0) && row.get::<_, bool>(1);
        ensure!(holds, "anchor {anchor}, {moment}: begins {}, not {starts}", row.get::<_, &str>(2));
    }
    Ok(())
}

async fn nobody(world: &World) -> Result<()> {
    let gate = gate(world)?;
    let slug = world.fresh_slug("nobody");
    for host in [format!("{slug}.{BASE_DOMAIN}"), format!("a.b.{BASE_DOMAIN}"), "elsewhere.example".to_owned()] {
        let Verdict::Refused(refusal) = gate.decide_host(&host, 1).await else { anyhow::bail!("{host} is admitted") };
        ensure!(refusal.reason == Reason::NotInService, "{refusal:?}");
    }
    let ttl: i64 = redis(world).await?.pttl(format!("gate:{{{slug}}}")).await?;
    ensure!((1..=60_000).contains(&ttl), "a name that nobody has is remembered for {ttl} ms");
    // The name is taken while it is remembered as nobody's.
    let tenant = in_service(world).await?;
    let sql = "UPDATE tenants SET slug = $2 WHERE id = $1";
    world.registry().await?.execute(sql, &[&tenant.id.0, &slug]).await?;
    projection(world, &slug).await?.write(&mut redis(world).await?).await?;
    ensure!(matches!(gate.decide(&slug, 1).await, Verdict::Admitted(..)), "still nobody's");
    Ok(())
}

async fn versions(world: &World) -> Result<()> {
    let tenant = in_service(world).await?;
    let slug = tenant.slug.as_str();
    let mut redis = redis(world).await?;
    let gate = gate(world)?;
    let old = projection(world, slug).await?;
    suspend(world, &tenant).await?;
    let new = projection(world, slug).await?;
    ensure!(new.version > old.version && new.standing == "admin", "{new:?}");
    ensure!(new.write(&mut redis).await?, "a newer version is not written");
    ensure!(!old.write(&mut redis).await?, "an older version is written over a newer one");
    ensure!(matches!(gate.decide(slug, 1).await, Verdict::Refused(..)), "a stale projection is believed");
    // Another tenant takes the name later: its versions begin anew, and what the first one used is not its own.
    let later = Projection { id: uuid::Uuid::new_v4(), registered: old.registered + 1, version: 1, ..old.clone() };
    let used = |field: i64| format!("calls:{field}");
    redis.hset::<_, _, _, ()>(format!("usage:{{{slug}}}"), used(old.boundaries[1]), 70).await?;
    ensure!(later.write(&mut redis).await?, "the later tenant is not written");
    let left: Option<i64> = redis.hget(format!("usage:{{{slug}}}"), used(old.boundaries[1])).await?;
    ensure!(left.is_none(), "{left:?} calls of another tenant are counted");
    ensure!(!Projection { version: new.version + 10, ..old }.write(&mut redis).await?, "the earlier tenant is back");
    Ok(())
}

async fn overrides(world: &World) -> Result<()> {
    let tenant = in_service(world).await?;
    let slug = tenant.slug.as_str();
    grant(world, &tenant, 1).await?;
    let projection = projection(world, slug).await?;
    let (_, until) = projection.override_until.context("no override")?;
    let gate = gate(world)?;
    ensure!(matches!(gate.decide_at(slug, 1, until - 2).await, Verdict::Admitted(..)), "the first call");
    ensure!(matches!(gate.decide_at(slug, 1, until - 1).await, Verdict::Refused(..)), "the second call");
    // From its end on, the plan's own limit stands, without anybody's doing.
    ensure!(matches!(gate.decide_at(slug, 1, until).await, Verdict::Admitted(..)), "the override outlives its end");
    Ok(())
}

/// States how much is lost: what was counted since the counters were last kept, and nothing else.
async fn redis_dies(world: &World) -> Result<()> {
    let tenant = in_service(world).await?;
    let slug = tenant.slug.as_str();
    let tools = Tools::load(&checkout()?)?;
    let directory = std::env::temp_dir().join(format!("tenantry-redis-{}", uuid::Uuid::new_v4()));
    std::fs::create_dir_all(&directory)?;
    let server = Redis::start(&tools, &directory, &directory).await?;
    let (port, url) = (server.port(), server.url());
    let reconcile = ReconcileGate::from_env(&world.env.clone().with("REDIS_URL", &url))?;
    let gate = gate_at(world, &url)?;
    let call = |times: usize| {
        let gate = gate.clone();
        async move {
            for _ in 0..times {
                let verdict = gate.decide(slug, 1).await;
                ensure!(matches!(verdict, Verdict::Admitted(..)), "{verdict:?}");
            }
            Ok(())
        }
    };
    call(100).await?;
    reconcile.run("reconcile-gate", &json!({})).await?;
    call(20).await?;
    // In mid-load: nobody is refused, before, while and after Redis is away.
    let load = Arc::new(gate.clone());
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let clients: Vec<_> = (0..8)
        .map(|_| {
            let (gate, stopped, slug) = (Arc::clone(&load), stopped.clone(), slug.to_owned());
            tokio::spawn(async move {
                let mut calls = 0_i64;
                while !*stopped.borrow() {
                    let verdict = gate.decide(&slug, 0).await;
                    ensure!(matches!(verdict, Verdict::Admitted(..)), "{verdict:?}");
                    calls += 1;
                }
                Ok(calls)
            })
        })
        .collect();
    tokio::task::spawn_blocking(move || drop(server)).await?;
    call(50).await?;
    let server = Redis::start_at(port, &tools, &directory, &directory).await?;
    let flushed = async {
        while !gate.flush().await {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(PATIENCE, flushed).await.context("what was admitted is never counted")?;
    stop.send(true)?;
    for client in clients {
        ensure!(client.await?? > 0, "a client made no call");
    }
    let verdict = gate.decide(slug, 0).await;
    let Verdict::Admitted(_, Some(budget)) = verdict else { anyhow::bail!("{verdict:?}") };
    let used = budget.limit - budget.remaining;
    ensure!(used == 150, "{used} calls are counted: 100 were kept, 50 came while Redis was away, 20 were lost with it");
    tokio::task::spawn_blocking(move || drop(server)).await?;
    std::fs::remove_dir_all(&directory)?;
    Ok(())
}

async fn repaired(world: &World) -> Result<()> {
    let (tampered, forgotten) = (in_service(world).await?, in_service(world).await?);
    let gate = gate(world)?;
    for tenant in [&tampered, &forgotten] {
        grant(world, tenant, 10).await?;
    }
    let mut redis = redis(world).await?;
    let key = |slug: &str| format!("gate:{{{slug}}}");
    redis.hset::<_, _, _, ()>(key(tampered.slug.as_str()), "standing", "admin").await?;
    // A transition whose step died before it told the gate.
    suspend(world, &forgotten).await?;
    let done = world.invoke("reconcile-gate", &json!({})).await?.map_err(|error| anyhow::anyhow!("{error:?}"))?;
    ensure!(done["repaired"].is_u64(), "{done}");
    ensure!(matches!(gate.decide(tampered.slug.as_str(), 1).await, Verdict::Admitted(..)), "still tampered with");
    ensure!(matches!(gate.decide(forgotten.slug.as_str(), 1).await, Verdict::Refused(..)), "the gate was not told");
    Ok(())
}

async fn hello(Extension(tenant): Extension<Tenant>) -> String {
    format!("{} {}", tenant.slug, tenant.id.unwrap_or_default())
}

async fn layer(world: &World) -> Result<()> {
    let tenant = in_service(world).await?;
    grant(world, &tenant, 2).await?;
    let app = Router::new().route("/", get(hello)).layer(GateLayer::new(gate(world)?));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}/", listener.local_addr()?);
    let server = tokio::spawn(async move { axum::serve(listener, app).await });
    let client = reqwest::Client::new();
    let ask = async |host: String| client.get(&url).header("host", host).send().await;
    let host = tenant.host(BASE_DOMAIN);
    let served = ask(host.clone()).await?;
    ensure!(served.status() == 200, "{served:?}");
    let limit = served.headers().get("ratelimit").context("no RateLimit")?.to_str()?;
    ensure!(limit.starts_with("\"api-calls\";r=1;t="), "{limit}");
    let policy = served.headers().get("ratelimit-policy").context("no RateLimit-Policy")?.to_str()?;
    let cycle = projection(world, tenant.slug.as_str()).await?;
    let seconds = (cycle.boundaries[2] - cycle.boundaries[1]) / 1000;
    ensure!(policy == format!("\"api-calls\";q=2;w={seconds}"), "not the cycle's own length: {policy}");
    ensure!(served.text().await? == format!("{} {}", tenant.slug, tenant.id));
    ask(host.to_uppercase()).await?;
    let exceeded = ask(host.clone()).await?;
    ensure!(exceeded.status() == 429 && exceeded.headers().contains_key("retry-after"), "{exceeded:?}");
    ensure!(exceeded.headers()["content-type"] == "application/problem+json", "{exceeded:?}");
    let problem: Value = exceeded.json().await?;
    ensure!(problem["status"] == 429 && problem["type"] == "https://tenantry.dev/problems/quota-exceeded", "{problem}");
    for (reason, status, name) in [("payment_failure", 402, "payment-required"), ("offboarding", 403, "suspended")] {
        let call = json!({"request": {"tenant_id": tenant.id, "reason": reason}, "execution": "manual:test"});
        world.invoke("suspend-tenant", &call).await?.map_err(|error| anyhow::anyhow!("{error:?}"))?;
        let refused = ask(host.clone()).await?;
        ensure!(refused.status() == status, "{refused:?}");
        let problem: Value = refused.json().await?;
        ensure!(problem["type"] == format!("https://tenantry.dev/problems/{name}"), "{problem}");
        ensure!(!problem.to_string().contains(tenant.slug.as_str()), "who is refused is told to anyone: {problem}");
    }
    ensure!(ask(format!("nobody-at-all.{BASE_DOMAIN}")).await?.status() == 403);
    // What row-level security sees is the admitted tenant's.
    let mut application = world.application().await?;
    let transaction = application.transaction().await?;
    Tenant { id: Some(tenant.id.0), slug: tenant.slug.to_string() }.enter(&transaction).await?;
    let row = transaction.query_one("SELECT pool.current_tenant()", &[]).await?;
    ensure!(row.get::<_, Option<uuid::Uuid>>(0) == Some(tenant.id.0));
    server.abort();
    Ok(())
}
