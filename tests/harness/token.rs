//! Tokens that browsers show, signed here.

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use chassis::signature::hex_sign;
use serde_json::{Value, json};

use super::now;

/// A token that this secret signs.
pub(crate) fn signed(secret: &str, mut claims: Value) -> String {
    if claims["exp"].is_null() {
        claims["exp"] = (now().as_second() + 3600).into();
    }
    let encode = |value: &Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", encode(&json!({ "alg": "HS256", "typ": "JWT" })), encode(&claims));
    let mac = hex::decode(hex_sign(secret.as_bytes(), signed.as_bytes())).expect("hex");
    format!("{signed}.{}", BASE64_URL_SAFE_NO_PAD.encode(mac))
}
