//! PublishEvents: what waits in the outbox goes to the bus.

use tenantry_core::step::{Served, serve};
use tenantry_core::steps::publish::PublishEvents;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Served {
    serve(env!("CARGO_BIN_NAME"), |env| Ok(Box::new(PublishEvents::from_env(env)?))).await
}
