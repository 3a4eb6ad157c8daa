//! ConfirmActivation: on which side of the pivot a failed ActivateTenant ended.

use tenantry_core::step::{Served, serve};
use tenantry_core::steps::activation::ConfirmActivation;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Served {
    serve(env!("CARGO_BIN_NAME"), |env| Ok(Box::new(ConfirmActivation::from_env(env)?))).await
}
