//! What an integration authenticates with at its vendor.

use chassis::config::Secret;

/// What a request to the vendor carries.
#[derive(Clone, Debug)]
pub(crate) enum Credential {
    None,
    Key(Secret),
    Basic { user: String, password: Secret },
    Token(Secret),
}
