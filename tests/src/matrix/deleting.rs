//! The faults of delete-tenant. Beyond the point of no return a tenant is gone, or somebody is told; and the machine, started again,
//! does away with what is left.

use anyhow::{Context, Result, ensure};
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_sfn::types::ExecutionStatus;
use serde_json::json;
use tenantry_core::certificate;
use tenantry_core::registry::holds::{self, State};
use tenantry_core::tenant::{Status, Tenant};
use tenantry_local::proxy::System;

use super::in_service::{of, publish};
use super::leaving::{tenant, whereabouts};
use super::{Because, Fault, Line, Site, only, run_with, site, told, when};
use crate::deletion::{condemn, pinned};
use crate::machine::Outcome;
use crate::world::World;

use System::{Aws, Kubernetes, Postgres, Stripe};

pub(super) const MACHINE: &str = "delete-tenant";

const fn delete_in(state: &'static str, system: System, function: &'static str, holds: &'static str) -> Site {
    of(MACHINE, only("shared", site(state, system, function, holds)))
}

/// Every state of the machine, with the call that makes its effect. Where there is no CDN, InvalidateCache only says that it was
/// there; what Redis holds goes by a call that nothing stands in front of, after the registry's own counts.
pub(super) static SITES: &[Site] = &[
    delete_in("BeginDeletion", Postgres, "begin-deletion", "SET state = 'deleting'"),
    delete_in("CountTenant", Postgres, "count-tenant", "SET counts = $2"),
    delete_in("RetireAccess", Aws, "retire-access", "DELETE /clusters/"),
    only("schema", delete_in("RetireAccess", Postgres, "retire-access", "NOLOGIN")),
    delete_in("RemoveDnsRecord", Aws, "remove-dns-record", "<Action>DELETE"),
    delete_in("InvalidateCache", Postgres, "invalidate-cache", "INSERT INTO step_journal"),
    delete_in("RemoveNamespace", Kubernetes, "", "DELETE /api/v1/namespaces/"),
    delete_in("RemoveQueue", Aws, "remove-queue", "AmazonSQS.DeleteQueue"),
    delete_in("DrainBucket", Aws, "drain-bucket", "POST /tenant-"),
    delete_in("RemoveBucket", Aws, "remove-bucket", "DELETE /tenant-"),
    delete_in("RemoveDatabase", Postgres, "remove-database", "DELETE FROM pool.tenants"),
    only("schema", delete_in("RemoveDatabase", Postgres, "remove-database", "DROP SCHEMA")),
    only("database", delete_in("RemoveDatabase", Aws, "remove-database", "Action=DeleteDBInstance")),
    delete_in("AskDownstream", Postgres, "ask-downstream", "SET downstream_asked_at"),
    delete_in("AwaitDownstream", Postgres, "await-downstream", "downstream_asked_at IS NOT NULL"),
    delete_in("RemoveConfig", Aws, "remove-config", "DynamoDB_20120810.BatchWriteItem"),
    delete_in("RemoveIdentity", Aws, "remove-identity", "Action=DeleteRole&"),
    delete_in("ForgetUsage", Postgres, "forget-usage", "DELETE FROM usage_cycles"),
    delete_in("ForgetBilling", Stripe, "forget-billing", "DELETE /v1/customers/"),
    delete_in("EraseContacts", Postgres, "erase-contacts", "DELETE FROM contacts"),
    delete_in("ScanTenant", Postgres, "scan-tenant", "SET scan = $2"),
    delete_in("SignCertificate", Aws, "sign-certificate", "PUT /"),
    delete_in("CloseDeletion", Postgres, "close-deletion", "SET status = 'deprovisioned'"),
    publish(MACHINE),
    when(Because::Fails("CountTenant"), delete_in("FlagTenant", Postgres, "flag-tenant", "needs_operator = $5")),
];

