//! Secrets at rest: envelope encryption with XChaCha20-Poly1305 (RFC 8439, draft-irtf-cfrg-xchacha).
//!
//! The master keys come from the configuration. They seal small secrets and wrap one data key per organization, which
//! seals that organization's event data and waiting bodies. Random 24-byte nonces need no counter.
//!
//! Guarantee: a value opens only under its own key and in the place it was sealed for (table, column, row); one that
//! was altered, moved to another row or taken from another organization does not open.

use std::{
    collections::HashSet,
    fmt,
    fs::File,
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    sync::Arc,
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use chacha20poly1305::{AeadInOut as _, KeyInit as _, Tag, XChaCha20Poly1305, XNonce};
use hmac::{Hmac, Mac as _};
use moka::sync::Cache;
use rand::{TryRng as _, rngs::SysRng};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::{
    clock::Clock,
    config::Secret,
    error::{Error, Result},
    id::OrganizationId,
    store::Store,
};

const VERSION: u8 = 1;
const KEY_BYTES: usize = 32;
const NONCE_BYTES: usize = 24;
const TAG_BYTES: usize = 16;
const FINGERPRINT_BYTES: usize = 4;
const CACHED_ORGANIZATIONS: u64 = 10_000;

/// The `[secrets]` section.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KeyringSettings {
    /// Master keys, each `id:base64 of 32 bytes`; the first seals, all of them open. Default: none, which is refused at
    /// start where secrets are kept. To rotate, put the new key first and keep the old one until all is rewrapped.
    pub master_keys: Vec<Secret>,
}

/// The place a sealed value belongs to, as additional authenticated data: it opens nowhere else.
#[must_use]
pub fn place(table: &'static str, column: &'static str, row: &str) -> Vec<u8> {
    [table.as_bytes(), column.as_bytes(), row.as_bytes()].join(&0)
}

/// A new master key as the configuration wants it: `k` + the time in seconds, a colon, 32 random bytes in base64.
#[must_use]
pub fn generate_master_key(clock: &Clock) -> Secret {
    let key = new_key();
    Secret::from(format!("k{}:{}", clock.now().as_second(), BASE64_STANDARD.encode(key)))
}

/// Writes a secret to a file that only its owner may read (mode 0600), making the folder where there is none. It is there
/// whole and durable, or not at all: a process that dies meanwhile leaves the file as it was.
///
/// # Errors
/// Those of the file system.
pub fn write_file(path: &Path, secret: &str) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    std::fs::create_dir_all(folder)?;
    let mut beside = path.as_os_str().to_owned();
    beside.push(format!(".{}", hex::encode(random::<8>())));
    let written = write_new(beside.as_ref(), secret).and_then(|()| std::fs::rename(&beside, path));
    // What a failure leaves is of no use; the failure is what counts.
    written.inspect_err(|_| drop(std::fs::remove_file(&beside)))?;
    File::open(folder)?.sync_all()
}

fn write_new(path: &Path, secret: &str) -> io::Result<()> {
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(path)?;
    writeln!(file, "{secret}")?;
    file.sync_all()
}

fn new_key() -> [u8; KEY_BYTES] {
    let mut key = [0; KEY_BYTES];
    SysRng.try_fill_bytes(&mut key).expect("the operating system gives random bytes");
    key
}

/// Random bytes that nobody can guess, by a generator that the operating system seeds for each thread: five calls of the
/// system itself for every event are a fiftieth of what it costs.
#[must_use]
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    rand::fill(&mut bytes);
    bytes
}

/// From 0 to 1, by chance: what began together is spread by it.
#[must_use]
pub fn random_share() -> f64 {
    f64::from(u32::from_le_bytes(random())) / f64::from(u32::MAX)
}

/// The master keys. Cheap to clone.
#[derive(Clone)]
pub struct Keyring(Arc<[MasterKey]>);

struct MasterKey {
    id: String,
    cipher: XChaCha20Poly1305,
}

impl Keyring {
    /// Reads the master keys.
    ///
    /// # Errors
    /// `Error::Invalid` without any key, for a malformed one, or for an id that stands twice.
    pub fn new(settings: &KeyringSettings) -> Result<Self> {
        let keys = settings.master_keys.iter().map(parse_master_key).collect::<Result<Vec<_>>>()?;
        if keys.is_empty() {
            return Err(invalid("needs at least one key: `id:` and the base64 of 32 random bytes"));
        }
        let mut ids = HashSet::new();
        match keys.iter().find(|key| !ids.insert(&key.id)) {
            Some(twice) => Err(invalid(&format!("names the id {} twice", twice.id))),
            None => Ok(Self(keys.into())),
        }
    }

