//! RevokeInvite: undoes invite-admin: the invitation's link works no more.

use tenantry_core::resource::invite::Invite;
use tenantry_core::step::{Served, serve};
use tenantry_core::steps::compensation::Undo;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Served {
    serve(env!("CARGO_BIN_NAME"), |env| Undo::of("invite-admin", env, Box::new(Invite::from_env(env)?))).await
}
