//! ExtendHold: puts a hold's end off; for operators.

use tenantry_core::step::{Served, serve};
use tenantry_core::steps::offboarding::ExtendHold;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Served {
    serve(env!("CARGO_BIN_NAME"), |env| Ok(Box::new(ExtendHold::from_env(env)?))).await
}