    /// Seals a small secret with the current master key for `aad` (see [`place`]).
    #[must_use]
    pub fn seal(&self, aad: &[u8], plain: &[u8]) -> Vec<u8> {
        let key = &self.0[0];
        seal(&key.cipher, &header_of(&key.id), aad, plain)
    }

    /// Opens what [`Keyring::seal`] gave for the same `aad`, under whichever master key it names.
    ///
    /// # Errors
    /// `Error::Internal` for a key that is gone, another place, or an altered value.
    pub fn open(&self, aad: &[u8], sealed: &[u8]) -> Result<Vec<u8>> {
        let id = key_id(sealed).ok_or_else(unreadable)?;
        let key = self.0.iter().find(|key| key.id.as_bytes() == id);
        let key = key.ok_or_else(|| {
            let id = String::from_utf8_lossy(id);
            Error::internal(anyhow::anyhow!(
                "master key {id} is needed to open a secret: add it to [secrets] master_keys"
            ))
        })?;
        open(&key.cipher, header_of(&key.id).len(), aad, sealed)
    }

    /// Whether the current master key sealed it; if not, sealing it anew lets the old key go.
    #[must_use]
    pub fn is_current(&self, sealed: &[u8]) -> bool {
        key_id(sealed) == Some(self.0[0].id.as_bytes())
    }
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|key| &key.id)).finish()
    }
}

fn invalid(reason: &str) -> Error {
    Error::invalid("secrets.master_keys", reason)
}

fn parse_master_key(text: &Secret) -> Result<MasterKey> {
    let (id, key) = text.expose().split_once(':').ok_or_else(|| invalid("must be `id:base64`"))?;
    if !(1..=32).contains(&id.len()) || !id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_') {
        return Err(invalid("must begin with an id that matches [A-Za-z0-9_-]{1,32}"));
    }
    let key = BASE64_STANDARD.decode(key.trim()).ok().and_then(|key| <[u8; KEY_BYTES]>::try_from(key).ok());
    let key = key.ok_or_else(|| invalid(&format!("key {id} must be the base64 of 32 bytes")))?;
    Ok(MasterKey { id: id.to_owned(), cipher: XChaCha20Poly1305::new(&key.into()) })
}

/// Version, length of the id, id.
fn header_of(id: &str) -> Vec<u8> {
    let length = u8::try_from(id.len()).expect("ids are at most 32 bytes");
    [&[VERSION, length], id.as_bytes()].concat()
}

fn key_id(sealed: &[u8]) -> Option<&[u8]> {
    match sealed {
        [VERSION, length, rest @ ..] => rest.get(..usize::from(*length)),
        _ => None,
    }
}

/// One organization's key for its event data and waiting bodies.
pub struct DataKey {
    cipher: XChaCha20Poly1305,
    /// Version and the first bytes of the key's SHA-256: tells a wrong key from a damaged value.
    header: [u8; 1 + FINGERPRINT_BYTES],
    /// For what is signed, not sealed: a key of its own.
    mac: Hmac<Sha256>,
}

impl DataKey {
    fn new(key: &[u8; KEY_BYTES]) -> Self {
        let digest = Sha256::digest(key);
        let mut header = [VERSION; 1 + FINGERPRINT_BYTES];
        header[1..].copy_from_slice(&digest[..FINGERPRINT_BYTES]);
        let signing = keyed(key).chain_update(b"wedsync data key: signing").finalize().into_bytes();
        Self { cipher: XChaCha20Poly1305::new(&(*key).into()), header, mac: keyed(&signing) }
    }

    /// An HMAC-SHA256 over what is said for one purpose, for links that come back to us.
    #[must_use]
    pub fn mac(&self, purpose: &str, said: &[u8]) -> [u8; 32] {
        let length = (purpose.len() as u64).to_be_bytes();
        let mac = self.mac.clone().chain_update(length).chain_update(purpose).chain_update(said);
        mac.finalize().into_bytes().into()
    }

