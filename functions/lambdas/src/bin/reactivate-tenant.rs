//! ReactivateTenant: lifts one reason for a suspension, and tells the gate.

use tenantry_core::step::{Served, serve};
use tenantry_core::steps::suspension::ReactivateTenant;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Served {
    serve(env!("CARGO_BIN_NAME"), |env| Ok(Box::new(ReactivateTenant::from_env(env)?))).await
}
