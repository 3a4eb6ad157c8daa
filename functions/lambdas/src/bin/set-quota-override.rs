//! SetQuotaOverride: gives a tenant another quota than its plan's, for a while.

use tenantry_core::step::{Served, serve};
use tenantry_core::steps::quotas::SetQuotaOverride;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Served {
    serve(env!("CARGO_BIN_NAME"), |env| Ok(Box::new(SetQuotaOverride::from_env(env)?))).await
}
