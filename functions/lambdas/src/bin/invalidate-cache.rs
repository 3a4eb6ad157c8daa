//! InvalidateCache: invalidates what the CDN holds of a tenant.

use tenantry_core::step::{Served, serve};
use tenantry_core::steps::deletion::Deleting;
use tenantry_core::steps::deletion::cache::InvalidateCache;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Served {
    serve(env!("CARGO_BIN_NAME"), |env| Deleting::by(env, Box::new(InvalidateCache::from_env(env)?))).await
}
