//! The tenant's role against IAM.

use anyhow::{Context, Result, ensure};
use aws_sdk_iam::Client;
use serde_json::json;
use tenantry_core::error::StepError;
use tenantry_core::resource::identity::Identity;
use tenantry_core::resource::{Inspection, Resource};
use tenantry_core::tenant::OWNER_TAG;

use crate::recorder::Recorder;
use crate::tenants::fresh_tenant;
use crate::world::{Case, World};

pub const CASES: &[(&str, Case)] = &[
    ("is_made_once", |world| Box::pin(is_made_once(world))),
    ("is_repaired", |world| Box::pin(is_repaired(world))),
    ("of_another_is_left_alone", |world| Box::pin(of_another_is_left_alone(world))),
    ("is_removed_with_its_policies", |world| Box::pin(is_removed_with_its_policies(world))),
];

const ANYBODY: &str = r#"{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"Service":"ec2.amazonaws.com"},"Action":"sts:AssumeRole"}]}"#;
const ANYTHING: &str = r#"{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"s3:*","Resource":"*"}]}"#;

/// Made with its tag and boundary; made again, nothing is written.
async fn is_made_once(world: &World) -> Result<()> {
    let (tenant, iam) = (fresh_tenant(world, "identity")?, Client::new(&world.env.aws));
    let recorder = Recorder::start(world).await?;
    let identity = Identity::from_env(&recorder.env)?;
    ensure!(identity.inspect(&tenant).await? == Inspection::Absent);
    let made = identity.ensure(&tenant).await?;
    let associations = format!("POST /clusters/{}/pod-identity-associations", world.env.required("EKS_CLUSTER")?);
    ensure!(recorder.mutations() == ["CreateRole", "PutRolePolicy", &associations]);
    ensure!(identity.inspect(&tenant).await? == Inspection::Present);

    let role = iam.get_role().role_name(tenant.role()).send().await?.role.context("no role")?;
    ensure!(
        made == json!({"role": tenant.role(), "arn": role.arn, "association": made["association"]})
            && made["association"].is_string(),
        "{made}"
    );
    ensure!(role.tags().iter().any(|tag| tag.key() == OWNER_TAG && tag.value() == tenant.id.to_string()));
    let boundary = role.permissions_boundary().and_then(|boundary| boundary.permissions_boundary_arn());
    ensure!(boundary == world.env.optional("TENANT_BOUNDARY_ARN").as_deref(), "{boundary:?}");

    recorder.mutations();
    ensure!(identity.ensure(&tenant).await? == made, "the second run reports something else");
    let mutations = recorder.mutations();
    ensure!(mutations.is_empty(), "the second run wrote: {mutations:?}");
    Ok(identity.remove(&tenant).await?)
}

/// Rights added by hand are named and taken away, changed ones are put back.
async fn is_repaired(world: &World) -> Result<()> {
    let (tenant, iam) = (fresh_tenant(world, "identity")?, Client::new(&world.env.aws));
    let recorder = Recorder::start(world).await?;
    let identity = Identity::from_env(&recorder.env)?;
    identity.ensure(&tenant).await?;
    loosen(&iam, &tenant.role()).await?;

    let Inspection::Drifted(drift) = identity.inspect(&tenant).await? else { anyhow::bail!("the drift was not seen") };
    let expected = [
        "trust policy: not ours",
        "permissions boundary: not set",
        "inline policy tenant: missing or not ours",
        "inline policy more: should not be there",
        "attached policy arn:aws:iam::aws:policy/AdministratorAccess: should not be there",
    ];
    ensure!(drift == expected, "{drift:?}");
    recorder.mutations();
    identity.ensure(&tenant).await?;
    let mutations = recorder.mutations();
    ensure!(mutations.len() == expected.len(), "{mutations:?}");
    ensure!(identity.inspect(&tenant).await? == Inspection::Present);
    Ok(identity.remove(&tenant).await?)
}

/// Changes everything about a role that `ensure` mends.
pub async fn loosen(iam: &Client, role: &str) -> Result<()> {
    iam.update_assume_role_policy().role_name(role).policy_document(ANYBODY).send().await?;
    iam.put_role_policy().role_name(role).policy_name("tenant").policy_document(ANYTHING).send().await?;
    iam.put_role_policy().role_name(role).policy_name("more").policy_document(ANYTHING).send().await?;
    iam.attach_role_policy().role_name(role).policy_arn("arn:aws:iam::aws:policy/AdministratorAccess").send().await?;
    iam.delete_role_permissions_boundary().role_name(role).send().await?;
    Ok(())
}

/// A role of the tenant's name that is not the tenant's is neither adopted nor deleted.
async fn of_another_is_left_alone(world: &World) -> Result<()> {
    let (tenant, other) = (fresh_tenant(world, "identity")?, fresh_tenant(world, "identity")?);
    let iam = Client::new(&world.env.aws);
    let identity = Identity::from_env(&world.env)?;
    let name = tenant.role();
    for tag in [None, Some(other.id.to_string())] {
        let tag =
            tag.map(|value| aws_sdk_iam::types::Tag::builder().key(OWNER_TAG).value(value).build()).transpose()?;
        let create = iam.create_role().role_name(&name).assume_role_policy_document(ANYBODY);
        create.set_tags(tag.map(|tag| vec![tag])).send().await?;
        ensure!(matches!(identity.inspect(&tenant).await?, Inspection::Foreign(_)));
        let refused = identity.ensure(&tenant).await;
        ensure!(matches!(refused, Err(StepError::Foreign { kind: "role", .. })), "{refused:?}");
        identity.remove(&tenant).await?;
        iam.get_role().role_name(&name).send().await.context("another's role was deleted")?;
        let policies = iam.list_role_policies().role_name(&name).send().await?;
        ensure!(policies.policy_names().is_empty(), "another's role got our policy");
        iam.delete_role().role_name(&name).send().await?;
    }
    Ok(())
}

/// The role goes with all its policies, also those it was given by hand; another tenant's stays.
async fn is_removed_with_its_policies(world: &World) -> Result<()> {
    let (tenant, other) = (fresh_tenant(world, "identity")?, fresh_tenant(world, "identity")?);
    let iam = Client::new(&world.env.aws);
    let identity = Identity::from_env(&world.env)?;
    identity.ensure(&tenant).await?;
    identity.ensure(&other).await?;
    iam.put_role_policy().role_name(tenant.role()).policy_name("more").policy_document(ANYTHING).send().await?;
    let admin = "arn:aws:iam::aws:policy/AdministratorAccess";
    iam.attach_role_policy().role_name(tenant.role()).policy_arn(admin).send().await?;
    identity.remove(&tenant).await?;
    ensure!(identity.inspect(&tenant).await? == Inspection::Absent);
    identity.remove(&tenant).await.context("removing what is gone")?;
    ensure!(identity.inspect(&other).await? == Inspection::Present);
    Ok(identity.remove(&other).await?)
}
