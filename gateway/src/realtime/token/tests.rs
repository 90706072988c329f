//! Tokens that are good, and every way in which one isn't. The keys are RFC 7515's examples, known to everybody.

use proptest::prelude::*;
use ring::{
    rand::SystemRandom,
    rsa::{KeyPair, KeyPairComponents, PublicKeyComponents},
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, RSA_PKCS1_SHA256},
};

use super::*;

pub(crate) const NOW: i64 = 1_777_636_800;
const SECRET: &str = "a secret that only these tests share";

// RFC 7515, appendix A.1 to A.3.
const PAYLOAD: &str = "eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ";
const HS_KEY: &str = "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow";
const HS_TOKEN: [&str; 2] = ["eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9", "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"];
const RS_TOKEN: [&str; 2] = [
    "eyJhbGciOiJSUzI1NiJ9",
    concat!(
        "cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujGbds9uJdbF9CUAr7t",
        "1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB_eSN9383LcOLn6_dO--xi12j",
        "zDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQ",
        "Ge77Rw"
    ),
];
const ES_TOKEN: [&str; 2] =
    ["eyJhbGciOiJFUzI1NiJ9", "DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q"];
pub(crate) const RSA_N: &str = concat!(
    "ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pC",
    "gNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg6",
    "65xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRW",
    "yuXpoQ"
);
const RSA_PRIVATE: [&str; 6] = [
    concat!(
        "Eq5xpGnNCivDflJsRQBXHx1hdR1k6Ulwe2JZD50LpXyWPEAeP88vLNO97IjlA7_GQ5sLKMgvfTeXZx9SE-7YwVol2NXOoAJe46sui395IW_GO-pW",
        "J1O0BkTGoVEn2bKVRUCgu-GjBVaYLU6f3l9kJfFNS3E0QbVdxzubSu3Mkqzjkn439X0M_V51gfpRLI9JYanrC4D4qAdGcopV_0ZHHzQlBjudU2Qv",
        "Xt4ehNYTCBr6XCLQUShb1juUO1ZdiYoFaFQT5Tw8bGUl_x_jTj3ccPDVZFD9pIuhLhBOneufuBiB4cS98l2SR_RQyGWSeWjnczT0QU91p1DhOVRu",
        "OopznQ"
    ),
    concat!(
        "4BzEEOtIpmVdVEZNCqS7baC4crd0pqnRH_5IB3jw3bcxGn6QLvnEtfdUdiYrqBdss1l58BQ3KhooKeQTa9AB0Hw_Py5PJdTJNPY8cQn7ouZ2KKDc",
        "mnPGBY5t7yLc1QlQ5xHdwW1VhvKn-nXqhJTBgIPgtldC-KDV5z-y2XDwGUc"
    ),
    concat!(
        "uQPEfgmVtjL0Uyyx88GZFF1fOunH3-7cepKmtH4pxhtCoHqpWmT8YAmZxaewHgHAjLYsp1ZSe7zFYHj7C6ul7TjeLQeZD_YwD66t62wDmpe_HlB-",
        "TnBA-njbglfIsRLtXlnDzQkv5dTltRJ11BKBBypeeF6689rjcJIDEz9RWdc"
    ),
    concat!(
        "BwKfV3Akq5_MFZDFZCnW-wzl-CCo83WoZvnLQwCTeDv8uzluRSnm71I3QCLdhrqE2e9YkxvuxdBfpT_PI7Yz-FOKnu1R6HsJeDCjn12Sk3vmAktV",
        "2zb34MCdy7cpdTh_YVr7tss2u6vneTwrA86rZtu5Mbr1C1XsmvkxHQAdYo0"
    ),
    concat!(
        "h_96-mK1R_7glhsum81dZxjTnYynPbZpHziZjeeHcXYsXaaMwkOlODsWa7I9xXDoRwbKgB719rrmI2oKr6N3Do9U0ajaHF-NKJnwgjMd2w9cjz3_",
        "-kyNlxAr2v4IKhGNpmM5iIgOS1VZnOZ68m6_pbLBSp3nssTdlqvd0tIiTHU"
    ),
    concat!(
        "IYd7DHOhrWvxkwPQsRM2tOgrjbcrfvtQJipd-DlcxyVuuM9sQLdgjVk2oy26F0EmpScGLq2MowX7fhd_QJQ3ydy5cY7YIBi87w93IKLEdfnbJtoO",
        "PLUW0ITrJReOgo1cq9SbsxYawBgfp_gh6A5603k2-ZQwVK0JKSHuLFkuQ3U"
    ),
];
pub(crate) const EC_X: &str = "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU";
pub(crate) const EC_Y: &str = "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0";
const EC_D: &str = "jpsQnnGQmL-YBIffH1136cspYG6-0iY7X1fCE9-E9LI";

