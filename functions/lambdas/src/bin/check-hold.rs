//! CheckHold: what a hold is now: expired, extended or cancelled.

use tenantry_core::step::{Served, serve};
use tenantry_core::steps::offboarding::CheckHold;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Served {
    serve(env!("CARGO_BIN_NAME"), |env| Ok(Box::new(CheckHold::from_env(env)?))).await
}
