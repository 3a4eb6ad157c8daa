//! What functions call on AWS, seen as it is called, against what their roles in the template allow. The emulator enforces
//! no IAM: a permission that is missing would only show on AWS, and one that nothing uses would never show.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use tenantry_core::dns_check::DnsCheck;
use tenantry_core::mail::Mail;
use tenantry_core::migrations::custom_resource::ApplyMigrations;
use tenantry_core::postgres::Database;
use tenantry_core::registry::contacts::Contact;
use tenantry_core::registry::notices::{Level, Notice};
use tenantry_core::registry::plans;
use tenantry_core::resource::billing::Billing;
use tenantry_core::resource::billing::price::BillingPrice;
use tenantry_core::resource::bucket::Bucket;
use tenantry_core::resource::bucket::objects::Objects;
use tenantry_core::resource::bucket::plan::BucketLifecycle;
use tenantry_core::resource::database::TenantDatabase;
use tenantry_core::resource::dns::DnsRecord;
use tenantry_core::resource::identity::Identity;
use tenantry_core::resource::invite::Invite;
use tenantry_core::resource::queue::Queue;
use tenantry_core::resource::tenant_config::{PlanConfig, TenantConfig};
use tenantry_core::resource::{self, Freezable, Resource};
use tenantry_core::step::{Action, Step};
use tenantry_core::steps::coming_back::{CancelHold, StopWaiting};
use tenantry_core::steps::compensation::ReleaseTenant;
use tenantry_core::steps::deletion::access::RetireAccess;
use tenantry_core::steps::deletion::begin::BeginDeletion;
use tenantry_core::steps::deletion::cache::InvalidateCache;
use tenantry_core::steps::deletion::certificate::SignCertificate;
use tenantry_core::steps::deletion::downstream::AskDownstream;
use tenantry_core::steps::deletion::drain::DrainBucket;
use tenantry_core::steps::deletion::forget::ForgetBilling;
use tenantry_core::steps::deletion::scan::{CountTenant, ScanTenant};
use tenantry_core::steps::deletion::{Deleting, Removal};
use tenantry_core::steps::explain::ExplainTenant;
use tenantry_core::steps::follow_billing::FollowBilling;
use tenantry_core::steps::offboarding::BeginOffboarding;
use tenantry_core::steps::plan_change::BeginPlanChange;
use tenantry_core::steps::provisioning::BeginProvisioning;
use tenantry_core::steps::publish::PublishEvents;
use tenantry_core::steps::recovery::{RecoverExecution, SweepTenants};
use tenantry_core::steps::signup::ValidateRequest;
use tenantry_core::steps::welcome::WelcomeEmail;
use tenantry_core::tenant::{Metered, Plan, Status, Tenant};
use time::OffsetDateTime;
use tokio::time::sleep;
use tracing::field::{Field, Visit};
use tracing::instrument::WithSubscriber;
use tracing::span::{Attributes, Id};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::{Context as Of, SubscriberExt};
use uuid::Uuid;

use crate::contract::permissions::allowed;
use crate::contract::{Contract, repository};
use crate::deletion::{begun_by_nobody, waive};
use crate::identity::loosen;
use crate::machine::sign_up;
use crate::registry::registered;
use crate::suspension::in_service;
use crate::tenant_config::update;
use crate::world::{Case, World};

/// Longer than a recovery takes: reaching it means that none comes.
const PATIENCE: Duration = Duration::from_secs(60);

pub const CASES: &[(&str, Case)] =
    &[("functions_call_what_their_roles_allow_and_roles_allow_no_more", |world| Box::pin(compared(world)))];

