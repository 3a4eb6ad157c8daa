//! CreateQueue: the tenant's integration queue, with its dead-letter queue.

use tenantry_core::resource::queue::Queue;
use tenantry_core::step::{Journaled, Served, serve};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Served {
    serve(env!("CARGO_BIN_NAME"), |env| Journaled::provisioning(env, Box::new(Queue::from_env(env)))).await
}
