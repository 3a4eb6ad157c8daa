//! RegisterTenant: the tenant's row, `pending`, once however often the request is delivered.

use tenantry_core::step::{Served, serve};
use tenantry_core::steps::signup::RegisterTenant;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Served {
    serve(env!("CARGO_BIN_NAME"), |env| Ok(Box::new(RegisterTenant::from_env(env)?))).await
}
