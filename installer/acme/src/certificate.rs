//! Certificates and keys: what is in them, and whether they belong together.

use std::net::IpAddr;

use data_encoding::{BASE64URL_NOPAD, HEXLOWER};
use rustls::crypto::ring::sign::any_supported_type;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use thiserror::Error;
use x509_parser::prelude::{FromDer as _, GeneralName, ParsedExtension, X509Certificate};
use x509_parser::x509::SubjectPublicKeyInfo;

use crate::schedule::Validity;
use links_config::acme::Certificate;

/// The extension by which a certificate asks for features of TLS (RFC 7633).
const TLS_FEATURE: &str = "1.3.6.1.5.5.7.1.24";
/// The feature that a stapled OCSP response is (RFC 6066, `status_request`).
const STATUS_REQUEST: u8 = 5;
/// The access method for an OCSP responder (RFC 5280, section 4.2.2.1).
const OCSP: &str = "1.3.6.1.5.5.7.48.1";

/// A parsed certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parsed {
    der: Vec<u8>,
    facts: Certificate,
    issuer: Vec<u8>,
    subject: Vec<u8>,
    public_key: Vec<u8>,
    id: Option<CertificateId>,
}

/// How an authority identifies a certificate in requests about its renewal (RFC 9773, section 4.1), in base64url.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateId {
    pub authority_key_identifier: String,
    pub serial: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Unreadable {
    #[error("it contains no certificate in PEM")]
    Empty,
    #[error("one of its certificates is damaged")]
    Damaged,
}

/// Parses a file of certificates in PEM. There is at least one.
///
/// # Errors
/// There is no certificate, or one is damaged.
pub fn chain(pem: &[u8]) -> Result<Vec<Parsed>, Unreadable> {
    let mut chain = vec![];
    for der in CertificateDer::pem_slice_iter(pem) {
        let der = der.map_err(|_| Unreadable::Damaged)?;
        chain.push(Parsed::from_der(&der).ok_or(Unreadable::Damaged)?);
    }
    match chain.is_empty() {
        true => Err(Unreadable::Empty),
        false => Ok(chain),
    }
}

impl Parsed {
    /// Parses a certificate in DER. `None` if it is none.
    pub fn from_der(der: &[u8]) -> Option<Self> {
        let (rest, parsed) = X509Certificate::from_der(der).ok()?;
        if !rest.is_empty() {
            return None;
        }
        let seconds = |time: i64| u64::try_from(time).unwrap_or_default();
        let issuer = parsed.issuer();
        let common_name = issuer.iter_common_name().next().and_then(|name| name.as_str().ok());
        let extension = |oid: &str| parsed.extensions().iter().find(|found| found.oid.to_id_string() == oid);
        Some(Self {
            facts: Certificate {
                issuer: printable(common_name.map_or_else(|| issuer.to_string(), str::to_owned)),
                names: names(&parsed),
                serial: HEXLOWER.encode(parsed.raw_serial()),
                sha256: HEXLOWER.encode(&Sha256::digest(der)),
                self_signed: issuer.as_raw() == parsed.subject().as_raw(),
                not_before: seconds(parsed.validity().not_before.timestamp()),
                not_after: seconds(parsed.validity().not_after.timestamp()),
                must_staple: extension(TLS_FEATURE).is_some_and(|found| asks_for_stapling(found.value)),
                ocsp: ocsp(&parsed),
                directory: None,
                profile: None,
            },
            issuer: issuer.as_raw().to_vec(),
            subject: parsed.subject().as_raw().to_vec(),
            public_key: parsed.public_key().subject_public_key.data.to_vec(),
            id: id(&parsed),
            der: der.to_vec(),
        })
    }

    pub fn facts(&self) -> &Certificate {
        &self.facts
    }

    pub fn der(&self) -> &[u8] {
        &self.der
    }

    pub fn validity(&self) -> Validity {
        Validity {
            not_before: self.facts.not_before,
            not_after: self.facts.not_after,
        }
    }

    /// `None` if the certificate does not name its issuer's key.
    pub fn id(&self) -> Option<&CertificateId> {
        self.id.as_ref()
    }

    /// Whether this certificate's issuer has the name of `issuer`.
    pub fn names_as_issuer(&self, issuer: &Self) -> bool {
        self.issuer == issuer.subject
    }

    pub fn belongs_to(&self, key: &PublicKey) -> bool {
        self.public_key == key.0
    }
}

