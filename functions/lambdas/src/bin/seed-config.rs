//! SeedConfig: the plan's flags, limits and default settings.

use tenantry_core::resource::tenant_config::TenantConfig;
use tenantry_core::step::{Journaled, Served, serve};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Served {
    serve(env!("CARGO_BIN_NAME"), |env| Journaled::provisioning(env, Box::new(TenantConfig::from_env(env)?))).await
}
