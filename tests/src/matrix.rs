//! The fault matrix: the shipped machines on the real stack, with every state failing in every way, from outside.
//!
//! For each state that calls something, the call that makes its effect (of some, each of those that make it) fails before it has
//! any, takes effect unanswered, dies with its Lambda, or hangs. Whatever happens, the tenant ends active, or pending or gone with nothing left, or somebody is told;
//! and a listing of every system that does not go through our code finds nothing that should not be there.
//!
//! `TENANTRY_MATRIX=delete-tenant`, or `TENANTRY_MATRIX="offboard-tenant: Freeze"`, goes through a part of it.

mod deleting;
mod in_service;
mod leaving;
mod returning;
mod scan;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use aws_sdk_sfn::types::ExecutionStatus;
use futures::future::BoxFuture;
use futures::{StreamExt, stream};
use serde::Serialize;
use serde_json::{Value, json};
use tenantry_core::invite::first_admin;
use tenantry_core::resource::Inspection;
use tenantry_core::tenant::{Status, Tenant};
use tenantry_local::progress::print;
use tenantry_local::proxy::{System, Verdict};
use tokio::time::sleep;

use crate::contract::permissions::allowed;
use crate::contract::{Contract, kebab, repository};
use crate::faults::{Injected, Target, marks};
use crate::machine::{Outcome, sign_up};
use crate::provisioning::inspect_all;
use crate::world::{Case, World};

pub const CASES: &[(&str, Case)] = &[("every_fault_in_every_state_ends_well", |world| Box::pin(matrix(world)))];

/// What the report says, to standard output, where the runner's own lines go.
macro_rules! tell {
    ($($text:tt)*) => { print(&format!($($text)*)) };
}

const MACHINE: &str = "provision-tenant";
/// Cases at once, of those that hang and of the others: executions mostly wait, for a hanging call or for each other's turn.
const AT_ONCE: usize = 10;
/// Hits that make one invocation fail: the AWS SDK itself tries three times.
const AN_INVOCATION: i64 = 3;
/// More than any execution comes to.
const FOR_GOOD: i64 = 1_000_000;

/// What is done to a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Fault {
    /// It fails every time, before it has an effect.
    BeforeEffect,
    /// It takes effect every time, and is never answered.
    AnswerLost,
    /// Its Lambda is killed, once.
    Killed,
    /// It hangs, for one invocation.
    Hang,
    /// It fails before it has an effect, for one invocation, and is let through then.
    Once,
}

/// The state a fault is for, and its call.
struct Site {
    machine: &'static str,
    state: &'static str,
    /// The one isolation whose tenants make this call; `None` where all make the same.
    isolation: Option<&'static str>,
    target: Target,
    because: Because,
}

/// What has to fail for good so that a state runs at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Because {
    /// Nothing: it is on the way to a tenant in service.
    OnTheWay,
    /// The pivot: what was made is undone.
    NoPivot,
    /// This state of the same machine: the tenant is flagged.
    Fails(&'static str),
}

const fn site(state: &'static str, system: System, function: &'static str, holds: &'static str) -> Site {
    let target = Target { system, function, holds };
    Site { machine: MACHINE, state, isolation: None, target, because: Because::OnTheWay }
}

const fn only(isolation: &'static str, site: Site) -> Site {
    Site { isolation: Some(isolation), ..site }
}

const fn when(because: Because, site: Site) -> Site {
    Site { because, ..site }
}

use System::{Aws, Dedicated, Kubernetes, Postgres, Stripe};

