//! SetDeletionProtection: protects a tenant from deletion, or lifts that; for operators.

use tenantry_core::step::{Served, serve};
use tenantry_core::steps::offboarding::SetDeletionProtection;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Served {
    serve(env!("CARGO_BIN_NAME"), |env| Ok(Box::new(SetDeletionProtection::from_env(env)?))).await
}
