//! Who the holder of a token is, and what of its organization's events it may see. Pure.
//!
//! Claims are read at the token's top or in its `app_metadata`, which only the issuer can write; `user_metadata` is the
//! user's own and never looked at. A role that isn't known gives nothing by itself: the ids then say who somebody is.
//!
//! Invariant: whoever isn't an admin or a service sees a row only if the row itself names one of its ids.

use chassis::id::OrganizationId;
use jiff::Timestamp;
use serde::Deserialize;

use super::{
    row::{Literal, Row, Value},
    token::TokenError,
};

/// What a token says of its holder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Claims {
    pub organization: OrganizationId,
    pub role: Role,
    pub suppliers: Vec<String>,
    pub couple: Option<String>,
    pub weddings: Vec<String>,
    pub expires: Timestamp,
    /// Empty where the token has none, as keys of programs do.
    pub subject: String,
}

/// What kind of holder it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Sees rows of its own suppliers, and rows of its weddings that are no supplier's.
    Supplier,
    /// Sees rows of its own couple, and rows of its weddings that are no couple's.
    Couple,
    /// Owns or runs the organization: sees all of it.
    Admin,
    /// A program of the organization: sees all of it.
    Service,
    /// Sees nothing that was logged; hears what is said in free rooms.
    Guest,
}

/// The claims as they stand in a token.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Stated {
    organization_id: Option<Id>,
    #[serde(alias = "user_role")]
    app_role: Option<String>,
    /// The database's role in most tokens.
    role: Option<String>,
    #[serde(alias = "supplier_ids")]
    supplier_id: Ids,
    couple_id: Option<Id>,
    #[serde(alias = "wedding_id")]
    wedding_ids: Ids,
    sub: Option<String>,
    app_metadata: Option<Box<Stated>>,
}

/// A text or a whole number.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum Id {
    Text(String),
    Number(i64),
}

/// One or a list of them; none where it is null.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(untagged)]
enum Ids {
    #[default]
    None,
    One(Id),
    Some(Vec<Id>),
}

impl Id {
    /// None for an empty one, which would be equal to an empty column.
    fn text(self) -> Option<String> {
        Some(match self {
            Self::Text(text) => text,
            Self::Number(number) => number.to_string(),
        })
        .filter(|text| !text.is_empty())
    }
}

impl Ids {
    fn or(self, other: Self) -> Vec<String> {
        let own = if matches!(self, Self::None) { other } else { self };
        let all = match own {
            Self::None => Vec::new(),
            Self::One(id) => vec![id],
            Self::Some(ids) => ids,
        };
        all.into_iter().filter_map(Id::text).collect()
    }
}

impl Stated {
    /// Who that is; `app_metadata` counts where the top says nothing.
    pub(super) fn claims(mut self, expires: Timestamp) -> Result<Claims, TokenError> {
        let nested = self.app_metadata.take().map_or_else(Self::default, |nested| *nested);
        let organization = self.organization_id.or(nested.organization_id).and_then(Id::text);
        let organization = organization.ok_or(TokenError::MissingClaim("organization_id"))?;
        let named = self.app_role.or(nested.app_role).or(nested.role).or(self.role);
        let suppliers = self.supplier_id.or(nested.supplier_id);
        let couple = self.couple_id.or(nested.couple_id).and_then(Id::text);
        Ok(Claims {
            organization: OrganizationId::parse(&organization).map_err(|_| TokenError::Malformed)?,
            role: role(named.as_deref(), !suppliers.is_empty(), couple.is_some()),
            suppliers,
            couple,
            weddings: self.wedding_ids.or(nested.wedding_ids),
            expires,
            subject: self.sub.unwrap_or_default(),
        })
    }
}

fn role(named: Option<&str>, has_supplier: bool, has_couple: bool) -> Role {
    match named {
        Some("owner" | "admin") => Role::Admin,
        Some("service" | "service_role") => Role::Service,
        Some("supplier" | "vendor") if has_supplier => Role::Supplier,
        Some("couple" | "client") if has_couple => Role::Couple,
        Some("supplier" | "vendor" | "couple" | "client") => Role::Guest,
        _ if has_supplier => Role::Supplier,
        _ if has_couple => Role::Couple,
        _ => Role::Guest,
    }
}

