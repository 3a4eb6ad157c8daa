//! Whether a tenant may be served: for the product's own services, on login and on every request.
//!
//! [`Gate`] asks Redis once: is the tenant in service, and is there quota left? It counts the call in the same round trip.
//! [`GateLayer`] puts it in front of any tower service (axum, hyper): it finds the tenant in the host name, refuses with a
//! problem document (RFC 9457), or hands the request on with the [`Tenant`] in its extensions.
//!
//! Redis holds a projection of the tenant registry. Where Redis is down, or does not know a tenant, the registry itself is
//! asked ([`Registry`]): the status is enforced, and the call is admitted and counted later. Where both are down, [`Blind`]
//! says what happens.
//!
//! ```no_run
//! # async fn wire() -> Result<(), tenant_gate::Unusable> {
//! let gate = tenant_gate::Gate::builder("redis://127.0.0.1", "app.example.com").build()?;
//! let layer = tenant_gate::GateLayer::new(gate);
//! # let _ = layer; Ok(()) }
//! ```
//!
//! `examples/product.rs` is a whole service.

mod decision;
mod gate;
mod later;
mod layer;
mod projection;
mod registry;
mod tenant;

pub use decision::{Budget, Reason, Refusal, Verdict};
pub use gate::{Blind, Builder, Gate, Unusable};
pub use layer::{GateLayer, GateService};
pub use projection::{Cycle, Held, Projection};
#[cfg(feature = "postgres")]
pub use registry::PostgresRegistry;
pub use registry::{LookUp, Registry, RegistryError};
pub use tenant::Tenant;
