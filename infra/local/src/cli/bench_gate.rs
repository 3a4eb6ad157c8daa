//! How fast the gate is: beside the raw script through the same client in the same run, in front of a service, and from a
//! committed suspension to the first request that is refused.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use axum::Router;
use axum::routing::get;
use futures::future::{join_all, try_join_all};
use redis::Script;
use redis::aio::MultiplexedConnection;
use serde_json::json;
use tenant_gate::{Gate, GateLayer, PostgresRegistry, Verdict};
use tenantry_core::environment::Environment;
use tenantry_core::gate::Projector;
use tenantry_core::postgres::Database;
use tenantry_core::registry::{self, Selector, suspensions};
use tenantry_core::tenant::{Reason, Tenant};
use tokio::net::TcpListener;

use super::bench::percentile;
use super::gate::log_in;
use crate::inventory::connect;
use crate::progress::Progress;
use crate::stack::{BASE_DOMAIN, Stack};

const TASKS: usize = 64;
/// Raw, gate, raw, gate, …: what else the machine does meets both.
const ROUNDS: usize = 5;
const ROUND: Duration = Duration::from_secs(2);
const SUSPENSIONS: usize = 200;
const SLUG: &str = "metered";
/// More calls than are made here.
const CALLS: i64 = 1_000_000_000_000;
/// What the gate runs.
const DECIDE: &str = include_str!("../../../../functions/gate/src/decide.lua");

/// Decisions a second, and the milliseconds of each.
struct Measured {
    throughput: f64,
    millis: Vec<f64>,
}

/// Measures, and tells. Returns how many tenants there are.
pub(super) async fn gate(stack: &Stack, progress: &Progress) -> Result<usize> {
    let exports = stack.exports();
    let export = |name: &str| exports.get(name).cloned().with_context(|| format!("no {name}"));
    let env = Environment::new(stack.aws_config(), stack.function_variables());
    let request = super::bench::sign_up(SLUG);
    let (aws, machine) = (stack.aws_config(), stack.output("ProvisionTenantMachine")?);
    let outcome = super::follow(&aws, machine, &request, SLUG, progress).await?;
    ensure!(outcome.error.is_empty(), "{}: {}", outcome.error, outcome.cause);
    let client = connect(&export("REGISTRY_DATABASE_URL")?).await?;
    let grant = "INSERT INTO quota_overrides
                 SELECT id, 'api_calls', $2, now() + interval '1 day', 'bench' FROM tenants WHERE slug = $1";
    client.execute(grant, &[&SLUG, &CALLS]).await?;
    let tenant = registry::read(&client, &Selector::Slug(SLUG.to_owned())).await?.tenant;
    let (database, projector) = (Database::registry(&env)?, Projector::from_env(&env)?);
    projector.project(&*database.client().await?, &tenant).await?;

    let application = export("APP_DATABASE_URL")?;
    let truth = PostgresRegistry::new(move || log_in(application.clone()));
    let gate = Gate::builder(&export("REDIS_URL")?, BASE_DOMAIN).registry(truth).build()?;
    let connection = redis::Client::open(export("REDIS_URL")?)?.get_multiplexed_async_connection().await?;
    let (mut raw, mut gated) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        raw.push(raw_round(&connection).await?);
        gated.push(gate_round(&gate).await?);
    }
    let ((raw_per_second, raw_p50, raw_p99), (per_second, p50, p99)) = (middle(&mut raw), middle(&mut gated));
    let (bare, layered) = (served(None).await?, served(Some(gate.clone())).await?);
    let latency = percentile(&mut suspended(&database, &projector, &gate, &tenant).await?, 99);
    progress
        .say(&format!("raw script: {raw_per_second:.0}/s, p50 {raw_p50:.2} ms, p99 {raw_p99:.2} ms ({TASKS} tasks)"));
    progress.say(&format!("gate: {per_second:.0}/s, p50 {p50:.2} ms, p99 {p99:.2} ms"));
    progress.say(&format!("hello world: {bare:.0} requests/s bare, {layered:.0} behind the layer"));
    progress.say(&format!("suspension: p99 {latency:.2} ms from the commit to the first refused request"));
    progress.tell(&json!({
        "raw_per_second": raw_per_second, "raw_p50": raw_p50, "raw_p99": raw_p99, "per_second": per_second, "p50": p50,
        "p99": p99, "bare_per_second": bare, "layered_per_second": layered, "suspension_p99": latency,
    }));
    Ok(1)
}