impl Claims {
    fn sees_all(&self) -> bool {
        matches!(self.role, Role::Admin | Role::Service)
    }

    /// Whether it may join a channel, named canonically. Names of ours are for those whom they name, and those that name
    /// nobody, or all, for admins; every other name is a free room of the organization.
    pub(crate) fn may_join(&self, channel: &str) -> bool {
        let segments: Vec<&str> = channel.splitn(4, ':').collect();
        let is_supplier = |id: &str| self.role == Role::Supplier && self.suppliers.iter().any(|own| own == id);
        let is_couple = |id: &str| self.role == Role::Couple && self.couple.as_deref() == Some(id);
        let has_wedding = |id: &str| self.role != Role::Guest && self.weddings.iter().any(|own| own == id);
        self.sees_all()
            || match *segments {
                ["supplier", "dashboard", id] | ["client-list", id] => is_supplier(id),
                ["couple", id] | ["journey", "milestone", id] => is_couple(id),
                ["wedding", id] => has_wedding(id),
                // Whose a form is stands in its rows alone.
                ["supplier" | "client-list" | "couple" | "journey" | "wedding" | "form", ..] => false,
                _ => !channel.contains('*'),
            }
    }

    /// What every row that it is told of must fulfil.
    pub(crate) fn predicate(&self) -> Predicate {
        let literals = |ids: &[String]| ids.iter().map(|id| Literal::new(id)).collect();
        match self.role {
            Role::Admin | Role::Service => Predicate::All,
            Role::Guest => Predicate::Nothing,
            Role::Supplier => {
                Predicate::Supplier { own: literals(&self.suppliers), weddings: literals(&self.weddings) }
            }
            Role::Couple => {
                Predicate::Couple { own: literals(self.couple.as_slice()), weddings: literals(&self.weddings) }
            }
        }
    }
}

/// Which rows somebody may see.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) enum Predicate {
    All,
    Nothing,
    Supplier { own: Box<[Literal]>, weddings: Box<[Literal]> },
    Couple { own: Box<[Literal]>, weddings: Box<[Literal]> },
}

const SUPPLIER: Owner = Owner { column: "supplier_id", tables: &["suppliers"] };
const COUPLE: Owner = Owner { column: "couple_id", tables: &["couples"] };
const WEDDING: Owner = Owner { column: "wedding_id", tables: &["weddings", "wedding_details"] };
const KEY: &str = "id";
/// A list of suppliers, in a wedding's row.
const VENDORS: &str = "vendor_ids";

/// How rows say whose they are.
struct Owner {
    column: &'static str,
    /// Tables of owners themselves, whose key it is.
    tables: &'static [&'static str],
}

impl Owner {
    /// The columns to look at in rows of `table`; of any table if it is none.
    fn columns(&self, table: Option<&str>) -> impl Iterator<Item = &'static str> {
        let is_key = table.is_none_or(|table| self.tables.contains(&table));
        [self.column].into_iter().chain(is_key.then_some(KEY))
    }

    fn of<'a>(&self, table: &str, row: &'a Row) -> Option<&'a Value> {
        self.columns(Some(table)).filter_map(|column| row.get(column)).find(|value| **value != Value::Null)
    }
}

impl Predicate {
    /// Whether a row of `table` may be seen. A row that names an owner is that owner's alone.
    pub(crate) fn allows(&self, table: &str, row: &Row) -> bool {
        let one_of =
            |value: Option<&Value>, ids: &[Literal]| value.is_some_and(|value| ids.iter().any(|id| value.holds(id)));
        let (owner, own, weddings, vendors) = match self {
            Self::All => return true,
            Self::Nothing => return false,
            Self::Supplier { own, weddings } => (SUPPLIER.of(table, row), own, weddings, row.get(VENDORS)),
            Self::Couple { own, weddings } => (COUPLE.of(table, row), own, weddings, None),
        };
        match owner {
            Some(owner) => one_of(Some(owner), own),
            None => one_of(WEDDING.of(table, row), weddings) || one_of(vendors, own),
        }
    }

