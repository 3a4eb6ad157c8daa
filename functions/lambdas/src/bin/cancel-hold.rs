//! CancelHold: a tenant comes back while its hold lasts.

use tenantry_core::step::{Served, serve};
use tenantry_core::steps::coming_back::CancelHold;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Served {
    serve(env!("CARGO_BIN_NAME"), |env| Ok(Box::new(CancelHold::from_env(env)?))).await
}
