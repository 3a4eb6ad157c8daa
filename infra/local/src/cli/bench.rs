//! How long onboarding takes: a hundred started at once, beside the floor, which is the same steps run back to back by one
//! process, without machine and Lambdas.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use aws_sdk_sfn::types::ExecutionStatus;
use futures::future::try_join_all;
use serde_json::{Value, json};
use tenantry_core::environment::Environment;
use tenantry_core::resource::billing::Billing;
use tenantry_core::resource::bucket::Bucket;
use tenantry_core::resource::database::TenantDatabase;
use tenantry_core::resource::dns::DnsRecord;
use tenantry_core::resource::identity::Identity;
use tenantry_core::resource::invite::Invite;
use tenantry_core::resource::namespace::Namespace;
use tenantry_core::resource::queue::Queue;
use tenantry_core::resource::tenant_config::TenantConfig;
use tenantry_core::step::{Journaled, Step};
use tenantry_core::steps::activation::ActivateTenant;
use tenantry_core::steps::dns::VerifyDnsRecord;
use tenantry_core::steps::provisioning::{BeginProvisioning, Settle};
use tenantry_core::steps::publish::PublishEvents;
use tenantry_core::steps::signup::{RegisterTenant, ValidateRequest};
use tenantry_core::steps::welcome::WelcomeEmail;
use tokio::time::sleep;
use uuid::Uuid;

use crate::progress::Progress;
use crate::stack::Stack;

/// Tenants that are onboarded at once.
const AT_ONCE: usize = 100;
/// Tenants of the floor.
const BACK_TO_BACK: usize = 30;
const PATIENCE: Duration = Duration::from_secs(600);
const POLL: Duration = Duration::from_millis(250);

/// Measures, and tells. Returns how many tenants there are in the end.
pub(super) async fn onboarding(stack: &Stack, progress: &Progress) -> Result<usize> {
    let env = Environment::new(stack.aws_config(), stack.function_variables());
    let steps = steps(&env)?;
    let mut floor = Vec::with_capacity(BACK_TO_BACK);
    // The first one connects everything.
    for number in 0..=BACK_TO_BACK {
        let begun = Instant::now();
        by_one_process(&steps, &sign_up(&format!("floor-{number}"))).await?;
        if number > 0 {
            floor.push(begun.elapsed().as_secs_f64() * 1000.0);
        }
    }
    let machine = stack.output("ProvisionTenantMachine")?;
    let client = aws_sdk_sfn::Client::new(&stack.aws_config());
    let client = &client;
    let run = |slug: String| async move { execution(client, machine, &sign_up(&slug)).await };
    // Alone, on functions that are warm by then.
    let mut alone = Vec::new();
    for number in 0..10 {
        alone.push(run(format!("alone-{number}")).await?);
    }
    let begun = Instant::now();
    let mut at_once = try_join_all((0..AT_ONCE).map(|number| run(format!("at-once-{number}")))).await?;
    let total = begun.elapsed().as_secs_f64();
    let (floor_p50, floor_p99) = (percentile(&mut floor, 50), percentile(&mut floor, 99));
    let (p50, p99) = (percentile(&mut at_once, 50), percentile(&mut at_once, 99));
    let alone_p50 = percentile(&mut alone, 50);
    progress.say(&format!(
        "floor: p50 {floor_p50:.0} ms, p99 {floor_p99:.0} ms (one process, {BACK_TO_BACK} tenants back to back)"
    ));
    progress.say(&format!("alone: p50 {alone_p50:.0} ms"));
    progress.say(&format!("{AT_ONCE} at once: all active after {total:.1} s, p50 {p50:.0} ms, p99 {p99:.0} ms"));
    progress.tell(&json!({
        "floor_p50": floor_p50, "floor_p99": floor_p99, "alone_p50": alone_p50, "p50": p50, "p99": p99,
        "tenants": AT_ONCE, "total_seconds": total,
    }));
    Ok(AT_ONCE)
}

