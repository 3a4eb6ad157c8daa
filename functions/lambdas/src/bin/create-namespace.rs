//! CreateNamespace: the tenant's Kubernetes namespace and what bounds it.

use tenantry_core::resource::namespace::Namespace;
use tenantry_core::step::{Journaled, Served, serve};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Served {
    serve(env!("CARGO_BIN_NAME"), |env| Journaled::provisioning(env, Box::new(Namespace::from_env(env)?))).await
}