/// A public key, without the type of its algorithm.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicKey(Vec<u8>);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum KeyError {
    #[error("it contains no private key in PEM")]
    Missing,
    #[error("the private key is encrypted")]
    Encrypted,
    #[error("the private key is damaged")]
    Damaged,
    /// A type that cannot be compared with the certificate.
    #[error("the private key is neither RSA of 2048 to 8192 bits, nor ECDSA on P-256 or P-384, nor Ed25519")]
    Unsupported,
}

/// The public half of the private key in a file in PEM: PKCS#8, PKCS#1 or SEC1.
///
/// # Errors
/// There is no key, or it is not usable as it is.
pub fn public_key(pem: &[u8]) -> Result<PublicKey, KeyError> {
    let text = String::from_utf8_lossy(pem);
    // RFC 7468, section 11, and the older form of OpenSSL (RFC 1421, section 4.6.1.1).
    if text.contains("-----BEGIN ENCRYPTED PRIVATE KEY-----") || text.contains("Proc-Type: 4,ENCRYPTED") {
        return Err(KeyError::Encrypted);
    }
    if !text.contains("PRIVATE KEY-----") {
        return Err(KeyError::Missing);
    }
    let key = PrivateKeyDer::from_pem_slice(pem).map_err(|_| KeyError::Damaged)?;
    let signer = any_supported_type(&key).map_err(|_| KeyError::Unsupported)?;
    let public = signer.public_key().ok_or(KeyError::Unsupported)?;
    let (_, info) = SubjectPublicKeyInfo::from_der(&public).map_err(|_| KeyError::Unsupported)?;
    Ok(PublicKey(info.subject_public_key.data.to_vec()))
}

/// The DNS names and addresses of a certificate.
fn names(parsed: &X509Certificate<'_>) -> Vec<String> {
    let Ok(Some(extension)) = parsed.subject_alternative_name() else {
        return vec![];
    };
    let names = extension.value.general_names.iter();
    names
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some(printable((*name).to_owned())),
            GeneralName::IPAddress(bytes) => address(bytes).map(|address| address.to_string()),
            _ => None,
        })
        .collect()
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    <[u8; 4]>::try_from(bytes)
        .map(IpAddr::from)
        .or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from))
        .ok()
}

fn id(parsed: &X509Certificate<'_>) -> Option<CertificateId> {
    let key = parsed
        .extensions()
        .iter()
        .find_map(|found| match found.parsed_extension() {
            ParsedExtension::AuthorityKeyIdentifier(identifier) => identifier.key_identifier.as_ref(),
            _ => None,
        })?;
    Some(CertificateId {
        authority_key_identifier: BASE64URL_NOPAD.encode(key.0),
        serial: BASE64URL_NOPAD.encode(parsed.raw_serial()),
    })
}

fn ocsp(parsed: &X509Certificate<'_>) -> Option<String> {
    let access = parsed
        .extensions()
        .iter()
        .find_map(|found| match found.parsed_extension() {
            ParsedExtension::AuthorityInfoAccess(access) => Some(access),
            _ => None,
        })?;
    access.iter().find_map(|found| match &found.access_location {
        GeneralName::URI(url) if found.access_method.to_id_string() == OCSP => Some(printable((*url).to_owned())),
        _ => None,
    })
}

/// Whether the value of the extension, a DER sequence of small integers, contains the feature.
fn asks_for_stapling(value: &[u8]) -> bool {
    match value {
        [0x30, length, integers @ ..] if usize::from(*length) == integers.len() => integers
            .chunks_exact(3)
            .any(|integer| integer == [2, 1, STATUS_REQUEST]),
        _ => false,
    }
}

