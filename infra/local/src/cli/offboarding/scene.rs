//! The stack and its tenants, as the demonstration of leaving sees and uses them: with the product's own means, and with
//! operators'.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use aws_config::SdkConfig;
use aws_sdk_sfn::types::ExecutionStatus;
use serde_json::{Value, json};
use tenant_gate::Gate;
use tenantry_core::registry::{self, Selector};
use tenantry_core::tenant::{Isolation, Tenant};
use tokio_postgres::{Client, NoTls};

use super::super::gate::{expect, gate_of, invoke, log_in};
use crate::evidence::own_login;
use crate::execution::Following;
use crate::inventory::{Inventory, connect};
use crate::progress::Progress;
use crate::stack::{BASE_DOMAIN, Stack};
use crate::{emulator, execution};

/// The objects of each tenant.
pub(super) const OBJECTS: &[&str] = &["logo.svg", "reports/2026-10.pdf", "reports/2026-11.pdf"];
/// The projects that are written at a time.
const PROJECTS: i32 = 40;
const CONTENT: &str = "what a tenant uploads\n";

/// A stack, and the ways into it.
pub(super) struct Scene<'a> {
    pub(super) stack: &'a Stack,
    pub(super) root: &'a Path,
    pub(super) progress: &'a Progress,
    pub(super) aws: SdkConfig,
    pub(super) exports: HashMap<String, String>,
    pub(super) registry: Client,
    gate: Gate,
}

/// A tenant of the demonstration.
pub(super) struct Member {
    tenant: Tenant,
}

impl Member {
    pub(super) fn slug(&self) -> &str {
        self.tenant.slug.as_str()
    }

    pub(super) fn id(&self) -> String {
        self.tenant.id.to_string()
    }

    /// Writes projects in a session of the product's, and returns how many.
    pub(super) async fn write(&self, session: &Client) -> Result<i64, tokio_postgres::Error> {
        let names = "SELECT 'project ' || n FROM generate_series(1, $1::int) AS n";
        let sql = match self.tenant.isolation {
            Isolation::Shared => format!(
                "INSERT INTO pool.projects (tenant_id, name) SELECT pool.current_tenant(), names.* FROM ({names}) AS names"
            ),
            Isolation::Schema | Isolation::Database => format!("INSERT INTO projects (name) {names}"),
        };
        let rows = session.execute(&sql, &[&PROJECTS]).await?;
        Ok(i64::try_from(rows).unwrap_or_default())
    }
}

impl<'a> Scene<'a> {
    pub(super) async fn open(stack: &'a Stack, root: &'a Path, progress: &'a Progress) -> Result<Self> {
        let (aws, exports) = (stack.aws_config(), stack.exports());
        let registry = connect(exports.get("REGISTRY_DATABASE_URL").context("no REGISTRY_DATABASE_URL")?).await?;
        let gate = gate_of(&exports)?;
        Ok(Scene { stack, root, progress, aws, exports, registry, gate })
    }

    pub(super) fn export(&self, name: &str) -> Result<&str> {
        self.exports.get(name).map(String::as_str).with_context(|| format!("no {name}"))
    }

    /// A file of `events/`.
    pub(super) fn input(&self, file: &str) -> Result<Value> {
        let text = std::fs::read_to_string(self.root.join(file)).with_context(|| file.to_owned())?;
        serde_json::from_str(&text).with_context(|| format!("{file} is not JSON"))
    }

    /// Starts a machine with a file's JSON, to be followed.
    pub(super) async fn begin(&self, machine: &str, file: &str) -> Result<Following> {
        let input = self.input(file)?;
        super::super::begin(&self.aws, self.stack.output(machine)?, &input, file, self.progress).await
    }

    /// Provisions a tenant without telling each step, and gives it something to lose.
    pub(super) async fn signs_up(&self, file: &str) -> Result<Member> {
        let input = self.input(file)?;
        let slug = input["slug"].as_str().with_context(|| format!("{file} has no slug"))?;
        let told = self.progress.begin(slug);
        let arn = execution::start(&self.aws, self.stack.output("ProvisionTenantMachine")?, &input).await?;
        let outcome = execution::follow(&self.aws, &arn, &Progress::Silent).await?;
        if outcome.status != ExecutionStatus::Succeeded {
            bail!("{file} was not provisioned: {}: {}", outcome.error, execution::message(&outcome.cause));
        }
        let tenant = registry::read(&self.registry, &Selector::Slug(slug.to_owned())).await?.tenant;
        let note = format!("{}, isolation {}", tenant.plan, tenant.isolation);
        let member = Member { tenant };
        for key in OBJECTS {
            self.uploads(&member, key).await?;
        }
        told.done(&note);
        Ok(member)
    }

