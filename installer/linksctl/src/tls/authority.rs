//! Runs links-acme, which gets the certificates.

use std::ffi::OsString;
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};

use super::report::Reporter;
use links_base::layout::Layout;
use links_base::{exec, log, programs};
use links_config::acme::{DEFAULT_DIRECTORY, EX_TEMPFAIL, Event, NameResult};
use links_config::links::Tls;

/// How long links-acme may take for one name: longer than all of its requests to the authority together.
const NAME_TIMEOUT: Duration = Duration::from_secs(12 * 60);
/// How long it may take besides.
const OVERHEAD: Duration = Duration::from_secs(60);

/// Which certificates to get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Those that are missing, at once, because a person waits.
    Issue,
    /// Those that are due.
    Renew,
}

/// A request to links-acme.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    pub verb: Verb,
    pub tls: &'a Tls,
    pub names: &'a [String],
    /// Whether to get new certificates for names that do not need any.
    pub force: bool,
    /// Where nginx has to serve the answers to the challenges before the authority is asked. `None` to ask at once.
    pub self_check: Option<SocketAddr>,
    /// Whether nginx expects the PROXY protocol there.
    pub is_proxied: bool,
    /// Only report what would be done.
    pub dry_run: bool,
}

/// What links-acme has got.
#[derive(Debug, Default)]
pub struct Obtained {
    /// One for each name. None after a dry run.
    pub results: Vec<NameResult>,
    /// Whether every name has a usable certificate, and no attempt failed.
    pub ok: bool,
}

/// Another links-acme is at work. Displayed as its message.
#[derive(Debug)]
pub struct Busy(String);

impl fmt::Display for Busy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Busy {}

/// A description of the authority for people.
pub fn of(tls: &Tls) -> &str {
    match tls.directory.as_deref() {
        None | Some(DEFAULT_DIRECTORY) => "Let's Encrypt",
        Some(directory) => directory,
    }
}

/// Gets the certificates, and reports the progress. A name that fails is no error, but in the results.
///
/// # Errors
/// [`Busy`], or links-acme cannot work at all.
pub fn ask(layout: &Layout, request: Request, reporter: &mut Reporter) -> anyhow::Result<Obtained> {
    let program = programs::path(programs::ACME)?;
    let timeout = NAME_TIMEOUT * u32::try_from(request.names.len())? + OVERHEAD;
    let mut obtained = Obtained::default();
    let mut has_ended = false;
    let mut wrong = None;
    reporter.work(format!("waiting for {}", of(request.tls)));
    let finished = exec::stream_within(
        &program.to_string_lossy(),
        arguments(layout, request),
        timeout,
        |line| match serde_json::from_str(line) {
            Ok(event) => {
                reporter.event(&event, line);
                match event {
                    Event::Result(result) => obtained.results.push(result),
                    Event::End(_) => has_ended = true,
                    _ => {}
                }
            }
            Err(error) => wrong = Some(anyhow!("{} printed {line:?}: {error}", programs::ACME)),
        },
    );
    reporter.rest();
    let finished = finished?.with_context(|| format!("{} took longer than {timeout:?}", programs::ACME))?;
    let message = finished.stderr.trim_end();
    match (finished.code, wrong) {
        (Some(code), None) if has_worked(code, has_ended, request.dry_run) => {
            obtained.ok = code == 0;
            if !message.is_empty() {
                log::notice!("{message}");
            }
            Ok(obtained)
        }
        (Some(code), _) if code == i32::from(EX_TEMPFAIL) => bail!(Busy(message.to_owned())),
        (_, Some(wrong)) => Err(wrong),
        (code, None) => bail!(
            "{} failed{}: {message}",
            programs::ACME,
            code.map_or_else(String::new, |code| format!(" with status {code}"))
        ),
    }
}

/// Whether links-acme has done what it was asked for. It ends with status 1 if a name has failed, but also if it could not work
/// at all.
fn has_worked(code: i32, has_ended: bool, dry_run: bool) -> bool {
    match dry_run {
        true => code == 0,
        false => has_ended && matches!(code, 0 | 1),
    }
}

fn arguments(layout: &Layout, request: Request) -> Vec<OsString> {
    let Request { tls, .. } = request;
    let verb = match request.verb {
        Verb::Issue => "issue",
        Verb::Renew => "renew",
    };
    let mut arguments: Vec<OsString> = vec!["--root".into(), layout.root().into(), verb.into()];
    let options = [
        ("--directory", tls.directory.as_deref().map(OsString::from)),
        ("--email", tls.email.as_deref().map(OsString::from)),
        ("--profile", tls.profile.as_deref().map(OsString::from)),
        ("--ca-file", tls.ca_file.as_deref().map(OsString::from)),
        ("--eab-kid", tls.eab_kid.as_deref().map(OsString::from)),
        ("--eab-key-file", tls.eab_key_file.as_deref().map(OsString::from)),
        (
            "--self-check",
            request.self_check.map(|address| address.to_string().into()),
        ),
    ];
    for (option, value) in options {
        arguments.extend(value.into_iter().flat_map(|value| [option.into(), value]));
    }
    let flags = [
        ("--proxy-protocol", request.self_check.is_some() && request.is_proxied),
        ("--force", request.force),
        ("--dry-run", request.dry_run),
    ];
    arguments.extend(
        flags
            .into_iter()
            .filter(|(_, is_set)| *is_set)
            .map(|(flag, _)| flag.into()),
    );
    arguments.extend(request.names.iter().map(OsString::from));
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_settings_become_arguments() {
        let (layout, names) = (Layout::new("/"), ["a.example".to_owned(), "b.example".to_owned()]);
        let tls = Tls {
            email: Some("me@a.example".into()),
            directory: Some("https://ca.example/dir".into()),
            profile: Some("shortlived".into()),
            ca_file: Some("/ca.pem".into()),
            eab_kid: Some("kid".into()),
            eab_key_file: Some("/eab".into()),
            ..Tls::default()
        };
        let request = Request {
            verb: Verb::Renew,
            tls: &tls,
            names: &names,
            force: true,
            self_check: Some(SocketAddr::from(([127, 0, 0, 1], 80))),
            is_proxied: true,
            dry_run: false,
        };
        let shown = |request| {
            arguments(&layout, request)
                .join(" ".as_ref())
                .to_string_lossy()
                .into_owned()
        };
        assert_eq!(
            shown(request),
            "--root / renew --directory https://ca.example/dir --email me@a.example --profile shortlived --ca-file /ca.pem \
             --eab-kid kid --eab-key-file /eab --self-check 127.0.0.1:80 --proxy-protocol --force a.example b.example"
        );
        let plain = Request {
            verb: Verb::Issue,
            tls: &Tls::default(),
            force: false,
            self_check: None,
            dry_run: true,
            ..request
        };
        assert_eq!(shown(plain), "--root / issue --dry-run a.example b.example");
    }

    #[test]
    fn a_name_that_failed_is_told_from_a_program_that_could_not_work() {
        assert!(has_worked(0, true, false) && has_worked(1, true, false));
        assert!(!has_worked(0, false, false) && !has_worked(1, false, false) && !has_worked(75, true, false));
        assert!(has_worked(0, false, true) && !has_worked(1, false, true));
    }

    #[test]
    fn the_default_authority_has_a_name() {
        assert_eq!(of(&Tls::default()), "Let's Encrypt");
        let other = Tls {
            directory: Some("https://ca.example/dir".into()),
            ..Tls::default()
        };
        assert_eq!(of(&other), "https://ca.example/dir");
    }
}
