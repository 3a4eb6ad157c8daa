//! ReleaseTenant: looks whether everything is gone, and returns the tenant to `pending` with the reason.

use tenantry_core::step::{Served, serve};
use tenantry_core::steps::compensation::ReleaseTenant;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Served {
    serve(env!("CARGO_BIN_NAME"), |env| Ok(Box::new(ReleaseTenant::from_env(env)?))).await
}