    /// A session as the product has it: with the tenant's own login, or as the application in the tenant's context.
    pub(super) async fn session(&self, member: &Member) -> Result<Client> {
        if member.tenant.isolation == Isolation::Shared {
            let client = log_in(self.export("APP_DATABASE_URL")?.to_owned())
                .await
                .map_err(|error| anyhow::anyhow!("{error}"))?;
            client.execute("SELECT set_config('app.current_tenant_id', $1, false)", &[&member.id()]).await?;
            return Ok(client);
        }
        let (client, connection) = own_login(&self.aws, &member.id()).await?.connect(NoTls).await.map_err(words)?;
        tokio::spawn(connection);
        Ok(client)
    }

    async fn ask_for_upload(&self, member: &Member, key: &str) -> Result<Value> {
        invoke(&self.aws, "issue-upload", &json!({ "slug": member.slug(), "key": key, "bytes": CONTENT.len() })).await
    }

    /// Puts an object as the product's browser does: with a URL that was signed for it.
    pub(super) async fn uploads(&self, member: &Member, key: &str) -> Result<()> {
        let answer = self.ask_for_upload(member, key).await?;
        ensure!(answer["granted"] == true, "no upload for {}: {answer}", member.slug());
        let mut put = reqwest::Client::new().put(answer["upload"]["url"].as_str().context("no URL")?).body(CONTENT);
        for (name, value) in answer["upload"]["headers"].as_object().into_iter().flatten() {
            // The client names the length by itself.
            if !name.eq_ignore_ascii_case("content-length") {
                put = put.header(name, value.as_str().unwrap_or_default());
            }
        }
        // Without the URL, which is a secret while it works.
        let put = put.send().await.and_then(reqwest::Response::error_for_status);
        put.map(drop).map_err(|error| error.without_url().into())
    }

    /// Nobody gets a URL to put an object with, and S3 was told to take none by those that were given out before.
    pub(super) async fn refuses_uploads(&self, member: &Member) -> Result<()> {
        let answer = self.ask_for_upload(member, "late.pdf").await?;
        ensure!(answer["granted"] == false, "an upload was granted to {}", member.slug());
        self.progress.say(&format!("  {:<14} issue-upload: {}, {}", "S3", answer["status"], answer["detail"]));
        let policy = emulator::s3(&self.aws).get_bucket_policy().bucket(member.tenant.bucket()).send().await?;
        let policy: Value = serde_json::from_str(policy.policy().unwrap_or_default())?;
        let denies = |one: &&Value| {
            let actions = one["Action"].as_array().into_iter().flatten();
            let put = actions.into_iter().any(|action| action == "s3:PutObject");
            one["Effect"] == "Deny" && one["Principal"] == "*" && one["Condition"].is_null() && put
        };
        let denial = policy["Statement"].as_array().into_iter().flatten().find(denies);
        let denial = denial.with_context(|| format!("the bucket of {} takes objects: {policy}", member.slug()))?;
        // What can be shown here is what S3 was told.
        self.progress.say(&format!(
            "  {:<14} URLs signed before: the bucket's policy, which the emulator keeps and S3 enforces, has {}: Deny s3:PutObject to {}",
            "S3",
            denial["Sid"].as_str().unwrap_or_default(),
            denial["Principal"]
        ));
        Ok(())
    }

    /// Makes a call of the product's, and fails when the gate answers otherwise.
    pub(super) async fn is_answered(&self, member: &Member, status: u16) -> Result<()> {
        expect(&self.gate, &format!("{}.{BASE_DOMAIN}", member.slug()), status, self.progress).await
    }

    /// When the tenant's hold ends, as the registry has it.
    pub(super) async fn hold(&self, member: &Member) -> Result<String> {
        let sql = "SELECT to_char(expires_at AT TIME ZONE 'UTC', 'HH24:MI:SS \"UTC\"') FROM holds
                   WHERE tenant_id = $1 AND state = 'held'";
        let row = self.registry.query_opt(sql, &[&member.tenant.id.0]).await?;
        Ok(row.with_context(|| format!("{} has no hold", member.slug()))?.get(0))
    }

    /// Whether Stripe has a live subscription of the tenant's.
    pub(super) async fn is_billed(&self, member: &Member, expected: bool) -> Result<()> {
        let variables = self.stack.function_variables();
        let inventory = Inventory { aws: self.aws.clone(), exports: self.exports.clone(), variables };
        let all = inventory.stripe("/v1/subscriptions?limit=100000").await?;
        let ours = |one: &&Value| one["metadata"]["tenantry-tenant-id"] == member.id().as_str();
        let live = all["data"].as_array().into_iter().flatten().filter(ours).filter(|one| one["status"] == "active");
        let live = live.count();
        self.progress.say(&format!("  {:<14} {live} live subscriptions", "Stripe"));
        ensure!(live == usize::from(expected), "{} has {live} live subscriptions", member.slug());
        Ok(())
    }
}

/// What PostgreSQL says to a statement or a login that it refuses.
pub(super) fn words(error: tokio_postgres::Error) -> anyhow::Error {
    match error.as_db_error() {
        Some(said) => anyhow::anyhow!("{} {}: {}", said.severity(), said.code().code(), said.message()),
        None => error.into(),
    }
}
