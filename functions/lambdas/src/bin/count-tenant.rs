//! CountTenant: counts what there is of a tenant, by every store's own listing.

use tenantry_core::step::{Served, serve};
use tenantry_core::steps::unbuilt::Unbuilt;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Served {
    serve(env!("CARGO_BIN_NAME"), |_| Ok(Box::new(Unbuilt))).await
}
