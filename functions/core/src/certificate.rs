//! The certificate of a deletion: a document in an envelope that anybody can verify offline, with nothing but the fingerprint of the
//! key.
//!
//! What is signed is a text inside the envelope, byte for byte: nothing has to be put into a canonical form, and nothing outside the
//! text means anything.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::digest::{SHA256, digest};
use ring::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use crate::error::StepError;

/// What the document is, and which version of it.
pub const FORMAT: &str = "tenantry-deletion-certificate/1";
/// How it is signed: ECDSA on P-256 over SHA-256, the signature in DER.
const ALGORITHM: &str = "ECDSA_SHA_256";
/// What stands before a P-256 key's point in a SubjectPublicKeyInfo (RFC 5480): both algorithms' identifiers, and that 65 bytes
/// follow, the point uncompressed.
const P256_PREFIX: &[u8] = &[
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce,
    0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];
/// Bytes of an uncompressed point on P-256.
const POINT_BYTES: usize = 65;

/// What is certified. Times are RFC 3339 in UTC. Nothing in it is personal, and the tenant's own name is not: the id is enough for
/// whoever has the contract.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Payload {
    /// [`FORMAT`].
    pub format: String,
    /// Whose data was deleted.
    pub tenant_id: Uuid,
    /// What it paid for.
    pub plan: String,
    /// Where its rows were.
    pub isolation: String,
    /// Where its resources were.
    pub region: String,
    /// When it signed up.
    pub registered_at: String,
    /// When it was in service for the first time.
    pub activated_at: Option<String>,
    /// Since when it was out of service.
    pub suspended_at: Option<String>,
    /// When its deletion was asked for.
    pub requested_at: String,
    /// When its export was published; none for an erasure, or where it was waived.
    pub exported_at: Option<String>,
    /// When the deletion began.
    pub begun_at: String,
    /// When the scan found nothing left.
    pub deleted_at: String,
    /// `offboarding` or `erasure`.
    pub kind: String,
    /// Why, one of the enumerated reasons.
    pub reason: String,
    /// Who asked: an operator's name, or which machine's execution.
    pub requested_by: String,
    /// The ticket of an erasure request.
    pub ticket: Option<String>,
    /// The operator who waived the export.
    pub export_waived_by: Option<String>,
    /// What there was, by store, before anything was deleted.
    pub deleted: Value,
    /// What the scan found afterwards, by store: no counts, and what stays by rule.
    pub scan: Value,
    /// Systems outside the stack that were asked to delete the tenant's data.
    pub downstream: Vec<Downstream>,
    /// When the last backup with the tenant's data is gone.
    pub backups_gone_by: String,
    /// When the executions' histories, which hold ids and counts, are gone.
    pub histories_gone_by: String,
}

/// What a system outside the stack answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Downstream {
    /// Its name.
    pub system: String,
    /// What kind of system it is.
    pub kind: String,
    /// When it confirmed; none where it did not in time.
    pub confirmed_at: Option<String>,
    /// How many records it says it deleted.
    pub records: Option<i64>,
}

/// The document as it is kept and handed out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Envelope {
    /// [`FORMAT`].
    pub format: String,
    /// The [`Payload`] as the text that was signed.
    pub payload: String,
    /// How it was signed.
    pub algorithm: String,
    /// The signature, in base64.
    pub signature: String,
    /// The public key as a SubjectPublicKeyInfo in DER, in base64.
    pub public_key: String,
}

/// Why a certificate does not hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It is no certificate, or not a whole one.
    #[error("this is not a certificate of deletion: {0}")]
    Malformed(String),
    /// It may be well signed, by somebody else.
    #[error("the certificate is signed with the key {found}, not with the one that was named")]
    UnknownKey {
        /// The fingerprint of the key in the envelope.
        found: String,
    },
    /// Something was changed since it was signed.
    #[error("the signature does not fit the document: something was changed after it was signed")]
    Changed,
}