/// Every state that makes an effect, with the call that makes it.
static SITES: &[Site] = &[
    site("ValidateRequest", Postgres, "validate-request", "coalesce(bool_or(request_id"),
    site("RegisterTenant", Postgres, "register-tenant", "INSERT INTO tenants"),
    site("ConfirmPayment", Postgres, "confirm-payment", "INSERT INTO payments"),
    site("BeginProvisioning", Postgres, "begin-provisioning", "SET status = 'provisioning'"),
    only("shared", site("CreateDatabase", Postgres, "create-database", "INSERT INTO pool.tenants")),
    only("schema", site("CreateDatabase", Postgres, "create-database", "CREATE SCHEMA")),
    only("database", site("CreateDatabase", Aws, "create-database", "Action=CreateDBInstance")),
    only("database", site("CreateDatabase", Dedicated, "create-database", "CREATE DATABASE")),
    site("CreateIdentity", Aws, "create-identity", "Action=CreateRole"),
    site("CreateIdentity", Aws, "create-identity", "POST /clusters/"),
    site("CreateBucket", Aws, "create-bucket", "PUT /tenant-"),
    site("CreateQueue", Aws, "create-queue", "AmazonSQS.CreateQueue"),
    site("CreateNamespace", Kubernetes, "", "POST /api/v1/namespaces?"),
    site("CreateDnsRecord", Aws, "create-dns-record", "<Action>CREATE"),
    site("VerifyDnsRecord", Postgres, "verify-dns-record", "INSERT INTO step_journal"),
    site("ConfigureBilling", Stripe, "configure-billing", "POST /v1/customers"),
    site("ConfigureBilling", Stripe, "configure-billing", "POST /v1/subscriptions"),
    site("SeedConfig", Aws, "seed-config", "DynamoDB_20120810.PutItem"),
    site("InviteAdmin", Postgres, "invite-admin", "INSERT INTO invites"),
    site("ActivateTenant", Postgres, "activate-tenant", "SET status = 'active'"),
    site("SendWelcomeEmail", Aws, "send-welcome-email", "POST /v2/email/outbound-emails"),
    site("PublishEvents", Aws, "publish-events", "AWSEvents.PutEvents"),
    site("CloseProvisioning", Postgres, "close-provisioning", "SET execution = NULL"),
];

/// Every undo, and what follows it: they run because ActivateTenant fails for good.
static UNDOS: &[Site] = &[
    when(
        Because::NoPivot,
        site("ConfirmActivation", Postgres, "confirm-activation", "FROM tenants t JOIN plan_quotas"),
    ),
    when(Because::NoPivot, site("RevokeInvite", Postgres, "revoke-invite", "UPDATE invites SET revoked_at")),
    when(Because::NoPivot, site("RemoveConfig", Aws, "remove-config", "DynamoDB_20120810.BatchWriteItem")),
    when(
        Because::NoPivot,
        site("CancelBilling", Postgres, "cancel-billing", "UPDATE billing_accounts SET subscription = NULL"),
    ),
    when(Because::NoPivot, site("RemoveDnsRecord", Aws, "remove-dns-record", "<Action>DELETE")),
    when(Because::NoPivot, site("RemoveNamespace", Kubernetes, "", "DELETE /api/v1/namespaces/")),
    when(Because::NoPivot, site("RemoveQueue", Aws, "remove-queue", "AmazonSQS.DeleteQueue")),
    when(Because::NoPivot, site("RemoveBucket", Aws, "remove-bucket", "DELETE /tenant-")),
    when(Because::NoPivot, site("RemoveIdentity", Aws, "remove-identity", "Action=DeleteRole&")),
    when(
        Because::NoPivot,
        only("shared", site("RemoveDatabase", Postgres, "remove-database", "DELETE FROM pool.tenants")),
    ),
    when(Because::NoPivot, only("schema", site("RemoveDatabase", Postgres, "remove-database", "DROP SCHEMA"))),
    when(Because::NoPivot, only("database", site("RemoveDatabase", Aws, "remove-database", "Action=DeleteDBInstance"))),
    when(Because::NoPivot, site("ReleaseTenant", Postgres, "release-tenant", "SET status = 'pending'")),
    when(Because::NoPivot, site("PublishFailure", Aws, "publish-events", "AWSEvents.PutEvents")),
];

