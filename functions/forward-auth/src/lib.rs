//! The gate as a service of its own, for products whose services cannot have it as a library: the proxy in front of them asks
//! it about every request before it hands the request on. `README.md` says how, `config/` has a sample for each proxy.
//!
//! It decides as [`tenant_gate`] does and knows nothing besides. What it adds is how proxies are answered: [`answers`].

pub mod answers;
pub mod registry;
pub mod settings;
