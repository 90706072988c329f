//! Rows that one service seals for another: whoever reads the event sees which row has changed, and not what it says.
//!
//! For the tables that say how systems are reached, since they hold keys. Sealed with the master key, which all services of
//! an installation share; what the rows mean is left to who opens them.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{
    error::{Error, Result},
    id::OrganizationId,
    secret::{Keyring, place},
};

#[derive(Deserialize, Serialize)]
struct SealedRow {
    #[serde(default, skip_serializing_if = "Value::is_null")]
    id: Value,
    /// Base64.
    sealed: String,
}

/// `{"id": ..., "sealed": "..."}` in place of `row`, a JSON object; `id` where the row has one.
///
/// # Errors
/// `Error::Invalid` for what is no JSON object.
pub fn seal(keyring: &Keyring, organization: &OrganizationId, row: &[u8]) -> Result<Vec<u8>> {
    let malformed = |_| Error::invalid("change", "rows must be JSON objects");
    let mut columns: Map<String, Value> = serde_json::from_slice(row).map_err(malformed)?;
    let id = columns.remove("id").unwrap_or_default();
    let sealed = STANDARD.encode(keyring.seal(&aad(organization), row));
    serde_json::to_vec(&SealedRow { id, sealed }).map_err(Error::internal)
}

/// The row that [`seal`] was given; none where `row` isn't sealed.
///
/// # Errors
/// `Error::Internal` where the master key is missing here, or the row was altered or is another organization's.
pub fn open(keyring: &Keyring, organization: &OrganizationId, row: &[u8]) -> Result<Option<Vec<u8>>> {
    let Ok(SealedRow { sealed, .. }) = serde_json::from_slice(row) else { return Ok(None) };
    let sealed = STANDARD.decode(sealed).map_err(Error::internal)?;
    keyring.open(&aad(organization), &sealed).map(Some)
}

fn aad(organization: &OrganizationId) -> Vec<u8> {
    place("change", "row", organization.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        clock::Clock,
        secret::{KeyringSettings, generate_master_key},
    };

    #[test]
    fn a_sealed_row_shows_its_id_alone_and_opens_for_its_organization() {
        let keyring =
            Keyring::new(&KeyringSettings { master_keys: vec![generate_master_key(&Clock::System)] }).unwrap();
        let (ours, others) = (OrganizationId::parse("a").unwrap(), OrganizationId::parse("b").unwrap());
        let row = br#"{"id":7,"api_key":"hush"}"#;
        let sealed = seal(&keyring, &ours, row).unwrap();
        assert!(sealed.starts_with(br#"{"id":7,"sealed":""#));
        assert!(!String::from_utf8(sealed.clone()).unwrap().contains("hush"));
        assert_eq!(open(&keyring, &ours, &sealed).unwrap().as_deref(), Some(row.as_slice()));
        assert!(open(&keyring, &others, &sealed).is_err());
        assert_eq!(open(&keyring, &ours, row).unwrap(), None);
        assert!(seal(&keyring, &ours, b"[]").is_err());
    }
}
