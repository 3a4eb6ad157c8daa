//! What the product's services and operators ask about quotas.

use serde_json::Value;
use time::OffsetDateTime;

use super::{Fields, boolean, label, name, selector};
use crate::error::StepError;
use crate::moment;
use crate::registry::Selector;
use crate::registry::quotas::Override;
use crate::tenant::Metered;

/// The longest key of an object, in bytes (S3's).
const MAX_KEY_BYTES: usize = 1024;
/// The largest object that one PUT makes: 5 GiB (S3's).
const MAX_UPLOAD_BYTES: i64 = 5 * 1024 * 1024 * 1024;
/// The longest Content-Type that is taken, in bytes.
const MAX_CONTENT_TYPE_BYTES: usize = 255;

/// A request for a seat, or to have one back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeatCall {
    /// The tenant.
    pub tenant: Selector,
    /// Whose seat: an id that the product chose.
    pub user: String,
    /// Who wants it.
    pub actor: String,
}

/// A request to upload an object. It implements no `Debug`: its key is the tenant's word.
#[derive(Clone, PartialEq, Eq)]
pub struct UploadCall {
    /// The tenant.
    pub tenant: Selector,
    /// The object's key.
    pub key: String,
    /// Its size.
    pub bytes: i64,
    /// Its type, as browsers are to be told; any where it is left out.
    pub content_type: Option<String>,
}

/// A question about what was used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsageCall {
    /// The tenant.
    pub tenant: Selector,
    /// A moment of the billing cycle; the current one where it is left out.
    pub moment: Option<OffsetDateTime>,
}

/// A request to give a tenant another quota than its plan's, or to end that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OverrideCall {
    /// The tenant.
    pub tenant: Selector,
    /// Of what.
    pub resource: Metered,
    /// What is wanted; `None` is the plan's quota.
    pub wanted: Option<Override>,
    /// Who wants it.
    pub actor: String,
}

impl SeatCall {
    /// Reads `{"tenant_id" or "slug", "user", "actor"}`.
    ///
    /// # Errors
    /// `InvalidRequest` with every problem.
    pub fn parse(document: &Value) -> Result<Self, StepError> {
        let mut fields = Fields::of("", document)?;
        let tenant = selector(&mut fields);
        let user = fields.required("user", label);
        let actor = fields.required("actor", label);
        let problems = fields.finish();
        match (tenant, user, actor) {
            (Some(tenant), Some(user), Some(actor)) if problems.is_empty() => Ok(SeatCall { tenant, user, actor }),
            _ => Err(StepError::InvalidRequest(problems)),
        }
    }
}

impl UploadCall {
    /// Reads `{"tenant_id" or "slug", "key", "bytes", "content_type"}`.
    ///
    /// # Errors
    /// `InvalidRequest` with every problem. None of them repeats the key.
    pub fn parse(document: &Value) -> Result<Self, StepError> {
        let mut fields = Fields::of("", document)?;
        let tenant = selector(&mut fields);
        let key = fields.required("key", object_key);
        let bytes = fields.required("bytes", |value| {
            let size = value.as_i64().filter(|size| (0..=MAX_UPLOAD_BYTES).contains(size));
            size.ok_or("must be a number of bytes from 0 to 5,368,709,120, which is the most that one upload takes")
        });
        let content_type = fields.optional("content_type", media_type);
        let problems = fields.finish();
        match (tenant, key, bytes, content_type) {
            (Some(tenant), Some(key), Some(bytes), Some(content_type)) if problems.is_empty() => {
                Ok(UploadCall { tenant, key, bytes, content_type })
            }
            _ => Err(StepError::InvalidRequest(problems)),
        }
    }
}

impl UsageCall {
    /// Reads `{"tenant_id" or "slug", "cycle"}`.
    ///
    /// # Errors
    /// `InvalidRequest` with every problem.
    pub fn parse(document: &Value) -> Result<Self, StepError> {
        let mut fields = Fields::of("", document)?;
        let tenant = selector(&mut fields);
        let moment = fields.optional("cycle", moment::read);
        let problems = fields.finish();
        match (tenant, moment) {
            (Some(tenant), Some(moment)) if problems.is_empty() => Ok(UsageCall { tenant, moment }),
            _ => Err(StepError::InvalidRequest(problems)),
        }
    }
}

impl OverrideCall {
    /// Reads `{"tenant_id" or "slug", "resource", "amount", "expires_at", "actor"}`, or `"remove": true` instead of amount and
    /// end.
    ///
    /// # Errors
    /// `InvalidRequest` with every problem.
    pub fn parse(document: &Value) -> Result<Self, StepError> {
        let mut fields = Fields::of("", document)?;
        let tenant = selector(&mut fields);
        let resource = fields.required("resource", name::<Metered>);
        let actor = fields.required("actor", label);
        let amount = fields.optional("amount", |value| {
            value.as_i64().filter(|amount| *amount >= 0).ok_or("must be a whole number that is not negative")
        });
        let expires_at = fields.optional("expires_at", |value| {
            let end = moment::read(value)?;
            if end > OffsetDateTime::now_utc() { Ok(end) } else { Err("must lie in the future") }
        });
        let remove = fields.optional("remove", boolean).map(Option::unwrap_or_default);
        let wanted = match (amount, expires_at, remove) {
            (Some(Some(amount)), Some(Some(expires_at)), Some(false)) => Some(Some(Override { amount, expires_at })),
            (Some(None), Some(None), Some(true)) => Some(None),
            (Some(_), Some(_), Some(_)) => {
                fields.problem("", "must have amount and expires_at, or remove alone");
                None
            }
            _ => None,
        };
        let problems = fields.finish();
        match (tenant, resource, wanted, actor) {
            (Some(tenant), Some(resource), Some(wanted), Some(actor)) if problems.is_empty() => {
                Ok(OverrideCall { tenant, resource, wanted, actor })
            }
            _ => Err(StepError::InvalidRequest(problems)),
        }
    }
}