/// The round with the middle throughput: its throughput, p50 and p99.
fn middle(rounds: &mut [Measured]) -> (f64, f64, f64) {
    rounds.sort_by(|a, b| a.throughput.total_cmp(&b.throughput));
    let middle = &mut rounds[ROUNDS / 2];
    (middle.throughput, percentile(&mut middle.millis, 50), percentile(&mut middle.millis, 99))
}

async fn round<F: Future<Output = Result<()>> + Send>(
    decide: impl Fn() -> F + Clone + Send + 'static,
) -> Result<Measured> {
    let begun = Instant::now();
    let tasks = (0..TASKS).map(|_| {
        let decide = decide.clone();
        async move {
            let mut millis = Vec::new();
            while begun.elapsed() < ROUND {
                let asked = Instant::now();
                decide().await?;
                millis.push(asked.elapsed().as_secs_f64() * 1000.0);
            }
            anyhow::Ok(millis)
        }
    });
    let millis: Vec<f64> = try_join_all(tasks).await?.concat();
    #[allow(clippy::cast_precision_loss)] // millions
    let throughput = millis.len() as f64 / begun.elapsed().as_secs_f64();
    Ok(Measured { throughput, millis })
}

async fn raw_round(connection: &MultiplexedConnection) -> Result<Measured> {
    let (script, connection) = (Arc::new(Script::new(DECIDE)), connection.clone());
    round(move || {
        let (script, mut connection) = (script.clone(), connection.clone());
        async move {
            let now = time::OffsetDateTime::now_utc().unix_timestamp_nanos() / 1_000_000;
            let now = i64::try_from(now)?;
            let mut call = script.prepare_invoke();
            call.key("gate:{metered}").key("usage:{metered}").arg(now).arg(1).arg(0);
            let reply: Vec<redis::Value> = call.invoke_async(&mut connection).await?;
            ensure!(reply.len() == 5, "{reply:?}");
            Ok(())
        }
    })
    .await
}

async fn gate_round(gate: &Gate) -> Result<Measured> {
    let gate = gate.clone();
    round(move || {
        let gate = gate.clone();
        async move {
            let verdict = gate.decide(SLUG, 1).await;
            ensure!(matches!(verdict, Verdict::Admitted(_, Some(_))), "{verdict:?}");
            Ok(())
        }
    })
    .await
}

/// Requests a second that an axum service answers, with or without the layer in front of it.
async fn served(gate: Option<Gate>) -> Result<f64> {
    let app = Router::new().route("/", get(|| async { "Hello" }));
    let app = match gate {
        Some(gate) => app.layer(GateLayer::new(gate)),
        None => app,
    };
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}/", listener.local_addr()?);
    let server = tokio::spawn(async move { axum::serve(listener, app).await });
    let client = reqwest::Client::new();
    let measured = round(move || {
        let ask = client.get(&url).header("host", format!("{SLUG}.{BASE_DOMAIN}")).send();
        async move {
            let answer = ask.await?;
            ensure!(answer.status() == 200, "{answer:?}");
            answer.bytes().await?;
            Ok(())
        }
    })
    .await?;
    server.abort();
    Ok(measured.throughput)
}

/// Milliseconds from a committed suspension to the first request that is refused, while requests come in all the time.
async fn suspended(database: &Database, projector: &Projector, gate: &Gate, tenant: &Tenant) -> Result<Vec<f64>> {
    let selector = &Selector::Id(tenant.id);
    let mut latencies = Vec::new();
    for _ in 0..SUSPENSIONS {
        let refused = Arc::new(AtomicBool::new(false));
        let clients = (0..4).map(|_| {
            let (gate, refused) = (gate.clone(), refused.clone());
            tokio::spawn(async move {
                while !refused.load(Ordering::Relaxed) {
                    if matches!(gate.decide(SLUG, 1).await, Verdict::Refused(_)) {
                        refused.store(true, Ordering::Relaxed);
                    }
                }
                Instant::now()
            })
        });
        let clients: Vec<_> = clients.collect();
        let mut client = database.client().await?;
        suspensions::suspend(&mut client, selector, Reason::Admin, "bench").await?;
        let committed = Instant::now();
        projector.project(&client, tenant).await?;
        let seen = join_all(clients).await.into_iter().collect::<Result<Vec<_>, _>>()?;
        let first = seen.into_iter().min().context("no client")?;
        latencies.push(first.saturating_duration_since(committed).as_secs_f64() * 1000.0);
        suspensions::lift(&mut client, selector, Reason::Admin, "bench").await?;
        projector.project(&client, tenant).await?;
    }
    Ok(latencies)
}