fn bytes(part: &str) -> Vec<u8> {
    decode(part).expect("base64url")
}

fn join(header: &Value, payload: &str, sign: impl FnOnce(&[u8]) -> Vec<u8>) -> String {
    let signed = format!("{}.{}", BASE64.encode(header.to_string()), BASE64.encode(payload));
    let signature = sign(signed.as_bytes());
    format!("{signed}.{}", BASE64.encode(signature))
}

fn mac(secret: &[u8], signed: &[u8]) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), signed).as_ref().to_vec()
}

fn hs256(payload: &str) -> String {
    join(&json!({ "alg": "HS256", "typ": "JWT" }), payload, |signed| mac(SECRET.as_bytes(), signed))
}

pub(crate) fn rs256(kid: &str, claims: &Value) -> String {
    let [d, p, q, d_p, d_q, q_inv] = RSA_PRIVATE.map(bytes);
    let public_key = PublicKeyComponents { n: bytes(RSA_N), e: bytes("AQAB") };
    let key = KeyPair::from_components(&KeyPairComponents { public_key, d, p, q, dP: d_p, dQ: d_q, qInv: q_inv })
        .expect("the RFC's key");
    join(&json!({ "alg": "RS256", "kid": kid }), &claims.to_string(), |signed| {
        let mut signature = vec![0; key.public().modulus_len()];
        key.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), signed, &mut signature).expect("it signs");
        signature
    })
}

pub(crate) fn es256(kid: Option<&str>, claims: &Value) -> String {
    let point = [vec![4], bytes(EC_X), bytes(EC_Y)].concat();
    let (algorithm, random) = (&ECDSA_P256_SHA256_FIXED_SIGNING, SystemRandom::new());
    let key = EcdsaKeyPair::from_private_key_and_public_key(algorithm, &bytes(EC_D), &point, &random);
    let key = key.expect("the RFC's key");
    let mut header = json!({ "alg": "ES256" });
    header.as_object_mut().expect("an object").extend(kid.map(|kid| ("kid".to_owned(), kid.into())));
    join(&header, &claims.to_string(), |signed| key.sign(&random, signed).expect("it signs").as_ref().to_vec())
}

pub(crate) fn rsa_jwk(kid: &str) -> Value {
    json!({ "kty": "RSA", "kid": kid, "use": "sig", "alg": "RS256", "n": RSA_N, "e": "AQAB" })
}

pub(crate) fn ec_jwk(kid: &str) -> Value {
    json!({ "kty": "EC", "kid": kid, "crv": "P-256", "x": EC_X, "y": EC_Y })
}

pub(crate) fn key_set(keys: &[Value]) -> KeySet {
    KeySet::parse(json!({ "keys": keys }).to_string().as_bytes()).expect("a key set")
}

pub(crate) fn good() -> Value {
    json!({ "organization_id": "org", "supplier_id": "s1", "exp": NOW + 60, "sub": "u1" })
}

fn with(change: Value) -> Value {
    let mut claims = good();
    claims.as_object_mut().expect("an object").extend(change.as_object().expect("an object").clone());
    claims
}

fn verifier() -> Verifier {
    let verifier = Verifier::new(&SECRET.to_owned().into(), "", "").expect("settings that hold");
    verifier.replace_keys(key_set(&[rsa_jwk("rsa"), ec_jwk("ec")]));
    verifier
}

fn now() -> Timestamp {
    Timestamp::from_second(NOW).expect("a time in range")
}

fn verify(token: &str) -> Result<Claims, TokenError> {
    verifier().verify(token, now())
}

fn refusal(claims: &Value) -> TokenError {
    verify(&hs256(&claims.to_string())).expect_err("it is refused")
}

#[test]
fn the_rfcs_own_tokens_verify_and_none_of_their_signatures_fits_another() {
    let secret = String::from_utf8_lossy(&bytes(HS_KEY)).into_owned();
    assert_ne!(secret.as_bytes(), bytes(HS_KEY), "the RFC's secret is no text, so its key is set directly");
    let mut verifier = verifier();
    verifier.secret = Some(hmac::Key::new(hmac::HMAC_SHA256, &bytes(HS_KEY)));
    let all = [HS_TOKEN, RS_TOKEN, ES_TOKEN];
    for [header, signature] in all {
        let payload = verifier.signed(&format!("{header}.{PAYLOAD}.{signature}")).expect("the RFC's token");
        assert_eq!(payload, bytes(PAYLOAD));
        for [_, other] in all.iter().filter(|[_, other]| *other != signature) {
            assert_eq!(verifier.signed(&format!("{header}.{PAYLOAD}.{other}")), Err(TokenError::Signature));
        }
    }
}

