//! RemoveConfig: undoes seed-config: removes the tenant's configuration.

use tenantry_core::resource::tenant_config::TenantConfig;
use tenantry_core::step::{Served, serve};
use tenantry_core::steps::compensation::Undo;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Served {
    serve(env!("CARGO_BIN_NAME"), |env| Undo::of("seed-config", env, Box::new(TenantConfig::from_env(env)?))).await
}
