//! How a message to a browser is encrypted: the content coding aes128gcm (RFC 8188) under a key that the browser and we
//! agree on (RFC 8291). Pure, but for the randomness that is given.

use ring::{
    aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey},
    agreement::{ECDH_P256, EphemeralPrivateKey, UnparsedPublicKey, agree_ephemeral},
    error::Unspecified,
    hkdf::{HKDF_SHA256, KeyType, Salt},
    rand::SystemRandom,
};

/// One record is all there is.
const RECORD: u32 = 4096;
/// The longest message: what a record holds less the delimiter, the tag and the header that push services count along.
pub(super) const LONGEST: usize = 3993;

/// An uncompressed point of P-256.
type Point = [u8; 65];

/// Encrypts for a browser, by its public key and its secret.
///
/// # Errors
/// A public key that is no point of the curve; a message that is too long.
pub(super) fn encrypt(message: &[u8], browser: &[u8], secret: &[u8]) -> Result<Vec<u8>, Unspecified> {
    let own = EphemeralPrivateKey::generate(&ECDH_P256, &SystemRandom::new())?;
    let public: Point = own.compute_public_key()?.as_ref().try_into().map_err(|_| Unspecified)?;
    let browsers = UnparsedPublicKey::new(&ECDH_P256, browser);
    let key = agree_ephemeral(own, &browsers, |agreed| key(agreed, secret, browser, &public))??;
    seal(message, &key, &chassis::secret::random(), &public)
}

/// The key of a message, of what was agreed (RFC 8291, section 3.3).
fn key(agreed: &[u8], secret: &[u8], browser: &[u8], own: &[u8]) -> Result<[u8; 32], Unspecified> {
    expand(secret, agreed, &[b"WebPush: info\0", browser, own])
}

/// One record with its header (RFC 8188, section 2).
fn seal(message: &[u8], key: &[u8], salt: &[u8; 16], id: &[u8]) -> Result<Vec<u8>, Unspecified> {
    if message.len() > LONGEST {
        return Err(Unspecified);
    }
    let content: [u8; 16] = expand(salt, key, &[b"Content-Encoding: aes128gcm\0"])?;
    let nonce: [u8; 12] = expand(salt, key, &[b"Content-Encoding: nonce\0"])?;
    let cipher = LessSafeKey::new(UnboundKey::new(&AES_128_GCM, &content)?);
    // 2: the last record, without padding.
    let mut record = [message, &[2]].concat();
    cipher.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::empty(), &mut record)?;
    let length = u8::try_from(id.len()).map_err(|_| Unspecified)?;
    Ok([&salt[..], &RECORD.to_be_bytes(), &[length], id, &record].concat())
}

/// HKDF with SHA-256 (RFC 5869).
fn expand<const N: usize>(salt: &[u8], key: &[u8], info: &[&[u8]]) -> Result<[u8; N], Unspecified> {
    struct Length(usize);
    impl KeyType for Length {
        fn len(&self) -> usize {
            self.0
        }
    }
    let mut expanded = [0; N];
    Salt::new(HKDF_SHA256, salt).extract(key).expand(info, Length(N))?.fill(&mut expanded)?;
    Ok(expanded)
}