impl Envelope {
    /// A signed document.
    pub fn new(payload: String, signature: &[u8], public_key: &[u8]) -> Self {
        Envelope {
            format: FORMAT.to_owned(),
            payload,
            algorithm: ALGORITHM.to_owned(),
            signature: STANDARD.encode(signature),
            public_key: STANDARD.encode(public_key),
        }
    }

    /// The document as it is kept.
    ///
    /// # Errors
    /// Never in practice: it is made of texts.
    pub fn to_json(&self) -> Result<String, StepError> {
        serde_json::to_string_pretty(self)
            .map_err(|error| StepError::Unexpected(format!("writing a certificate: {error}")))
    }

    /// Reads the document. Nothing is verified.
    ///
    /// # Errors
    /// [`Refusal::Malformed`].
    pub fn parse(text: &str) -> Result<Self, Refusal> {
        let envelope: Self = serde_json::from_str(text).map_err(|error| Refusal::Malformed(error.to_string()))?;
        match (envelope.format.as_str(), envelope.algorithm.as_str()) {
            (FORMAT, ALGORITHM) => Ok(envelope),
            (FORMAT, other) => Err(Refusal::Malformed(format!("its algorithm is {other:?}, and must be {ALGORITHM}"))),
            (other, _) => Err(Refusal::Malformed(format!("its format is {other:?}, and must be {FORMAT}"))),
        }
    }
}

