//! AwaitDownstream: waits for the registered systems' confirmations.

use tenantry_core::step::{Served, serve};
use tenantry_core::steps::deletion::Deleting;
use tenantry_core::steps::deletion::downstream::AwaitDownstream;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Served {
    serve(env!("CARGO_BIN_NAME"), |env| Deleting::by(env, Box::new(AwaitDownstream::from_env(env)?))).await
}
