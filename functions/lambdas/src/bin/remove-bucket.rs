//! RemoveBucket: undoes create-bucket: removes the tenant's S3 bucket with all it holds.

use tenantry_core::resource::bucket::Bucket;
use tenantry_core::step::{Served, serve};
use tenantry_core::steps::compensation::Undo;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Served {
    serve(env!("CARGO_BIN_NAME"), |env| Undo::of("create-bucket", env, Box::new(Bucket::from_env(env)?))).await
}
