//! Tenants that exist in no registry, for tests of one resource by itself.

use serde_json::{Map, Value, json};
use tenantry_core::tenant::{Isolation, Plan, PlanQuotas, Status, Tenant, TenantId};

use crate::world::World;

/// A tenant of the growth plan with an id and a slug of its own, in the stack's region.
pub fn fresh_tenant(world: &World, stem: &str) -> anyhow::Result<Tenant> {
    Ok(Tenant {
        id: TenantId(uuid::Uuid::new_v4()),
        slug: world.fresh_slug(stem).parse()?,
        plan: Plan::Growth,
        isolation: Isolation::Schema,
        region: world.env.aws.region().map_or("us-east-1", |region| region.as_ref()).parse()?,
        status: Status::Provisioning,
        frozen: false,
        quotas: PlanQuotas {
            storage_bytes: 107_374_182_400,
            api_calls_per_month: 1_000_000,
            seats: 50,
            cpu_millis: 4000,
            memory_mib: 8192,
            max_pods: 50,
            max_objects: 100,
            noncurrent_version_days: 30,
            infrequent_access_days: Some(90),
            default_isolation: Isolation::Schema,
            flags: object(json!({"sso": true, "custom_domain": false})),
            rate_limits: object(json!({"requests_per_second": 100, "burst": 200})),
            settings: object(json!({"locale": "en-US", "session_minutes": 480})),
        },
    })
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(fields) => fields,
        _ => Map::new(),
    }
}
