//! AcceptInvite: the page behind an invitation's link.

use tenantry_core::step::{Served, serve};
use tenantry_core::steps::accept::AcceptInvite;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Served {
    serve(env!("CARGO_BIN_NAME"), |env| Ok(Box::new(AcceptInvite::from_env(env)?))).await
}