/// What roles allow and this test cannot see being used.
const UNSEEN: &[(&str, &str)] = &[
    // What Lambda and X-Ray do for a function.
    ("*", "logs:CreateLogStream"),
    ("*", "logs:PutLogEvents"),
    ("*", "xray:PutTelemetryRecords"),
    ("*", "xray:PutTraceSegments"),
    ("*", "ec2:AssignPrivateIpAddresses"),
    ("*", "ec2:CreateNetworkInterface"),
    ("*", "ec2:DeleteNetworkInterface"),
    ("*", "ec2:DescribeNetworkInterfaces"),
    ("*", "ec2:DescribeSubnets"),
    ("*", "ec2:UnassignPrivateIpAddresses"),
    // Every step reads the registry's login, which the resources called here by themselves do not.
    ("*", "secretsmanager:GetSecretValue"),
    // The local cluster is not EKS's.
    ("CreateNamespaceFunction", "eks:DescribeCluster"),
    ("ApplyNamespaceLimitsFunction", "eks:DescribeCluster"),
    ("RemoveNamespaceFunction", "eks:DescribeCluster"),
    ("ReleaseTenantFunction", "eks:DescribeCluster"),
    ("ExplainTenantFunction", "eks:DescribeCluster"),
    ("FreezeTenantFunction", "eks:DescribeCluster"),
    ("ThawTenantFunction", "eks:DescribeCluster"),
    ("VerifyTenantFunction", "eks:DescribeCluster"),
    // It looks at everybody's holds: the case of the sweep, which runs alone, looks at its calls.
    ("SweepHoldsFunction", "states:DescribeExecution"),
    ("SweepHoldsFunction", "states:StartExecution"),
    ("SweepHoldsFunction", "ses:SendEmail"),
    ("CountTenantFunction", "eks:DescribeCluster"),
    ("ScanTenantFunction", "eks:DescribeCluster"),
    // Where a function's failures go is written to by Lambda, with the function's role.
    ("RecoverExecutionFunction", "sqs:SendMessage"),
    ("ConfirmDeletionFunction", "sqs:SendMessage"),
    // New buckets of the emulator are encrypted, as those of S3 are: this mends one that is not any more.
    ("CreateBucketFunction", "s3:PutEncryptionConfiguration"),
    // A secret that was scheduled for deletion, or whose password no longer logs in.
    ("CreateDatabaseFunction", "secretsmanager:PutSecretValue"),
    ("CreateDatabaseFunction", "secretsmanager:RestoreSecret"),
    // What somebody downloads is signed with the role, and read by them.
    ("DownloadExportFunction", "s3:GetObject"),
    // The stack names its own name server instead.
    ("VerifyDnsRecordFunction", "route53:GetHostedZone"),
];

/// Calls that IAM asks for by another name, and what it asks for besides.
const NAMED_OTHERWISE: &[(&str, &[&str])] = &[
    ("s3:CreateBucket", &["s3:CreateBucket", "s3:TagResource", "s3:PutBucketOwnershipControls"]),
    ("s3:GetBucketEncryption", &["s3:GetEncryptionConfiguration"]),
    ("s3:GetBucketLifecycleConfiguration", &["s3:GetLifecycleConfiguration"]),
    ("s3:GetBucketNotificationConfiguration", &["s3:GetBucketNotification"]),
    ("s3:PutBucketNotificationConfiguration", &["s3:PutBucketNotification"]),
    ("s3:GetPublicAccessBlock", &["s3:GetBucketPublicAccessBlock"]),
    ("s3:CreateMultipartUpload", &["s3:PutObject"]),
    ("s3:UploadPart", &["s3:PutObject"]),
    ("s3:CompleteMultipartUpload", &["s3:PutObject"]),
    ("s3:HeadObject", &["s3:GetObject"]),
    ("s3:ListObjectsV2", &["s3:ListBucket"]),
    ("s3:DeleteObjects", &["s3:DeleteObject", "s3:DeleteObjectVersion"]),
    ("s3:HeadBucket", &["s3:ListBucket"]),
    ("s3:ListBuckets", &["s3:ListAllMyBuckets"]),
    ("s3:ListMultipartUploads", &["s3:ListBucketMultipartUploads"]),
    ("s3:ListObjectVersions", &["s3:ListBucketVersions"]),
    ("s3:PutBucketEncryption", &["s3:PutEncryptionConfiguration"]),
    ("s3:PutBucketLifecycleConfiguration", &["s3:PutLifecycleConfiguration"]),
    ("s3:PutPublicAccessBlock", &["s3:PutBucketPublicAccessBlock"]),
    ("iam:CreateRole", &["iam:CreateRole", "iam:TagRole"]),
    ("eks:CreatePodIdentityAssociation", &["eks:CreatePodIdentityAssociation", "eks:TagResource", "iam:PassRole"]),
    ("rds:CreateDBInstance", &["rds:CreateDBInstance", "rds:AddTagsToResource"]),
    ("sqs:CreateQueue", &["sqs:CreateQueue", "sqs:TagQueue"]),
    ("secretsmanager:CreateSecret", &["secretsmanager:CreateSecret", "secretsmanager:TagResource"]),
];