pub(super) async fn delete(world: &World, tenant: &Tenant) -> Result<Outcome> {
    world.run_machine("DeleteTenantMachine", &json!({"tenant_id": tenant.id})).await
}

/// What the call needs that is to fail.
async fn furnished(world: &World, site: &Site, tenant: &Tenant, marked: &mut Vec<Vec<u8>>) -> Result<()> {
    match (site.state, site.target.system) {
        ("DrainBucket", _) => {
            let put = world.s3().put_object().bucket(tenant.bucket()).key("one").body(ByteStream::from_static(b"one"));
            put.send().await?;
        }
        ("RetireAccess", Aws) => {
            let eks = aws_sdk_eks::Client::new(&world.env.aws);
            let list = eks.list_pod_identity_associations().cluster_name(world.env.required("EKS_CLUSTER")?);
            let listed = list.namespace(tenant.namespace()).send().await?;
            let id = listed.associations().first().and_then(|one| one.association_id()).context("no association")?;
            marked.push(id.as_bytes().to_vec());
        }
        _ => {}
    }
    Ok(())
}

pub(super) async fn one(world: &World, site: &Site, fault: Fault, line: &mut Line) -> Result<()> {
    let (tenant, mut marked) = tenant(world, line.isolation).await?;
    line.tenant = Some(tenant.clone());
    furnished(world, site, &tenant, &mut marked).await?;
    condemn(world, &tenant).await?;
    let (outcome, recovered) = run_with(world, site, fault, (&tenant, marked), delete(world, &tenant)).await?;
    line.outcome = whereabouts(world, &tenant).await?;

    let expected: &[&str] = match (site.state, fault) {
        _ if recovered => &["deprovisioned"],
        ("PublishEvents", _) => &["deprovisioned"],
        ("FlagTenant", _) | (_, Fault::BeforeEffect) => &["deleting, flagged"],
        (_, Fault::AnswerLost) => &["deprovisioned", "deleting, flagged"],
        _ => &["deprovisioned"],
    };
    ensure!(expected.contains(&line.outcome.as_str()), "ends {}, not {expected:?}: {}", line.outcome, told(&outcome));
    let succeeds = line.outcome == "deprovisioned" && !recovered;
    let ends = if succeeds { ExecutionStatus::Succeeded } else { ExecutionStatus::Failed };
    ensure!(outcome.status == ends, "ends {}: {}", line.outcome, told(&outcome));
    if recovered {
        line.outcome += ", recovered by the rule";
    } else if !succeeds {
        delete(world, &tenant).await?.succeeded()?;
        line.outcome += ", then deprovisioned";
    }
    gone(world, &tenant).await
}

/// The registry says so, nobody has the tenant, and its certificate is where certificates are kept.
pub(super) async fn gone(world: &World, tenant: &Tenant) -> Result<()> {
    let record = world.record(tenant.slug.as_str()).await?;
    ensure!(record.tenant.status == Status::Deprovisioned, "it is {}", record.tenant.status);
    ensure!(record.execution.is_none() && record.needs_operator.is_none(), "{record:?}");
    let registry = world.registry().await?;
    let hold = holds::latest(&registry, tenant.id).await?.context("no hold")?;
    ensure!(hold.state == State::Deleted, "{hold:?}");
    let sql = "SELECT count(*) FROM outbox WHERE tenant_id = $1 AND type = 'tenant.deleted'";
    let events: i64 = registry.query_one(sql, &[&tenant.id.0]).await?.get(0);
    ensure!(events == 1, "{events} events of one deletion");
    let bucket = world.outputs.get("CertificatesBucketName").context("no bucket")?;
    let kept = world.s3().get_object().bucket(bucket).key(format!("{}.json", tenant.id)).send().await?;
    let kept = String::from_utf8(kept.body.collect().await?.to_vec())?;
    let certified = certificate::verify(&kept, &pinned(world).await?)?;
    ensure!(certified.tenant_id == tenant.id.0, "it certifies another: {certified:?}");
    Ok(())
}