#[cfg(test)]
pub(super) mod tests {
    use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};

    use super::*;

    fn bytes(text: &str) -> Vec<u8> {
        BASE64_URL_SAFE_NO_PAD.decode(text).unwrap()
    }

    /// A browser with its keys.
    pub(in super::super) struct Browser {
        own: EphemeralPrivateKey,
        pub(in super::super) public: Vec<u8>,
        pub(in super::super) secret: [u8; 16],
    }

    impl Browser {
        pub(in super::super) fn new() -> Self {
            let own = EphemeralPrivateKey::generate(&ECDH_P256, &SystemRandom::new()).unwrap();
            let public = own.compute_public_key().unwrap().as_ref().to_vec();
            Self { own, public, secret: chassis::secret::random() }
        }

        /// Reads one message as a browser does.
        pub(in super::super) fn open(self, body: &[u8]) -> Vec<u8> {
            let (salt, rest) = body.split_at(16);
            assert_eq!((&rest[..4], rest[4]), (&[0, 0, 16, 0][..], 65));
            let (theirs, record) = rest[5..].split_at(65);
            let (public, secret) = (self.public, self.secret);
            let peer = UnparsedPublicKey::new(&ECDH_P256, theirs);
            let key =
                agree_ephemeral(self.own, &peer, |agreed| key(agreed, &secret, &public, theirs)).unwrap().unwrap();
            let content: [u8; 16] = expand(salt, &key, &[b"Content-Encoding: aes128gcm\0"]).unwrap();
            let nonce: [u8; 12] = expand(salt, &key, &[b"Content-Encoding: nonce\0"]).unwrap();
            let cipher = LessSafeKey::new(UnboundKey::new(&AES_128_GCM, &content).unwrap());
            let mut record = record.to_vec();
            let plain = cipher.open_in_place(Nonce::assume_unique_for_key(nonce), Aad::empty(), &mut record).unwrap();
            let (end, message) = plain.split_last().unwrap();
            assert_eq!(*end, 2, "the last record");
            message.to_vec()
        }
    }

    #[test]
    fn the_example_of_rfc_8188_comes_out() {
        let (key, salt) = (bytes("yqdlZ-tYemfogSmv7Ws5PQ"), bytes("I1BsxtFttlv3u_Oo94xnmw"));
        let sealed = seal(b"I am the walrus", &key, salt[..].try_into().unwrap(), b"").unwrap();
        assert_eq!(
            BASE64_URL_SAFE_NO_PAD.encode(sealed),
            "I1BsxtFttlv3u_Oo94xnmwAAEAAA-NAVub2qFgBEuQKRapoZu-IxkIva3MEB1PD-ly8Thjg"
        );
    }

    #[test]
    fn the_example_of_rfc_8291_comes_out() {
        // What browser and server agree on in it (appendix A): ring gives no private key of one's own choice.
        let agreed = bytes("kyrL1jIIOHEzg3sM2ZWRHDRB62YACZhhSlknJ672kSs");
        let browser = bytes("BCVxsr7N_eNgVRqvHtD0zTZsEc6-VV-JvLexhqUzORcxaOzi6-AYWXvTBHm4bjyPjs7Vd8pZGH6SRpkNtoIAiw4");
        let own = bytes("BP4z9KsN6nGRTbVYI_c7VJSPQTBtkgcy27mlmlMoZIIgDll6e3vCYLocInmYWAmS6TlzAC8wEqKK6PBru3jl7A8");
        let key = key(&agreed, &bytes("BTBZMqHH6r4Tts7J_aSIgg"), &browser, &own).unwrap();
        let salt = bytes("DGv6ra1nlYgDCS1FRnbzlw");
        let sealed =
            seal(b"When I grow up, I want to be a watermelon", &key, salt[..].try_into().unwrap(), &own).unwrap();
        assert_eq!(
            BASE64_URL_SAFE_NO_PAD.encode(sealed),
            "DGv6ra1nlYgDCS1FRnbzlwAAEABBBP4z9KsN6nGRTbVYI_c7VJSPQTBtkgcy27mlmlMoZIIgDll6e3vCYLocInmYWAmS6TlzAC8wEqKK6PBru3jl7A_yl95bQpu6cVPTpK4Mqgkf1CXztLVBSt2Ks3oZwbuwXPXLWyouBWLVWGNWQexSgSxsj_Qulcy4a-fN"
        );
    }

    #[test]
    fn a_browser_reads_what_was_encrypted_for_it_up_to_the_longest() {
        for length in [0, 1, LONGEST] {
            let browser = Browser::new();
            let message = vec![b'x'; length];
            let sealed = encrypt(&message, &browser.public, &browser.secret).unwrap();
            assert!(sealed.len() <= 4096);
            assert_eq!(browser.open(&sealed), message);
        }
        let browser = Browser::new();
        assert!(encrypt(&[b'x'; LONGEST + 1], &browser.public, &browser.secret).is_err());
        assert!(encrypt(b"x", &[4; 65], &browser.secret).is_err(), "no point of the curve");
    }
}
