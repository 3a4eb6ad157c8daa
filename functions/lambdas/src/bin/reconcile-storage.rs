//! ReconcileStorage: compares the ledger of what lies in tenants' buckets with the buckets.

use tenantry_core::step::{Served, serve};
use tenantry_core::steps::storage::ReconcileStorage;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Served {
    serve(env!("CARGO_BIN_NAME"), |env| Ok(Box::new(ReconcileStorage::from_env(env)?))).await
}
