//! A tenant for the unit tests of what is derived from one.

use serde_json::json;
use uuid::Uuid;

use crate::tenant::{Isolation, Plan, PlanQuotas, Status, Tenant, TenantId};

/// A starter tenant named `acme`, with the quotas of the registry's first migration.
pub(crate) fn tenant() -> Tenant {
    let object = |value: serde_json::Value| value.as_object().expect("an object").clone();
    Tenant {
        id: TenantId(Uuid::from_u128(0x0198_0000_0000_7000_8000_0000_0000_0001)),
        slug: "acme".parse().expect("a slug"),
        plan: Plan::Starter,
        isolation: Isolation::Shared,
        region: "us-east-1".parse().expect("a region"),
        status: Status::Provisioning,
        frozen: false,
        quotas: PlanQuotas {
            storage_bytes: 10_737_418_240,
            api_calls_per_month: 100_000,
            seats: 5,
            cpu_millis: 1000,
            memory_mib: 2048,
            max_pods: 10,
            max_objects: 20,
            noncurrent_version_days: 7,
            infrequent_access_days: None,
            default_isolation: Isolation::Shared,
            flags: object(json!({"sso": false, "api_access": true})),
            rate_limits: object(json!({"requests_per_second": 10, "burst": 20})),
            settings: object(json!({"locale": "en-US", "session_minutes": 480})),
        },
    }
}
