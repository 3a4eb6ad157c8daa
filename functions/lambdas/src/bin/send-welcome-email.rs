//! SendWelcomeEmail: tells the owner, once.

use tenantry_core::step::{Journaled, Served, serve};
use tenantry_core::steps::welcome::WelcomeEmail;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Served {
    serve(env!("CARGO_BIN_NAME"), |env| Journaled::after_activation(env, Box::new(WelcomeEmail::from_env(env)?))).await
}
