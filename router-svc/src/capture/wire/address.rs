//! Where a source is and how it is reached, out of its settings. Pure.

use std::{net::IpAddr, path::PathBuf};

use chassis::config::Secret;
use url::{Host, Url};

use super::WireError;

/// Where a source is, who we are to it, and whether the way is encrypted.
#[derive(Clone)]
pub(in super::super) struct Address {
    pub(in super::super) host: String,
    pub(in super::super) port: u16,
    pub(in super::super) user: String,
    pub(super) password: Secret,
    pub(in super::super) database: String,
    pub(super) is_encrypted: bool,
    /// Nobody on the way can listen.
    pub(super) is_private: bool,
    /// Certificates that are trusted instead of the public ones; empty for those.
    pub(super) ca_file: PathBuf,
}

impl Address {
    /// Reads `postgres://user:password@host:port/database`. Beyond loopback the way is encrypted, unless plaintext is
    /// allowed; on loopback where a file of certificates is given.
    ///
    /// # Errors
    /// What is wrong, without the password.
    pub(in super::super) fn parse(url: &Secret, allow_plaintext: bool, ca_file: PathBuf) -> Result<Self, WireError> {
        let wrong = |what: &str| WireError::Setting(format!("url {what}"));
        let form = "must be postgres://user:password@host:port/database";
        let url = Url::parse(url.expose()).map_err(|_| wrong(form))?;
        if !["postgres", "postgresql"].contains(&url.scheme()) || url.query().is_some() || url.fragment().is_some() {
            return Err(wrong(form));
        }
        let host = url.host_str().filter(|host| !host.is_empty()).ok_or_else(|| wrong(form))?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let part = |text: &str| decoded(text).filter(|text| !text.contains('\0')).ok_or_else(|| wrong(form));
        let (user, database) = (part(url.username())?, part(url.path().trim_start_matches('/'))?);
        if user.is_empty() || database.is_empty() {
            return Err(wrong(form));
        }
        let is_loopback = is_loopback(&host);
        let is_encrypted = !ca_file.as_os_str().is_empty() || !(allow_plaintext || is_loopback);
        let is_private = is_encrypted || is_loopback;
        let password = Secret::from(part(url.password().unwrap_or_default())?);
        let port = url.port().unwrap_or(5432);
        Ok(Self { host, port, user, password, database, is_encrypted, is_private, ca_file })
    }
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Undoes percent-encoding.
fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        rest = after;
        match (first, after) {
            (b'%', [high, low, after @ ..]) => {
                bytes.extend(hex::decode([*high, *low]).ok()?);
                rest = after;
            }
            (b'%', _) => return None,
            (byte, _) => bytes.push(*byte),
        }
    }
    String::from_utf8(bytes).ok()
}

/// Whether the server's certificate may be for this host: a name, or an address as text.
pub(super) fn server_name(host: &str) -> Result<rustls::pki_types::ServerName<'static>, WireError> {
    let host = Host::parse(host).map_or_else(|_| host.to_owned(), |host: Host| host.to_string());
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    host.try_into().map_err(|_| WireError::Setting("url must name a host".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(url: &str, allow_plaintext: bool, ca_file: &str) -> Result<Address, String> {
        Address::parse(&Secret::from(url.to_owned()), allow_plaintext, ca_file.into())
            .map_err(|error| error.to_string())
    }

    #[test]
    fn a_url_has_all_parts_and_special_characters_are_encoded() {
        let address = address("postgres://me%40x:p%3Aw@db.example.com:6543/wed%20sync", false, "").unwrap();
        assert_eq!((address.host.as_str(), address.port, address.user.as_str()), ("db.example.com", 6543, "me@x"));
        assert_eq!((address.password.expose(), address.database.as_str()), ("p:w", "wed sync"));
    }

    #[test]
    fn only_loopback_is_reached_in_plaintext_unless_that_is_allowed() {
        let encrypted = |url, allowed, file| address(url, allowed, file).unwrap().is_encrypted;
        for url in ["postgres://u@127.0.0.1/d", "postgres://u@[::1]/d", "postgres://u@localhost/d"] {
            assert!(!encrypted(url, false, "") && encrypted(url, false, "ca.pem"), "{url}");
        }
        for url in ["postgres://u@10.0.0.1/d", "postgres://u@db/d", "postgres://u@localhost.example.com/d"] {
            assert!(encrypted(url, false, "") && !encrypted(url, true, ""), "{url}");
        }
    }

    #[test]
    fn a_wrong_url_is_refused_without_showing_it() {
        for url in [
            "",
            "x",
            "mysql://u:hunter2@h/d",
            "postgres://h/d",
            "postgres://u:hunter2@h",
            "postgres://u:hunter2@h/d?x=y",
        ] {
            let error = address(url, false, "").map(drop).expect_err(url);
            assert!(!error.contains("hunter2"), "{error}");
        }
    }
}
