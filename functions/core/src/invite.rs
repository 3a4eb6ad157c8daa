//! Invitations' tokens: an HMAC of the invitation's id and generation, so that no store and no payload holds one, and a mail
//! that is sent twice carries the same link.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::{digest, hmac};
use serde::Deserialize;
use tokio::sync::OnceCell;
use uuid::Uuid;

use crate::environment::Environment;
use crate::error::StepError;
use crate::tenant::TenantId;

/// The namespace of the ids of first administrators' invitations.
const INVITE_IDS: Uuid = Uuid::from_u128(0x4c1b_6f0e_87a2_4f6f_b0d3_19e5_5c7d_2a61);
/// Bytes of key that are asked for at least (RFC 2104 asks for the hash's length).
const KEY_BYTES: usize = 32;

/// The key that tokens are derived with.
pub struct InviteKey {
    secrets: aws_sdk_secretsmanager::Client,
    secret_id: String,
    key: OnceCell<hmac::Key>,
}

/// What the key's secret holds.
#[derive(Deserialize)]
struct Kept {
    key: String,
}

/// A token as a link carries it: which invitation it says it is for, and the proof.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// The invitation's id.
    pub invite: Uuid,
    text: String,
}

impl InviteKey {
    /// Reads INVITE_KEY_SECRET. Makes no network call.
    ///
    /// # Errors
    /// `Misconfigured` when it is missing.
    pub fn from_env(env: &Environment) -> Result<Self, StepError> {
        Ok(InviteKey {
            secrets: aws_sdk_secretsmanager::Client::new(&env.aws),
            secret_id: env.required("INVITE_KEY_SECRET")?,
            key: OnceCell::new(),
        })
    }

    /// The token of an invitation's generation.
    ///
    /// # Errors
    /// When the key cannot be read; `Misconfigured` when it is too short.
    pub async fn token(&self, invite: Uuid, generation: i32) -> Result<Token, StepError> {
        let key = self.key.get_or_try_init(|| self.read()).await?;
        Ok(derive(key, invite, generation))
    }

    async fn read(&self) -> Result<hmac::Key, StepError> {
        let doing = "reading the key of invitations";
        let secret = self.secrets.get_secret_value().secret_id(&self.secret_id).send().await;
        let secret = secret.map_err(|error| crate::aws::classify(doing, &error))?;
        let kept: Kept = serde_json::from_str(secret.secret_string().unwrap_or_default())
            .map_err(|_| StepError::Misconfigured(format!("{doing}: it must hold {{\"key\": …}}")))?;
        if kept.key.len() < KEY_BYTES {
            return Err(StepError::Misconfigured(format!("{doing}: it must have {KEY_BYTES} characters at least")));
        }
        Ok(hmac::Key::new(hmac::HMAC_SHA256, kept.key.as_bytes()))
    }
}

fn derive(key: &hmac::Key, invite: Uuid, generation: i32) -> Token {
    let proof = hmac::sign(key, format!("invite {invite} {generation}").as_bytes());
    Token { invite, text: format!("{}.{}", invite.simple(), URL_SAFE_NO_PAD.encode(proof)) }
}

/// The id of the invitation of a tenant's first administrator.
pub fn first_admin(tenant: TenantId) -> Uuid {
    Uuid::new_v5(&INVITE_IDS, tenant.0.as_bytes())
}

impl Token {
    /// Reads a link's token. `None` for what cannot be one.
    pub fn parse(text: &str) -> Option<Self> {
        let (invite, proof) = text.split_once('.')?;
        let well_formed =
            proof.len() == 43 && proof.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        let invite = Uuid::parse_str(invite).ok().filter(|_| well_formed && invite.len() == 32)?;
        Some(Token { invite, text: text.to_owned() })
    }

    /// What the registry keeps of it.
    pub fn hash(&self) -> Vec<u8> {
        digest::digest(&digest::SHA256, self.text.as_bytes()).as_ref().to_vec()
    }

    /// Whether it is the token whose hash the registry keeps; takes as long whatever differs.
    pub fn is(&self, hash: &[u8]) -> bool {
        let own = self.hash();
        own.len() == hash.len() && own.iter().zip(hash).fold(0, |differs, (a, b)| differs | (a ^ b)) == 0
    }

    /// As a link carries it.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_of_one_invitation_and_one_generation() {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &[7; 32]);
        let (one, other) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let token = derive(&key, one, 1);
        assert_eq!(Token::parse(token.as_str()).as_ref(), Some(&token));
        assert!(derive(&key, one, 1).is(&token.hash()));
        for others in [derive(&key, one, 2), derive(&key, other, 1)] {
            assert!(!others.is(&token.hash()));
        }
        for bad in ["", "x", "x.y", &token.as_str()[1..], &format!("{}A", token.as_str())] {
            assert_eq!(Token::parse(bad), None, "{bad}");
        }
    }
}