    /// Seals `plain` for `aad` (see [`place`]); 45 bytes longer than it.
    #[must_use]
    pub fn seal(&self, aad: &[u8], plain: &[u8]) -> Vec<u8> {
        seal(&self.cipher, &self.header, aad, plain)
    }

    /// Opens what [`DataKey::seal`] gave for the same `aad`.
    ///
    /// # Errors
    /// `Error::Internal` for another organization's key, another place, or an altered value.
    pub fn open(&self, aad: &[u8], sealed: &[u8]) -> Result<Vec<u8>> {
        if !sealed.starts_with(&self.header) {
            return Err(Error::internal(anyhow::anyhow!("a sealed value belongs to another data key")));
        }
        open(&self.cipher, self.header.len(), aad, sealed)
    }
}

fn keyed(key: &[u8]) -> Hmac<Sha256> {
    Hmac::new_from_slice(key).expect("HMAC takes keys of every length")
}

impl fmt::Debug for DataKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DataKey")
    }
}

/// header, nonce, ciphertext, tag; the header is authenticated with the caller's data.
fn seal(cipher: &XChaCha20Poly1305, header: &[u8], aad: &[u8], plain: &[u8]) -> Vec<u8> {
    let nonce: [u8; NONCE_BYTES] = random();
    let start = header.len() + NONCE_BYTES;
    let mut sealed = Vec::with_capacity(start + plain.len() + TAG_BYTES);
    sealed.extend_from_slice(header);
    sealed.extend_from_slice(&nonce);
    sealed.extend_from_slice(plain);
    let bound = [header, aad].concat();
    let tag = cipher.encrypt_inout_detached(&nonce.into(), &bound, (&mut sealed[start..]).into());
    sealed.extend_from_slice(&tag.expect("plaintexts are far below the cipher's 256 GiB"));
    sealed
}

fn open(cipher: &XChaCha20Poly1305, header_bytes: usize, aad: &[u8], sealed: &[u8]) -> Result<Vec<u8>> {
    let (header, rest) = sealed.split_at_checked(header_bytes).ok_or_else(unreadable)?;
    let (nonce, rest) = rest.split_at_checked(NONCE_BYTES).ok_or_else(unreadable)?;
    let split = rest.len().checked_sub(TAG_BYTES).ok_or_else(unreadable)?;
    let (ciphertext, tag) = rest.split_at(split);
    let nonce = XNonce::try_from(nonce).map_err(|_| unreadable())?;
    let tag = Tag::try_from(tag).map_err(|_| unreadable())?;
    let bound = [header, aad].concat();
    let mut plain = ciphertext.to_vec();
    cipher.decrypt_inout_detached(&nonce, &bound, plain.as_mut_slice().into(), &tag).map_err(|_| unreadable())?;
    Ok(plain)
}

fn unreadable() -> Error {
    Error::internal(anyhow::anyhow!("a sealed value can't be opened: it was altered, moved or cut short"))
}

/// The data keys of all organizations: made on first use, kept wrapped in `data_keys`, cached. Cheap to clone.
#[derive(Clone, Debug)]
pub struct DataKeys {
    store: Store,
    keyring: Keyring,
    clock: Clock,
    cache: Cache<OrganizationId, Arc<DataKey>>,
}

impl DataKeys {
    /// Over the table `data_keys` of `store`.
    #[must_use]
    pub fn new(store: Store, keyring: Keyring, clock: Clock) -> Self {
        Self { store, keyring, clock, cache: Cache::new(CACHED_ORGANIZATIONS) }
    }

    /// The master keys, which every service of an installation has.
    #[must_use]
    pub fn keyring(&self) -> &Keyring {
        &self.keyring
    }

    /// The key of `organization`; the first use makes it, durably, before it is handed out.
    ///
    /// # Errors
    /// `Error::Unavailable` while the store is away; `Error::Internal` if the wrapping master key is gone.
    pub async fn of(&self, organization: &OrganizationId) -> Result<Arc<DataKey>> {
        if let Some(key) = self.cache.get(organization) {
            return Ok(key);
        }
        let wrapped = match self.read(organization).await? {
            Some(wrapped) => wrapped,
            None => self.create(organization).await?,
        };
        let aad = place("data_keys", "wrapped", organization.as_str());
        let key: [u8; KEY_BYTES] = self.keyring.open(&aad, &wrapped)?.try_into().map_err(|_| unreadable())?;
        if !self.keyring.is_current(&wrapped) {
            self.rewrap(organization, &wrapped, &self.keyring.seal(&aad, &key)).await?;
        }
        let key = Arc::new(DataKey::new(&key));
        self.cache.insert(organization.clone(), Arc::clone(&key));
        Ok(key)
    }

