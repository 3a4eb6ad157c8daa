//! The fault matrix: the shipped machine on the real stack, with every call of every state failing in every way, from outside.
//!
//! For each state that calls something, the call that makes its effect fails before it has any, takes effect unanswered, dies
//! with its Lambda, or hangs. Whatever happens, the tenant ends active, or pending with nothing left; and a listing of every
//! system that does not go through our code finds nothing that should not be there.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use aws_sdk_sfn::types::ExecutionStatus;
use futures::future::BoxFuture;
use futures::{StreamExt, stream};
use serde::Serialize;
use serde_json::{Value, json};
use tenantry_core::resource::Inspection;
use tenantry_core::tenant::{Status, Tenant};
use tenantry_local::proxy::{System, Verdict};

use crate::contract::{Contract, repository};
use crate::faults::{Target, marks};
use crate::machine::{Outcome, sign_up};
use crate::provisioning::inspect_all;
use crate::world::{Case, World};

pub const CASES: &[(&str, Case)] = &[("every_fault_in_every_state_ends_well", |world| Box::pin(matrix(world)))];

const MACHINE: &str = "provision-tenant";
/// Cases at once: executions mostly wait, for a hanging call or for each other's turn.
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
    /// It fails for one invocation: an undo that is let through then.
    Once,
    /// As the first, but of an undo: what it leaves is told, and `compensate` clears it.
    UndoForGood,
}

/// The state a fault is for, and its call.
struct Site {
    state: &'static str,
    /// The one isolation whose tenants make this call; `None` where all make the same.
    isolation: Option<&'static str>,
    target: Target,
}

const fn site(state: &'static str, system: System, function: &'static str, holds: &'static str) -> Site {
    Site { state, isolation: None, target: Target { system, function, holds } }
}

const fn only(isolation: &'static str, site: Site) -> Site {
    Site { isolation: Some(isolation), ..site }
}

use System::{Aws, Kubernetes, Postgres, Stripe};

/// Every state that makes an effect, with the call that makes it.
const SITES: &[Site] = &[
    site("ValidateRequest", Postgres, "validate-request", "coalesce(bool_or(request_id"),
    site("RegisterTenant", Postgres, "register-tenant", "INSERT INTO tenants"),
    site("ConfirmPayment", Postgres, "confirm-payment", "INSERT INTO payments"),
    site("BeginProvisioning", Postgres, "begin-provisioning", "SET status = 'provisioning'"),
    only("shared", site("CreateDatabase", Postgres, "create-database", "INSERT INTO pool.tenants")),
    only("schema", site("CreateDatabase", Postgres, "create-database", "CREATE SCHEMA")),
    only("database", site("CreateDatabase", Aws, "create-database", "Action=CreateDBInstance")),
    site("CreateIdentity", Aws, "create-identity", "Action=CreateRole"),
    site("CreateBucket", Aws, "create-bucket", "PUT /tenant-"),
    site("CreateQueue", Aws, "create-queue", "AmazonSQS.CreateQueue"),
    site("CreateNamespace", Kubernetes, "", "POST /api/v1/namespaces?"),
    site("CreateDnsRecord", Aws, "create-dns-record", "/rrset"),
    site("VerifyDnsRecord", Postgres, "verify-dns-record", "INSERT INTO step_journal"),
    site("ConfigureBilling", Stripe, "configure-billing", "POST /v1/subscriptions"),
    site("SeedConfig", Aws, "seed-config", "DynamoDB_20120810.PutItem"),
    site("InviteAdmin", Postgres, "invite-admin", "INSERT INTO invites"),
    site("ActivateTenant", Postgres, "activate-tenant", "SET status = 'active'"),
    site("SendWelcomeEmail", Aws, "send-welcome-email", "POST /v2/email/outbound-emails"),
    site("PublishEvents", Aws, "publish-events", "AWSEvents.PutEvents"),
    site("CloseProvisioning", Postgres, "close-provisioning", "SET execution = NULL"),
];

