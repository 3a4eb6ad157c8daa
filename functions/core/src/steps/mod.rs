//! The steps that are not about one resource: signing up, taking and giving back the fence, activation, and what follows.

pub mod accept;
pub mod activation;
pub mod authorize;
pub mod coming_back;
pub mod compensation;
pub mod dns;
pub mod explain;
pub mod follow_billing;
pub mod hold_sweep;
pub mod offboarding;
pub mod plan_change;
pub mod plan_fit;
pub mod provisioning;
pub mod publish;
pub mod quotas;
pub mod reconcile;
pub mod recovery;
pub mod seats;
pub mod signup;
pub mod storage;
pub mod suspension;
pub mod takeover;
pub mod unbuilt;
pub mod uploads;
pub mod welcome;
pub mod withdrawal;
