//! ScanTenant: looks whether anything of a deleted tenant is left, in every store.

use tenantry_core::step::{Served, serve};
use tenantry_core::steps::deletion::Deleting;
use tenantry_core::steps::deletion::scan::ScanTenant;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Served {
    serve(env!("CARGO_BIN_NAME"), |env| Deleting::by(env, Box::new(ScanTenant::from_env(env)?))).await
}
