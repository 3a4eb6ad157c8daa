//! RecoverExecution: what happens to a tenant whose execution ended without giving it back.

use tenantry_core::step::{Served, serve};
use tenantry_core::steps::recovery::RecoverExecution;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Served {
    serve(env!("CARGO_BIN_NAME"), |env| Ok(Box::new(RecoverExecution::from_env(env)?))).await
}