static FLAG: &[Site] =
    &[when(Because::Fails("SendWelcomeEmail"), site("FlagTenant", Postgres, "flag-tenant", "needs_operator = $5"))];

/// After which nothing is undone: a failure for good leaves the tenant in service, and flagged.
const AFTER_THE_PIVOT: &[&str] = &["SendWelcomeEmail", "PublishEvents", "CloseProvisioning"];
/// Before which no execution has the tenant.
const BEFORE_THE_FENCE: &[&str] = &["ValidateRequest", "RegisterTenant", "ConfirmPayment", "BeginProvisioning"];
/// Undos whose failure for good leaves something behind that a look finds. The others only record.
const LEAVES: &[(&str, &str)] = &[
    ("RevokeInvite", "invite"),
    ("RemoveConfig", "configuration"),
    ("RemoveDnsRecord", "DNS record"),
    ("RemoveNamespace", "namespace"),
    ("RemoveQueue", "queue"),
    ("RemoveBucket", "bucket"),
    ("RemoveIdentity", "role"),
    ("RemoveDatabase", "database"),
];

/// One line of the report.
#[derive(Debug, Serialize)]
struct Line {
    machine: &'static str,
    state: &'static str,
    #[serde(serialize_with = "kind")]
    fault: Fault,
    isolation: &'static str,
    outcome: String,
    leftovers: Vec<String>,
    /// Whether the call was let through after one invocation had failed.
    once: bool,
    #[serde(skip)]
    tenant: Option<Tenant>,
    #[serde(skip)]
    broken: Option<String>,
    #[serde(skip)]
    seconds: f64,
}

/// A call that fails once is one that fails before its effect.
fn kind<S: serde::Serializer>(fault: &Fault, to: S) -> Result<S::Ok, S::Error> {
    if *fault == Fault::Once { Fault::BeforeEffect } else { *fault }.serialize(to)
}

/// How long the rule, and a takeover, which waits a minute for the functions of a dead execution, may take.
const RECOVERY: Duration = Duration::from_secs(180);

/// What a machine or a state is named for, where only a part is gone through: empty where all is.
fn part() -> String {
    std::env::var("TENANTRY_MATRIX").unwrap_or_default()
}

/// The states that call something and have no case.
fn unreached(contract: &Contract) -> Vec<String> {
    let sites: Vec<(&str, &str)> = sites().map(|site| (site.machine, site.state)).collect();
    let tasks = contract.tasks().map(|(machine, state, _)| (machine, state));
    tasks.filter(|task| !sites.contains(task)).map(|(machine, state)| format!("{machine}: {state}")).collect()
}

async fn matrix(world: &World) -> Result<()> {
    let contract = Contract::read(&repository())?;
    ensure!(unreached(&contract).is_empty(), "states without a fault: {:?}", unreached(&contract));
    tell!(
        "Left out by rule: states that call no function of ours, other isolations where all make the same call, and further calls \
         of a state whose loss leaves what the loss of the one here does."
    );
    let begun = Instant::now();
    let mut cases = Vec::new();
    let part = part();
    for site in sites().filter(|site| format!("{}: {}", site.machine, site.state).contains(&part)) {
        let mut faults = vec![Fault::BeforeEffect, Fault::AnswerLost, Fault::Killed, Fault::Hang];
        faults.extend((site.because != Because::OnTheWay).then_some(Fault::Once));
        faults.retain(|fault| leaving::ends(site, *fault));
        cases.extend(faults.into_iter().map(|fault| (site, fault)));
    }
    ensure!(!cases.is_empty(), "no machine and no state is named for {part:?}");
    let cases = by_turns(cases);
    // Those that hang do nothing until a Lambda's time is up: they run beside the others.
    let (hang, others): (Vec<_>, Vec<_>) = cases.into_iter().partition(|(_, fault)| *fault == Fault::Hang);
    let (mut lines, others) = tokio::join!(all(world, hang), all(world, others));
    lines.extend(others);
    scan::scan(world, &mut lines).await?;
    lines.sort_by(|a, b| (order(a), a.isolation, a.fault).cmp(&(order(b), b.isolation, b.fault)));
    report(&lines, begun.elapsed())?;
    let permitted = permitted(world, &contract, part.is_empty());
    let broken: Vec<String> = lines
        .iter()
        .filter_map(|line| {
            line.broken
                .as_ref()
                .map(|why| format!("{} {} {:?} {}: {why}", line.machine, line.state, line.fault, line.isolation))
        })
        .collect();
    ensure!(broken.is_empty(), "{} of {} cases:\n{}", broken.len(), lines.len(), broken.join("\n"));
    permitted
}

