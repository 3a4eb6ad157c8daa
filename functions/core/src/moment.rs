//! Moments, as everybody outside reads and writes them: RFC 3339.

use serde_json::Value;
use time::format_description::well_known::Rfc3339;
use time::{OffsetDateTime, UtcOffset};

use crate::error::StepError;

/// The moment as text, in UTC.
///
/// # Errors
/// `Unexpected` for a year that RFC 3339 has no digits for.
pub fn text(at: OffsetDateTime) -> Result<String, StepError> {
    at.to_offset(UtcOffset::UTC)
        .format(&Rfc3339)
        .map_err(|error| StepError::Unexpected(format!("writing a moment: {error}")))
}

/// A field's moment, or the rule that it breaks.
pub(crate) fn read(value: &Value) -> Result<OffsetDateTime, &'static str> {
    let moment = value.as_str().and_then(|text| OffsetDateTime::parse(text, &Rfc3339).ok());
    moment.ok_or("must be a moment (RFC 3339), such as 2027-01-01T00:00:00Z")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        let at = read(&json!("2026-11-24T12:00:00+01:00")).expect("a moment");
        assert_eq!(text(at).expect("a text"), "2026-11-24T11:00:00Z");
        assert!([json!("2026-11-24"), json!(1_700_000_000), json!(null)].iter().all(|value| read(value).is_err()));
    }
}