    async fn read(&self, organization: &OrganizationId) -> Result<Option<Vec<u8>>> {
        let wrapped = crate::with!(self.store.reader(), c => {
            sqlx::query_scalar::<_, Vec<u8>>("SELECT wrapped FROM data_keys WHERE organization_id = $1")
                .bind(organization.as_str())
                .fetch_optional(c)
                .await
        })?;
        Ok(wrapped)
    }

    /// Two callers may come here at once: the row that is there first counts for both.
    async fn create(&self, organization: &OrganizationId) -> Result<Vec<u8>> {
        let key = new_key();
        let aad = place("data_keys", "wrapped", organization.as_str());
        let wrapped = self.keyring.seal(&aad, &key);
        crate::with!(self.store.writer(), c => {
            sqlx::query(
                "INSERT INTO data_keys (organization_id, wrapped, created_at) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING",
            )
            .bind(organization.as_str())
            .bind(&wrapped)
            .bind(self.clock.now_micros())
            .execute(c)
            .await
            .map(drop)
        })?;
        let wrapped = self.read(organization).await?;
        wrapped.ok_or_else(|| Error::Unavailable("the data key was not stored; try again".to_owned()))
    }

    /// Wraps it with the current master key, so that the older one can be retired.
    async fn rewrap(&self, organization: &OrganizationId, old: &[u8], new: &[u8]) -> Result<()> {
        crate::with!(self.store.writer(), c => {
            sqlx::query("UPDATE data_keys SET wrapped = $3 WHERE organization_id = $1 AND wrapped = $2")
                .bind(organization.as_str())
                .bind(old)
                .bind(new)
                .execute(c)
                .await
                .map(drop)
        })?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn keyring(ids: &[(&str, u8)]) -> Keyring {
        let master_keys = ids
            .iter()
            .map(|(id, byte)| Secret::from(format!("{id}:{}", BASE64_STANDARD.encode([*byte; 32]))))
            .collect();
        Keyring::new(&KeyringSettings { master_keys }).expect("well-formed keys")
    }

    #[test]
    fn a_secret_opens_only_in_its_own_place() {
        let keyring = keyring(&[("a", 1)]);
        let sealed = keyring.seal(&place("endpoints", "secret", "1"), b"hunter2");
        assert_eq!(keyring.open(&place("endpoints", "secret", "1"), &sealed).expect("opens"), b"hunter2");
        assert!(keyring.open(&place("endpoints", "secret", "2"), &sealed).is_err());
        assert!(keyring.open(&place("endpoints", "other", "1"), &sealed).is_err());
    }

    #[test]
    fn a_rotated_keyring_opens_old_secrets_and_seals_with_the_new_key() {
        let sealed = keyring(&[("old", 1)]).seal(b"x", b"hunter2");
        let rotated = keyring(&[("new", 2), ("old", 1)]);
        assert_eq!(rotated.open(b"x", &sealed).expect("opens"), b"hunter2");
        assert!(!rotated.is_current(&sealed));
        assert!(rotated.is_current(&rotated.seal(b"x", b"hunter2")));
        assert!(keyring(&[("new", 2)]).open(b"x", &sealed).is_err(), "the old key is gone");
    }

    #[test]
    fn malformed_master_keys_are_refused_without_being_shown() {
        for text in
            ["", "a", "a:", ":AAAA", "a:AAAA", "a b:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", "a:zzz!hunter2"]
        {
            let settings = KeyringSettings { master_keys: vec![Secret::from(text.to_owned())] };
            let error = Keyring::new(&settings).expect_err(text).to_string();
            assert!(!error.contains("hunter2"), "{error}");
        }
        assert!(Keyring::new(&KeyringSettings::default()).is_err());
        let generated = generate_master_key(&Clock::default());
        assert!(Keyring::new(&KeyringSettings { master_keys: vec![generated] }).is_ok());
    }

    #[test]
    fn two_seals_of_one_text_differ() {
        let key = DataKey::new(&[7; 32]);
        assert_ne!(key.seal(b"", b"same"), key.seal(b"", b"same"));
    }

    #[test]
    fn another_organizations_key_opens_nothing() {
        let sealed = DataKey::new(&[7; 32]).seal(b"row", b"Ada");
        assert!(DataKey::new(&[8; 32]).open(b"row", &sealed).is_err());
    }

    proptest! {
        #[test]
        fn what_was_sealed_opens_and_any_altered_byte_refuses(
            plain in proptest::collection::vec(any::<u8>(), 0..200),
            aad in proptest::collection::vec(any::<u8>(), 0..40),
            at in any::<prop::sample::Index>(),
            flip in 1u8..,
        ) {
            let key = DataKey::new(&[7; 32]);
            let mut sealed = key.seal(&aad, &plain);
            prop_assert_eq!(sealed.len(), plain.len() + 45);
            prop_assert_eq!(key.open(&aad, &sealed).expect("opens"), plain);
            let at = at.index(sealed.len());
            sealed[at] ^= flip;
            prop_assert!(key.open(&aad, &sealed).is_err());
            prop_assert!(key.open(&aad, &sealed[..at]).is_err());
        }
    }
}

#[cfg(all(test, feature = "testing"))]
mod store_tests {
    use std::{io::Read as _, os::unix::fs::PermissionsExt as _};