/// SHA-256 of a public key (its DER, in base64) in lower-case hexadecimal; `None` where it is no base64.
pub fn fingerprint(public_key: &str) -> Option<String> {
    let der = STANDARD.decode(public_key).ok()?;
    Some(digest(&SHA256, &der).as_ref().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Verifies a certificate against the fingerprint of the key that must have signed it, and returns what it certifies.
///
/// # Errors
/// [`Refusal`], saying why it does not hold.
pub fn verify(text: &str, key: &str) -> Result<Payload, Refusal> {
    let envelope = Envelope::parse(text)?;
    let malformed = |what: &str| Refusal::Malformed(what.to_owned());
    let found = fingerprint(&envelope.public_key).ok_or_else(|| malformed("its public_key is no base64"))?;
    if found != key.to_ascii_lowercase() {
        return Err(Refusal::UnknownKey { found });
    }
    let der = STANDARD.decode(&envelope.public_key).map_err(|_| malformed("its public_key is no base64"))?;
    let point = der.strip_prefix(P256_PREFIX).filter(|point| point.len() == POINT_BYTES);
    let point = point.ok_or_else(|| malformed("its public_key is not one on P-256"))?;
    let signature = STANDARD.decode(&envelope.signature).map_err(|_| malformed("its signature is no base64"))?;
    let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, point);
    key.verify(envelope.payload.as_bytes(), &signature).map_err(|_| Refusal::Changed)?;
    let payload: Payload = serde_json::from_str(&envelope.payload)
        .map_err(|error| Refusal::Malformed(format!("what is signed is incomplete: {error}")))?;
    match payload.format == FORMAT {
        true => Ok(payload),
        false => Err(Refusal::Malformed(format!("what is signed is a {:?}", payload.format))),
    }
}

#[cfg(test)]
mod tests {
    use ring::rand::SystemRandom;
    use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair};
    use serde_json::json;

    use super::*;

    fn payload() -> Payload {
        let at = "2026-11-24T08:00:00Z".to_owned();
        Payload {
            format: FORMAT.into(),
            tenant_id: Uuid::nil(),
            plan: "growth".into(),
            isolation: "schema".into(),
            region: "us-east-1".into(),
            registered_at: at.clone(),
            activated_at: Some(at.clone()),
            suspended_at: Some(at.clone()),
            requested_at: at.clone(),
            exported_at: None,
            begun_at: at.clone(),
            deleted_at: at.clone(),
            kind: "erasure".into(),
            reason: "data_protection_law".into(),
            requested_by: "manual:ada".into(),
            ticket: Some("DP-17".into()),
            export_waived_by: None,
            deleted: json!({"secrets": {"secrets": 1}}),
            scan: json!({"secrets": {}}),
            downstream: vec![Downstream {
                system: "search".into(),
                kind: "index".into(),
                confirmed_at: None,
                records: None,
            }],
            backups_gone_by: at.clone(),
            histories_gone_by: at,
        }
    }

    /// A certificate of this text, and the fingerprint of the key.
    fn signed(payload: &str) -> (Envelope, String) {
        let random = SystemRandom::new();
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random).expect("a key");
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, pkcs8.as_ref(), &random).expect("a pair");
        let signature = pair.sign(&random, payload.as_bytes()).expect("a signature");
        let public = [P256_PREFIX, pair.public_key().as_ref()].concat();
        let envelope = Envelope::new(payload.to_owned(), signature.as_ref(), &public);
        let fingerprint = fingerprint(&envelope.public_key).expect("base64");
        (envelope, fingerprint)
    }

    fn certificate() -> (Envelope, String) {
        signed(&serde_json::to_string(&payload()).expect("a document"))
    }

    fn json_of(envelope: &Envelope) -> String {
        envelope.to_json().expect("a document")
    }

    #[test]
    fn what_was_signed_is_what_is_certified() {
        let (envelope, key) = certificate();
        assert_eq!(verify(&json_of(&envelope), &key), Ok(payload()));
        assert_eq!(verify(&json_of(&envelope), &key.to_ascii_uppercase()), Ok(payload()));
    }

    #[test]
    fn another_key_is_refused_although_it_signed_well() {
        let ((envelope, _), (_, other)) = (certificate(), certificate());
        assert!(matches!(verify(&json_of(&envelope), &other), Err(Refusal::UnknownKey { .. })));
        assert!(matches!(verify(&json_of(&envelope), ""), Err(Refusal::UnknownKey { .. })));
    }

    #[test]
    fn every_changed_byte_is_seen() {
        let (envelope, key) = certificate();
        for at in 0..envelope.payload.len() {
            let mut changed = envelope.clone();
            let mut bytes = changed.payload.into_bytes();
            bytes[at] ^= 1;
            changed.payload = String::from_utf8(bytes).expect("ASCII");
            assert_eq!(verify(&json_of(&changed), &key), Err(Refusal::Changed), "byte {at}");
        }
        let mut changed = envelope;
        changed.signature = STANDARD.encode(b"no signature");
        assert_eq!(verify(&json_of(&changed), &key), Err(Refusal::Changed));
    }

    #[test]
    fn what_is_not_whole_is_refused_also_when_it_is_signed() {
        let (envelope, key) = certificate();
        for field in ["format", "payload", "algorithm", "signature", "public_key"] {
            let mut document: Value = serde_json::from_str(&json_of(&envelope)).expect("JSON");
            document.as_object_mut().expect("an object").remove(field);
            assert!(matches!(verify(&document.to_string(), &key), Err(Refusal::Malformed(_))), "{field}");
        }
        for text in ["", "[]", "certified"] {
            assert!(matches!(verify(text, &key), Err(Refusal::Malformed(_))), "{text}");
        }
        // What stands beside the signed text says nothing: it is not let in.
        let mut document: Value = serde_json::from_str(&json_of(&envelope)).expect("JSON");
        document["note"] = json!("all is well");
        assert!(matches!(verify(&document.to_string(), &key), Err(Refusal::Malformed(_))));
        let mut whole = serde_json::to_value(payload()).expect("a document");
        whole.as_object_mut().expect("an object").remove("scan");
        let (incomplete, key) = signed(&whole.to_string());
        assert!(matches!(verify(&json_of(&incomplete), &key), Err(Refusal::Malformed(_))));
    }
}
