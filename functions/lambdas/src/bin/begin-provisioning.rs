//! BeginProvisioning: takes the fence, from nobody or from an execution that has ended.

use tenantry_core::step::{Served, serve};
use tenantry_core::steps::provisioning::BeginProvisioning;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Served {
    serve(env!("CARGO_BIN_NAME"), |env| Ok(Box::new(BeginProvisioning::from_env(env)?))).await
}
