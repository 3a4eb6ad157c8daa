//! ReconcileGate: compares Redis with the registry, repairs, keeps counters, and tells who comes near a quota.

use tenantry_core::step::{Served, serve};
use tenantry_core::steps::reconcile::ReconcileGate;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Served {
    serve(env!("CARGO_BIN_NAME"), |env| Ok(Box::new(ReconcileGate::from_env(env)?))).await
}