async fn compared(world: &World) -> Result<()> {
    let contract = Contract::read(&repository())?;
    let seen = Box::pin(seen(world)).await?;
    let unknown = BTreeSet::new();
    let mut broken = Vec::new();
    for function in contract.functions() {
        let allowed = allowed(&contract, function);
        let calls = seen.get(function).unwrap_or(&unknown);
        broken
            .extend(calls.difference(&allowed).map(|call| format!("{function} calls {call}, which its role refuses")));
        let unseen = |action: &str| UNSEEN.iter().any(|(of, named)| [function, "*"].contains(of) && *named == action);
        let idle = allowed.difference(calls).filter(|action| !unseen(action));
        broken.extend(idle.map(|action| format!("{function}'s role allows {action}, which it was not seen to call")));
    }
    ensure!(broken.is_empty(), "{}", broken.join("\n"));
    Ok(())
}

/// What each function with clients of its own was seen to call: making a tenant's things, finding them made, mending them.
async fn seen(world: &World) -> Result<BTreeMap<&'static str, BTreeSet<String>>> {
    let env = &world.env;
    let registry = world.registry().await?;
    let tenant = &registered(world, &mut world.registry().await?, Plan::Growth, true).await?.tenant;
    let by_hand = json!({"tenant_id": tenant.id, "execution": "manual:test"});
    let mut seen = BTreeMap::new();

    // An instance of its own is counted.
    let request = sign_up(&world.fresh_slug("calls"), "enterprise");
    seen.insert("ValidateRequestFunction", calls(run(&ValidateRequest::from_env(env)?, &request)).await?);
    seen.insert(
        "ApplyMigrationsFunction",
        calls(run(&ApplyMigrations::from_env(env)?, &json!({"RequestType": "Update"}))).await?,
    );

    let (database, identity, bucket) =
        (TenantDatabase::from_env(env)?, Identity::from_env(env)?, Bucket::from_env(env)?);
    let own_server = &dedicated(world).await?;
    let mut made = calls(ensured_twice(&database, tenant)).await?;
    made.extend(calls(ensured_twice(&database, own_server)).await?);
    unprotect(world, own_server, true).await?;
    made.extend(calls(ensured_twice(&database, own_server)).await?);
    seen.insert("CreateDatabaseFunction", made);
    let queue = Queue::from_env(env);
    seen.insert("CreateQueueFunction", calls(ensured_twice(&queue, tenant)).await?);
    let (billing, invite) = (Billing::from_env(env)?, Invite::from_env(env)?);
    seen.insert("ConfigureBillingFunction", calls(ensured_twice(&billing, tenant)).await?);
    seen.insert("FollowBillingFunction", calls(run(&FollowBilling::from_env(env)?, &by_hand)).await?);
    seen.insert("InviteAdminFunction", calls(ensured_twice(&invite, tenant)).await?);
    seen.insert("CreateBucketFunction", calls(ensured_twice(&bucket, tenant)).await?);
    let mut made = calls(ensured_twice(&identity, tenant)).await?;
    loosen(&aws_sdk_iam::Client::new(&env.aws), &tenant.role()).await?;
    made.extend(calls(ensured_twice(&identity, tenant)).await?);
    disassociate(world, tenant).await?;
    made.extend(calls(ensured_twice(&identity, tenant)).await?);
    seen.insert("CreateIdentityFunction", made);
    let dns = DnsRecord::from_env(env)?;
    seen.insert("CreateDnsRecordFunction", calls(ensured_twice(&dns, tenant)).await?);
    dns.remove(tenant).await?;
    let change = dns.ensure(tenant).await?;
    let check = DnsCheck::from_env(env)?;
    let verified = async { Ok(check.check(tenant, change["change_id"].as_str()).await?) };
    seen.insert("VerifyDnsRecordFunction", calls(verified).await?);
    let config = TenantConfig::from_env(env)?;
    let mut made = calls(ensured_twice(&config, tenant)).await?;
    update(world, tenant, "flags", "REMOVE #values.sso", None).await?;
    made.extend(calls(ensured_twice(&config, tenant)).await?);
    seen.insert("SeedConfigFunction", made);

    // As on another plan, and where an item is gone.
    let registry_database = Database::registry(env)?;
    let acted = async |action: &dyn Action, tenant: &Tenant| {
        action.act(tenant, &registry_database).await?;
        anyhow::Ok(())
    };
    let mut other = tenant.clone();
    (other.quotas.infrequent_access_days, other.quotas.flags["sso"]) = (None, false.into());
    let lifecycle = BucketLifecycle::from_env(env)?;
    seen.insert("ApplyBucketLifecycleFunction", calls(acted(&lifecycle, &other)).await?);
    acted(&lifecycle, tenant).await?;
    let plan_config = PlanConfig(TenantConfig::from_env(env)?);
    let mut followed = calls(acted(&plan_config, &other)).await?;
    acted(&plan_config, tenant).await?;
    config.remove(tenant).await?;
    followed.extend(calls(acted(&plan_config, tenant)).await?);
    seen.insert("ApplyPlanConfigFunction", followed);
    let price = BillingPrice::from_env(env)?;
    seen.insert("ApplyBillingPriceFunction", calls(acted(&price, tenant)).await?);

    let frozen = |tenant: &Tenant| Tenant { frozen: true, ..tenant.clone() };
    for (function, tenant, own_server) in [
        ("FreezeTenantFunction", frozen(tenant), frozen(own_server)),
        ("ThawTenantFunction", tenant.clone(), own_server.clone()),
    ] {
        let settled = async {
            for resource in [&database as &dyn Freezable, &bucket, &queue] {
                resource.settle(&tenant).await?;
            }
            Ok(database.settle(&own_server).await?)
        };
        seen.insert(function, Box::pin(calls(settled)).await?);
    }
    let looked = async {
        for resource in resource::all(env)? {
            resource.inspect(tenant).await?;
            resource.inspect(own_server).await?;
        }
        Ok(())
    };
    seen.insert("VerifyTenantFunction", Box::pin(calls(looked)).await?);
    Box::pin(leave_and_return(world, &mut seen)).await?;

    let (welcome, registry_database) = (WelcomeEmail::from_env(env)?, Database::registry(env)?);
    let welcome = async { Ok(welcome.act(tenant, &registry_database).await?) };
    seen.insert("SendWelcomeEmailFunction", Box::pin(calls(welcome)).await?);
    let notice = Notice {
        tenant: tenant.id,
        resource: Metered::ApiCalls,
        level: Level::Warning,
        used: 80,
        quota: 100,
        cycle_start: OffsetDateTime::now_utc(),
    };
    let (mail, owner) = (Mail::from_env(env)?, Contact { name: "Ada".into(), email: "ada@acme.example".into() });
    let told = async { Ok(mail.send_quota_notice(tenant, &owner, &notice).await?) };
    seen.insert("ReconcileGateFunction", Box::pin(calls(told)).await?);
    let objects = Objects::from_env(env)?;
    let signed = async { Ok(objects.presign(tenant, "object", 1, None, Duration::from_secs(60)).await?) };
    seen.insert("IssueUploadFunction", Box::pin(calls(signed)).await?);
    let asked = async { Ok(objects.of_key(tenant, "object").await?) };
    seen.insert("SettleUploadFunction", calls(asked).await?);
    let listed = async { Ok(objects.after(tenant, None, tokio::time::Instant::now()).await?) };
    seen.insert("ReconcileStorageFunction", calls(listed).await?);
    let event = "INSERT INTO outbox (id, tenant_id, version, type, occurred_at, detail)
                 VALUES (gen_random_uuid(), $1, 1000, 'tenant.test', now(), '{}')";
    registry.execute(event, &[&tenant.id.0]).await?;
    seen.insert("PublishEventsFunction", calls(run(&PublishEvents::from_env(env)?, &by_hand)).await?);

    for (function, made) in crate::export::calls_of_an_export(world).await? {
        seen.insert(function, made);
    }

    // Released too early, it finds everything; then the undos remove it.
    let held = "UPDATE tenants SET status = 'provisioning', execution = $2, execution_since = now() WHERE id = $1";
    let early = execution("early");
    registry.execute(held, &[&tenant.id.0, &early]).await?;
    let release = json!({"tenant_id": tenant.id, "execution": early});
    let explain = ExplainTenant::from_env(env)?;
    let mut asked = Box::pin(calls(run(&explain, &by_hand))).await?;
    asked.extend(Box::pin(calls(run(&explain, &json!({"tenant_id": own_server.id})))).await?);
    seen.insert("ExplainTenantFunction", asked);
    let mut asked = Box::pin(calls(run(&ReleaseTenant::from_env(env)?, &release))).await?;
    registry.execute(held, &[&own_server.id.0, &early]).await?;
    let release = json!({"tenant_id": own_server.id, "execution": early});
    asked.extend(Box::pin(calls(run(&ReleaseTenant::from_env(env)?, &release))).await?);
    seen.insert("ReleaseTenantFunction", asked);
    fill(&world.s3(), &tenant.bucket()).await?;
    Box::pin(deleted(world, own_server, &mut seen)).await?;
    loosen(&aws_sdk_iam::Client::new(&env.aws), &tenant.role()).await?;
    seen.insert("RemoveConfigFunction", calls(removed(&config, tenant)).await?);
    seen.insert("RemoveDnsRecordFunction", calls(removed(&dns, tenant)).await?);
    seen.insert("RemoveBucketFunction", calls(removed(&bucket, tenant)).await?);
    seen.insert("RemoveIdentityFunction", calls(removed(&identity, tenant)).await?);
    seen.insert("RemoveQueueFunction", calls(removed(&queue, tenant)).await?);
    seen.insert("CancelBillingFunction", calls(removed(&Billing::from_env(env)?, tenant)).await?);
    // The registry alone is asked: its login is read by every function.
    removed(&invite, tenant).await?;
    let mut gone = calls(removed(&database, tenant)).await?;
    snapshot(world, own_server).await?;
    gone.extend(calls(removed(&database, own_server)).await?);
    seen.insert("RemoveDatabaseFunction", gone);

    // A holder that Step Functions does not know is taken over; one that was stopped is recovered from.
    let (gone, next) = (execution("gone"), execution("next"));
    registry.execute(held, &[&tenant.id.0, &gone]).await?;
    let begin = json!({"tenant_id": tenant.id, "execution": next});
    let mut asked = calls(run(&BeginProvisioning::from_env(env)?, &begin)).await?;
    // One that begins is looked whether there is room for.
    let fresh = &dedicated(world).await?;
    let begin = json!({"tenant_id": fresh.id, "execution": execution("first")});
    asked.extend(calls(run(&BeginProvisioning::from_env(env)?, &begin)).await?);
    seen.insert("BeginProvisioningFunction", asked);
    let changed = &crate::suspension::in_service(world).await?;
    let (dead, heir) = (execution_of("change-plan", "gone"), execution_of("change-plan", "next"));
    let sql = "UPDATE tenants SET execution = $2, execution_since = now() WHERE id = $1";
    registry.execute(sql, &[&changed.id.0, &dead]).await?;
    let begin = json!({"request": {"tenant_id": changed.id, "plan": "growth"}, "execution": heir});
    seen.insert("BeginPlanChangeFunction", calls(run(&BeginPlanChange::from_env(env)?, &begin)).await?);
    plans::close(&mut world.registry().await?, changed.id, &heir).await?;
    let long_ago = "UPDATE tenants SET execution_since = now() - interval '10 minutes' WHERE id = $1";
    registry.execute(long_ago, &[&fresh.id.0]).await?;
    seen.insert("SweepTenantsFunction", calls(run(&SweepTenants::from_env(env)?, &json!({}))).await?);
    let stopped = json!({"detail": {"executionArn": next, "status": "ABORTED"}});
    seen.insert("RecoverExecutionFunction", calls(run(&RecoverExecution::from_env(env)?, &stopped)).await?);
    let begun = Instant::now();
    while world.record(tenant.slug.as_str()).await?.tenant.status != Status::Pending {
        ensure!(begun.elapsed() < PATIENCE, "nothing gave the tenant back");
        sleep(Duration::from_millis(200)).await;
    }
    Ok(seen)
}

