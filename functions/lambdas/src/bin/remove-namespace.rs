//! RemoveNamespace: undoes create-namespace: removes the tenant's Kubernetes namespace.

use tenantry_core::resource::namespace::Namespace;
use tenantry_core::step::{Served, serve};
use tenantry_core::steps::compensation::Undo;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Served {
    serve(env!("CARGO_BIN_NAME"), |env| Undo::of("create-namespace", env, Box::new(Namespace::from_env(env)?))).await
}