#[test]
fn a_good_token_of_each_kind_says_who_holds_it() {
    for token in [hs256(&good().to_string()), rs256("rsa", &good()), es256(Some("ec"), &good()), es256(None, &good())] {
        let claims = verify(&token).expect("it is good");
        assert_eq!(
            (claims.organization.as_str(), &*claims.subject, claims.suppliers),
            ("org", "u1", vec!["s1".to_owned()])
        );
        assert_eq!(claims.expires.as_second(), NOW + 60);
    }
}

#[test]
fn a_token_of_ours_is_good_and_without_a_secret_there_is_none() {
    let token = verifier().issue(&good()).expect("there is a secret");
    assert_eq!(verify(&token).expect("it is good").subject, "u1");
    let without = Verifier::new(&Secret::default(), "", "").expect("settings that hold");
    assert_eq!(without.issue(&good()), None);
}

#[test]
fn a_token_without_signature_or_of_another_algorithm_is_refused() {
    for alg in ["none", "None", "NONE", "", "HS512", "RS512", "ES384", "PS256", "EdDSA", "hs256"] {
        for signature in [vec![], mac(SECRET.as_bytes(), b"x")] {
            let token = join(&json!({ "alg": alg }), &good().to_string(), |_| signature);
            assert_eq!(verify(&token), Err(TokenError::Algorithm), "{alg}");
        }
    }
    let cut = hs256(&good().to_string());
    let (unsigned, _) = cut.rsplit_once('.').expect("three parts");
    assert_eq!(verify(&format!("{unsigned}.")), Err(TokenError::Signature));
    assert_eq!(verify(unsigned), Err(TokenError::Malformed));
}

#[test]
fn a_public_key_is_no_secret() {
    // What confuses libraries that take any key for any algorithm: an HMAC under the published key's bytes.
    let spki = format!("-----BEGIN PUBLIC KEY-----\n{RSA_N}\n-----END PUBLIC KEY-----\n");
    for key in [RSA_N.as_bytes(), &bytes(RSA_N), spki.as_bytes()] {
        let token = join(&json!({ "alg": "HS256", "kid": "rsa" }), &good().to_string(), |signed| mac(key, signed));
        assert_eq!(verify(&token), Err(TokenError::Signature));
        let without = Verifier::new(&Secret::default(), "", "").expect("settings that hold");
        without.replace_keys(key_set(&[rsa_jwk("rsa")]));
        assert_eq!(without.verify(&token, now()), Err(TokenError::Algorithm));
    }
    assert!(Verifier::new(&spki.into(), "", "").is_err() && Verifier::new(&"short".to_owned().into(), "", "").is_err());
    let published = json!({ "kty": "oct", "kid": "shared", "k": BASE64.encode(SECRET) });
    assert!(KeySet::parse(json!({ "keys": [published] }).to_string().as_bytes()).is_err());
}

#[test]
fn a_key_is_used_for_its_own_algorithm_and_name_alone() {
    let es = |header: Value| {
        es256(Some("ec"), &good()).replacen(
            &BASE64.encode(json!({ "alg": "ES256", "kid": "ec" }).to_string()),
            &BASE64.encode(header.to_string()),
            1,
        )
    };
    assert_eq!(verify(&es(json!({ "alg": "RS256", "kid": "ec" }))), Err(TokenError::UnknownKey));
    assert_eq!(verify(&es(json!({ "alg": "RS256", "kid": "rsa" }))), Err(TokenError::Signature));
    assert_eq!(verify(&es256(Some("rsa"), &good())), Err(TokenError::UnknownKey));
    assert_eq!(verify(&es256(Some("new"), &good())), Err(TokenError::UnknownKey));
    let two = verifier();
    two.replace_keys(key_set(&[ec_jwk("a"), ec_jwk("b")]));
    assert_eq!(two.verify(&es256(None, &good()), now()), Err(TokenError::UnknownKey), "which of them?");
}

#[test]
fn keys_that_were_replaced_are_believed_no_more() {
    let verifier = verifier();
    verifier.replace_keys(key_set(&[ec_jwk("next"), rsa_jwk("rsa")]));
    assert!(verifier.verify(&es256(Some("next"), &good()), now()).is_ok());
    assert_eq!(verifier.verify(&es256(Some("ec"), &good()), now()), Err(TokenError::UnknownKey));
}