/// What the steps ask of Step Functions that take a tenant, and stop what waits for its hold.
async fn leave_and_return(world: &World, seen: &mut BTreeMap<&'static str, BTreeSet<String>>) -> Result<()> {
    let (env, registry) = (&world.env, world.registry().await?);
    let tenant = in_service(world).await?;
    let held = "UPDATE tenants SET execution = $2, execution_since = now() WHERE id = $1";
    registry.execute(held, &[&tenant.id.0, &execution_of("offboard-tenant", "gone")]).await?;
    let leaving = json!({
        "request": {"tenant_id": tenant.id, "reason": "customer_request"},
        "execution": execution_of("offboard-tenant", "leaving"),
    });
    seen.insert("BeginOffboardingFunction", calls(run(&BeginOffboarding::from_env(env)?, &leaving)).await?);
    let returning =
        |execution: &str| json!({"request": {"tenant_id": tenant.id, "reason": "offboarding"}, "execution": execution});
    let cancel = CancelHold::from_env(env)?;
    run(&cancel, &returning(&execution_of("reactivate-tenant", "first"))).await?;
    let second = execution_of("reactivate-tenant", "second");
    seen.insert("CancelHoldFunction", calls(run(&cancel, &returning(&second))).await?);
    // One that runs: it waits for a tenant that nobody provisions.
    let busy = registered(world, &mut world.registry().await?, Plan::Starter, true).await?.tenant;
    let held = "UPDATE tenants SET status = 'provisioning', execution = $2, execution_since = now() WHERE id = $1";
    registry.execute(held, &[&busy.id.0, &execution("never")]).await?;
    let request = json!({"tenant_id": busy.id, "reason": "customer_request"});
    let waiting = world.start_machine("OffboardTenantMachine", &request).await?;
    registry.execute("UPDATE holds SET execution = $2 WHERE tenant_id = $1", &[&tenant.id.0, &waiting]).await?;
    // It was published, so that nobody waits for its functions.
    registry.execute("UPDATE holds SET expires_at = now() WHERE tenant_id = $1", &[&tenant.id.0]).await?;
    let stop = json!({"tenant_id": tenant.id, "execution": second});
    seen.insert("StopWaitingFunction", calls(run(&StopWaiting::from_env(env)?, &stop)).await?);
    let (mail, owner) = (Mail::from_env(env)?, Contact { name: "Ada".into(), email: "ada@acme.example".into() });
    let told = async { Ok(mail.send_farewell(&tenant, &owner, None, OffsetDateTime::now_utc()).await?) };
    seen.insert("NotifyOwnerFunction", Box::pin(calls(told)).await?);
    Ok(())
}

