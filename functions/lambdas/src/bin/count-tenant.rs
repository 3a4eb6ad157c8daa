//! CountTenant: counts what there is of a tenant, by every store's own listing.

use tenantry_core::step::{Served, serve};
use tenantry_core::steps::deletion::Deleting;
use tenantry_core::steps::deletion::scan::CountTenant;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Served {
    serve(env!("CARGO_BIN_NAME"), |env| Deleting::by(env, Box::new(CountTenant::from_env(env)?))).await
}