/// Every undo, and what follows it. They run because ActivateTenant fails for good.
const UNDOS: &[Site] = &[
    site("ConfirmActivation", Postgres, "confirm-activation", "FROM tenants t JOIN plan_quotas"),
    site("RevokeInvite", Postgres, "revoke-invite", "UPDATE invites SET revoked_at"),
    site("RemoveConfig", Aws, "remove-config", "DynamoDB_20120810.BatchWriteItem"),
    site("CancelBilling", Postgres, "cancel-billing", "UPDATE billing_accounts SET subscription = NULL"),
    site("RemoveDnsRecord", Aws, "remove-dns-record", "/rrset"),
    site("RemoveNamespace", Kubernetes, "", "DELETE /api/v1/namespaces/"),
    site("RemoveQueue", Aws, "remove-queue", "AmazonSQS.DeleteQueue"),
    site("RemoveBucket", Aws, "remove-bucket", "DELETE /tenant-"),
    site("RemoveIdentity", Aws, "remove-identity", "Action=DeleteRole&"),
    only("shared", site("RemoveDatabase", Postgres, "remove-database", "DELETE FROM pool.tenants")),
    only("schema", site("RemoveDatabase", Postgres, "remove-database", "DROP SCHEMA")),
    only("database", site("RemoveDatabase", Aws, "remove-database", "Action=DeleteDBInstance")),
    site("ReleaseTenant", Postgres, "release-tenant", "SET status = 'pending'"),
    site("PublishFailure", Aws, "publish-events", "AWSEvents.PutEvents"),
];

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
    fault: Fault,
    isolation: &'static str,
    outcome: String,
    leftovers: Vec<String>,
    #[serde(skip)]
    tenant: Option<Tenant>,
    #[serde(skip)]
    broken: Option<String>,
    #[serde(skip)]
    seconds: f64,
}

/// The states of the machine that no fault can reach, by this rule: they call nothing, or they run only because the registry
/// itself could not be told (FlagTenant follows a ReleaseTenant or a step after the pivot that failed for good, and is in
/// those cases).
fn unreached(contract: &Contract) -> Vec<String> {
    let sites: Vec<&str> = SITES.iter().chain(UNDOS).map(|site| site.state).collect();
    let states = contract.machine(MACHINE)["States"].as_object().cloned().unwrap_or_default();
    let tasks = states.iter().filter(|(_, state)| state["Type"] == "Task");
    tasks.map(|(name, _)| name.clone()).filter(|name| !sites.contains(&name.as_str())).collect()
}

