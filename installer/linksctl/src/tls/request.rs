//! What a command line asks `[tls]` to become. It does no I/O.

use anyhow::ensure;

use crate::cli::TlsEnableArgs;
use links_config::links::{Tls, TlsMode};

/// The settings after `linksctl tls enable`. The names are added to those that have HTTPS, and what the command line does not
/// mention stays. The paths in `args` have to be absolute.
///
/// # Errors
/// There is no name, or not as many keys as certificates.
pub fn enabled(current: &Tls, args: TlsEnableArgs) -> anyhow::Result<Tls> {
    ensure!(
        args.certificate.len() == args.key.len(),
        "give a --key for each --certificate, in the same order"
    );
    let asks_an_authority = args.email.is_some()
        || args.directory.is_some()
        || args.profile.is_some()
        || args.ca_file.is_some()
        || args.eab_kid.is_some();
    let has_files = !args.certificate.is_empty();
    let mode = match current.mode {
        _ if has_files => TlsMode::Files,
        TlsMode::Files if !asks_an_authority => TlsMode::Files,
        _ => TlsMode::Acme,
    };
    // After `disable`, the former names count only if no others are given.
    let mut names = match args.names.is_empty() {
        true => current.names.clone(),
        false => current.served().to_vec(),
    };
    for name in args.names {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    ensure!(
        !names.is_empty(),
        "name a host for HTTPS, such as `linksctl tls enable s.example.org`"
    );
    let (certificate, key) = match (has_files, mode) {
        (true, _) => (args.certificate, args.key),
        (false, TlsMode::Files) => (current.certificate.clone(), current.key.clone()),
        (false, _) => (vec![], vec![]),
    };
    Ok(Tls {
        mode,
        names,
        email: args.email.or_else(|| current.email.clone()),
        directory: args.directory.or_else(|| current.directory.clone()),
        profile: args.profile.or_else(|| current.profile.clone()),
        ca_file: args.ca_file.or_else(|| current.ca_file.clone()),
        eab_kid: args.eab_kid.or_else(|| current.eab_kid.clone()),
        eab_key_file: args.eab_key_file.or_else(|| current.eab_key_file.clone()),
        certificate,
        key,
        http: args.http.map_or(current.http, Into::into),
        hsts: args.hsts.unwrap_or(current.hsts),
    })
}

/// The settings after `linksctl tls disable`: without these names, or without HTTPS if none is given or left. The other
/// settings stay for the next `enable`.
///
/// # Errors
/// A name has no HTTPS.
pub fn disabled(current: &Tls, names: &[String]) -> anyhow::Result<Tls> {
    for name in names {
        ensure!(
            current.served().contains(name),
            "{name} has no HTTPS; `linksctl tls status` lists the names that have it"
        );
    }
    let left: Vec<_> = current
        .names
        .iter()
        .filter(|name| !names.contains(name))
        .cloned()
        .collect();
    if names.is_empty() || left.is_empty() {
        return Ok(Tls {
            mode: TlsMode::Off,
            ..current.clone()
        });
    }
    Ok(Tls {
        names: left,
        ..current.clone()
    })
}

/// The settings with the names that have a certificate first, because the first name begins short URLs.
pub fn with_first(tls: &Tls, have_certificates: &[String]) -> Tls {
    let mut sorted = tls.clone();
    sorted.names.sort_by_key(|name| !have_certificates.contains(name));
    sorted
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, Command, TlsArgs, TlsCommand};
    use links_config::links::PlainHttp;

    /// The settings after `linksctl tls enable` with these words.
    fn enable(current: &Tls, words: &str) -> anyhow::Result<Tls> {
        let line = format!("linksctl tls enable {words}");
        let Command::Tls(TlsArgs {
            command: TlsCommand::Enable(args),
        }) = Cli::try_parse_from(line.split_whitespace())?.command
        else {
            unreachable!("{line}")
        };
        enabled(current, args)
    }

    fn names(tls: &Tls) -> String {
        tls.names.join(" ")
    }

    #[test]
    fn a_name_alone_is_enough() {
        let tls = enable(&Tls::default(), "S.Example.org").unwrap();
        let expected = Tls {
            mode: TlsMode::Acme,
            names: vec!["s.example.org".to_owned()],
            ..Tls::default()
        };
        assert_eq!(tls, expected);
        assert!(enable(&Tls::default(), "").is_err());
        for wrong in [
            "*.example.org",
            "https://a.example",
            "a.example --email me",
            "a.example --directory http://ca",
        ] {
            assert!(enable(&Tls::default(), wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn names_are_added_and_other_settings_stay() {
        let first = enable(
            &Tls::default(),
            "a.example --email me@a.example --profile shortlived --http serve --hsts",
        )
        .unwrap();
        let second = enable(&first, "b.example a.example --hsts=false --http redirect").unwrap();
        assert_eq!(names(&second), "a.example b.example");
        assert_eq!(
            (second.email.as_deref(), second.profile.as_deref()),
            (Some("me@a.example"), Some("shortlived"))
        );
        assert_eq!((first.http, first.hsts), (PlainHttp::Serve, true));
        assert_eq!((second.http, second.hsts), (PlainHttp::Redirect, false));
    }

    #[test]
    fn files_replace_an_authority_and_the_other_way_round() {
        let acme = enable(&Tls::default(), "a.example --email me@a.example").unwrap();
        let files = enable(&acme, "--certificate /c --key /k").unwrap();
        assert_eq!(
            (files.mode, files.certificate.len(), names(&files).as_str()),
            (TlsMode::Files, 1, "a.example")
        );
        let more = enable(&files, "b.example").unwrap();
        assert_eq!((more.mode, more.certificate.len()), (TlsMode::Files, 1));
        let again = enable(&more, "--directory https://ca.example/").unwrap();
        assert_eq!(
            (again.mode, again.certificate.len(), again.key.len()),
            (TlsMode::Acme, 0, 0)
        );
        assert!(enable(&acme, "--certificate /c").is_err());
        assert!(enable(&acme, "--certificate /c --key /k --certificate /c2 --key /k2 --key /k3").is_err());
        assert!(enable(&acme, "--certificate /c --key /k --profile x").is_err());
    }

    #[test]
    fn names_are_removed_one_by_one_or_all_at_once() {
        let both = enable(&Tls::default(), "a.example b.example --hsts").unwrap();
        let one = disabled(&both, &["a.example".to_owned()]).unwrap();
        assert_eq!((one.mode, names(&one).as_str()), (TlsMode::Acme, "b.example"));
        assert!(disabled(&one, &["a.example".to_owned()]).is_err());
        for off in [disabled(&both, &[]), disabled(&both, &both.names)] {
            let off = off.unwrap();
            assert_eq!((off.mode, names(&off).as_str()), (TlsMode::Off, "a.example b.example"));
            assert_eq!(names(&enable(&off, "").unwrap()), "a.example b.example");
            assert_eq!(names(&enable(&off, "c.example").unwrap()), "c.example");
        }
    }

    #[test]
    fn the_first_name_is_one_that_has_a_certificate() {
        let tls = enable(&Tls::default(), "a.example b.example c.example").unwrap();
        let first = with_first(&tls, &["b.example".to_owned(), "c.example".to_owned()]);
        assert_eq!(names(&first), "b.example c.example a.example");
    }
}
