//! AskDownstream: asks the registered systems to delete a tenant's data.

use tenantry_core::step::{Served, serve};
use tenantry_core::steps::deletion::Deleting;
use tenantry_core::steps::deletion::downstream::AskDownstream;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Served {
    serve(env!("CARGO_BIN_NAME"), |env| Deleting::by(env, Box::new(AskDownstream::from_env(env)?))).await
}
