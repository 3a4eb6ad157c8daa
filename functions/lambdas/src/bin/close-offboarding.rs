//! CloseOffboarding: the hold has begun, and the fence is given back.

use tenantry_core::step::{Served, serve};
use tenantry_core::steps::provisioning::Settle;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Served {
    serve(env!("CARGO_BIN_NAME"), Settle::close).await
}
