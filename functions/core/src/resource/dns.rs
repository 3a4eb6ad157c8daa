//! The tenant's host name: a CNAME to the ingress, and beside it a TXT record that says whose it is.

use async_trait::async_trait;
use aws_sdk_route53::Client;
use aws_sdk_route53::error::BuildError;
use aws_sdk_route53::types::{Change, ChangeAction, ChangeBatch, ResourceRecord, ResourceRecordSet, RrType};
use serde_json::{Value, json};

use crate::aws::{classify, code};
use crate::environment::Environment;
use crate::error::StepError;
use crate::resource::{Inspection, Resource};
use crate::tenant::{Slug, Tenant};

/// How long resolvers may keep our answers, in seconds: short, so that a repaired record is seen soon.
const TTL: i64 = 60;
/// What it is called.
const KIND: &str = "DNS record";
/// The code with which Route 53 refuses a batch that does not fit what the zone holds.
const UNFIT: &str = "InvalidChangeBatch";

/// The zone that all tenants' names are in.
pub struct Zone {
    route53: Client,
    id: String,
    base_domain: String,
}

/// `{slug}.{base domain}`, and `_tenantry.{slug}.{base domain}` that owns it.
pub struct DnsRecord {
    zone: Zone,
    ingress: String,
}

/// What there is under the tenant's two names.
enum Look {
    Absent,
    Foreign(String),
    Ours { host: Vec<ResourceRecordSet>, ownership: Box<ResourceRecordSet> },
}

impl Zone {
    /// Reads HOSTED_ZONE_ID and BASE_DOMAIN. Makes no network call.
    ///
    /// # Errors
    /// `Misconfigured` when one of them is missing.
    pub fn from_env(env: &Environment) -> Result<Self, StepError> {
        Ok(Zone {
            route53: Client::new(&env.aws),
            id: env.required("HOSTED_ZONE_ID")?,
            base_domain: env.required("BASE_DOMAIN")?,
        })
    }

    /// Refuses a slug whose host the zone holds already, made by whomever: it cannot become a new tenant's.
    ///
    /// # Errors
    /// `Conflict` when there is a record of that name.
    pub async fn refuse_taken(&self, slug: &Slug) -> Result<(), StepError> {
        let host = slug.host(&self.base_domain);
        match self.records(&host).await?.is_empty() {
            true => Ok(()),
            false => Err(StepError::Conflict(format!(
                "slug {slug}: the zone holds a record of {host} already: choose another slug, or remove the record"
            ))),
        }
    }

    /// The record sets of exactly this name, of every type.
    async fn records(&self, name: &str) -> Result<Vec<ResourceRecordSet>, StepError> {
        let listed = self.route53.list_resource_record_sets().hosted_zone_id(&self.id).start_record_name(name);
        let listed = listed.send().await.map_err(|error| classify(&format!("looking for {name}"), &error))?;
        // Sorted by name: what has the name comes first. More types than fit a page (100) do not exist.
        Ok(listed.resource_record_sets.into_iter().take_while(|set| same_name(&set.name, name)).collect())
    }
}

impl DnsRecord {
    /// Reads HOSTED_ZONE_ID, BASE_DOMAIN and INGRESS_TARGET. Makes no network call.
    ///
    /// # Errors
    /// `Misconfigured` when one of them is missing.
    pub fn from_env(env: &Environment) -> Result<Self, StepError> {
        Ok(DnsRecord { zone: Zone::from_env(env)?, ingress: env.required("INGRESS_TARGET")? })
    }

