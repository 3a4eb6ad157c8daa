//! Invitations of first administrators: their ids, and their links' tokens.

use uuid::Uuid;

use crate::environment::Environment;
use crate::error::StepError;
use crate::link::{LinkKey, Token};
use crate::tenant::TenantId;

/// The namespace of the ids of first administrators' invitations.
const INVITE_IDS: Uuid = Uuid::from_u128(0x4c1b_6f0e_87a2_4f6f_b0d3_19e5_5c7d_2a61);

/// The key that tokens are derived with.
pub struct InviteKey(LinkKey);

impl InviteKey {
    /// Reads INVITE_KEY_SECRET. Makes no network call.
    ///
    /// # Errors
    /// `Misconfigured` when it is missing.
    pub fn from_env(env: &Environment) -> Result<Self, StepError> {
        Ok(InviteKey(LinkKey::from_env(env, "INVITE_KEY_SECRET", "invite")?))
    }

    /// The token of an invitation's generation.
    ///
    /// # Errors
    /// When the key cannot be read; `Misconfigured` when it is too short.
    pub async fn token(&self, invite: Uuid, generation: i32) -> Result<Token, StepError> {
        self.0.token(invite, generation).await
    }
}

/// The id of the invitation of a tenant's first administrator.
pub fn first_admin(tenant: TenantId) -> Uuid {
    Uuid::new_v5(&INVITE_IDS, tenant.0.as_bytes())
}
