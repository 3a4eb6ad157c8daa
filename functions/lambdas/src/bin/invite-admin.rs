//! InviteAdmin: the invitation of the tenant's first administrator.

use tenantry_core::resource::invite::Invite;
use tenantry_core::step::{Journaled, Served, serve};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Served {
    serve(env!("CARGO_BIN_NAME"), |env| Journaled::provisioning(env, Box::new(Invite::from_env(env)?))).await
}