    use super::*;
    use crate::{store::MIGRATIONS, testing};

    fn names(folder: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").file_name());
        entries.map(|name| name.into_string().expect("a name")).collect()
    }

    #[test]
    fn a_secrets_file_is_replaced_as_a_whole_and_is_its_owners_alone() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("data").join("key");
        write_file(&file, "first").expect("written, and the folder made");
        let mut old = File::open(&file).expect("opens");
        write_file(&file, "second").expect("replaced");
        assert_eq!(std::fs::read_to_string(&file).expect("a text"), "second\n");
        assert_eq!(std::fs::metadata(&file).expect("it is there").permissions().mode() & 0o777, 0o600);
        let mut text = String::new();
        old.read_to_string(&mut text).expect("a text");
        assert_eq!(text, "first\n", "what was there was never cut short");
        assert_eq!(names(file.parent().expect("data")), ["key"]);
    }

    #[test]
    fn a_secrets_file_that_can_not_be_put_in_its_place_leaves_nothing() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let taken = folder.path().join("key");
        std::fs::create_dir(&taken).expect("made");
        assert!(write_file(&taken, "secret").is_err());
        assert_eq!(names(folder.path()), ["key"]);
    }

    fn keyring(ids: &[(&str, u8)]) -> Keyring {
        let master_keys = ids
            .iter()
            .map(|(id, byte)| Secret::from(format!("{id}:{}", BASE64_STANDARD.encode([*byte; 32]))))
            .collect();
        Keyring::new(&KeyringSettings { master_keys }).expect("well-formed keys")
    }

    #[tokio::test]
    async fn racing_first_uses_agree_on_one_key_that_outlives_a_restart_and_a_rotation() {
        testing::on_each_engine(&[&MIGRATIONS], |store| async move {
            let (_, clock) = testing::manual_clock();
            let ada = OrganizationId::parse("ada").expect("an id");
            let keys = |ids| DataKeys::new(store.clone(), keyring(ids), clock.clone());
            let (one, two) = (keys(&[("old", 1)]), keys(&[("old", 1)]));
            let (one, two) = tokio::join!(one.of(&ada), two.of(&ada));
            let sealed = one.expect("a key").seal(b"row", b"payload");
            assert_eq!(two.expect("a key").open(b"row", &sealed).expect("opens"), b"payload");
            let rotating = keys(&[("new", 2), ("old", 1)]).of(&ada).await.expect("a key");
            assert_eq!(rotating.open(b"row", &sealed).expect("opens"), b"payload");
            let retired = keys(&[("new", 2)]).of(&ada).await.expect("was rewrapped");
            assert_eq!(retired.open(b"row", &sealed).expect("opens"), b"payload");
        })
        .await;
    }

    #[tokio::test]
    async fn organizations_have_different_keys() {
        testing::on_each_engine(&[&MIGRATIONS], |store| async move {
            let keys = DataKeys::new(store, keyring(&[("a", 1)]), testing::manual_clock().1);
            let of = async |id| keys.of(&OrganizationId::parse(id).expect("an id")).await.expect("a key");
            let sealed = of("ada").await.seal(b"row", b"payload");
            assert!(of("grace").await.open(b"row", &sealed).is_err());
        })
        .await;
    }
}
