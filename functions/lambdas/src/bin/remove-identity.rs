//! RemoveIdentity: undoes create-identity: removes the tenant's IAM role.

use tenantry_core::resource::identity::Identity;
use tenantry_core::step::{Served, serve};
use tenantry_core::steps::compensation::Undo;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Served {
    serve(env!("CARGO_BIN_NAME"), |env| Undo::of("create-identity", env, Box::new(Identity::from_env(env)?))).await
}
