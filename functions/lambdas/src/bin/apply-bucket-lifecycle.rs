//! ApplyBucketLifecycle: the bucket's lifecycle rules, as the plan has them.

use tenantry_core::resource::bucket::plan::BucketLifecycle;
use tenantry_core::step::{Journaled, Served, serve};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Served {
    serve(env!("CARGO_BIN_NAME"), |env| Journaled::after_activation(env, Box::new(BucketLifecycle::from_env(env)?)))
        .await
}
