//! CreateBucket: the tenant's S3 bucket.

use tenantry_core::resource::bucket::Bucket;
use tenantry_core::step::{Journaled, Served, serve};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Served {
    serve(env!("CARGO_BIN_NAME"), |env| Journaled::provisioning(env, Box::new(Bucket::from_env(env)?))).await
}
