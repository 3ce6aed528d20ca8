//! `check-files`: whether a certificate and a key that somebody else maintains can be served.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use crate::certificate::{self, KeyError, Parsed, PublicKey};
use crate::name::Name;
use links_config::acme::{CheckedFiles, FileProblem, FileProblemKind, State};

/// A file as it was read.
#[derive(Clone, Debug)]
pub struct Read<'a> {
    path: &'a Path,
    contents: Result<Vec<u8>, String>,
    /// The permissions, as in chmod(2).
    mode: u32,
}

impl<'a> Read<'a> {
    /// Reads a file. That it cannot be read is part of the result.
    pub fn new(path: &'a Path) -> Self {
        let contents = fs::read(path).map_err(|error| match error.kind() {
            ErrorKind::NotFound => "it does not exist".to_owned(),
            _ => error.to_string(),
        });
        let mode = fs::metadata(path).map_or(0, |metadata| metadata.permissions().mode());
        Self { path, contents, mode }
    }
}

/// What is wrong with the files, at the time `now`.
pub fn check(certificate: &Read<'_>, key: &Read<'_>, names: &[Name], now: u64) -> CheckedFiles {
    let mut findings = Findings::default();
    let chain = readable(certificate, &mut findings).and_then(|pem| match certificate::chain(pem) {
        Ok(chain) => Some(chain),
        Err(error) => {
            findings.problem(
                FileProblemKind::NoCertificate,
                format!("{}: {error}.", certificate.path.display()),
                "It must contain the certificate and those of its issuers in PEM (certbot: fullchain.pem).",
            );
            None
        }
    });
    let public = readable(key, &mut findings).and_then(|pem| public_key(key, pem, &mut findings));
    if let Some(chain) = &chain {
        check_chain(certificate, chain, public.as_ref(), &mut findings);
        check_leaf(certificate, &chain[0], names, now, &mut findings);
    }
    let leaf = chain.as_ref().map(|chain| &chain[0]);
    CheckedFiles {
        usable: findings.problems.is_empty(),
        certificate: leaf.map(|leaf| leaf.facts().clone()),
        state: leaf.map_or(State::Missing, |leaf| leaf.validity().state(now)),
        problems: findings.problems,
        warnings: findings.warnings,
    }
}

#[derive(Debug, Default)]
struct Findings {
    problems: Vec<FileProblem>,
    warnings: Vec<FileProblem>,
}

impl Findings {
    fn problem(&mut self, kind: FileProblemKind, message: String, hint: impl Into<String>) {
        let hint = hint.into();
        self.problems.push(FileProblem { kind, message, hint });
    }

    fn warning(&mut self, kind: FileProblemKind, message: String, hint: impl Into<String>) {
        let hint = hint.into();
        self.warnings.push(FileProblem { kind, message, hint });
    }
}

fn readable<'a>(file: &'a Read<'_>, findings: &mut Findings) -> Option<&'a [u8]> {
    match &file.contents {
        Ok(contents) => Some(contents),
        Err(error) => {
            findings.problem(
                FileProblemKind::Unreadable,
                format!("{} cannot be read: {error}.", file.path.display()),
                "Check the path in [tls].",
            );
            None
        }
    }
}

fn public_key(file: &Read<'_>, pem: &[u8], findings: &mut Findings) -> Option<PublicKey> {
    if file.mode & 0o077 != 0 {
        findings.warning(
            FileProblemKind::KeyReadable,
            format!("Others than its owner may use {}.", file.path.display()),
            format!("`chmod 600 {}` is enough for nginx.", file.path.display()),
        );
    }
    let path = file.path.display();
    match certificate::public_key(pem) {
        Ok(public) => return Some(public),
        Err(error @ KeyError::Encrypted) => findings.problem(
            FileProblemKind::EncryptedKey,
            format!("{path}: {error}, and nginx has no password for it."),
            format!("Decrypt it: `openssl pkey -in {path} -out NEW`, with mode 0600."),
        ),
        // A key that is not compared with the certificate could keep nginx from starting.
        Err(error @ KeyError::Unsupported) => findings.problem(
            FileProblemKind::UnsupportedKey,
            format!("{path}: {error}."),
            "Use a key on P-256 or P-384, Ed25519, or RSA of 2048 to 8192 bits.",
        ),
        Err(error @ (KeyError::Missing | KeyError::Damaged)) => findings.problem(
            FileProblemKind::NoKey,
            format!("{path}: {error}."),
            "It must contain the private key in PEM (certbot: privkey.pem).",
        ),
    }
    None
}