    async fn look(&self, tenant: &Tenant) -> Result<Look, StepError> {
        let (name, owner) = (tenant.host(&self.zone.base_domain), tenant.ownership_record(&self.zone.base_domain));
        let (host, ownership) = futures::try_join!(self.zone.records(&name), self.zone.records(&owner))?;
        Ok(match <[ResourceRecordSet; 1]>::try_from(ownership) {
            Err(none) if none.is_empty() && host.is_empty() => Look::Absent,
            Err(none) if none.is_empty() => Look::Foreign(format!("{owner} does not say whose it is")),
            Err(several) => Look::Foreign(format!("{owner} has {} record sets", several.len())),
            Ok([set]) if values(&set) != [quoted(&tenant.ownership_text())] => {
                Look::Foreign(format!("{owner} is {} {}", set.r#type(), values(&set).join(" ")))
            }
            Ok([ownership]) => Look::Ours { host, ownership: Box::new(ownership) },
        })
    }

    /// The tenant's two record sets as they should be: host and ownership.
    fn wanted(&self, tenant: &Tenant) -> Result<[ResourceRecordSet; 2], StepError> {
        let base = &self.zone.base_domain;
        Ok([
            record_set(tenant.host(base), RrType::Cname, &self.ingress)?,
            record_set(tenant.ownership_record(base), RrType::Txt, &quoted(&tenant.ownership_text()))?,
        ])
    }

    /// Sends one batch, which takes effect as a whole or not at all, and returns the change's id. `None` when it does not
    /// fit what the zone holds by now: something has changed since it was looked at.
    async fn change(&self, doing: &str, changes: Vec<Change>) -> Result<Option<String>, StepError> {
        let batch = ChangeBatch::builder().set_changes(Some(changes)).build().map_err(|error| unbuildable(&error))?;
        let change = self.zone.route53.change_resource_record_sets().hosted_zone_id(&self.zone.id).change_batch(batch);
        match change.send().await {
            Ok(made) => Ok(made.change_info().map(|info| info.id().trim_start_matches("/change/").to_owned())),
            Err(error) if code(&error) == Some(UNFIT) => {
                tracing::warn!(doing, error = %classify(doing, &error), "the zone refused the batch");
                Ok(None)
            }
            Err(error) => Err(classify(doing, &error)),
        }
    }
}

#[async_trait]
impl Resource for DnsRecord {
    fn kind(&self) -> &'static str {
        KIND
    }

    async fn ensure(&self, tenant: &Tenant) -> Result<Value, StepError> {
        let name = tenant.host(&self.zone.base_domain);
        let wanted = self.wanted(tenant)?;
        let mut made = json!({ "host": name, "target": self.ingress });
        let changes = match self.look(tenant).await? {
            Look::Foreign(found) => return Err(StepError::Foreign { kind: KIND, name, found }),
            // Both at once are the claim on the name: CREATE fails where another was faster.
            Look::Absent => {
                wanted.into_iter().map(|set| change(ChangeAction::Create, set)).collect::<Result<_, _>>()?
            }
            Look::Ours { host, ownership } => repairs(&host, &ownership, &wanted)?,
        };
        if changes.is_empty() {
            return Ok(made);
        }
        match self.change(&format!("writing {name}"), changes).await? {
            // What VerifyDnsRecord waits for.
            Some(change) => made["change_id"] = json!(change),
            None => match self.look(tenant).await? {
                Look::Foreign(found) => return Err(StepError::Foreign { kind: KIND, name, found }),
                _ => return Err(StepError::Transient(format!("writing {name}: the zone refused it as it stood"))),
            },
        }
        Ok(made)
    }

    async fn remove(&self, tenant: &Tenant) -> Result<(), StepError> {
        let Look::Ours { host, ownership } = self.look(tenant).await? else { return Ok(()) };
        // DELETE needs the values as they are, so this is also the check that nobody has changed them meanwhile.
        let sets = host.into_iter().chain([*ownership]);
        let changes = sets.map(|set| change(ChangeAction::Delete, set)).collect::<Result<_, _>>()?;
        let doing = format!("removing {}", tenant.host(&self.zone.base_domain));
        let removed = self.change(&doing, changes).await?;
        match removed.is_some() || !matches!(self.look(tenant).await?, Look::Ours { .. }) {
            true => Ok(()),
            false => Err(StepError::Transient(format!("{doing}: the records changed meanwhile"))),
        }
    }

    async fn inspect(&self, tenant: &Tenant) -> Result<Inspection, StepError> {
        Ok(match self.look(tenant).await? {
            Look::Absent => Inspection::Absent,
            Look::Foreign(found) => Inspection::Foreign(found),
            Look::Ours { host, ownership } => {
                let drift: Vec<String> = repairs(&host, &ownership, &self.wanted(tenant)?)?.iter().map(drift).collect();
                if drift.is_empty() { Inspection::Present } else { Inspection::Drifted(drift) }
            }
        })
    }
}

/// What turns what is there into what is wanted; empty when they are the same. What does not belong goes first, because a
/// CNAME tolerates nothing beside it.
fn repairs(
    host: &[ResourceRecordSet],
    ownership: &ResourceRecordSet,
    [wanted_host, wanted_ownership]: &[ResourceRecordSet; 2],
) -> Result<Vec<Change>, StepError> {
    let replaceable = |set: &&ResourceRecordSet| *set.r#type() == RrType::Cname && set.set_identifier().is_none();
    let stray = host.iter().filter(|set| !replaceable(set)).map(|set| change(ChangeAction::Delete, set.clone()));
    let mut changes = stray.collect::<Result<Vec<_>, _>>()?;
    if !host.iter().filter(replaceable).any(|set| same_set(set, wanted_host)) {
        changes.push(change(ChangeAction::Upsert, wanted_host.clone())?);
    }
    if !same_set(ownership, wanted_ownership) {
        changes.push(change(ChangeAction::Upsert, wanted_ownership.clone())?);
    }
    Ok(changes)
}

fn drift(change: &Change) -> String {
    let Some(set) = change.resource_record_set() else { return String::new() };
    let name = set.name().trim_end_matches('.');
    match change.action() {
        ChangeAction::Delete => format!("{name}: a {} record that should not be there", set.r#type()),
        _ => format!("{name}: not {} {} with TTL {TTL}", set.r#type(), values(set).join(" ")),
    }
}

fn record_set(name: String, record_type: RrType, value: &str) -> Result<ResourceRecordSet, StepError> {
    let value = ResourceRecord::builder().value(value).build().map_err(|error| unbuildable(&error))?;
    let set = ResourceRecordSet::builder().name(name).r#type(record_type).ttl(TTL).resource_records(value);
    set.build().map_err(|error| unbuildable(&error))
}

fn change(action: ChangeAction, set: ResourceRecordSet) -> Result<Change, StepError> {
    Change::builder().action(action).resource_record_set(set).build().map_err(|error| unbuildable(&error))
}

fn same_set(found: &ResourceRecordSet, wanted: &ResourceRecordSet) -> bool {
    let same_values = match wanted.r#type() {
        RrType::Cname => match (values(found).as_slice(), values(wanted).as_slice()) {
            ([found], [wanted]) => same_name(found, wanted),
            _ => false,
        },
        _ => values(found) == values(wanted),
    };
    found.r#type() == wanted.r#type() && found.ttl() == wanted.ttl() && same_values
}

fn values(set: &ResourceRecordSet) -> Vec<String> {
    set.resource_records().iter().map(|record| record.value().to_owned()).collect()
}

/// Domain names compare without their case and the final dot.
pub(crate) fn same_name(one: &str, other: &str) -> bool {
    one.trim_end_matches('.').eq_ignore_ascii_case(other.trim_end_matches('.'))
}

/// A text as the value of a TXT record; ours hold no quote and no backslash.
fn quoted(text: &str) -> String {
    format!("\"{text}\"")
}

fn unbuildable(error: &BuildError) -> StepError {
    StepError::Unexpected(format!("a request to Route 53 could not be put together: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::samples;

    fn wanted() -> [ResourceRecordSet; 2] {
        let tenant = samples::tenant();
        [
            record_set(tenant.host("app.example.com"), RrType::Cname, "ingress.example.com").expect("a set"),
            record_set(tenant.ownership_record("app.example.com"), RrType::Txt, &quoted(&tenant.ownership_text()))
                .expect("a set"),
        ]
    }

    #[test]
    fn what_is_as_wanted_is_left_alone() {
        let [host, ownership] = wanted();
        let kept = record_set("ACME.app.example.com.".into(), RrType::Cname, "Ingress.example.com.").expect("a set");
        assert!(repairs(&[host], &ownership, &wanted()).expect("changes").is_empty());
        assert!(repairs(&[kept], &ownership, &wanted()).expect("changes").is_empty());
    }

    #[test]
    fn an_address_in_place_of_the_alias_goes_before_the_alias_comes() {
        let [_, ownership] = wanted();
        let address = record_set("acme.app.example.com.".into(), RrType::A, "192.0.2.1").expect("a set");
        let changes = repairs(&[address], &ownership, &wanted()).expect("changes");
        assert_eq!(
            changes.iter().map(drift).collect::<Vec<_>>(),
            [
                "acme.app.example.com: a A record that should not be there",
                "acme.app.example.com: not CNAME ingress.example.com with TTL 60",
            ]
        );
    }
}