    /// What an index can find it by: rows of `table` that it allows have one of these values in one of these columns.
    /// None where it allows all.
    pub(super) fn handholds(&self, table: Option<&str>) -> Option<Vec<(&'static str, &[Literal])>> {
        let (owner, vendors, own, weddings) = match self {
            Self::All => return None,
            Self::Nothing => return Some(Vec::new()),
            Self::Supplier { own, weddings } => (SUPPLIER, Some(VENDORS), own, weddings),
            Self::Couple { own, weddings } => (COUPLE, None, own, weddings),
        };
        let owned = owner.columns(table).chain(vendors).map(|column| (column, &**own));
        Some(owned.chain(WEDDING.columns(table).map(|column| (column, &**weddings))).collect())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::{Value as Json, json};

    use super::*;

    pub(crate) fn claims(stated: &Json) -> Result<Claims, TokenError> {
        let stated: Stated = serde_json::from_value(stated.clone()).map_err(|_| TokenError::Malformed)?;
        stated.claims(Timestamp::UNIX_EPOCH)
    }

    fn of(stated: Json) -> Claims {
        let mut all = json!({ "organization_id": "org" });
        all.as_object_mut().expect("an object").extend(stated.as_object().expect("an object").clone());
        claims(&all).unwrap_or_else(|error| panic!("{all}: {error}"))
    }

    fn sees(claims: &Claims, table: &str, row: &str) -> bool {
        claims.predicate().allows(table, &Row::parse(row.as_bytes()))
    }

    #[test]
    fn claims_stand_at_the_top_or_in_the_apps_metadata() {
        let nested = json!({ "role": "authenticated", "app_metadata": {
            "organization_id": "org", "role": "supplier", "supplier_id": "s1", "wedding_ids": ["w1", 2] } });
        let nested = claims(&nested).expect("claims");
        assert_eq!((nested.role, nested.suppliers), (Role::Supplier, vec!["s1".to_owned()]));
        assert_eq!(nested.weddings, ["w1", "2"]);
        let top =
            of(json!({ "supplier_id": ["s1", "s2"], "app_role": "vendor", "app_metadata": { "supplier_id": "s3" } }));
        assert_eq!((top.role, top.suppliers), (Role::Supplier, vec!["s1".to_owned(), "s2".to_owned()]));
        let users = of(json!({ "user_metadata": { "supplier_id": "s1", "role": "admin" } }));
        assert_eq!((users.role, users.suppliers.len()), (Role::Guest, 0), "what the user wrote gives nothing");
    }

    #[test]
    fn a_role_is_the_applications_and_an_unknown_one_gives_nothing() {
        for (stated, expected) in [
            (json!({ "role": "authenticated" }), Role::Guest),
            (json!({ "role": "anon" }), Role::Guest),
            (json!({ "role": "service_role" }), Role::Service),
            (json!({ "role": "authenticated", "app_role": "owner" }), Role::Admin),
            (json!({ "role": "authenticated", "user_role": "admin" }), Role::Admin),
            (json!({ "role": "admin", "app_metadata": { "role": "couple", "couple_id": "c1" } }), Role::Couple),
            (json!({ "role": "Admin" }), Role::Guest),
            (json!({ "role": "emperor", "supplier_id": "s1" }), Role::Supplier),
            (json!({ "role": "authenticated", "couple_id": 7 }), Role::Couple),
            (json!({ "app_role": "supplier", "couple_id": "c1" }), Role::Guest),
            (json!({ "app_role": "supplier", "supplier_id": "" }), Role::Guest),
        ] {
            assert_eq!(of(stated.clone()).role, expected, "{stated}");
        }
    }

    #[test]
    fn claims_of_another_type_are_refused() {
        for stated in [
            json!({ "organization_id": ["org"] }),
            json!({ "organization_id": "a b" }),
            json!({ "organization_id": "org", "supplier_id": { "id": 1 } }),
            json!({ "organization_id": "org", "supplier_id": [["s1"]] }),
            json!({ "organization_id": "org", "wedding_ids": [1.5] }),
            json!({ "organization_id": "org", "couple_id": true }),
            json!({ "organization_id": "org", "app_role": ["admin"] }),
            json!({ "organization_id": "org", "app_metadata": "admin" }),
        ] {
            assert_eq!(claims(&stated), Err(TokenError::Malformed), "{stated}");
        }
        for stated in [json!({}), json!({ "organization_id": null }), json!({ "organization_id": "" })] {
            assert_eq!(claims(&stated), Err(TokenError::MissingClaim("organization_id")));
        }
    }

    #[test]
    fn a_supplier_sees_its_own_rows_only() {
        let supplier = of(json!({ "app_role": "supplier", "supplier_id": ["s1", 2], "wedding_ids": "w1" }));
        for row in [r#"{"supplier_id":"s1"}"#, r#"{"supplier_id":2}"#, r#"{"wedding_id":"w1"}"#] {
            assert!(sees(&supplier, "any", row), "{row}");
        }
        assert!(sees(&supplier, "suppliers", r#"{"id":"s1"}"#) && sees(&supplier, "wedding_details", r#"{"id":"w1"}"#));
        assert!(sees(&supplier, "wedding_details", r#"{"id":"w9","vendor_ids":["s9","s1"]}"#));
        for row in [
            "{}",
            r#"{"supplier_id":"s9"}"#,
            r#"{"supplier_id":"s9","wedding_id":"w1"}"#,
            r#"{"id":"s1"}"#,
            r#"{"id":"w1"}"#,
            r#"{"supplier_id":null}"#,
            r#"{"wedding_id":"w9"}"#,
            r#"{"couple_id":"s1"}"#,
        ] {
            assert!(!sees(&supplier, "any", row), "{row}");
        }
        assert!(!sees(&supplier, "suppliers", r#"{"id":"s9"}"#));
    }

    #[test]
    fn a_couple_sees_its_own_rows_only_and_a_guest_none() {
        let couple = of(json!({ "app_role": "couple", "couple_id": "c1", "wedding_ids": ["w1"], "supplier_id": "s1" }));
        assert!(sees(&couple, "core_fields", r#"{"couple_id":"c1"}"#) && sees(&couple, "x", r#"{"wedding_id":"w1"}"#));
        assert!(!sees(&couple, "x", r#"{"couple_id":"c2","wedding_id":"w1"}"#));
        assert!(!sees(&couple, "x", r#"{"supplier_id":"s1"}"#), "the role counts, not every id");
        assert!(!sees(&of(json!({})), "x", r#"{"couple_id":null,"id":""}"#));
        assert!(sees(&of(json!({ "app_role": "owner" })), "x", "{}"));
    }

    #[test]
    fn channels_are_for_those_whom_they_name() {
        let supplier = of(json!({ "supplier_id": "s1", "wedding_ids": ["w1"] }));
        let couple = of(json!({ "couple_id": "c1" }));
        let (guest, admin) = (of(json!({})), of(json!({ "app_role": "admin" })));
        for channel in ["supplier:dashboard:s1", "client-list:s1", "wedding:w1", "room", "a:b:c:d:e"] {
            assert!(supplier.may_join(channel) && admin.may_join(channel), "{channel}");
        }
        for channel in ["couple:c1", "journey:milestone:c1", "room"] {
            assert!(couple.may_join(channel) && admin.may_join(channel), "{channel}");
        }
        for channel in [
            "supplier:dashboard:s2",
            "supplier:dashboard:*",
            "supplier:dashboard",
            "supplier:other:s1",
            "supplier:dashboard:s1:x",
            "client-list:",
            "client-list",
            "wedding:w2",
            "couple:s1",
            "couple:*",
            "form:response:f1",
            "journey:milestone",
            "*",
            "**",
        ] {
            assert!(!supplier.may_join(channel) && !guest.may_join(channel) && admin.may_join(channel), "{channel}");
        }
        assert!(guest.may_join("room") && !guest.may_join("wedding:w1"));
    }
}
