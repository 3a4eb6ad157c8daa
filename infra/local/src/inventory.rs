//! Everything that exists in the systems of a stack, by each system's own listing: to compare before and after, and to look
//! for what is left of a tenant. Nothing here uses the code that makes tenants.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use anyhow::{Context, Result};
use aws_config::SdkConfig;
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{Api, ListParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::Value;
use tokio_postgres::NoTls;
use tokio_postgres::error::SqlState;

use crate::emulator;

/// What exists, by system: names, and counts of rows where names would say too little.
pub type Snapshot = BTreeMap<&'static str, BTreeSet<String>>;

/// What PostgreSQL says of a table that is dropped.
const GONE: [SqlState; 2] = [SqlState::UNDEFINED_TABLE, SqlState::INVALID_SCHEMA_NAME];

/// The ways into the systems of a stack.
pub struct Inventory {
    /// Reaches the stack's AWS.
    pub aws: SdkConfig,
    /// What `make -s env` exports.
    pub exports: HashMap<String, String>,
    /// The functions' environment variables.
    pub variables: HashMap<String, String>,
}

impl Inventory {
    fn export(&self, name: &str) -> Result<&str> {
        self.exports.get(name).map(String::as_str).with_context(|| format!("no {name}"))
    }

    fn variable(&self, name: &str) -> Result<&str> {
        self.variables.get(name).map(String::as_str).with_context(|| format!("no function has {name}"))
    }

    async fn registry(&self) -> Result<tokio_postgres::Client> {
        connect(self.export("REGISTRY_DATABASE_URL")?).await
    }

    fn s3(&self) -> aws_sdk_s3::Client {
        emulator::s3(&self.aws)
    }

    /// Looks into every system that a tenant may own something in.
    ///
    /// # Errors
    /// When a system cannot be asked.
    pub async fn take(&self) -> Result<Snapshot> {
        Ok(BTreeMap::from([
            ("rows of PostgreSQL's tables", self.row_counts().await?),
            ("PostgreSQL schemas and roles", self.schemas_and_roles().await?),
            ("secrets", self.secrets().await?),
            ("buckets", self.buckets().await?),
            ("queues", self.queues().await?),
            ("RDS instances", self.instances().await?),
            ("databases and roles of tenants' own servers", self.dedicated().await?),
            ("IAM roles", self.roles().await?),
            ("Pod Identity associations", self.associations().await?),
            ("Stripe's customers and live subscriptions", self.billed().await?),
            ("namespaces", self.namespaces().await?),
            ("DNS records", self.records().await?),
            ("configuration items", self.config_items().await?),
            ("emails", emulator::mail(self.export("AWS_ENDPOINT_URL")?).await?.iter().map(Value::to_string).collect()),
        ]))
    }

    async fn row_counts(&self) -> Result<BTreeSet<String>> {
        let registry = self.registry().await?;
        let tables = registry
            .query("SELECT format('%I.%I', schemaname, tablename) FROM pg_tables WHERE schemaname <> ALL ('{pg_catalog,information_schema}')", &[])
            .await?;
        let mut counts = BTreeSet::new();
        for table in tables {
            let table: String = table.get(0);
            match registry.query_one(&format!("SELECT count(*) FROM {table}"), &[]).await {
                Ok(row) => counts.insert(format!("{table}: {}", row.get::<_, i64>(0))),
                // Dropped since it was listed, with another tenant's schema.
                Err(error) if error.code().is_some_and(|code| GONE.contains(code)) => continue,
                Err(error) => return Err(error).context(table),
            };
        }
        Ok(counts)
    }

    async fn schemas_and_roles(&self) -> Result<BTreeSet<String>> {
        let sql = "SELECT 'schema ' || nspname FROM pg_namespace WHERE nspname NOT LIKE 'pg\\_%'
                   UNION ALL SELECT 'role ' || rolname FROM pg_roles";
        Ok(self.registry().await?.query(sql, &[]).await?.iter().map(|row| row.get(0)).collect())
    }

    async fn secrets(&self) -> Result<BTreeSet<String>> {
        let client = aws_sdk_secretsmanager::Client::new(&self.aws);
        let mut pages = client.list_secrets().include_planned_deletion(true).into_paginator().send();
        let mut names = BTreeSet::new();
        while let Some(page) = pages.next().await {
            names.extend(page?.secret_list().iter().filter_map(|secret| secret.name().map(str::to_owned)));
        }
        Ok(names)
    }

    async fn buckets(&self) -> Result<BTreeSet<String>> {
        let listed = self.s3().list_buckets().send().await?;
        Ok(listed.buckets().iter().filter_map(|bucket| bucket.name().map(str::to_owned)).collect())
    }

    async fn roles(&self) -> Result<BTreeSet<String>> {
        let client = aws_sdk_iam::Client::new(&self.aws);
        let mut pages = client.list_roles().into_paginator().send();
        let mut names = BTreeSet::new();
        while let Some(page) = pages.next().await {
            names.extend(page?.roles().iter().map(|role| role.role_name().to_owned()));
        }
        Ok(names)
    }

    async fn queues(&self) -> Result<BTreeSet<String>> {
        let client = aws_sdk_sqs::Client::new(&self.aws);
        let urls = client.list_queues().max_results(1000).into_paginator().items().send();
        Ok(urls.collect::<Result<Vec<_>, _>>().await?.into_iter().collect())
    }

    async fn instances(&self) -> Result<BTreeSet<String>> {
        let client = aws_sdk_rds::Client::new(&self.aws);
        let all = client.describe_db_instances().into_paginator().items().send().collect::<Result<Vec<_>, _>>().await?;
        let snapshots = client.describe_db_snapshots().into_paginator().items().send();
        let snapshots = snapshots.collect::<Result<Vec<_>, _>>().await?;
        let instances = all.into_iter().filter_map(|one| one.db_instance_identifier);
        Ok(instances.chain(snapshots.into_iter().filter_map(|one| one.db_instance_identifier)).collect())
    }

    async fn dedicated(&self) -> Result<BTreeSet<String>> {
        let sql = "SELECT 'database ' || datname FROM pg_database UNION ALL SELECT 'role ' || rolname FROM pg_roles";
        let server = connect(self.export("DEDICATED_DATABASE_URL")?).await?;
        Ok(server.query(sql, &[]).await?.iter().map(|row| row.get(0)).collect())
    }

    async fn associations(&self) -> Result<BTreeSet<String>> {
        let client = aws_sdk_eks::Client::new(&self.aws);
        let all = client.list_pod_identity_associations().cluster_name(self.variable("EKS_CLUSTER")?);
        let all = all.into_paginator().items().send().collect::<Result<Vec<_>, _>>().await?;
        Ok(all.into_iter().filter_map(|one| one.namespace).collect())
    }

    async fn billed(&self) -> Result<BTreeSet<String>> {
        let mut marks = BTreeSet::new();
        for kind in ["customers", "subscriptions"] {
            for one in self.stripe(&format!("/v1/{kind}?limit=100000")).await?["data"].as_array().into_iter().flatten()
            {
                marks.insert(format!("{kind} {} {}", one["id"], one["metadata"]["tenantry-tenant-id"]));
            }
        }
        Ok(marks)
    }

    /// What Stripe answers to a GET.
    ///
    /// # Errors
    /// When it does not answer with success.
    pub async fn stripe(&self, path: &str) -> Result<Value> {
        let url = format!("{}{path}", self.export("STRIPE_API_URL")?);
        let asked = reqwest::Client::new().get(url).bearer_auth(self.export("STRIPE_API_KEY")?).send().await?;
        Ok(asked.error_for_status()?.json().await?)
    }

    async fn namespaces(&self) -> Result<BTreeSet<String>> {
        let all =
            Api::<Namespace>::all(cluster_as(self.export("KUBECONFIG")?).await?).list(&ListParams::default()).await?;
        Ok(all.items.into_iter().filter_map(|namespace| namespace.metadata.name).collect())
    }

    async fn records(&self) -> Result<BTreeSet<String>> {
        let client = aws_sdk_route53::Client::new(&self.aws);
        let zone = self.variable("HOSTED_ZONE_ID")?.to_owned();
        let mut names = BTreeSet::new();
        let mut list = client.list_resource_record_sets().hosted_zone_id(&zone);
        loop {
            let page = list.send().await?;
            names.extend(page.resource_record_sets().iter().map(|set| format!("{} {}", set.name(), set.r#type())));
            if !page.is_truncated() {
                break;
            }
            list = client.list_resource_record_sets().hosted_zone_id(&zone);
            list = list.set_start_record_name(page.next_record_name).set_start_record_type(page.next_record_type);
            list = list.set_start_record_identifier(page.next_record_identifier);
        }
        Ok(names)
    }

    async fn config_items(&self) -> Result<BTreeSet<String>> {
        let client = aws_sdk_dynamodb::Client::new(&self.aws);
        let mut pages = client.scan().table_name(self.variable("CONFIG_TABLE")?).into_paginator().send();
        let mut items = BTreeSet::new();
        while let Some(page) = pages.next().await {
            items.extend(page?.items().iter().map(|item| format!("{:?} {:?}", item.get("tenant"), item.get("item"))));
        }
        Ok(items)
    }

    /// What carries one of a tenant's names, by system. Rows, which have no names, are counted only for the whole table, and
    /// mail is not the tenant's to keep.
    ///
    /// # Errors
    /// When a system cannot be asked.
    pub async fn left_of(&self, marks: &[String]) -> Result<Snapshot> {
        let mut found = self.take().await?;
        for system in ["rows of PostgreSQL's tables", "emails"] {
            found.remove(system);
        }
        for names in found.values_mut() {
            names.retain(|name| marks.iter().any(|mark| carries(name, mark)));
        }
        Ok(found)
    }
}

/// Whether a name carries another as a whole: `acme-1` is not in `acme-12`.
pub fn carries(name: &str, mark: &str) -> bool {
    let ends = |at: usize| !name[at + mark.len()..].starts_with(|next: char| next.is_ascii_digit());
    name.match_indices(mark).any(|(at, _)| ends(at))
}

/// The cluster, as whoever a kubeconfig names.
///
/// # Errors
/// When the kubeconfig cannot be read.
pub async fn cluster_as(kubeconfig: &str) -> Result<kube::Client> {
    let config = Kubeconfig::read_from(kubeconfig)?;
    let config = kube::Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await?;
    Ok(kube::Client::try_from(config)?)
}

pub(crate) async fn connect(url: &str) -> Result<tokio_postgres::Client> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_not_in_a_longer_number() {
        assert!(carries("tenant-acme-1", "acme-1") && carries("acme-1/x", "acme-1"));
        assert!(!carries("tenant-acme-12", "acme-1"));
    }
}