/// What S3 takes, less what clients on the way to it would change or cannot send.
fn object_key(value: &Value) -> Result<String, &'static str> {
    let text = value.as_str().ok_or("must be a text")?;
    if !(1..=MAX_KEY_BYTES).contains(&text.len()) {
        Err("must have 1 to 1,024 bytes")
    } else if text.starts_with('/') {
        Err("must not begin with a slash")
    } else if text.chars().any(char::is_control) {
        Err("must not hold control characters")
    } else if text.split('/').any(|part| matches!(part, "." | "..")) {
        Err("must not hold . or .. between slashes")
    } else {
        Ok(text.to_owned())
    }
}

fn media_type(value: &Value) -> Result<String, &'static str> {
    let text = value.as_str().filter(|text| text.len() <= MAX_CONTENT_TYPE_BYTES && text.contains('/'));
    let text =
        text.filter(|text| text.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ') && text.trim() == *text);
    text.map(str::to_owned).ok_or("must be a media type of at most 255 ASCII characters, such as image/png")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// The rules that a request breaks, as one text.
    fn refused<T>(result: Result<T, StepError>) -> String {
        result.err().map(|error| error.to_string()).unwrap_or_default()
    }

    #[test]
    fn a_seat_is_for_an_id_and_no_address() {
        let call = |user: &str| SeatCall::parse(&json!({"slug": "acme", "user": user, "actor": "product:users"}));
        assert!(call("7f3b8a4e-51b9-4a8e-9a30-6f4f1f5f7a11").is_ok());
        for user in ["", "ada@acme.example", "Ada Lovelace", &"a".repeat(65)] {
            let refused = refused(call(user));
            assert!(refused.contains("user must be 1 to 64"), "{user}: {refused}");
        }
        assert!(refused(SeatCall::parse(&json!({"user": "u"}))).contains("must name one tenant"));
    }

    #[test]
    fn a_key_is_what_arrives_unchanged() {
        let call = |key: &str| UploadCall::parse(&json!({"slug": "acme", "key": key, "bytes": 1}));
        for key in ["a", "reports/2026 <&> é.pdf", "..a/b..", &"k".repeat(1024)] {
            assert!(call(key).is_ok(), "{key}");
        }
        for (key, rule) in [
            ("", "1 to 1,024 bytes"),
            (&"é".repeat(513), "1 to 1,024 bytes"),
            ("/secret-name", "begin with a slash"),
            ("secret-name\n", "control characters"),
            ("secret-name/../x", ". or .. between"),
            ("./secret-name", ". or .. between"),
        ] {
            let refused = refused(call(key));
            assert!(refused.contains(rule) && !refused.contains("secret-name"), "{key}: {refused}");
        }
    }

    #[test]
    fn an_upload_has_a_size_and_a_type() {
        let call = |bytes: Value, content_type: Value| {
            UploadCall::parse(&json!({"slug": "acme", "key": "k", "bytes": bytes, "content_type": content_type}))
        };
        assert!(call(json!(0), json!(null)).is_ok());
        assert!(call(json!(MAX_UPLOAD_BYTES), json!("text/plain; charset=utf-8")).is_ok());
        for bytes in [json!(-1), json!(MAX_UPLOAD_BYTES + 1), json!(1.5), json!("1"), json!(null)] {
            assert!(refused(call(bytes, json!("image/png"))).contains("bytes"));
        }
        for content_type in ["png", "image/png\r\nx-amz-acl: public-read", " image/png", "image/é"] {
            assert!(refused(call(json!(1), json!(content_type))).contains("content_type must be"), "{content_type}");
        }
    }

    #[test]
    fn an_override_is_set_or_removed() {
        let base = json!({"slug": "acme", "resource": "seats", "actor": "ops:ada"});
        let with = |more: Value| {
            let mut call = base.clone();
            call.as_object_mut().expect("an object").extend(more.as_object().cloned().unwrap_or_default());
            OverrideCall::parse(&call)
        };
        let set = with(json!({"amount": 7, "expires_at": "2999-01-01T00:00:00Z"})).expect("a call");
        assert_eq!(set.wanted.map(|wanted| wanted.amount), Some(7));
        assert_eq!(with(json!({"remove": true})).expect("a call").wanted, None);
        for (more, rule) in [
            (json!({}), "amount and expires_at, or remove"),
            (json!({"amount": 7}), "amount and expires_at, or remove"),
            (json!({"amount": 7, "expires_at": "2999-01-01T00:00:00Z", "remove": true}), "or remove alone"),
            (json!({"amount": -1, "expires_at": "2999-01-01T00:00:00Z"}), "amount must be"),
            (json!({"amount": 1, "expires_at": "2001-01-01T00:00:00Z"}), "expires_at must lie in the future"),
            (json!({"amount": 1, "expires_at": "tomorrow"}), "expires_at must be a moment"),
        ] {
            let refused = refused(with(more.clone()));
            assert!(refused.contains(rule), "{more}: {refused}");
        }
    }
}
