//! `linksctl tls disable`.

use std::process::ExitCode;

use super::enable::plan_change;
use super::report::{Detail, Reporter};
use super::request::{disabled, with_first};
use crate::cli::{self, TlsDisableArgs};
use links_base::privileges::require_root;
use links_config::links::Tls;
use links_config::load::load_links;
use links_rollout::{Appliance, apply_tls};

/// Turns off HTTPS, or removes names from it.
///
/// # Errors
/// The configuration is wrong, or links does not answer through nginx afterwards.
pub fn run(appliance: &Appliance, args: &TlsDisableArgs) -> anyhow::Result<ExitCode> {
    let mut reporter = Reporter::new(cli::style(args.json), Detail::Full);
    let current = load_links(appliance.snapshots.edited())?.tls;
    if !current.is_on() && args.names.is_empty() {
        reporter.note("HTTPS is off");
        return Ok(ExitCode::SUCCESS);
    }
    let left = disabled(&current, &args.names)?;
    let found = appliance.edge.certificates.find(&left)?;
    let have: Vec<_> = found
        .certificates
        .into_iter()
        .map(|certificate| certificate.name)
        .collect();
    let tls = with_first(&left, &have);
    let change = plan_change(appliance, &tls)?;
    if args.dry_run {
        println!("write {} and apply it: {}", change.file.path().display(), summary(&tls));
        print!("{}", change.file.text());
        return Ok(ExitCode::SUCCESS);
    }
    require_root()?;
    apply_tls(appliance, &change, reporter.style())?;
    reporter.note(&summary(&tls));
    Ok(ExitCode::SUCCESS)
}

fn summary(tls: &Tls) -> String {
    match tls.served() {
        [] => "HTTPS is off".to_owned(),
        names => format!(
            "{} {} HTTPS",
            names.join(", "),
            if names.len() == 1 { "has" } else { "have" }
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use links_config::links::TlsMode;

    #[test]
    fn the_summary_names_what_is_left() {
        let mut tls = Tls {
            mode: TlsMode::Acme,
            names: vec!["a.example".into()],
            ..Tls::default()
        };
        assert_eq!(summary(&tls), "a.example has HTTPS");
        tls.names.push("b.example".into());
        assert_eq!(summary(&tls), "a.example, b.example have HTTPS");
        tls.mode = TlsMode::Off;
        assert_eq!(summary(&tls), "HTTPS is off");
    }
}