/// One case of each machine after the other: a function has few instances, and one machine's cases all ask for the same.
fn by_turns(cases: Vec<(&'static Site, Fault)>) -> Vec<(&'static Site, Fault)> {
    let mut turns = BTreeMap::<&str, usize>::new();
    let turn = |case: (&'static Site, Fault)| {
        let turn = turns.entry(case.0.machine).or_default();
        *turn += 1;
        (*turn, case)
    };
    let mut cases: Vec<_> = cases.into_iter().map(turn).collect();
    cases.sort_by_key(|(turn, _)| *turn);
    cases.into_iter().map(|(_, case)| case).collect()
}

/// Goes through cases, some at once.
async fn all(world: &World, cases: Vec<(&'static Site, Fault)>) -> Vec<Line> {
    let runs: Vec<BoxFuture<'_, Line>> =
        cases.into_iter().map(|(site, fault)| Box::pin(run(world, site, fault)) as BoxFuture<'_, Line>).collect();
    stream::iter(runs).buffer_unordered(AT_ONCE).collect().await
}

fn sites() -> impl Iterator<Item = &'static Site> {
    let more = in_service::SITES.iter().chain(returning::SITES).chain(leaving::SITES).chain(deleting::SITES);
    SITES.iter().chain(UNDOS).chain(FLAG).chain(more)
}

async fn run(world: &World, site: &'static Site, fault: Fault) -> Line {
    let begun = Instant::now();
    let mut line = Line {
        machine: site.machine,
        state: site.state,
        fault,
        isolation: site.isolation.unwrap_or("schema"),
        outcome: String::new(),
        leftovers: Vec::new(),
        once: matches!(fault, Fault::Once | Fault::Killed | Fault::Hang),
        tenant: None,
        broken: None,
        seconds: 0.0,
    };
    let case: BoxFuture<'_, Result<()>> = match site.machine {
        MACHINE => Box::pin(one(world, site, fault, &mut line)),
        leaving::MACHINE => Box::pin(leaving::one(world, site, fault, &mut line)),
        deleting::MACHINE => Box::pin(deleting::one(world, site, fault, &mut line)),
        in_service::REACTIVATE if returning::has(site) => Box::pin(returning::one(world, site, fault, &mut line)),
        _ => Box::pin(in_service::one(world, site, fault, &mut line)),
    };
    if let Err(error) = case.await {
        line.broken = Some(format!("{error:#}"));
    }
    line.seconds = begun.elapsed().as_secs_f64();
    line
}

/// No function has asked AWS, through the proxy, for what its role in the template does not allow. What roles allow and
/// nobody asks for is found by `calls`, which also takes the ways that no machine goes.
fn permitted(world: &World, contract: &Contract, all: bool) -> Result<()> {
    let mut refused = Vec::new();
    let asked = world.faults.asked();
    for (function, actions) in &asked {
        let Some(id) = contract.functions().find(|id| kebab(id) == *function) else {
            refused.push(format!("{function:?} is no function of the template, and asks for {actions:?}"));
            continue;
        };
        let allowed = allowed(contract, id);
        refused
            .extend(actions.difference(&allowed).map(|action| format!("{id} calls {action}, which its role refuses")));
    }
    tell!("{} functions asked AWS for nothing that their roles refuse", asked.len());
    ensure!(!all || asked.len() > 20, "only {:?} were seen", asked.keys());
    ensure!(refused.is_empty(), "{}", refused.join("\n"));
    Ok(())
}

fn order(line: &Line) -> usize {
    sites().position(|site| (site.machine, site.state) == (line.machine, line.state)).unwrap_or_default()
}

/// A sign-up whose tenant has this isolation.
fn request_of(world: &World, isolation: &str) -> Value {
    let (plan, stem) = match isolation {
        "shared" => ("starter", "mx-shared"),
        "schema" => ("growth", "mx-schema"),
        _ => ("enterprise", "mx-server"),
    };
    sign_up(&world.fresh_slug(stem), plan)
}

async fn one(world: &World, site: &Site, fault: Fault, line: &mut Line) -> Result<()> {
    let mut request = request_of(world, line.isolation);
    let slug = request["slug"].as_str().context("a slug")?.to_owned();
    let (input, marked) = if ["ValidateRequest", "RegisterTenant"].contains(&site.state) {
        (request.clone(), vec![slug.as_bytes().to_vec()])
    } else {
        request["paid"] = json!(false);
        world.provision(&request).await?.succeeded()?;
        let tenant = world.record(&slug).await?.tenant;
        let request_id: uuid::Uuid = request["request_id"].as_str().context("an id")?.parse()?;
        let marked =
            [marks(tenant.id, &slug), vec![request_id.as_bytes().to_vec(), first_admin(tenant.id).as_bytes().to_vec()]]
                .concat();
        line.tenant = Some(tenant);
        if site.state == "ConfirmPayment" {
            (json!({"payment_id": format!("pay_{slug}"), "request_id": request_id}), marked)
        } else {
            request["paid"] = json!(true);
            (request.clone(), marked)
        }
    };
    let cause = cause(world, site, &marked)?;
    let injected = injected(world, site, fault, marked);
    let outcome = world.provision(&input).await?;
    let met = injected.hits();
    drop((injected, cause));
    ensure!(met > 0, "the fault was not met: {}", told(&outcome));
    let tenant = match world.record(&slug).await {
        Ok(record) => record.tenant,
        // Refused before it was registered.
        Err(_) if site.state == "ValidateRequest" || site.state == "RegisterTenant" => {
            line.outcome = "refused, nothing registered".to_owned();
            ensure!(outcome.status == ExecutionStatus::Failed, "{}", told(&outcome));
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    line.tenant = Some(tenant.clone());
    judged(world, site, fault, &outcome, line).await?;
    settle(world, site, fault, &tenant, line).await
}

/// Puts the fault of a case into force.
fn injected(world: &World, site: &Site, fault: Fault, marked: Vec<Vec<u8>>) -> Injected {
    let an_invocation = if site.target.system == Aws { AN_INVOCATION } else { 1 };
    let (verdict, times) = match fault {
        Fault::BeforeEffect => (Verdict::Refuse, FOR_GOOD),
        Fault::AnswerLost => (Verdict::LoseAnswer, FOR_GOOD),
        Fault::Killed => (Verdict::Kill, 1),
        Fault::Hang => (Verdict::Hang, an_invocation),
        Fault::Once => (Verdict::Refuse, an_invocation),
    };
    world.faults.inject(site.target.clone(), marked, verdict, times)
}

/// Puts into force what has to fail for good besides.
fn cause(world: &World, site: &Site, marked: &[Vec<u8>]) -> Result<Option<Injected>> {
    let state = match site.because {
        Because::OnTheWay => return Ok(None),
        Because::NoPivot => "ActivateTenant",
        Because::Fails(state) => state,
    };
    let found = sites().find(|one| one.machine == site.machine && one.state == state);
    let target = found.with_context(|| format!("no site {}: {state}", site.machine))?.target.clone();
    Ok(Some(world.faults.inject(target, marked.to_vec(), Verdict::Refuse, FOR_GOOD)))
}

/// Runs a machine on a tenant with the fault of a case in force, and waits until nobody holds the tenant. Returns how the run ended,
/// and whether the rule had to recover it.
async fn run_with(
    world: &World,
    site: &Site,
    fault: Fault,
    (tenant, marked): (&Tenant, Vec<Vec<u8>>),
    run: impl Future<Output = Result<Outcome>>,
) -> Result<(Outcome, bool)> {
    let cause = cause(world, site, &marked)?;
    let injected = injected(world, site, fault, marked);
    let outcome = run.await?;
    let met = injected.hits();
    drop((injected, cause));
    ensure!(met > 0, "the fault was not met: {}", told(&outcome));
    let recovered = released(world, tenant.slug.as_str(), &outcome).await?;
    Ok((outcome, recovered))
}

fn told(outcome: &Outcome) -> String {
    format!("{} {} {} after {:?}", outcome.status, outcome.error, outcome.cause, outcome.states.last())
}

/// Waits until nobody holds the tenant. True where somebody did: where the registry itself could not be told, the execution ends
/// with the tenant, and the status-change rule recovers it.
async fn released(world: &World, slug: &str, outcome: &Outcome) -> Result<bool> {
    let begun = Instant::now();
    let mut recovered = false;
    while world.record(slug).await?.execution.is_some() {
        recovered = true;
        ensure!(begun.elapsed() < RECOVERY, "{slug} is still held: {}", told(outcome));
        sleep(Duration::from_millis(500)).await;
    }
    Ok(recovered)
}

/// Whether the tenant is where such a fault may leave it.
async fn judged(world: &World, site: &Site, fault: Fault, outcome: &Outcome, line: &mut Line) -> Result<()> {
    let slug = line.tenant.as_ref().map(|tenant| tenant.slug.to_string()).unwrap_or_default();
    let recovered = released(world, &slug, outcome).await?;
    let record = world.record(&slug).await?;
    let flagged = record.needs_operator.clone();
    line.outcome = match (record.tenant.status, &flagged) {
        (Status::Active, None) => "active".to_owned(),
        (Status::Active, Some(_)) => "active, flagged".to_owned(),
        (Status::Pending, None) => "pending, clean".to_owned(),
        (Status::Pending, Some(_)) => "pending, flagged".to_owned(),
        (other, _) => anyhow::bail!("{slug} is {other}: {}", told(outcome)),
    };
    let after = AFTER_THE_PIVOT.contains(&site.state);
    let leaves = LEAVES.iter().find(|(state, _)| *state == site.state).map(|(_, kind)| *kind);
    let expected: &[&str] = match (site.because, fault) {
        _ if recovered => &["active"],
        (Because::OnTheWay, Fault::BeforeEffect) if after => &["active, flagged"],
        (Because::OnTheWay, Fault::AnswerLost) if after => &["active", "active, flagged"],
        (Because::OnTheWay, Fault::BeforeEffect) => &["pending, clean"],
        (Because::OnTheWay, Fault::AnswerLost) => &["active", "pending, clean"],
        (Because::OnTheWay, _) => &["active"],
        (Because::NoPivot, Fault::BeforeEffect) if leaves.is_some() || site.state == "ReleaseTenant" => {
            &["pending, flagged"]
        }
        (Because::NoPivot, _) => &["pending, clean"],
        (Because::Fails(_), _) => &["active, flagged"],
    };
    ensure!(expected.contains(&line.outcome.as_str()), "ends {}, not {expected:?}: {}", line.outcome, told(outcome));
    if let (Because::NoPivot, Fault::BeforeEffect, Some(kind)) = (site.because, fault, leaves) {
        let flag = flagged.unwrap_or_default();
        ensure!(flag.contains(&format!("could not remove: {kind}")), "the flag does not name {kind}: {flag}");
    }
    if recovered {
        line.outcome += ", recovered by the rule";
    }
    let must_fail = site.because != Because::OnTheWay;
    ensure!(!must_fail || outcome.status == ExecutionStatus::Failed, "it must fail: {}", told(outcome));
    Ok(())
}

/// Nothing is left of a pending tenant; a flag goes once the cause is gone; and what is pending can be provisioned.
async fn settle(world: &World, site: &Site, fault: Fault, tenant: &Tenant, line: &mut Line) -> Result<()> {
    if line.outcome.starts_with("pending, flagged") {
        let refused = world.provision(&json!({"tenant_id": tenant.id})).await?;
        ensure!(refused.error == "NeedsOperator", "a flagged tenant was provisioned: {}", told(&refused));
        let cleared = world.provision(&json!({"tenant_id": tenant.id, "intent": "compensate"})).await?;
        ensure!(cleared.error == "Compensated", "{}", told(&cleared));
        let flag = world.record(tenant.slug.as_str()).await?.needs_operator;
        ensure!(flag.is_none(), "compensate did not clear the flag: {flag:?}");
        line.outcome += ", cleared by compensate";
    }
    let record = world.record(tenant.slug.as_str()).await?;
    let wanted = if record.tenant.status == Status::Active { Inspection::Present } else { Inspection::Absent };
    for (kind, found) in inspect_all(world, &record.tenant).await? {
        if found != wanted {
            line.leftovers.push(format!("{kind} is {found:?}"));
        }
    }
    ensure!(line.leftovers.is_empty(), "{:?}", line.leftovers);
    let by_hand = json!({"tenant_id": tenant.id, "execution": "manual:matrix"});
    if line.outcome.starts_with("pending") {
        if fault == Fault::BeforeEffect && site.because == Because::NoPivot {
            // Each undo once more, of what is gone.
            for (_, state) in crate::contract::UNDOES {
                let undo = kebab(state);
                let again = world.invoke(&undo, &by_hand).await?;
                ensure!(again.is_ok(), "{undo} again: {again:?}");
            }
        }
        if fault == Fault::BeforeEffect && site.because == Because::OnTheWay && !BEFORE_THE_FENCE.contains(&site.state)
        {
            let again = world.provision(&json!({"tenant_id": tenant.id})).await?.succeeded()?;
            ensure!(again.times("CreateDatabase") == 1);
            ensure!(world.record(tenant.slug.as_str()).await?.tenant.status == Status::Active);
            line.outcome += ", then active";
        }
    } else if fault == Fault::Killed && !AFTER_THE_PIVOT.contains(&site.state) {
        // Each step once more, of what is there.
        for (state, _) in crate::contract::UNDOES {
            let step = kebab(state);
            let again = world.invoke(&step, &by_hand).await?;
            ensure!(again.is_ok(), "{step} again: {again:?}");
        }
    }
    Ok(())
}

fn report(lines: &[Line], took: Duration) -> Result<()> {
    let mut table = BTreeMap::<String, usize>::new();
    tell!("{:<17} {:<20} {:<9} {:<14} {:>6}  outcome", "machine", "state", "isolation", "fault", "s");
    for line in lines {
        let fault = serde_json::to_value(line.fault)?;
        let outcome = if line.broken.is_some() { format!("BROKEN: {}", line.outcome) } else { line.outcome.clone() };
        tell!(
            "{:<17} {:<20} {:<9} {:<14} {:>6.1}  {outcome}",
            line.machine,
            line.state,
            line.isolation,
            fault.as_str().unwrap_or_default(),
            line.seconds
        );
        *table.entry(outcome).or_default() += 1;
    }
    tell!("{} cases in {:.0} s:", lines.len(), took.as_secs_f64());
    for (outcome, count) in table {
        tell!("{count:>5}  {outcome}");
    }
    let path = repository().join(".local/reports/fault-matrix.json");
    std::fs::create_dir_all(path.parent().context("a directory")?)?;
    std::fs::write(&path, serde_json::to_string_pretty(lines)? + "\n")?;
    Ok(())
}
