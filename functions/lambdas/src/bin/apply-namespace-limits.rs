//! ApplyNamespaceLimits: the namespace's quotas, as the plan has them.

use tenantry_core::resource::namespace::Namespace;
use tenantry_core::step::{Journaled, Served, serve};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Served {
    serve(env!("CARGO_BIN_NAME"), |env| Journaled::after_activation(env, Box::new(Namespace::from_env(env)?))).await
}
