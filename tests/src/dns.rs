//! The tenant's DNS records against Route 53, and their verification against a real name server.

use anyhow::{Context, Result, ensure};
use aws_sdk_route53::Client;
use aws_sdk_route53::types::{Change, ChangeAction, ChangeBatch, ResourceRecord, ResourceRecordSet, RrType};
use serde_json::json;
use tenantry_core::dns_check::DnsCheck;
use tenantry_core::error::StepError;
use tenantry_core::resource::dns::DnsRecord;
use tenantry_core::resource::{Inspection, Resource};
use tenantry_core::tenant::Tenant;
use tenantry_local::stack::BASE_DOMAIN;

use crate::machine::sign_up;
use crate::recorder::Recorder;
use crate::tenants::fresh_tenant;
use crate::world::{Case, World};

pub const CASES: &[(&str, Case)] = &[
    ("is_made_once_in_one_batch", |world| Box::pin(is_made_once(world))),
    ("is_repaired", |world| Box::pin(is_repaired(world))),
    ("of_another_is_left_alone", |world| Box::pin(of_another_is_left_alone(world))),
    ("is_removed_whatever_it_points_to", |world| Box::pin(is_removed(world))),
    ("a_name_is_claimed_by_one_of_two_at_once", |world| Box::pin(claimed_by_one(world))),
    ("verification_asks_the_server_and_compares", |world| Box::pin(verification(world))),
    ("verification_is_not_fooled_by_a_wildcard_and_waits", |world| Box::pin(not_yet(world))),
    ("a_slug_whose_host_exists_is_refused", |world| Box::pin(host_exists(world))),
];

async fn is_made_once(world: &World) -> Result<()> {
    let tenant = fresh_tenant(world, "dns")?;
    let recorder = Recorder::start(world).await?;
    let dns = DnsRecord::from_env(&recorder.env)?;
    ensure!(dns.inspect(&tenant).await? == Inspection::Absent);
    let made = dns.ensure(&tenant).await?;
    ensure!(made["host"] == json!(tenant.host(BASE_DOMAIN)) && made["change_id"].is_string(), "{made}");
    let mutations = recorder.mutations();
    ensure!(mutations.len() == 1, "both records come in one batch: {mutations:?}");
    ensure!(dns.inspect(&tenant).await? == Inspection::Present);
    ensure!(values(world, &tenant.host(BASE_DOMAIN)).await? == [world.env.required("INGRESS_TARGET")?]);
    let owner = format!("\"{}\"", tenant.ownership_text());
    ensure!(values(world, &tenant.ownership_record(BASE_DOMAIN)).await? == [owner]);

    recorder.mutations();
    dns.ensure(&tenant).await?;
    let mutations = recorder.mutations();
    ensure!(mutations.is_empty(), "the second run wrote: {mutations:?}");
    Ok(dns.remove(&tenant).await?)
}

async fn is_repaired(world: &World) -> Result<()> {
    let tenant = fresh_tenant(world, "dns")?;
    let dns = DnsRecord::from_env(&world.env)?;
    let host = tenant.host(BASE_DOMAIN);
    dns.ensure(&tenant).await?;
    change(world, ChangeAction::Upsert, record(&host, RrType::Cname, 300, "parked.example.net")?).await?;
    let Inspection::Drifted(drift) = dns.inspect(&tenant).await? else { anyhow::bail!("the drift was not seen") };
    ensure!(drift.len() == 1 && drift[0].starts_with(&format!("{host}: not CNAME")), "{drift:?}");
    dns.ensure(&tenant).await?;
    ensure!(dns.inspect(&tenant).await? == Inspection::Present);

    change(world, ChangeAction::Delete, record(&host, RrType::Cname, 60, &world.env.required("INGRESS_TARGET")?)?)
        .await?;
    change(world, ChangeAction::Create, record(&host, RrType::A, 60, "192.0.2.1")?).await?;
    let Inspection::Drifted(drift) = dns.inspect(&tenant).await? else { anyhow::bail!("the drift was not seen") };
    ensure!(drift.len() == 2, "{drift:?}");
    dns.ensure(&tenant).await?;
    ensure!(dns.inspect(&tenant).await? == Inspection::Present);
    Ok(dns.remove(&tenant).await?)
}

async fn of_another_is_left_alone(world: &World) -> Result<()> {
    let (tenant, other) = (fresh_tenant(world, "dns")?, fresh_tenant(world, "dns")?);
    let dns = DnsRecord::from_env(&world.env)?;
    let (host, owner) = (tenant.host(BASE_DOMAIN), tenant.ownership_record(BASE_DOMAIN));
    let theirs = format!("\"{}\"", other.ownership_text());
    for set in [record(&host, RrType::A, 300, "192.0.2.7")?, record(&owner, RrType::Txt, 60, &theirs)?] {
        change(world, ChangeAction::Create, set.clone()).await?;
        ensure!(matches!(dns.inspect(&tenant).await?, Inspection::Foreign(_)));
        let refused = dns.ensure(&tenant).await;
        ensure!(matches!(refused, Err(StepError::Foreign { kind: "DNS record", .. })), "{refused:?}");
        dns.remove(&tenant).await?;
        // DELETE needs the exact values: it succeeds only when nobody changed them.
        change(world, ChangeAction::Delete, set).await.context("another's record was touched")?;
        ensure!(dns.inspect(&tenant).await? == Inspection::Absent, "something was left beside another's record");
    }
    Ok(())
}

