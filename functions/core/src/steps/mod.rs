//! The steps that are not about one resource: signing up, taking and giving back the fence, activation, and what follows.

pub mod accept;
pub mod activation;
pub mod compensation;
pub mod dns;
pub mod download;
pub mod explain;
pub mod export;
pub mod provisioning;
pub mod publish;
pub mod reconcile;
pub mod recovery;
pub mod signup;
pub mod suspension;
mod takeover;
pub mod unbuilt;
pub mod welcome;