/// What the steps of a deletion were seen to call: a tenant with a server of its own, and something in every store.
async fn deleted(world: &World, tenant: &Tenant, seen: &mut BTreeMap<&'static str, BTreeSet<String>>) -> Result<()> {
    let cloudfront = aws_sdk_cloudfront::Client::new(&world.env.aws);
    let env = &world.env.clone().with("DISTRIBUTION_ID", &distribution(&cloudfront).await?);
    let (identity, bucket, queue) = (Identity::from_env(env)?, Bucket::from_env(env)?, Queue::from_env(env));
    for resource in [&identity as &dyn Resource, &bucket, &queue, &Billing::from_env(env)?] {
        resource.ensure(tenant).await?;
    }
    fill(&world.s3(), &tenant.bucket()).await?;
    // An export of it stays, because this is no erasure, and is asked until when.
    let part = world.s3().put_object().bucket(env.required("EXPORTS_BUCKET")?);
    part.key(format!("exports/{}/1/manifest.json", tenant.id)).body(b"{}".to_vec().into()).send().await?;
    let registry = world.registry().await?;
    for status in ["provisioning", "active", "suspended"] {
        let sql = "UPDATE tenants SET status = $2::text::tenant_status, execution = NULL, execution_since = NULL WHERE id = $1";
        registry.execute(sql, &[&tenant.id.0, &status]).await?;
    }
    waive(world, tenant).await?;
    let nobody = begun_by_nobody(world, tenant).await?;
    let next = nobody.replace(":delete-tenant:", ":delete-tenant:next-");
    let begin = json!({"request": {"tenant_id": tenant.id}, "execution": next});
    seen.insert("BeginDeletionFunction", calls(run(&BeginDeletion::from_env(env)?, &begin)).await?);
    let call = &json!({"tenant_id": tenant.id, "execution": next});
    let step = |removal: Box<dyn Removal>| async move {
        let step = Deleting::by(env, removal)?;
        Box::pin(calls(run(&*step, call))).await
    };
    seen.insert("CountTenantFunction", step(Box::new(CountTenant::from_env(env)?)).await?);
    seen.insert("ScanTenantFunction", step(Box::new(ScanTenant::from_env(env)?)).await?);
    seen.insert("RetireAccessFunction", step(Box::new(RetireAccess::from_env(env)?)).await?);
    seen.insert("InvalidateCacheFunction", step(Box::new(InvalidateCache::from_env(env)?)).await?);
    seen.insert("DrainBucketFunction", step(Box::new(DrainBucket::from_env(env)?)).await?);
    seen.insert("AskDownstreamFunction", step(Box::new(AskDownstream::from_env(env)?)).await?);
    seen.insert("ForgetBillingFunction", step(Box::new(ForgetBilling::from_env(env)?)).await?);
    // As if all were gone: what is certified is not what this test is about.
    registry.execute("UPDATE deletions SET clean = true WHERE tenant_id = $1", &[&tenant.id.0]).await?;
    seen.insert("SignCertificateFunction", step(Box::new(SignCertificate::from_env(env)?)).await?);
    for resource in [&identity as &dyn Resource, &bucket, &queue] {
        resource.remove(tenant).await?;
    }
    Ok(())
}

