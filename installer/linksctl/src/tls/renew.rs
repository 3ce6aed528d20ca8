//! `linksctl tls renew`, which links-tls.timer runs.

use std::process::ExitCode;

use anyhow::ensure;

use super::authority::{self, Request, Verb};
use super::report::{Detail, Https, Name, Reporter};
use crate::cli::{self, TlsRenewArgs};
use links_base::layout::Layout;
use links_base::log;
use links_base::privileges::require_root;
use links_config::acme::NameResult;
use links_config::links::{Config, TlsMode};
use links_rollout::{Appliance, applied_config, write_site};

/// Renews what is due, and makes nginx load it. The exit status is 1 if a name has no valid certificate, or if an attempt in
/// this run failed.
///
/// # Errors
/// The configuration is wrong, another renewal is under way, or nginx does not serve the new certificates.
pub fn run(layout: &Layout, appliance: &Appliance, args: &TlsRenewArgs) -> anyhow::Result<ExitCode> {
    require_root()?;
    let detail = match args.from_systemd {
        true => Detail::Changes,
        false => Detail::Full,
    };
    let mut reporter = Reporter::new(cli::style(args.json), detail);
    // Settings that are not applied yet wait for `linksctl rollout`.
    let config = applied_config(appliance)?;
    for name in &args.names {
        ensure!(
            config.tls.served().contains(name),
            "{name} has no HTTPS; `linksctl tls enable {name}` turns it on"
        );
    }
    match config.tls.mode {
        TlsMode::Off => {
            if detail == Detail::Full {
                reporter.note("HTTPS is off");
            }
            Ok(ExitCode::SUCCESS)
        }
        TlsMode::Files if args.dry_run => {
            reporter.note("check the files, copy those that have changed, and make nginx load them");
            Ok(ExitCode::SUCCESS)
        }
        TlsMode::Files => take_files(appliance, &config, &mut reporter),
        TlsMode::Acme => ask_authority(layout, appliance, &config, args, &mut reporter),
    }
}

/// Takes changed files of the administrator.
fn take_files(appliance: &Appliance, config: &Config, reporter: &mut Reporter) -> anyhow::Result<ExitCode> {
    let problems = appliance.edge.certificates.take(&config.tls)?.problems;
    load(appliance, reporter)?;
    let names = appliance.edge.tls_names(config)?.into_iter().map(|name| Name {
        https: name.trouble.is_none(),
        name: name.certificate.name,
        error: None,
    });
    let names: Vec<_> = names.collect();
    let https = Https {
        ok: problems.is_empty() && names.iter().all(|name| name.https),
        names,
    };
    reporter.finish(&https);
    problems.iter().for_each(|problem| log::error!("linksctl: {problem}"));
    Ok(code(https.ok))
}

fn ask_authority(
    layout: &Layout,
    appliance: &Appliance,
    config: &Config,
    args: &TlsRenewArgs,
    reporter: &mut Reporter,
) -> anyhow::Result<ExitCode> {
    let names = match args.names.is_empty() {
        true => config.tls.served(),
        false => &args.names,
    };
    let request = Request {
        verb: Verb::Renew,
        tls: &config.tls,
        names,
        force: args.force,
        self_check: match config.nginx.manage {
            true => appliance.edge.plain_address(config),
            false => None,
        },
        is_proxied: config.nginx.proxy_protocol,
        dry_run: args.dry_run,
    };
    let obtained = authority::ask(layout, request, reporter)?;
    if args.dry_run {
        return Ok(ExitCode::SUCCESS);
    }
    // Even if nothing was renewed: a certificate may have expired, or be valid again because the clock was corrected.
    let loaded = load(appliance, reporter);
    let results = obtained.results.into_iter();
    let https = Https {
        ok: obtained.ok && loaded.is_ok(),
        names: results.map(|result| name(result, loaded.is_ok())).collect(),
    };
    reporter.finish(&https);
    loaded?;
    Ok(code(https.ok))
}

/// Only an attempt of this run counts as an error: an earlier one may have failed for a certificate that is still good.
fn name(result: NameResult, is_loaded: bool) -> Name {
    Name {
        https: is_loaded && result.status.certificate.is_some(),
        error: result.error,
        name: result.name,
    }
}

/// Makes nginx serve the certificates that are there, if it does not yet.
fn load(appliance: &Appliance, reporter: &mut Reporter) -> anyhow::Result<()> {
    reporter.work("making nginx serve the certificates".to_owned());
    let config = applied_config(appliance)?;
    let notices = write_site(appliance, &config, reporter.style());
    reporter.rest();
    notices?.iter().for_each(|notice| log::notice!("linksctl: {notice}"));
    Ok(())
}

fn code(ok: bool) -> ExitCode {
    match ok {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use super::*;

    #[test]
    fn a_failure_of_an_earlier_run_is_not_reported_again() {
        let failure =
            r#"{"kind":"network","acme_type":null,"detail":null,"message":"No.","hint":"Wait.","retry_after":null}"#;
        let of = |outcome: &str, error: &str| {
            let text = format!(
                r#"{{"name":"a.example","outcome":"{outcome}","error":{error},"status":{{"name":"a.example","id":"1",
                "loaded":true,"certificate":null,"state":"valid","next":{{"at":60,"why":"ari"}},"ari":null,"attempts":1,
                "last_attempt":1,"error":{failure}}}}}"#
            );
            name(serde_json::from_str(&text).unwrap(), true)
        };
        assert!(of("kept", "null").error.is_none());
        assert!(of("failed", failure).error.is_some());
    }
}
