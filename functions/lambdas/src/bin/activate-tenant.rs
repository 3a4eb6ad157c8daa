//! ActivateTenant: brings the tenant into service; nothing is undone after it.

use tenantry_core::step::{Served, serve};
use tenantry_core::steps::activation::ActivateTenant;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Served {
    serve(env!("CARGO_BIN_NAME"), |env| Ok(Box::new(ActivateTenant::from_env(env)?))).await
}
