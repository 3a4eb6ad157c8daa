//! The tenant's configuration against DynamoDB.

use anyhow::{Context, Result, ensure};
use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::types::AttributeValue;
use tenantry_core::resource::tenant_config::TenantConfig;
use tenantry_core::resource::{Inspection, Resource};
use tenantry_core::tenant::Tenant;

use crate::recorder::Recorder;
use crate::tenants::fresh_tenant;
use crate::world::{Case, World};

pub const CASES: &[(&str, Case)] = &[
    ("is_seeded_once", |world| Box::pin(is_seeded_once(world))),
    ("what_the_tenant_changed_stays_and_what_is_missing_comes_back", |world| Box::pin(changes_stay(world))),
    ("what_is_as_seeded_follows_the_plan", |world| Box::pin(follows(world))),
    ("is_removed_with_what_the_product_added", |world| Box::pin(is_removed(world))),
];

async fn is_seeded_once(world: &World) -> Result<()> {
    let tenant = fresh_tenant(world, "config")?;
    let recorder = Recorder::start(world).await?;
    let config = TenantConfig::from_env(&recorder.env)?;
    ensure!(config.inspect(&tenant).await? == Inspection::Absent);
    let made = config.ensure(&tenant).await?;
    ensure!(made["key"] == tenant.config_key(), "{made}");
    ensure!(config.inspect(&tenant).await? == Inspection::Present);
    ensure!(value(world, &tenant, "flags", "sso").await? == AttributeValue::Bool(true));
    ensure!(value(world, &tenant, "limits", "burst").await? == AttributeValue::N("200".into()));
    ensure!(value(world, &tenant, "settings", "locale").await? == AttributeValue::S("en-US".into()));

    recorder.mutations();
    ensure!(config.ensure(&tenant).await? == made);
    let mutations = recorder.mutations();
    ensure!(mutations.is_empty(), "the second run wrote: {mutations:?}");
    Ok(config.remove(&tenant).await?)
}

async fn changes_stay(world: &World) -> Result<()> {
    let tenant = fresh_tenant(world, "config")?;
    let config = TenantConfig::from_env(&world.env)?;
    config.ensure(&tenant).await?;
    let german = AttributeValue::S("de-DE".into());
    update(world, &tenant, "settings", "SET #values.locale = :value", Some(german.clone())).await?;
    update(world, &tenant, "settings", "SET #values.theme = :value", Some(german.clone())).await?;
    update(world, &tenant, "settings", "REMOVE #values.session_minutes", None).await?;
    let client = Client::new(&world.env.aws);
    client.delete_item().table_name(table(world)?).set_key(Some(key(&tenant, "limits"))).send().await?;

    let Inspection::Drifted(drift) = config.inspect(&tenant).await? else { anyhow::bail!("the drift was not seen") };
    ensure!(drift == ["limits: missing", "settings: no session_minutes"], "{drift:?}");
    config.ensure(&tenant).await?;
    ensure!(config.inspect(&tenant).await? == Inspection::Present);
    ensure!(value(world, &tenant, "settings", "locale").await? == german, "the tenant's own choice was overwritten");
    ensure!(value(world, &tenant, "settings", "theme").await? == german, "what the tenant added is gone");
    ensure!(value(world, &tenant, "settings", "session_minutes").await? == AttributeValue::N("480".into()));
    ensure!(value(world, &tenant, "limits", "burst").await? == AttributeValue::N("200".into()));
    Ok(config.remove(&tenant).await?)
}

async fn follows(world: &World) -> Result<()> {
    let mut tenant = fresh_tenant(world, "config")?;
    let config = TenantConfig::from_env(&world.env)?;
    config.ensure(&tenant).await?;
    let own = AttributeValue::N("50".into());
    update(world, &tenant, "limits", "SET #values.burst = :value", Some(own.clone())).await?;
    ensure!(config.inspect(&tenant).await? == Inspection::Present, "the tenant's own choice is called a drift");
    let quotas = &mut tenant.quotas;
    quotas.flags.insert("sso".into(), false.into());
    quotas.flags.insert("beta".into(), true.into());
    quotas.rate_limits.insert("burst".into(), 20.into());
    quotas.rate_limits.insert("requests_per_second".into(), 10.into());
    quotas.settings.remove("session_minutes");
    let Inspection::Drifted(drift) = config.inspect(&tenant).await? else { anyhow::bail!("the drift was not seen") };
    let expected = [
        "flags: no beta",
        "flags: sso is true, and the plan says false",
        "limits: requests_per_second is 100, and the plan says 10",
        "settings: session_minutes is not of this plan",
    ];
    ensure!(drift == expected, "{drift:?}");
    config.ensure(&tenant).await?;
    ensure!(config.inspect(&tenant).await? == Inspection::Present);
    ensure!(value(world, &tenant, "flags", "sso").await? == AttributeValue::Bool(false));
    ensure!(value(world, &tenant, "flags", "beta").await? == AttributeValue::Bool(true));
    ensure!(value(world, &tenant, "limits", "burst").await? == own, "the tenant's own choice was overwritten");
    ensure!(value(world, &tenant, "limits", "requests_per_second").await? == AttributeValue::N("10".into()));
    ensure!(value(world, &tenant, "settings", "session_minutes").await.is_err(), "what no plan has is kept");
    Ok(config.remove(&tenant).await?)
}

async fn is_removed(world: &World) -> Result<()> {
    let (tenant, other) = (fresh_tenant(world, "config")?, fresh_tenant(world, "config")?);
    let config = TenantConfig::from_env(&world.env)?;
    config.ensure(&tenant).await?;
    config.ensure(&other).await?;
    let client = Client::new(&world.env.aws);
    // More than one batch takes.
    for index in 0..30 {
        let item = key(&tenant, &format!("product-{index}"));
        client.put_item().table_name(table(world)?).set_item(Some(item)).send().await?;
    }
    config.remove(&tenant).await?;
    ensure!(config.inspect(&tenant).await? == Inspection::Absent);
    config.remove(&tenant).await.context("removing what is gone")?;
    ensure!(config.inspect(&other).await? == Inspection::Present);
    Ok(config.remove(&other).await?)
}

type Item = std::collections::HashMap<String, AttributeValue>;

fn table(world: &World) -> Result<String> {
    Ok(world.env.required("CONFIG_TABLE")?)
}

fn key(tenant: &Tenant, item: &str) -> Item {
    let text = |value: &str| AttributeValue::S(value.to_owned());
    Item::from([("tenant".to_owned(), text(&tenant.config_key())), ("item".to_owned(), text(item))])
}

/// A value of an item.
pub async fn value(world: &World, tenant: &Tenant, item: &str, name: &str) -> Result<AttributeValue> {
    let get = Client::new(&world.env.aws).get_item().table_name(table(world)?).set_key(Some(key(tenant, item)));
    let found = get.send().await?.item.with_context(|| format!("no item {item}"))?;
    let values = found.get("values").and_then(|values| values.as_m().ok()).context("no values")?;
    values.get(name).cloned().with_context(|| format!("{item} holds no {name}"))
}

/// Changes an item as the tenant would; the expression calls the new value `:value`.
pub async fn update(
    world: &World,
    tenant: &Tenant,
    item: &str,
    expression: &str,
    to: Option<AttributeValue>,
) -> Result<()> {
    let update = Client::new(&world.env.aws).update_item().table_name(table(world)?).set_key(Some(key(tenant, item)));
    let update = update.expression_attribute_names("#values", "values").update_expression(expression);
    update.set_expression_attribute_values(to.map(|to| Item::from([(":value".to_owned(), to)]))).send().await?;
    Ok(())
}
