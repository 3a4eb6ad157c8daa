//! RetireAccess: ends logins and sessions of a tenant that is deleted.

use tenantry_core::step::{Served, serve};
use tenantry_core::steps::deletion::Deleting;
use tenantry_core::steps::deletion::access::RetireAccess;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Served {
    serve(env!("CARGO_BIN_NAME"), |env| Deleting::by(env, Box::new(RetireAccess::from_env(env)?))).await
}
