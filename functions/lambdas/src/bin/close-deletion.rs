//! CloseDeletion: ends a deletion: deprovisioned, and tenant.deleted.

use tenantry_core::step::{Served, serve};
use tenantry_core::steps::deletion::close::CloseDeletion;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Served {
    serve(env!("CARGO_BIN_NAME"), |env| Ok(Box::new(CloseDeletion::from_env(env)?))).await
}