async fn is_removed(world: &World) -> Result<()> {
    let (tenant, other) = (fresh_tenant(world, "dns")?, fresh_tenant(world, "dns")?);
    let dns = DnsRecord::from_env(&world.env)?;
    dns.ensure(&tenant).await?;
    dns.ensure(&other).await?;
    let moved = record(&tenant.host(BASE_DOMAIN), RrType::Cname, 17, "elsewhere.example.net")?;
    change(world, ChangeAction::Upsert, moved).await?;
    dns.remove(&tenant).await?;
    ensure!(dns.inspect(&tenant).await? == Inspection::Absent);
    ensure!(values(world, &tenant.host(BASE_DOMAIN)).await?.is_empty());
    dns.remove(&tenant).await.context("removing what is gone")?;
    ensure!(dns.inspect(&other).await? == Inspection::Present);
    Ok(dns.remove(&other).await?)
}

async fn claimed_by_one(world: &World) -> Result<()> {
    let one = fresh_tenant(world, "dns")?;
    let two = Tenant { id: fresh_tenant(world, "dns")?.id, ..one.clone() };
    let dns = DnsRecord::from_env(&world.env)?;
    let (first, second) = tokio::join!(dns.ensure(&one), dns.ensure(&two));
    let (winner, refused) = if first.is_ok() { (&one, second) } else { (&two, first) };
    ensure!(matches!(refused, Err(StepError::Foreign { .. })), "{refused:?}");
    ensure!(dns.inspect(winner).await? == Inspection::Present);
    Ok(dns.remove(winner).await?)
}

async fn verification(world: &World) -> Result<()> {
    let tenant = fresh_tenant(world, "dns")?;
    let dns = DnsRecord::from_env(&world.env)?;
    let made = dns.ensure(&tenant).await?;
    let check = DnsCheck::from_env(&world.env)?;
    let seen = check.check(&tenant, made["change_id"].as_str()).await?;
    ensure!(seen == json!({"host": tenant.host(BASE_DOMAIN), "name_servers": [world.export("DNS_SERVER")?]}), "{seen}");
    Ok(dns.remove(&tenant).await?)
}

/// Both negative answers take the function's whole patience: they are asked for at once.
async fn not_yet(world: &World) -> Result<()> {
    let tenant = fresh_tenant(world, "dns")?;
    let wildcard =
        record(&format!("*.{}", tenant.host(BASE_DOMAIN)), RrType::Cname, 60, &world.env.required("INGRESS_TARGET")?)?;
    change(world, ChangeAction::Create, wildcard.clone()).await?;
    let check = DnsCheck::from_env(&world.env)?;
    let under_wildcard = Tenant { slug: tenant.slug.clone(), ..fresh_tenant(world, "dns")? };
    let silent = std::net::UdpSocket::bind("127.0.0.1:0")?;
    let server = silent.local_addr()?.to_string();
    let deaf = DnsCheck::from_env(&world.env.clone().with("DNS_SERVERS", &server))?;
    let (absent, unheard) = tokio::join!(check.check(&under_wildcard, None), deaf.check(&tenant, None));
    change(world, ChangeAction::Delete, wildcard).await?;
    let refused = absent.err().context("a wildcard passed for the tenant's own record")?;
    ensure!(refused.is_transient() && refused.to_string().contains(&tenant.host(BASE_DOMAIN)), "{refused}");
    let refused = unheard.err().context("silence passed for an answer")?;
    ensure!(refused.is_transient() && refused.to_string().contains(&server), "{refused}");
    Ok(())
}

async fn host_exists(world: &World) -> Result<()> {
    let slug = world.fresh_slug("parked");
    let parked = record(&format!("{slug}.{BASE_DOMAIN}"), RrType::Cname, 60, "parked.example.net")?;
    change(world, ChangeAction::Create, parked.clone()).await?;
    let outcome = world.provision(&sign_up(&slug, "starter")).await?;
    ensure!(outcome.error == "Conflict" && outcome.cause.contains(&slug), "{outcome:?}");
    ensure!(outcome.times("RegisterTenant") == 0, "went on to {:?}", outcome.states);
    ensure!(world.record(&slug).await.is_err(), "a tenant was registered");
    change(world, ChangeAction::Delete, parked).await
}

pub fn record(name: &str, record_type: RrType, ttl: i64, value: &str) -> Result<ResourceRecordSet> {
    let value = ResourceRecord::builder().value(value).build()?;
    Ok(ResourceRecordSet::builder().name(name).r#type(record_type).ttl(ttl).resource_records(value).build()?)
}

pub async fn change(world: &World, action: ChangeAction, set: ResourceRecordSet) -> Result<()> {
    let change = Change::builder().action(action).resource_record_set(set).build()?;
    let batch = ChangeBatch::builder().changes(change).build()?;
    let zone = world.env.required("HOSTED_ZONE_ID")?;
    let client = Client::new(&world.env.aws);
    client.change_resource_record_sets().hosted_zone_id(zone).change_batch(batch).send().await?;
    Ok(())
}

/// The values that Route 53 holds under exactly this name.
async fn values(world: &World, name: &str) -> Result<Vec<String>> {
    let zone = world.env.required("HOSTED_ZONE_ID")?;
    let listed = Client::new(&world.env.aws).list_resource_record_sets().hosted_zone_id(zone).start_record_name(name);
    let listed = listed.send().await?;
    let own = listed.resource_record_sets().iter().filter(|set| set.name().trim_end_matches('.') == name);
    Ok(own.flat_map(|set| set.resource_records()).map(|record| record.value().to_owned()).collect())
}
