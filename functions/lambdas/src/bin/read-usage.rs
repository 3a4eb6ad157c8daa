//! ReadUsage: what a tenant used in a billing cycle, and what it may use.

use tenantry_core::step::{Served, serve};
use tenantry_core::steps::quotas::ReadUsage;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Served {
    serve(env!("CARGO_BIN_NAME"), |env| Ok(Box::new(ReadUsage::from_env(env)?))).await
}
