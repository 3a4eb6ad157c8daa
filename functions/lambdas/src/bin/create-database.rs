//! CreateDatabase: where the tenant's rows live, by its isolation.

use tenantry_core::resource::database::TenantDatabase;
use tenantry_core::step::{Journaled, Served, serve};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Served {
    serve(env!("CARGO_BIN_NAME"), |env| Journaled::provisioning(env, Box::new(TenantDatabase::from_env(env)?))).await
}
