//! ResumeSubscription: subscribes a tenant that came back in its hold.

use tenantry_core::step::{Journaled, Served, serve};
use tenantry_core::steps::withdrawal::Subscription;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Served {
    serve(env!("CARGO_BIN_NAME"), |env| Journaled::after_activation(env, Box::new(Subscription::resume(env)?))).await
}