/// A distribution, and its id.
async fn distribution(cloudfront: &aws_sdk_cloudfront::Client) -> Result<String> {
    use aws_sdk_cloudfront::types::{
        DefaultCacheBehavior, DistributionConfig, Origin, Origins, S3OriginConfig, ViewerProtocolPolicy,
    };
    let plain = S3OriginConfig::builder().origin_access_identity("").build();
    let origin = Origin::builder().id("files").domain_name("files.s3.amazonaws.com").s3_origin_config(plain).build()?;
    let behavior = DefaultCacheBehavior::builder()
        .target_origin_id("files")
        .viewer_protocol_policy(ViewerProtocolPolicy::HttpsOnly)
        .build()?;
    let config = DistributionConfig::builder()
        .caller_reference(Uuid::new_v4().to_string())
        .comment("tenants' files")
        .enabled(true)
        .origins(Origins::builder().quantity(1).items(origin).build()?)
        .default_cache_behavior(behavior)
        .build()?;
    let made = cloudfront.create_distribution().distribution_config(config).send().await?;
    Ok(made.distribution.map(|made| made.id).unwrap_or_default())
}

/// A tenant that is to have a server of its own.
async fn dedicated(world: &World) -> Result<Tenant> {
    Ok(registered(world, &mut world.registry().await?, Plan::Enterprise, true).await?.tenant)
}