#[test]
fn time_counts_with_half_a_minutes_leeway() {
    for (change, expected) in [
        (json!({ "exp": NOW - 29 }), None),
        (json!({ "exp": NOW - 30 }), Some(TokenError::Expired)),
        (json!({ "exp": NOW as f64 + 0.5 }), None),
        (json!({ "exp": -1e300 }), Some(TokenError::Expired)),
        (json!({ "exp": 1e300 }), None),
        (json!({ "exp": null }), Some(TokenError::MissingClaim("exp"))),
        (json!({ "exp": (NOW + 60).to_string() }), Some(TokenError::Malformed)),
        (json!({ "nbf": NOW + 30 }), None),
        (json!({ "nbf": NOW + 31 }), Some(TokenError::NotYet)),
        (json!({ "iat": NOW + 31 }), Some(TokenError::NotYet)),
        (json!({ "organization_id": null }), Some(TokenError::MissingClaim("organization_id"))),
    ] {
        let verified = verify(&hs256(&with(change.clone()).to_string()));
        assert_eq!(verified.err(), expected, "{change}");
    }
}

#[test]
fn audience_and_issuer_count_where_they_are_set() {
    let verifier = Verifier::new(&SECRET.to_owned().into(), "authenticated", "https://id").expect("settings that hold");
    let verify = |change: Value| verifier.verify(&hs256(&with(change).to_string()), now()).map(drop);
    assert_eq!(verify(json!({ "iss": "https://id", "aud": "authenticated" })), Ok(()));
    assert_eq!(verify(json!({ "iss": "https://id", "aud": ["other", "authenticated"] })), Ok(()));
    for aud in [json!("other"), json!([]), json!(["authenticated2"]), json!(null)] {
        assert_eq!(verify(json!({ "iss": "https://id", "aud": aud })), Err(TokenError::Audience));
    }
    for iss in [json!("https://id/"), json!(null)] {
        assert_eq!(verify(json!({ "iss": iss, "aud": "authenticated" })), Err(TokenError::Issuer));
    }
}

#[test]
fn what_can_be_read_in_two_ways_is_refused() {
    for payload in [
        r#"{"organization_id":"org","exp":1,"exp":9999999999}"#,
        r#"{"organization_id":"org","organization_id":"other","exp":9999999999}"#,
        r#"{"organization_id":"org","supplier_id":"a","supplier_ids":["b"],"exp":9999999999}"#,
        r#"{"exp":9999999999,"app_metadata":{"organization_id":"a","organization_id":"b"}}"#,
        r#"{"organization_id":"org","exp":9999999999} {}"#,
        "[]",
        "null",
        "",
        "\u{feff}{}",
    ] {
        assert_eq!(verify(&hs256(payload)), Err(TokenError::Malformed), "{payload}");
    }
    assert_eq!(refusal(&with(json!({ "aud": { "a": 1 } }))), TokenError::Malformed);
    let header = |text: &str| format!("{}.{}.AA", BASE64.encode(text), BASE64.encode(good().to_string()));
    for text in [r#"{"alg":"HS256","alg":"none"}"#, r#"{"alg":"HS256","crit":["exp"]}"#, "{}", r#"{"alg":["HS256"]}"#] {
        assert_eq!(verify(&header(text)), Err(TokenError::Malformed), "{text}");
    }
}

#[test]
fn a_token_that_is_too_long_or_not_plain_base64url_is_refused() {
    let long = hs256(&with(json!({ "filler": "x".repeat(8_192) })).to_string());
    assert_eq!(verify(&long), Err(TokenError::Malformed));
    let token = hs256(&good().to_string());
    for bad in [
        format!("{token}="),
        format!(" {token}"),
        format!("{token}.x"),
        token.replacen('.', "..", 1),
        token.replace('.', "+"),
    ] {
        assert_eq!(verify(&bad), Err(TokenError::Malformed), "{bad}");
    }
}

#[test]
fn no_refusal_shows_the_token() {
    let token = format!("{}x", hs256(&good().to_string()));
    let told = verify(&token).expect_err("it is refused").to_string();
    assert!(!token.contains(&told) && told.starts_with("the token"));
}

proptest! {
    #[test]
    fn a_token_with_one_letter_changed_is_refused(at in any::<prop::sample::Index>(), letter in "[A-Za-z0-9_-]") {
        let mut token = hs256(&good().to_string());
        let at = at.index(token.len());
        prop_assume!(token[at..=at] != letter && &token[at..=at] != ".");
        token.replace_range(at..=at, &letter);
        prop_assert!(verify(&token).is_err());
    }

    #[test]
    fn no_text_makes_verifying_panic(text: String, parts in prop::collection::vec("[A-Za-z0-9_-]{0,40}", 0..5)) {
        prop_assert!(verify(&text).is_err() && verify(&parts.join(".")).is_err());
    }
}
