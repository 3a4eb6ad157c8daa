//! StopWaiting: ends the execution that waits for the end of a hold that is cancelled.

use tenantry_core::step::{Served, serve};
use tenantry_core::steps::coming_back::StopWaiting;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Served {
    serve(env!("CARGO_BIN_NAME"), |env| Ok(Box::new(StopWaiting::from_env(env)?))).await
}
