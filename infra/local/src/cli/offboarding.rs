//! The demonstration of leaving: a tenant that is exported, held and deleted, with a certificate; one that comes back during its
//! hold; and one that is erased at once.

mod download;
mod proof;
mod scene;

use std::path::Path;

use anyhow::{Context, Result, ensure};
use aws_sdk_sfn::types::ExecutionStatus;
use serde_json::{Value, json};

use super::gate::{invoke, started};
use super::{SIGN_UPS, nothing_is_left, summary};
use crate::events::Subscription;
use crate::execution::{Following, Outcome};
use crate::progress::Progress;
use crate::stack::Stack;
use scene::{Member, Scene};

/// How long a tenant is kept, in seconds: as long as somebody who watches waits.
const HOLD: &str = "20";
/// The template's parameters for this stack.
pub(super) const PARAMETERS: &[(&str, &str)] = &[("HoldSeconds", HOLD)];

/// What each machine is started with. The three tenants are those of the sign-ups.
const COMES_BACK: (&str, &str) = ("events/offboard-tenant.json", "events/reactivate-tenant-offboarding.json");
const LEAVES: &str = "events/offboard-tenant-growth.json";
const IS_ERASED: &str = "events/offboard-tenant-erasure.json";
/// What the bus brings of a tenant that leaves for good.
const EVENTS: &[&str] =
    &["tenant.offboarding_started", "tenant.exported", "tenant.deletion_requested", "tenant.deleted"];
/// Where the certificates are left.
const CERTIFICATE: &str = "certificate.json";
const CERTIFICATE_OF_ERASURE: &str = "certificate-of-erasure.json";

/// Shows it. Returns how many tenants there were.
pub(super) async fn show(stack: &Stack, root: &Path, progress: &Progress) -> Result<usize> {
    let scene = Scene::open(stack, root, progress).await?;
    progress.say("\nThree tenants sign up, and work");
    let mut members = Vec::new();
    for sign_up in SIGN_UPS {
        members.push(scene.signs_up(sign_up).await?);
    }
    let [acme, globex, umbrella] = members.as_slice() else { anyhow::bail!("{} sign-ups", members.len()) };
    Box::pin(leaves(&scene, globex)).await?;
    Box::pin(comes_back(&scene, acme)).await?;
    Box::pin(is_erased(&scene, umbrella)).await?;
    Ok(members.len())
}

/// Export, link, hold, deletion, certificate.
async fn leaves(scene: &Scene<'_>, member: &Member) -> Result<()> {
    let Scene { progress, stack, .. } = scene;
    let slug = member.slug();
    let mut events = Subscription::open(&scene.aws, stack.output("EventBusName")?).await?;
    let before = scene.session(member).await?;
    let written = member.write(&before).await.map_err(scene::words)?;
    progress.say(&format!("\n{slug} has {written} projects and {} objects, and leaves", scene::OBJECTS.len()));

    let mut offboarding = scene.begin("OffboardTenantMachine", LEAVES).await?;
    ensure!(offboarding.until("WaitForHold").await?, "{slug} is not held: {}", offboarding.end().await?.cause);
    let end = scene.hold(member).await?;
    progress.say(&format!("\nUntil {end} everything of {slug} stays, and nobody can change it"));
    let error = member.write(&before).await.err().context("written in a session that was open")?;
    progress.say(&format!("  {:<14} a session that was open: {}", "PostgreSQL", scene::words(error)));
    let error = scene.session(member).await.err().context("the tenant's own role logs in")?;
    progress.say(&format!("  {:<14} a new one: {error:#}", "PostgreSQL"));
    scene.refuses_uploads(member).await?;
    scene.is_answered(member, 403).await?;

    let link = download::Link::mailed(scene, slug).await?;
    progress.say(&format!("\nIts owner was mailed a link: {}", link.shown()));
    let manifest = link.download(scene).await?;
    let said = |what: &str, of: &dyn Fn(&Value) -> bool| -> i64 {
        let files = manifest["files"].as_array().into_iter().flatten();
        files.filter(|file| of(file)).filter_map(|file| file[what].as_i64()).sum()
    };
    let rows = said("rows", &|file| file["table"] == "projects");
    ensure!(rows == written, "of {written} projects {rows} were exported");
    let objects = said("objects", &|_| true);
    ensure!(usize::try_from(objects)? == scene::OBJECTS.len(), "{objects} objects were exported");
    progress
        .say(&format!("  All {rows} projects and {objects} objects are there: make restore brings the tables back"));

    progress.say("\nThe hold ends");
    let outcome = succeeded(progress, offboarding.end().await?)?;
    ensure!(outcome.seconds >= HOLD.parse()?, "the hold was not waited for");
    deleted(scene, member).await?;
    proof::show(scene, member, CERTIFICATE).await?;
    for event in EVENTS {
        events.events_of(event, &member.id()).await?;
    }
    progress.say(&format!("\n{slug} is gone\n  {:<14} {}", "EventBridge", EVENTS.join(", ")));
    scene.is_answered(member, 403).await?;
    ensure!(link.works(scene).await?, "the link does not outlive the tenant");
    progress.say(&format!("  {:<14} still opens the export, until it ends", "the link"));
    nothing_is_left(stack, &member.id(), slug, progress).await?;
    proof::what_stays(scene, CERTIFICATE)
}