/// A text from the network without characters that change a terminal.
pub fn printable(text: String) -> String {
    match text.chars().any(char::is_control) {
        true => text.chars().map(|it| if it.is_control() { ' ' } else { it }).collect(),
        false => text,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
pub mod tests {
    use rcgen::{CertificateParams, CustomExtension, DistinguishedName, DnType, IsCa, Issuer, KeyPair};
    use time::{Duration, OffsetDateTime};

    use super::*;

    /// A certificate for these names, valid from `not_before` for `lifetime` seconds, with its issuer's certificate and its
    /// key, both in PEM.
    pub fn issued(names: &[&str], not_before: u64, lifetime: i64) -> (String, String) {
        issued_with(names, not_before, lifetime, vec![])
    }

    fn issued_with(
        names: &[&str],
        not_before: u64,
        lifetime: i64,
        extensions: Vec<CustomExtension>,
    ) -> (String, String) {
        let (authority, authority_pem) = authority();
        let key = KeyPair::generate().unwrap();
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut leaf = CertificateParams::new(names).unwrap();
        leaf.not_before = OffsetDateTime::from_unix_timestamp(not_before.cast_signed()).unwrap();
        leaf.not_after = leaf.not_before + Duration::seconds(lifetime);
        leaf.use_authority_key_identifier_extension = true;
        leaf.custom_extensions = extensions;
        let pem = leaf.signed_by(&key, &authority).unwrap().pem();
        (format!("{pem}{authority_pem}"), key.serialize_pem())
    }

    fn authority() -> (Issuer<'static, KeyPair>, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "Test\u{1b}[31m CA");
        let pem = params.self_signed(&key).unwrap().pem();
        (Issuer::new(params, key), pem)
    }

    #[test]
    fn the_facts_of_a_certificate_are_read() {
        let (pem, _) = issued(&["s.example.org", "192.0.2.1", "2001:db8::1"], 1_800_000_000, 86_400);
        let chain = chain(pem.as_bytes()).unwrap();
        let facts = chain[0].facts();
        assert_eq!(facts.names, ["s.example.org", "192.0.2.1", "2001:db8::1"]);
        assert_eq!((facts.not_before, facts.not_after), (1_800_000_000, 1_800_086_400));
        assert_eq!(facts.issuer, "Test [31m CA", "without the escape character");
        assert!(!facts.self_signed && !facts.must_staple);
        assert_eq!(facts.sha256.len(), 64);
        assert!(chain[1].facts().self_signed);
        assert!(chain[0].names_as_issuer(&chain[1]) && !chain[1].names_as_issuer(&chain[0]));
        let id = chain[0].id().unwrap();
        assert!(!id.authority_key_identifier.is_empty() && !id.serial.is_empty());
    }

    #[test]
    fn a_certificate_says_whether_it_needs_stapling() {
        let asking = |value: &[u8]| {
            let oid = [1, 3, 6, 1, 5, 5, 7, 1, 24];
            let extension = CustomExtension::from_oid_content(&oid, value.to_vec());
            let (pem, _) = issued_with(&["a.example"], 1_800_000_000, 86_400, vec![extension]);
            chain(pem.as_bytes()).unwrap()[0].facts().must_staple
        };
        assert!(asking(&[0x30, 3, 2, 1, 5]));
        assert!(asking(&[0x30, 6, 2, 1, 17, 2, 1, 5]));
        assert!(!asking(&[0x30, 3, 2, 1, 17]));
        assert!(!asking(&[0x30, 9, 2, 1, 5]));
    }

    #[test]
    fn a_key_of_every_encoding_matches_its_certificate_and_no_other() {
        let (pem, key) = issued(&["a.example"], 1_800_000_000, 86_400);
        let (_, other) = issued(&["a.example"], 1_800_000_000, 86_400);
        let leaf = &chain(pem.as_bytes()).unwrap()[0];
        assert!(leaf.belongs_to(&public_key(key.as_bytes()).unwrap()));
        assert!(!leaf.belongs_to(&public_key(other.as_bytes()).unwrap()));
        // Both in one file.
        assert!(leaf.belongs_to(&public_key(format!("{pem}{key}").as_bytes()).unwrap()));
        for file in ["rsa-pkcs1", "rsa-pkcs8", "ec-sec1", "ec-pkcs8"] {
            let read = |suffix: &str| std::fs::read(format!("{}/testdata/{file}{suffix}", env!("CARGO_MANIFEST_DIR")));
            let (certificate, key) = (read(".crt").unwrap(), read(".key").unwrap());
            let leaf = &chain(&certificate).unwrap()[0];
            assert!(leaf.belongs_to(&public_key(&key).unwrap()), "{file}");
        }
    }

    #[test]
    fn an_unusable_key_says_why() {
        let encrypted = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIIB\n-----END ENCRYPTED PRIVATE KEY-----\n";
        let old = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\nMIIB\n-----END RSA \
                   PRIVATE KEY-----\n";
        let damaged = "-----BEGIN PRIVATE KEY-----\n!!\n-----END PRIVATE KEY-----\n";
        let unknown = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
        for (pem, error) in [
            ("", KeyError::Missing),
            (encrypted, KeyError::Encrypted),
            (old, KeyError::Encrypted),
            (damaged, KeyError::Damaged),
            (unknown, KeyError::Unsupported),
        ] {
            assert_eq!(public_key(pem.as_bytes()), Err(error), "{pem}");
        }
    }

    #[test]
    fn a_file_without_a_certificate_is_refused() {
        assert_eq!(chain(b"nothing"), Err(Unreadable::Empty));
        let damaged = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert_eq!(chain(damaged), Err(Unreadable::Damaged));
    }
}