fn check_chain(file: &Read<'_>, chain: &[Parsed], public: Option<&PublicKey>, findings: &mut Findings) {
    let path = file.path.display();
    if let Some(public) = public
        && !chain[0].belongs_to(public)
    {
        match chain.iter().any(|certificate| certificate.belongs_to(public)) {
            true => findings.problem(
                FileProblemKind::ChainOrder,
                format!("{path} does not begin with the certificate of the key."),
                "Put the certificate of the server first, then that of its issuer, and so on.",
            ),
            false => findings.problem(
                FileProblemKind::KeyMismatch,
                format!("The private key does not belong to the certificate in {path}."),
                "Use the key that the certificate was requested with. Both may have been replaced one after the other.",
            ),
        }
        return;
    }
    let is_ordered = chain.windows(2).all(|pair| pair[0].names_as_issuer(&pair[1]));
    if !is_ordered {
        findings.problem(
            FileProblemKind::ChainOrder,
            format!("The certificates in {path} are not a chain: each must be followed by that of its issuer."),
            "Put the certificate of the server first, then that of its issuer, and so on, and nothing else.",
        );
    } else if chain[0].facts().self_signed {
        findings.warning(
            FileProblemKind::SelfSigned,
            format!("The certificate in {path} is self-signed."),
            "Only clients that were given it trust it.",
        );
    } else if chain.len() == 1 {
        findings.warning(
            FileProblemKind::NoChain,
            format!("{path} does not contain the certificate of the issuer."),
            "Add it after the first one (certbot: fullchain.pem instead of cert.pem). Many clients cannot do without.",
        );
    }
}