async fn matrix(world: &World) -> Result<()> {
    let contract = Contract::read(&repository())?;
    ensure!(unreached(&contract) == ["FlagTenant"], "states without a fault: {:?}", unreached(&contract));
    println!(
        "Left out by rule: states that call nothing; FlagTenant, which is reached through ReleaseTenant's and the"
    );
    println!("pivot's own cases; isolations other than schema where all isolations make the same call.");
    let begun = Instant::now();
    let mut cases = Vec::new();
    for sites in [SITES, UNDOS] {
        for site in sites {
            let undo = std::ptr::eq(sites, UNDOS);
            let mut faults = vec![Fault::AnswerLost, Fault::Killed, Fault::Hang];
            faults.extend(if undo { vec![Fault::Once, Fault::UndoForGood] } else { vec![Fault::BeforeEffect] });
            cases.extend(faults.into_iter().map(|fault| (site, fault, undo)));
        }
    }
    // The slowest first: those that hang until a Lambda's time is up.
    cases.sort_by_key(|(_, fault, _)| *fault != Fault::Hang);
    let runs: Vec<BoxFuture<'_, Line>> = cases
        .into_iter()
        .map(|(site, fault, undo)| Box::pin(run(world, site, fault, undo)) as BoxFuture<'_, Line>)
        .collect();
    let mut lines: Vec<Line> = stream::iter(runs).buffer_unordered(AT_ONCE).collect().await;
    scan(world, &mut lines).await?;
    lines.sort_by(|a, b| (order(a), a.isolation, a.fault).cmp(&(order(b), b.isolation, b.fault)));
    report(&lines, begun.elapsed())?;
    let broken: Vec<String> = lines
        .iter()
        .filter_map(|line| {
            line.broken.as_ref().map(|why| format!("{} {:?} {}: {why}", line.state, line.fault, line.isolation))
        })
        .collect();
    ensure!(broken.is_empty(), "{} of {} cases:\n{}", broken.len(), lines.len(), broken.join("\n"));
    Ok(())
}

async fn run(world: &World, site: &'static Site, fault: Fault, undo: bool) -> Line {
    let begun = Instant::now();
    let mut line = Line {
        machine: MACHINE,
        state: site.state,
        fault,
        isolation: site.isolation.unwrap_or("schema"),
        outcome: String::new(),
        leftovers: Vec::new(),
        tenant: None,
        broken: None,
        seconds: 0.0,
    };
    if let Err(error) = Box::pin(one(world, site, fault, undo, &mut line)).await {
        line.broken = Some(format!("{error:#}"));
    }
    line.seconds = begun.elapsed().as_secs_f64();
    line
}

fn order(line: &Line) -> usize {
    SITES.iter().chain(UNDOS).position(|site| site.state == line.state).unwrap_or_default()
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

async fn one(world: &World, site: &Site, fault: Fault, undo: bool, line: &mut Line) -> Result<()> {
    let mut request = request_of(world, line.isolation);
    let slug = request["slug"].as_str().context("a slug")?.to_owned();
    let (input, marked) = if ["ValidateRequest", "RegisterTenant"].contains(&site.state) {
        (request.clone(), vec![slug.as_bytes().to_vec()])
    } else {
        request["paid"] = json!(false);
        world.provision(&request).await?.succeeded()?;
        let tenant = world.record(&slug).await?.tenant;
        let request_id: uuid::Uuid = request["request_id"].as_str().context("an id")?.parse()?;
        let marked = [marks(tenant.id, &slug), vec![request_id.as_bytes().to_vec()]].concat();
        line.tenant = Some(tenant);
        if site.state == "ConfirmPayment" {
            (json!({"payment_id": format!("pay_{slug}"), "request_id": request_id}), marked)
        } else {
            request["paid"] = json!(true);
            (request.clone(), marked)
        }
    };
    // The undos run because the pivot fails for good.
    let pivot = Target { system: Postgres, function: "activate-tenant", holds: "SET status = 'active'" };
    let broken_pivot = undo.then(|| world.faults.inject(pivot, marked.clone(), Verdict::Refuse, FOR_GOOD));
    let (verdict, times) = match fault {
        Fault::BeforeEffect | Fault::UndoForGood => (Verdict::Refuse, FOR_GOOD),
        Fault::AnswerLost => (Verdict::LoseAnswer, FOR_GOOD),
        Fault::Killed => (Verdict::Kill, 1),
        Fault::Hang => (Verdict::Hang, if site.target.system == Aws { AN_INVOCATION } else { 1 }),
        Fault::Once => (Verdict::Refuse, if site.target.system == Aws { AN_INVOCATION } else { 1 }),
    };
    let injected = world.faults.inject(site.target.clone(), marked, verdict, times);
    let outcome = world.provision(&input).await?;
    let met = injected.hits();
    drop((injected, broken_pivot));
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

fn told(outcome: &Outcome) -> String {
    format!("{} {} {} after {:?}", outcome.status, outcome.error, outcome.cause, outcome.states.last())
}

/// Whether the tenant is where such a fault may leave it.
async fn judged(world: &World, site: &Site, fault: Fault, outcome: &Outcome, line: &mut Line) -> Result<()> {
    let slug = line.tenant.as_ref().map(|tenant| tenant.slug.to_string()).unwrap_or_default();
    let record = world.record(&slug).await?;
    ensure!(record.execution.is_none(), "{slug} is still held: {}", told(outcome));
    let flagged = record.needs_operator.clone();
    line.outcome = match (record.tenant.status, &flagged) {
        (Status::Active, None) => "active".to_owned(),
        (Status::Active, Some(_)) => "active, flagged".to_owned(),
        (Status::Pending, None) => "pending, clean".to_owned(),
        (Status::Pending, Some(_)) => "pending, flagged".to_owned(),
        (other, _) => anyhow::bail!("{slug} is {other}: {}", told(outcome)),
    };
    let after = AFTER_THE_PIVOT.contains(&site.state);
    let undo = UNDOS.iter().any(|one| std::ptr::eq(one, site));
    let leaves = LEAVES.iter().find(|(state, _)| *state == site.state).map(|(_, kind)| *kind);
    let lasting = matches!(fault, Fault::BeforeEffect | Fault::AnswerLost | Fault::UndoForGood);
    let expected: &[&str] = match (undo, fault) {
        (false, Fault::BeforeEffect) if after => &["active, flagged"],
        (false, Fault::AnswerLost) if after => &["active", "active, flagged"],
        (false, Fault::BeforeEffect) => &["pending, clean"],
        (false, Fault::AnswerLost) => &["active", "pending, clean"],
        (false, _) => &["active"],
        (true, Fault::UndoForGood) if leaves.is_some() || site.state == "ReleaseTenant" => &["pending, flagged"],
        (true, Fault::AnswerLost) if lasting => &["pending, clean", "pending, flagged"],
        (true, _) => &["pending, clean"],
    };
    ensure!(expected.contains(&line.outcome.as_str()), "ends {}, not {expected:?}: {}", line.outcome, told(outcome));
    if fault == Fault::UndoForGood
        && let Some(kind) = leaves
    {
        let flag = flagged.unwrap_or_default();
        ensure!(flag.contains(&format!("could not remove: {kind}")), "the flag does not name {kind}: {flag}");
    }
    if undo {
        ensure!(outcome.status == ExecutionStatus::Failed, "an undone execution must fail: {}", told(outcome));
    }
    Ok(())
}

/// Nothing is left of a pending tenant; a flag goes once the cause is gone; and what is pending can be provisioned.
async fn settle(world: &World, site: &Site, fault: Fault, tenant: &Tenant, line: &mut Line) -> Result<()> {
    if line.outcome == "pending, flagged" {
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
        if fault == Fault::UndoForGood {
            // Each undo once more, of what is gone.
            for (_, state) in crate::contract::UNDOES {
                let undo = crate::contract::kebab(state);
                let again = world.invoke(&undo, &by_hand).await?;
                ensure!(again.is_ok(), "{undo} again: {again:?}");
            }
        }
        if fault == Fault::BeforeEffect && !BEFORE_THE_FENCE.contains(&site.state) {
            let again = world.provision(&json!({"tenant_id": tenant.id})).await?.succeeded()?;
            ensure!(again.times("CreateDatabase") == 1);
            ensure!(world.record(tenant.slug.as_str()).await?.tenant.status == Status::Active);
            line.outcome += ", then active";
        }
    } else if fault == Fault::Killed && !AFTER_THE_PIVOT.contains(&site.state) {
        // Each step once more, of what is there.
        for (state, _) in crate::contract::UNDOES {
            let step = crate::contract::kebab(state);
            let again = world.invoke(&step, &by_hand).await?;
            ensure!(again.is_ok(), "{step} again: {again:?}");
        }
    }
    Ok(())
}

/// Looks in every system, with its own listing, for what carries the name of a tenant that is pending.
async fn scan(world: &World, lines: &mut [Line]) -> Result<()> {
    let snapshot = world.snapshot().await?;
    for line in lines {
        let Some(tenant) = &line.tenant else { continue };
        if world.record(tenant.slug.as_str()).await?.tenant.status != Status::Pending {
            continue;
        }
        let marks = [tenant.id.to_string(), tenant.slug.to_string(), tenant.schema()];
        for (system, names) in &snapshot {
            // A name may be the beginning of another's: slugs end in a number.
            let ours = |name: &&String| {
                marks.iter().any(|mark| {
                    name.match_indices(mark.as_str())
                        .any(|(at, _)| !name[at + mark.len()..].starts_with(|next: char| next.is_ascii_digit()))
                })
            };
            line.leftovers.extend(names.iter().filter(ours).map(|name| format!("{system}: {name}")));
        }
        if !line.leftovers.is_empty() && line.broken.is_none() {
            line.broken = Some(format!("{:?}", line.leftovers));
        }
    }
    Ok(())
}

fn report(lines: &[Line], took: Duration) -> Result<()> {
    let mut table = BTreeMap::<String, usize>::new();
    println!("{:<18} {:<9} {:<14} {:>6}  outcome", "state", "isolation", "fault", "s");
    for line in lines {
        let fault = serde_json::to_value(line.fault)?;
        let outcome = if line.broken.is_some() { format!("BROKEN: {}", line.outcome) } else { line.outcome.clone() };
        println!(
            "{:<18} {:<9} {:<14} {:>6.1}  {outcome}",
            line.state,
            line.isolation,
            fault.as_str().unwrap_or_default(),
            line.seconds
        );
        *table.entry(outcome).or_default() += 1;
    }
    println!("{} cases in {:.0} s:", lines.len(), took.as_secs_f64());
    for (outcome, count) in table {
        println!("{count:>5}  {outcome}");
    }
    let path = repository().join(".local/reports/fault-matrix.json");
    std::fs::create_dir_all(path.parent().context("a directory")?)?;
    std::fs::write(&path, serde_json::to_string_pretty(lines)? + "\n")?;
    Ok(())
}
