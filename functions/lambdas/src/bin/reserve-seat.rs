//! ReserveSeat: gives a user of a tenant a seat, if there is one.

use tenantry_core::step::{Served, serve};
use tenantry_core::steps::seats::ReserveSeat;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Served {
    serve(env!("CARGO_BIN_NAME"), |env| Ok(Box::new(ReserveSeat::from_env(env)?))).await
}
