//! DrainBucket: deletes versions and uploads of a tenant's bucket, as many as it manages; in an erasure,
//! exports too.

use tenantry_core::step::{Served, serve};
use tenantry_core::steps::deletion::Deleting;
use tenantry_core::steps::deletion::drain::DrainBucket;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Served {
    serve(env!("CARGO_BIN_NAME"), |env| Deleting::by(env, Box::new(DrainBucket::from_env(env)?))).await
}