/// A hold that is cancelled.
async fn comes_back(scene: &Scene<'_>, member: &Member) -> Result<()> {
    let (progress, slug) = (scene.progress, member.slug());
    let (away, back) = COMES_BACK;
    progress.say(&format!("\n{slug} leaves as well"));
    let mut offboarding = scene.begin("OffboardTenantMachine", away).await?;
    ensure!(offboarding.until("WaitForHold").await?, "{slug} is not held: {}", offboarding.end().await?.cause);
    let end = scene.hold(member).await?;
    progress.say(&format!("\nUntil {end} it can come back"));
    let product = scene.session(member).await?;
    let error = member.write(&product).await.err().context("the product writes rows of a frozen tenant")?;
    progress.say(&format!("  {:<14} the product, for it: {}", "PostgreSQL", scene::words(error)));
    scene.refuses_uploads(member).await?;
    scene.is_answered(member, 403).await?;
    scene.is_billed(member, false).await?;

    succeeded(progress, scene.begin("ReactivateTenantMachine", back).await?.end().await?)?;
    let waiting = offboarding.end().await?;
    ensure!(waiting.status == ExecutionStatus::Aborted, "its deletion is still waited for: {}", waiting.status);
    progress.say(&format!("\n{slug} is back; what waited to delete it was stopped: {}", waiting.cause));
    let rows = member.write(&product).await.map_err(scene::words)?;
    progress.say(&format!("  {:<14} {rows} rows written, in the session that was refused", "PostgreSQL"));
    scene.uploads(member, "reports/2026-12.pdf").await?;
    progress.say(&format!("  {:<14} an object was put", "S3"));
    scene.is_answered(member, 200).await?;
    scene.is_billed(member, true).await
}

/// No export, no hold: somebody with the right to it asked for erasure.
async fn is_erased(scene: &Scene<'_>, member: &Member) -> Result<()> {
    let Scene { progress, stack, aws, .. } = scene;
    let slug = member.slug();
    progress
        .say(&format!("\nFor {slug} there is a request for erasure: it names the tenant twice, a reason and a ticket"));
    let refused = scene.begin("OffboardTenantMachine", IS_ERASED).await?.end().await?;
    progress.say(&summary(&refused));
    ensure!(refused.error == "Conflict", "a protected tenant was not refused: {}", refused.status);
    scene.is_answered(member, 200).await?;
    progress.say("\nIts plan protects it from deletion. An operator lifts that, which is audited");
    let lift = json!({ "slug": slug, "protected": false, "execution": "manual:demo" });
    invoke(aws, "set-deletion-protection", &lift).await?;
    succeeded(progress, scene.begin("OffboardTenantMachine", IS_ERASED).await?.end().await?)?;
    scene.is_answered(member, 403).await?;
    deleted(scene, member).await?;
    let payload = proof::show(scene, member, CERTIFICATE_OF_ERASURE).await?;
    let asked = scene.input(IS_ERASED)?;
    ensure!(payload.kind == "erasure" && asked["reason"] == payload.reason.as_str(), "{payload:?}");
    ensure!(asked["erasure"]["ticket"] == json!(payload.ticket) && payload.exported_at.is_none(), "{payload:?}");
    nothing_is_left(stack, &member.id(), slug, progress).await
}

/// Follows the deletion that offboard-tenant has started.
async fn deleted(scene: &Scene<'_>, member: &Member) -> Result<()> {
    let Scene { progress, stack, aws, .. } = scene;
    let id = member.id();
    let arn = started(aws, stack.output("DeleteTenantMachine")?, |input| input["tenant_id"] == id.as_str()).await?;
    progress.say(&format!("\ndelete-tenant, which it has started: the point of no return\n  {arn}"));
    succeeded(progress, Following::begin(aws, &arn, progress).end().await?).map(drop)
}

/// Tells how an execution ended, and fails unless that is well.
fn succeeded(progress: &Progress, outcome: Outcome) -> Result<Outcome> {
    progress.say(&summary(&outcome));
    ensure!(outcome.status == ExecutionStatus::Succeeded, "{}: {}", outcome.error, outcome.cause);
    Ok(outcome)
}