pub(super) fn sign_up(slug: &str) -> Value {
    json!({
        "request_id": Uuid::new_v4(), "slug": slug, "plan": "starter", "paid": true,
        "owner": {"name": "Ada Lovelace", "email": format!("ada@{slug}.example")},
    })
}

/// The steps in the machine's order, as their Lambdas wire them.
fn steps(env: &Environment) -> Result<Vec<(&'static str, Box<dyn Step>)>> {
    Ok(vec![
        ("validate-request", Box::new(ValidateRequest::from_env(env)?)),
        ("register-tenant", Box::new(RegisterTenant::from_env(env)?)),
        ("begin-provisioning", Box::new(BeginProvisioning::from_env(env)?)),
        ("create-database", Journaled::provisioning(env, Box::new(TenantDatabase::from_env(env)?))?),
        ("create-identity", Journaled::provisioning(env, Box::new(Identity::from_env(env)?))?),
        ("create-bucket", Journaled::provisioning(env, Box::new(Bucket::from_env(env)?))?),
        ("create-queue", Journaled::provisioning(env, Box::new(Queue::from_env(env)))?),
        ("create-namespace", Journaled::provisioning(env, Box::new(Namespace::from_env(env)?))?),
        ("create-dns-record", Journaled::provisioning(env, Box::new(DnsRecord::from_env(env)?))?),
        ("verify-dns-record", Journaled::provisioning(env, Box::new(VerifyDnsRecord::from_env(env)?))?),
        ("configure-billing", Journaled::provisioning(env, Box::new(Billing::from_env(env)?))?),
        ("seed-config", Journaled::provisioning(env, Box::new(TenantConfig::from_env(env)?))?),
        ("invite-admin", Journaled::provisioning(env, Box::new(Invite::from_env(env)?))?),
        ("activate-tenant", Box::new(ActivateTenant::from_env(env)?)),
        ("send-welcome-email", Journaled::after_activation(env, Box::new(WelcomeEmail::from_env(env)?))?),
        ("publish-events", Box::new(PublishEvents::from_env(env)?)),
        ("close-provisioning", Settle::close(env)?),
    ])
}

async fn by_one_process(steps: &[(&'static str, Box<dyn Step>)], request: &Value) -> Result<()> {
    let execution =
        format!("arn:aws:states:us-east-1:000000000000:execution:provision-tenant:floor-{}", Uuid::new_v4());
    let signing_up = json!({ "request": request, "execution": execution });
    let mut tenant = Value::Null;
    for (name, step) in steps {
        let call = json!({ "tenant_id": tenant, "execution": execution });
        let input = if tenant.is_null() { &signing_up } else { &call };
        let answer = step.run(name, input).await.with_context(|| (*name).to_owned())?;
        if *name == "register-tenant" {
            tenant = answer["tenant_id"].clone();
        }
    }
    Ok(())
}

/// Milliseconds from an execution's start to its end.
async fn execution(client: &aws_sdk_sfn::Client, machine: &str, request: &Value) -> Result<f64> {
    let begun = Instant::now();
    let started = client.start_execution().state_machine_arn(machine).input(request.to_string()).send().await?;
    let arn = started.execution_arn();
    loop {
        let described = client.describe_execution().execution_arn(arn).send().await?;
        match described.status() {
            ExecutionStatus::Running => ensure!(begun.elapsed() < PATIENCE, "{arn} still runs"),
            ExecutionStatus::Succeeded => {
                let end = described.stop_date().context("no end")?.as_secs_f64();
                return Ok((end - described.start_date().as_secs_f64()) * 1000.0);
            }
            other => {
                let (error, cause) = (described.error().unwrap_or_default(), described.cause().unwrap_or_default());
                anyhow::bail!("{arn} ended {other}: {error}: {cause}");
            }
        }
        sleep(POLL).await;
    }
}

/// The nearest rank.
pub(super) fn percentile(values: &mut [f64], percent: usize) -> f64 {
    values.sort_by(f64::total_cmp);
    let rank = (values.len() * percent).div_ceil(100).max(1);
    values.get(rank - 1).copied().unwrap_or_default()
}
