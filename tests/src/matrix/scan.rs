//! What is left of tenants that have nothing any more, by every system's own listing: none of it goes through our code.

use anyhow::Result;
use redis::aio::MultiplexedConnection;
use tenantry_core::migrations::PRODUCT_TABLES;
use tenantry_core::postgres::quote_identifier;
use tenantry_core::tenant::{Status, Tenant};
use tenantry_local::inventory::carries;
use tokio_postgres::Client;

use super::Line;
use crate::world::World;

/// Of a tenant that was in service these say nothing: rows have no names here and are looked into one by one, and a mail that was
/// sent is its reader's.
const NOT_OF_THE_GONE: &[&str] = &["rows of PostgreSQL's tables", "emails"];

/// Looks in every system for what carries the name of a tenant that is pending or deprovisioned.
pub(super) async fn scan(world: &World, lines: &mut [Line]) -> Result<()> {
    let snapshot = world.snapshot().await?;
    let registry = world.registry().await?;
    let mut redis = redis::Client::open(world.export("REDIS_URL")?)?.get_multiplexed_async_connection().await?;
    for line in lines {
        let Some(tenant) = &line.tenant else { continue };
        let status = world.record(tenant.slug.as_str()).await?.tenant.status;
        if !matches!(status, Status::Pending | Status::Deprovisioned) {
            continue;
        }
        let gone = status == Status::Deprovisioned;
        let marks = [tenant.id.to_string(), tenant.slug.to_string(), tenant.schema()];
        for (system, names) in &snapshot {
            if gone && NOT_OF_THE_GONE.contains(system) {
                continue;
            }
            let ours = |name: &&String| marks.iter().any(|mark| carries(name, mark));
            line.leftovers.extend(names.iter().filter(ours).map(|name| format!("{system}: {name}")));
        }
        if gone {
            line.leftovers.extend(rows(&registry, tenant).await?);
            line.leftovers.extend(keys(&mut redis, tenant).await?);
        }
        if !line.leftovers.is_empty() && line.broken.is_none() {
            line.broken = Some(format!("{:?}", line.leftovers));
        }
    }
    Ok(())
}

/// Tables of the pool that have rows of a tenant's, and tables of the registry that name its owner.
async fn rows(registry: &Client, tenant: &Tenant) -> Result<Vec<String>> {
    let mut left = Vec::new();
    for table in PRODUCT_TABLES {
        let sql = format!("SELECT count(*) FROM pool.{table} WHERE tenant_id = $1");
        let rows: i64 = registry.query_one(&sql, &[&tenant.id.0]).await?.get(0);
        left.extend((rows > 0).then(|| format!("pool.{table}: {rows} rows")));
    }
    let owner = format!("%owner@{}.example%", tenant.slug);
    for table in registry.query("SELECT tablename::text FROM pg_tables WHERE schemaname = 'public'", &[]).await? {
        let table: String = table.get(0);
        let sql = format!("SELECT count(*) FROM {} t WHERE t::text LIKE $1", quote_identifier(&table));
        let rows: i64 = registry.query_one(&sql, &[&owner]).await?.get(0);
        left.extend((rows > 0).then(|| format!("{table}: {rows} rows name the owner")));
    }
    Ok(left)
}

/// Keys of Redis that carry a tenant's name, but for the one by which gates refuse it for ever.
async fn keys(redis: &mut MultiplexedConnection, tenant: &Tenant) -> Result<Vec<String>> {
    let pattern = format!("*{}*", tenant.slug);
    let keys: Vec<String> = redis::cmd("KEYS").arg(pattern).query_async(redis).await?;
    let refusal = format!("gate:{{{}}}", tenant.slug);
    let left = keys.into_iter().filter(|key| *key != refusal && carries(key, tenant.slug.as_str()));
    Ok(left.map(|key| format!("Redis: {key}")).collect())
}