fn check_leaf(file: &Read<'_>, leaf: &Parsed, names: &[Name], now: u64, findings: &mut Findings) {
    let path = file.path.display();
    let facts = leaf.facts();
    let validity = leaf.validity();
    let left = facts.not_after.saturating_sub(now);
    match validity.state(now) {
        State::Expired => findings.problem(
            FileProblemKind::Expired,
            format!("The certificate in {path} has expired."),
            "Renew it with the program that made it, and check that program's timer.",
        ),
        State::NotYetValid => findings.problem(
            FileProblemKind::NotYetValid,
            format!("The certificate in {path} is not valid yet."),
            "Check the date and time of this machine (`timedatectl`).",
        ),
        _ if left < facts.not_after.saturating_sub(facts.not_before) / 6 => findings.warning(
            FileProblemKind::ExpiresSoon,
            format!("The certificate in {path} expires in {} hours.", left / 3600),
            "Renew it with the program that made it, and check that program's timer.",
        ),
        _ => {}
    }
    for name in names.iter().filter(|name| !name.is_covered_by(&facts.names)) {
        findings.problem(
            FileProblemKind::NameMissing,
            format!(
                "The certificate in {path} is not for {name}, only for {}.",
                facts.names.join(", ")
            ),
            "Get one for all names in [tls], or remove the name there.",
        );
    }
    if facts.must_staple {
        findings.warning(
            FileProblemKind::MustStaple,
            format!("The certificate in {path} demands a stapled OCSP response."),
            "Clients refuse it while nginx cannot reach the OCSP responder. Renew it without this extension.",
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certificate::tests::issued;

    const START: u64 = 1_800_000_000;
    const DAY: u64 = 86_400;

    fn read<'a>(path: &'a str, contents: &str) -> Read<'a> {
        Read {
            path: Path::new(path),
            contents: Ok(contents.as_bytes().to_vec()),
            mode: 0o100_600,
        }
    }

    /// The kinds of the problems and of the warnings.
    fn kinds(
        certificate: &Read<'_>,
        key: &Read<'_>,
        name: &str,
        now: u64,
    ) -> (Vec<FileProblemKind>, Vec<FileProblemKind>) {
        let names: Vec<_> = name.parse().into_iter().collect();
        let checked = check(certificate, key, &names, now);
        assert_eq!(checked.usable, checked.problems.is_empty());
        let kinds = |found: Vec<FileProblem>| found.into_iter().map(|found| found.kind).collect();
        (kinds(checked.problems), kinds(checked.warnings))
    }

    #[test]
    fn files_that_belong_together_are_usable() {
        let (chain, key) = issued(&["s.example.org", "*.example.com"], START, 90 * 86_400);
        for name in ["s.example.org", "a.example.com"] {
            let found = kinds(&read("c", &chain), &read("k", &key), name, START + DAY);
            assert_eq!(found, (vec![], vec![]), "{name}");
        }
        let both = format!("{key}{chain}");
        let found = kinds(&read("b", &both), &read("b", &both), "s.example.org", START + DAY);
        assert_eq!(found, (vec![], vec![]));
    }

    #[test]
    fn every_problem_has_its_kind() {
        use FileProblemKind as Kind;
        let (chain, key) = issued(&["s.example.org"], START, 90 * 86_400);
        let (other, other_key) = issued(&["s.example.org"], START, 90 * 86_400);
        let end = "-----END CERTIFICATE-----\n";
        let (leaf, authority) = chain.split_at(chain.find(end).map_or(0, |at| at + end.len()));
        let reversed = format!("{authority}{leaf}");
        let mixed = format!("{leaf}{}", &other[leaf.len()..]);
        let encrypted = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIIB\n-----END ENCRYPTED PRIVATE KEY-----\n";
        let unknown = "-----BEGIN PRIVATE KEY-----\nMAA=\n-----END PRIVATE KEY-----\n";
        let soon = START + 80 * DAY;
        for (chain, key, name, now, problem, warning) in [
            (
                &*chain,
                &*other_key,
                "s.example.org",
                START,
                Some(Kind::KeyMismatch),
                None,
            ),
            (&reversed, &key, "s.example.org", START, Some(Kind::ChainOrder), None),
            ("nothing", &key, "s.example.org", START, Some(Kind::NoCertificate), None),
            (&chain, "nothing", "s.example.org", START, Some(Kind::NoKey), None),
            (
                &chain,
                encrypted,
                "s.example.org",
                START,
                Some(Kind::EncryptedKey),
                None,
            ),
            (
                &chain,
                unknown,
                "s.example.org",
                START,
                Some(Kind::UnsupportedKey),
                None,
            ),
            (&chain, &key, "s.example.com", START, Some(Kind::NameMissing), None),
            (
                &chain,
                &key,
                "s.example.org",
                START - DAY,
                Some(Kind::NotYetValid),
                None,
            ),
            (
                &chain,
                &key,
                "s.example.org",
                START + 91 * DAY,
                Some(Kind::Expired),
                None,
            ),
            (&chain, &key, "s.example.org", soon, None, Some(Kind::ExpiresSoon)),
            (leaf, &key, "s.example.org", START, None, Some(Kind::NoChain)),
        ] {
            let (problems, warnings) = kinds(&read("c", chain), &read("k", key), name, now);
            if let Some(problem) = problem {
                assert!(problems.contains(&problem), "{problem:?}: {problems:?}");
            } else {
                assert_eq!(problems, []);
            }
            assert_eq!(warnings, warning.into_iter().collect::<Vec<_>>());
        }
        // Both authorities of these tests have the same name, so only the key tells them apart: a known limit.
        assert_eq!(
            kinds(&read("c", &mixed), &read("k", &key), "s.example.org", START).0,
            []
        );
    }

    #[test]
    fn a_key_that_others_may_read_or_that_is_missing_is_reported() {
        let (chain, key) = issued(&["s.example.org"], START, 90 * 86_400);
        let open = Read {
            mode: 0o100_644,
            ..read("k", &key)
        };
        let found = kinds(&read("c", &chain), &open, "s.example.org", START);
        assert_eq!(found, (vec![], vec![FileProblemKind::KeyReadable]));
        let missing = Read::new(Path::new("/nonexistent/key.pem"));
        let found = kinds(&read("c", &chain), &missing, "s.example.org", START);
        assert_eq!(found.0, [FileProblemKind::Unreadable]);
    }

    #[test]
    fn a_self_signed_certificate_is_usable() {
        let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/");
        let (chain, key) = (format!("{directory}rsa-pkcs1.crt"), format!("{directory}rsa-pkcs1.key"));
        let (chain, mut key) = (Read::new(Path::new(&chain)), Read::new(Path::new(&key)));
        key.mode = 0o100_600;
        let checked = check(&chain, &key, &[], START);
        let warnings: Vec<_> = checked.warnings.iter().map(|found| found.kind).collect();
        assert!(checked.usable, "{:?}", checked.problems);
        assert_eq!(warnings, [FileProblemKind::SelfSigned]);
    }
}
