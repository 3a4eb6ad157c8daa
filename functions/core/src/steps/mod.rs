//! The steps that are not about one resource: signing up, taking and giving back the fence, activation, and what follows.

pub mod accept;
pub mod activation;
pub mod coming_back;
pub mod compensation;
pub mod dns;
pub mod explain;
pub mod hold_sweep;
pub mod offboarding;
pub mod provisioning;
pub mod publish;
pub mod reconcile;
pub mod recovery;
pub mod signup;
pub mod suspension;
mod takeover;
pub mod unbuilt;
pub mod welcome;
pub mod withdrawal;
