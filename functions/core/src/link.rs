//! Links that only their owner can know: a token is an HMAC of an id and a generation, so that no store and no payload holds
//! one, and a mail that is sent twice carries the same link.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::{digest, hmac};
use serde::Deserialize;
use tokio::sync::OnceCell;
use uuid::Uuid;

use crate::environment::Environment;
use crate::error::StepError;

/// Bytes of key that are asked for at least (RFC 2104 asks for the hash's length).
const KEY_BYTES: usize = 32;

/// The key that the tokens of one purpose are derived with.
pub struct LinkKey {
    secrets: aws_sdk_secretsmanager::Client,
    secret_id: String,
    /// What the links are for: in every proof, so that a token of one purpose is none of another.
    purpose: &'static str,
    key: OnceCell<hmac::Key>,
}

/// What the key's secret holds.
#[derive(Deserialize)]
struct Kept {
    key: String,
}

/// A token as a link carries it: what it says it is for, and the proof.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// The id of the invitation or the export.
    pub id: Uuid,
    text: String,
}

impl LinkKey {
    /// Reads the name of the key's secret from a setting. Makes no network call.
    ///
    /// # Errors
    /// `Misconfigured` when it is missing.
    pub fn from_env(env: &Environment, setting: &str, purpose: &'static str) -> Result<Self, StepError> {
        Ok(LinkKey {
            secrets: aws_sdk_secretsmanager::Client::new(&env.aws),
            secret_id: env.required(setting)?,
            purpose,
            key: OnceCell::new(),
        })
    }

    /// The token of a generation.
    ///
    /// # Errors
    /// When the key cannot be read; `Misconfigured` when it is too short.
    pub async fn token(&self, id: Uuid, generation: i32) -> Result<Token, StepError> {
        let key = self.key.get_or_try_init(|| self.read()).await?;
        Ok(derive(key, self.purpose, id, generation))
    }

    async fn read(&self) -> Result<hmac::Key, StepError> {
        let doing = &format!("reading the key of links of the kind {}", self.purpose);
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

fn derive(key: &hmac::Key, purpose: &str, id: Uuid, generation: i32) -> Token {
    let proof = hmac::sign(key, format!("{purpose} {id} {generation}").as_bytes());
    Token { id, text: format!("{}.{}", id.simple(), URL_SAFE_NO_PAD.encode(proof)) }
}

impl Token {
    /// Reads a link's token. `None` for what cannot be one.
    pub fn parse(text: &str) -> Option<Self> {
        let (id, proof) = text.split_once('.')?;
        let well_formed =
            proof.len() == 43 && proof.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        let id = Uuid::parse_str(id).ok().filter(|_| well_formed && id.len() == 32)?;
        Some(Token { id, text: text.to_owned() })
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
    fn a_token_is_of_one_purpose_one_id_and_one_generation() {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &[7; 32]);
        let (one, other) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let token = derive(&key, "invite", one, 1);
        assert_eq!(Token::parse(token.as_str()).as_ref(), Some(&token));
        assert!(derive(&key, "invite", one, 1).is(&token.hash()));
        for others in [derive(&key, "invite", one, 2), derive(&key, "invite", other, 1), derive(&key, "export", one, 1)]
        {
            assert!(!others.is(&token.hash()));
        }
        for bad in ["", "x", "x.y", &token.as_str()[1..], &format!("{}A", token.as_str())] {
            assert_eq!(Token::parse(bad), None, "{bad}");
        }
    }
}
