//! Looking for a tenant in every store, by the store's own listing: neither the journal nor any `inspect` is believed. Before a
//! deletion it counts what there is, afterwards it finds what is left.

mod billing;
mod buckets;
mod cluster;
mod configuration;
mod database;
mod identities;
mod keys;
mod queues;
mod records;
mod registry;
mod secrets;
mod servers;

use std::collections::BTreeMap;

use async_trait::async_trait;
use futures::future::join_all;
use serde::Serialize;

use crate::environment::Environment;
use crate::error::StepError;
use crate::registry::deletions::Billed;
use crate::tenant::Tenant;

/// Whom to look for.
#[derive(Debug, Clone)]
pub struct Subject {
    /// The tenant.
    pub tenant: Tenant,
    /// What it was at Stripe.
    pub billed: Billed,
    /// Whether this is an erasure: then what was exported goes too.
    pub is_erased: bool,
}

/// What a store has of a tenant.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How many there are of each kind of thing; what there is none of is not listed.
    #[serde(flatten)]
    pub counts: BTreeMap<String, i64>,
    /// What stays by rule, and is not counted.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub kept: Vec<Kept>,
}

/// Something that stays although its tenant is deleted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Kept {
    /// What it is.
    pub what: String,
    /// Why it stays.
    pub why: String,
    /// When it goes by itself, in RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<String>,
}

/// What every store has of a tenant, by the store's name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Report(pub BTreeMap<&'static str, Finding>);

/// A system that tenants own things in.
#[async_trait]
pub(crate) trait Store: Send + Sync {
    /// Its name in reports.
    fn name(&self) -> &'static str;

    /// Lists what it has, and picks what is the tenant's by name or mark.
    ///
    /// # Errors
    /// When the store cannot be asked: that is never taken for empty.
    async fn look(&self, subject: &Subject) -> Result<Finding, StepError>;
}

/// Every store of this stack.
pub struct Scan {
    stores: Vec<Box<dyn Store>>,
}

impl Scan {
    /// Wires every store: REGISTRY_SECRET, ACCOUNT_ID, HOSTED_ZONE_ID, BASE_DOMAIN, CONFIG_TABLE, EKS_CLUSTER, KUBECONFIG,
    /// REDIS_URL, STRIPE_SECRET, STRIPE_API_URL, and EXPORTS_BUCKET where there is one. Makes no network call.
    ///
    /// # Errors
    /// `Misconfigured` when a setting is missing.
    pub fn from_env(env: &Environment) -> Result<Self, StepError> {
        let mut stores: Vec<Box<dyn Store>> = vec![
            Box::new(database::Databases::from_env(env)?),
            Box::new(servers::Servers::from_env(env)),
            Box::new(secrets::Secrets::from_env(env)),
            Box::new(buckets::Buckets::from_env(env)),
            Box::new(queues::Queues::from_env(env)),
            Box::new(identities::Identities::from_env(env)?),
            Box::new(cluster::Namespaces::from_env(env)?),
            Box::new(records::Records::from_env(env)?),
            Box::new(configuration::Items::from_env(env)?),
            Box::new(keys::Keys::from_env(env)?),
            Box::new(registry::Rows::from_env(env)?),
        ];
        if let Some(exports) = buckets::Exports::from_env(env) {
            stores.push(Box::new(exports));
        }
        if let Some(billing) = billing::Customers::from_env(env)? {
            stores.push(Box::new(billing));
        }
        Ok(Scan { stores })
    }

    /// Looks into all stores at once.
    ///
    /// # Errors
    /// The first of a store that could not be asked, with its name.
    pub async fn look(&self, subject: &Subject) -> Result<Report, StepError> {
        let looks = self.stores.iter().map(|store| async move {
            let found = store.look(subject).await;
            found
                .map(|finding| (store.name(), finding))
                .map_err(|error| error.during(&format!("looking for the tenant in {}", store.name())))
        });
        let found: Result<BTreeMap<_, _>, _> = join_all(looks).await.into_iter().collect();
        Ok(Report(found?))
    }
}

impl Finding {
    /// What is counted, without what there is none of.
    pub(crate) fn of<const N: usize>(counts: [(&str, i64); N]) -> Self {
        let counts = counts.into_iter().filter(|(_, count)| *count != 0);
        Finding { counts: counts.map(|(kind, count)| (kind.to_owned(), count)).collect(), kept: Vec::new() }
    }
}

impl Report {
    /// Whether nothing is there but what stays by rule.
    pub fn is_clean(&self) -> bool {
        self.0.values().all(|finding| finding.counts.is_empty())
    }

    /// What is there, in words: stores and counts, and none of the tenant's own names.
    pub fn words(&self) -> String {
        let stores = self.0.iter().filter(|(_, finding)| !finding.counts.is_empty()).map(|(store, finding)| {
            let counts: Vec<_> = finding.counts.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
            format!("{store}: {}", counts.join(", "))
        });
        stores.collect::<Vec<_>>().join("; ")
    }
}

/// As a number of things; more than an i64 holds do not exist.
pub(crate) fn count(things: usize) -> i64 {
    i64::try_from(things).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stays_by_rule_is_no_finding() {
        let kept = Kept { what: "the tombstone".into(), why: "it stays".into(), until: None };
        let report = Report(BTreeMap::from([
            ("secrets", Finding::of([("secrets", 0)])),
            ("registry", Finding { counts: BTreeMap::new(), kept: vec![kept] }),
        ]));
        assert!(report.is_clean() && report.words().is_empty());
    }

    #[test]
    fn what_is_left_is_told_by_store_and_count() {
        let report = Report(BTreeMap::from([
            ("buckets", Finding::of([("buckets", 1), ("versions", 3), ("uploads", 0)])),
            ("queues", Finding::default()),
            ("secrets", Finding::of([("secrets", 2)])),
        ]));
        assert!(!report.is_clean());
        assert_eq!(report.words(), "buckets: 1 buckets, 3 versions; secrets: 2 secrets");
    }
}