/// As somebody who means well in the console.
async fn unprotect(world: &World, tenant: &Tenant, lift: bool) -> Result<()> {
    let rds = aws_sdk_rds::Client::new(&world.env.aws);
    let modify = rds.modify_db_instance().db_instance_identifier(tenant.database_instance());
    modify.deletion_protection(!lift).apply_immediately(true).send().await?;
    Ok(())
}

async fn snapshot(world: &World, tenant: &Tenant) -> Result<()> {
    let rds = aws_sdk_rds::Client::new(&world.env.aws);
    let create = rds.create_db_snapshot().db_instance_identifier(tenant.database_instance());
    create.db_snapshot_identifier(format!("by-hand-{}", tenant.id)).send().await?;
    Ok(())
}

/// Gives the tenant's pods another role.
async fn disassociate(world: &World, tenant: &Tenant) -> Result<()> {
    let eks = aws_sdk_eks::Client::new(&world.env.aws);
    let cluster = world.env.required("EKS_CLUSTER")?;
    let list = eks.list_pod_identity_associations().cluster_name(&cluster).namespace(tenant.namespace());
    let listed = list.send().await?;
    let id = listed.associations().first().and_then(|one| one.association_id()).map(str::to_owned);
    let update = eks.update_pod_identity_association().cluster_name(&cluster).set_association_id(id);
    update.role_arn("arn:aws:iam::000000000000:role/another").send().await?;
    Ok(())
}

