//! ApplyPlanConfig: flags, limits and settings, as the plan has them and the tenant left them.

use tenantry_core::resource::tenant_config::{PlanConfig, TenantConfig};
use tenantry_core::step::{Journaled, Served, serve};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Served {
    serve(env!("CARGO_BIN_NAME"), |env| {
        Journaled::after_activation(env, Box::new(PlanConfig(TenantConfig::from_env(env)?)))
    })
    .await
}
