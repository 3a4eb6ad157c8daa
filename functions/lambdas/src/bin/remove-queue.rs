//! RemoveQueue: undoes create-queue: removes the tenant's queues with what is in them.

use tenantry_core::resource::queue::Queue;
use tenantry_core::step::{Served, serve};
use tenantry_core::steps::compensation::Undo;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Served {
    serve(env!("CARGO_BIN_NAME"), |env| Undo::of("create-queue", env, Box::new(Queue::from_env(env)))).await
}