fn execution(name: &str) -> String {
    execution_of("provision-tenant", name)
}

/// An execution that Step Functions does not know.
fn execution_of(machine: &str, name: &str) -> String {
    format!("arn:aws:states:us-east-1:000000000000:execution:{machine}:{name}-{}", Uuid::new_v4())
}

pub async fn run(step: &dyn Step, input: &Value) -> Result<()> {
    step.run("test", input).await?;
    Ok(())
}

async fn ensured_twice(resource: &dyn Resource, tenant: &Tenant) -> Result<()> {
    resource.ensure(tenant).await?;
    resource.ensure(tenant).await?;
    Ok(())
}

async fn removed(resource: &dyn Resource, tenant: &Tenant) -> Result<()> {
    Ok(resource.remove(tenant).await?)
}

/// Two versions of an object, a marker that it was deleted, and an upload that was never completed.
async fn fill(s3: &aws_sdk_s3::Client, bucket: &str) -> Result<()> {
    for text in ["one", "two"] {
        let body = aws_sdk_s3::primitives::ByteStream::from_static(text.as_bytes());
        s3.put_object().bucket(bucket).key("object").body(body).send().await?;
    }
    s3.delete_object().bucket(bucket).key("object").send().await?;
    s3.create_multipart_upload().bucket(bucket).key("upload").send().await?;
    Ok(())
}

/// IAM's names of the AWS operations that a future calls, as the SDK's own spans name them.
pub async fn calls<T>(work: impl Future<Output = Result<T>>) -> Result<BTreeSet<String>> {
    let spans = Spans::default();
    work.with_subscriber(tracing_subscriber::registry().with(spans.clone())).await?;
    let spans = std::mem::take(&mut *spans.0.lock().unwrap_or_else(PoisonError::into_inner));
    ensure!(!spans.is_empty(), "nothing was called");
    Ok(spans.iter().flat_map(|call| actions(call)).collect())
}

/// What IAM asks for when an operation is called.
fn actions(call: &str) -> Vec<String> {
    match NAMED_OTHERWISE.iter().find(|(named, _)| *named == call) {
        Some((_, actions)) => actions.iter().map(|&action| action.to_owned()).collect(),
        None => vec![call.to_owned()],
    }
}

/// Collects the operations that spans of the AWS SDK name.
#[derive(Clone, Default)]
struct Spans(Arc<Mutex<BTreeSet<String>>>);

impl<S: tracing::Subscriber> Layer<S> for Spans {
    fn on_new_span(&self, attributes: &Attributes<'_>, _id: &Id, _context: Of<'_, S>) {
        let mut operation = Operation::default();
        attributes.record(&mut operation);
        if let Operation { service: Some(service), method: Some(method) } = operation {
            let prefix = match service.as_str() {
                "EventBridge" => "events",
                "Route 53" => "route53",
                "SESv2" => "ses",
                "SFN" => "states",
                "Secrets Manager" => "secretsmanager",
                other => &other.to_ascii_lowercase(),
            };
            self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(format!("{prefix}:{method}"));
        }
    }
}

#[derive(Default)]
struct Operation {
    service: Option<String>,
    method: Option<String>,
}

impl Visit for Operation {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "rpc.service" => self.service = Some(value.to_owned()),
            "rpc.method" => self.method = Some(value.to_owned()),
            _ => {}
        }
    }

    fn record_debug(&mut self, _field: &Field, _value: &dyn Debug) {}
}
