//! SCRAM-SHA-256 (RFC 5802, RFC 7677) as PostgreSQL speaks it: the password never leaves, and the server proves that it
//! knows it too. Pure.

use base64::prelude::{BASE64_STANDARD, Engine as _};
use bytes::Bytes;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::{Digest as _, Sha256};

use super::WireError;

pub(super) const NAME: &[u8] = b"SCRAM-SHA-256";
/// More rounds than any server asks for; each costs us time.
const ROUNDS_MAX: u32 = 100_000;
/// No channel binding: `n,,` in base64.
const BINDING: &str = "c=biws";

/// One login.
pub(super) struct Exchange {
    nonce: String,
    /// What the server must prove, once we have answered.
    expected: Option<[u8; 32]>,
    proven: bool,
}

impl Exchange {
    pub(super) fn begin(random: &[u8]) -> Self {
        Self { nonce: BASE64_STANDARD.encode(random), expected: None, proven: false }
    }

    /// Our first message; the user's name is the connection's.
    pub(super) fn first(&self) -> String {
        format!("n,,{}", self.first_bare())
    }

    fn first_bare(&self) -> String {
        format!("n=,r={}", self.nonce)
    }

    /// Our proof, for what the server asks.
    pub(super) fn answer(&mut self, password: &str, challenge: &Bytes) -> Result<String, WireError> {
        let challenge = std::str::from_utf8(challenge).map_err(|_| malformed())?;
        let field = |name: &str| challenge.split(',').find_map(|part| part.strip_prefix(name)).ok_or_else(malformed);
        let (nonce, salt, rounds) = (field("r=")?, field("s=")?, field("i=")?);
        let rounds: u32 =
            rounds.parse().ok().filter(|rounds| (1..=ROUNDS_MAX).contains(rounds)).ok_or_else(malformed)?;
        let salt = BASE64_STANDARD.decode(salt).map_err(|_| malformed())?;
        if !nonce.starts_with(&self.nonce) {
            return Err(malformed());
        }
        // PostgreSQL takes a password as it is where SASLprep refuses it.
        let password = stringprep::saslprep(password).map_or_else(|_| password.to_owned(), |text| text.into_owned());
        let salted = salted(password.as_bytes(), &salt, rounds);
        let last = format!("{BINDING},r={nonce}");
        let signed = format!("{},{challenge},{last}", self.first_bare());
        let client_key = hmac(&salted, b"Client Key");
        let signature = hmac(&Sha256::digest(client_key), signed.as_bytes());
        let proof: Vec<u8> = client_key.iter().zip(signature).map(|(key, signature)| key ^ signature).collect();
        self.expected = Some(hmac(&hmac(&salted, b"Server Key"), signed.as_bytes()));
        Ok(format!("{last},p={}", BASE64_STANDARD.encode(proof)))
    }

    /// Holds the server to its own proof.
    pub(super) fn check(&mut self, last: &Bytes) -> Result<(), WireError> {
        let proof = last.strip_prefix(b"v=").and_then(|proof| BASE64_STANDARD.decode(proof).ok());
        self.proven = self.expected.is_some_and(|expected| proof.as_deref() == Some(&expected[..]));
        if self.proven { Ok(()) } else { Err(WireError::Protocol("it doesn't know the password itself")) }
    }

    pub(super) fn is_proven(&self) -> bool {
        self.proven
    }
}

fn malformed() -> WireError {
    WireError::Protocol("its SCRAM message is malformed")
}

fn hmac(key: &[u8], text: &[u8]) -> [u8; 32] {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    mac.update(text);
    mac.finalize().into_bytes().into()
}

/// PBKDF2 with one block.
fn salted(password: &[u8], salt: &[u8], rounds: u32) -> [u8; 32] {
    let mut last = hmac(password, &[salt, &[0, 0, 0, 1]].concat());
    let mut sum = last;
    for _ in 1..rounds {
        last = hmac(password, &last);
        sum.iter_mut().zip(last).for_each(|(sum, last)| *sum ^= last);
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of RFC 7677, whose user has a name; PostgreSQL's has none in this exchange.
    #[test]
    fn a_login_is_as_the_standard_computes_it() {
        let mut exchange = Exchange { nonce: "rOprNGfwEbeRWgbNEkqO".to_owned(), expected: None, proven: false };
        let challenge = Bytes::from_static(
            b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096",
        );
        let answer = exchange.answer("pencil", &challenge).unwrap();
        assert!(answer.starts_with("c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p="), "{answer}");
        let salt = BASE64_STANDARD.decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
        let signed = format!(
            "n=user,r=rOprNGfwEbeRWgbNEkqO,{},c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0",
            std::str::from_utf8(&challenge).unwrap()
        );
        let server_key = hmac(&salted(b"pencil", &salt, 4096), b"Server Key");
        let proof = BASE64_STANDARD.encode(hmac(&server_key, signed.as_bytes()));
        assert_eq!(proof, "6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=");
    }

    #[test]
    fn a_server_that_does_not_know_the_password_is_refused() {
        let mut exchange = Exchange::begin(b"abc");
        let challenge = Bytes::from(format!("r={}x,s=AAAA,i=1", exchange.nonce));
        exchange.answer("pencil", &challenge).unwrap();
        assert!(exchange.check(&Bytes::from_static(b"v=AAAA")).is_err() && !exchange.is_proven());
        for wrong in ["", "r=other,s=AAAA,i=1", "r=YWJjx,s=AAAA,i=0", "r=YWJjx,s=!,i=1", "r=YWJjx,s=AAAA,i=4000000000"]
        {
            assert!(Exchange::begin(b"abc").answer("pencil", &Bytes::from(wrong)).is_err(), "{wrong}");
        }
    }
}
