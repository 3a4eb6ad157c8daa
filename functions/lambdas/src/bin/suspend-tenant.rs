//! SuspendTenant: takes a tenant out of service, and tells the gate.

use tenantry_core::step::{Served, serve};
use tenantry_core::steps::suspension::SuspendTenant;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Served {
    serve(env!("CARGO_BIN_NAME"), |env| Ok(Box::new(SuspendTenant::from_env(env)?))).await
}
