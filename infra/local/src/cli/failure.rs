//! The failure demonstration: an onboarding that fails in the middle, and what becomes of it.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use aws_sdk_sfn::types::ExecutionStatus;
use k8s_openapi::api::rbac::v1::ClusterRole;
use kube::Api;
use kube::api::PostParams;
use serde_json::{Value, json};

use super::gate::invoke;
use super::{evidence, follow, nothing_is_left, summary};
use crate::evidence::Witness;
use crate::inventory::{cluster_as, connect};
use crate::progress::Progress;
use crate::stack::Stack;

/// The sign-up.
const SIGN_UP: &str = "events/provision-tenant-growth.json";
/// What the functions may do in the cluster (infra/kube/rbac.yaml).
const CLUSTER_ROLE: &str = "tenantry-provisioner";
/// What it is taken: namespaces can be made and removed, and not closed.
const TAKEN: &str = "networkpolicies";

/// Shows it. Returns how many tenants there are in the end.
pub(super) async fn show(stack: &Stack, root: &Path, progress: &Progress) -> Result<usize> {
    ensure!(
        stack.has_own_cluster(),
        "KUBECONFIG names a cluster that is not this stack's: its roles are not broken for a demonstration. Unset it"
    );
    let (aws, exports) = (stack.aws_config(), stack.exports());
    let export = |name: &str| exports.get(name).cloned().with_context(|| format!("no {name}"));
    let mut witness = Witness::of(stack).await?;
    let roles = Api::<ClusterRole>::all(cluster_as(&export("KUBECONFIG")?).await?);

    let whole = roles.get(CLUSTER_ROLE).await?;
    let mut broken = whole.clone();
    let rules = broken.rules.get_or_insert_default();
    rules.retain(|rule| !rule.resources.iter().flatten().any(|resource| resource == TAKEN));
    roles.replace(CLUSTER_ROLE, &PostParams::default(), &broken).await?;
    progress.say(&format!(
        "\nKubernetes is broken: ClusterRole {CLUSTER_ROLE} has lost its right to {TAKEN}, as a careless change would take it"
    ));

    let machine = stack.output("ProvisionTenantMachine")?;
    let input: Value = serde_json::from_str(&std::fs::read_to_string(root.join(SIGN_UP))?)?;
    let slug = input["slug"].as_str().context("the sign-up has no slug")?;
    let outcome = follow(&aws, machine, &input, SIGN_UP, progress).await?;
    progress.say(&summary(&outcome));
    ensure!(outcome.status == ExecutionStatus::Failed, "the onboarding did not fail: {}", outcome.status);

    let client = connect(&export("REGISTRY_DATABASE_URL")?).await?;
    let sql = "SELECT id::text, status::text, failed_step, failed_error, failed_message, needs_operator FROM tenants
               WHERE slug = $1";
    let row = client.query_one(sql, &[&slug]).await?;
    let text = |column: usize| row.get::<_, Option<String>>(column).unwrap_or_else(|| "-".to_owned());
    let id = text(0);
    nothing_is_left(stack, &id, slug, progress).await?;
    progress.say("\nWhat the registry says of it");
    for (what, column) in [("status", 1), ("failed step", 2), ("error", 3), ("message", 4), ("needs an operator", 5)] {
        progress.say(&format!("  {what:<18} {}", text(column)));
    }
    progress.tell(&json!({ "tenant": slug, "status": text(1), "failed_step": text(2), "error": text(3) }));
    ensure!(text(1) == "pending" && text(5) == "-", "{slug} is {}, and needs an operator: {}", text(1), text(5));
    progress.say("\nWhat explain-tenant says of it");
    for line in explained(&aws, slug).await?.lines() {
        progress.say(&format!("  {line}"));
    }

    let mut repaired = roles.get(CLUSTER_ROLE).await?;
    repaired.rules = whole.rules;
    roles.replace(CLUSTER_ROLE, &PostParams::default(), &repaired).await?;
    progress.say("\nKubernetes is repaired");
    let again = json!({ "tenant_id": id });
    let outcome = follow(&aws, machine, &again, &again.to_string(), progress).await?;
    progress.say(&summary(&outcome));
    if outcome.status != ExecutionStatus::Succeeded {
        bail!("{slug} was not provisioned after the repair: {}: {}", outcome.error, outcome.cause);
    }
    evidence(&mut witness, slug, progress).await?;
    Ok(1)
}

/// What the function for operators says, as text.
async fn explained(aws: &aws_config::SdkConfig, slug: &str) -> Result<String> {
    let body = invoke(aws, "explain-tenant", &json!({ "slug": slug })).await?;
    body["text"].as_str().map(str::to_owned).with_context(|| format!("explain-tenant answered {body}"))
}
