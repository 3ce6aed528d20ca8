//! `linksctl tls enable`.

use std::fmt;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, ensure};

use super::authority::{self, Request, Verb};
use super::report::{Detail, Https, Name, Reporter};
use super::request::{enabled, with_first};
use crate::cli::{self, TlsEnableArgs};
use links_base::layout::Layout;
use links_base::log;
use links_base::privileges::require_root;
use links_config::acme::NameResult;
use links_config::links::{Config, Tls, TlsMode, inputs};
use links_config::load::{Invalid, load_links};
use links_config::reader::Disk;
use links_edge::nginx::server_names;
use links_rollout::{Appliance, TlsChange, applied_config, apply_tls, write_site};

/// A step of `enable`.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    CheckNginx,
    /// Makes the names lead to links on port 80, where the authority asks for the answers to its challenges.
    WriteSite(Vec<String>),
    GetCertificates {
        names: Vec<String>,
        authority: String,
    },
    CopyFiles(Vec<PathBuf>),
    /// Writes the settings and rolls them out.
    Apply(PathBuf),
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CheckNginx => write!(
                f,
                "check that nginx accepts its configuration, and can listen on port 443"
            ),
            Self::WriteSite(names) => {
                write!(f, "make nginx answer to {} on port 80", names.join(", "))
            }
            Self::GetCertificates { names, authority } => {
                write!(
                    f,
                    "get the missing certificates of {} from {authority}",
                    names.join(", ")
                )
            }
            Self::CopyFiles(files) => {
                let files: Vec<_> = files.iter().map(|file| file.display().to_string()).collect();
                write!(f, "check {} and the keys, and copy them", files.join(", "))
            }
            Self::Apply(path) => write!(
                f,
                "write {}, apply it to the instances one at a time and to nginx, and make a TLS handshake for each name",
                path.display()
            ),
        }
    }
}

/// The steps of `enable`, in order. `path` is the file of the settings.
fn plan(tls: &Tls, manages_site: bool, path: PathBuf) -> Vec<Step> {
    let mut steps = vec![];
    if manages_site {
        steps.push(Step::CheckNginx);
    }
    match tls.mode {
        TlsMode::Files => steps.push(Step::CopyFiles(tls.certificate.clone())),
        _ => {
            if manages_site {
                steps.push(Step::WriteSite(tls.names.clone()));
            }
            steps.push(Step::GetCertificates {
                names: tls.names.clone(),
                authority: authority::of(tls).to_owned(),
            });
        }
    }
    steps.push(Step::Apply(path));
    steps
}

/// Turns on HTTPS. The exit status is 1 if a name has no certificate.
///
/// # Errors
/// The configuration is wrong, or links does not answer with HTTPS through nginx afterwards. What served before still serves
/// then.
pub fn run(layout: &Layout, appliance: &Appliance, mut args: TlsEnableArgs) -> anyhow::Result<ExitCode> {
    make_absolute(&mut args)?;
    let style = cli::style(args.json);
    let dry_run = args.dry_run;
    let edited = appliance.snapshots.edited();
    let current = load_links(edited)?;
    let tls = enabled(&current.tls, args)?;
    let change = plan_change(appliance, &tls)?;
    let steps = plan(&tls, current.nginx.manage, change.file.path().to_owned());
    if dry_run {
        steps.iter().for_each(|step| println!("{step}"));
        print!("{}", change.file.text());
        return Ok(ExitCode::SUCCESS);
    }
    require_root()?;
    let mut host = Host {
        layout,
        appliance,
        applied: applied_config(appliance)?,
        tls,
        results: vec![],
        reporter: Reporter::new(style, Detail::Full),
    };
    for step in steps {
        if let Err(error) = host.apply(&step) {
            host.restore();
            return Err(error);
        }
        if host.got_nothing() {
            host.restore();
            return Ok(host.report(&[]));
        }
    }
    let config = load_links(edited)?;
    let served: Vec<_> = appliance
        .edge
        .tls_names(&config)?
        .into_iter()
        .filter(|name| name.trouble.is_none())
        .map(|name| name.certificate.name)
        .collect();
    Ok(host.report(&served))
}

/// The paths on the command line are relative to the current directory, those in the settings are absolute.
fn make_absolute(args: &mut TlsEnableArgs) -> anyhow::Result<()> {
    let files = args.ca_file.iter_mut().chain(&mut args.eab_key_file);
    for file in files.chain(&mut args.certificate).chain(&mut args.key) {
        *file = std::path::absolute(&*file).with_context(|| format!("Finding {}", file.display()))?;
    }
    Ok(())
}

/// The change that puts these settings into effect.
///
/// # Errors
/// The files with the settings cannot be read, or see [`TlsChange::plan`].
pub fn plan_change(appliance: &Appliance, tls: &Tls) -> anyhow::Result<TlsChange> {
    let edited = appliance.snapshots.edited();
    let inputs = inputs(edited, &Disk).map_err(Invalid)?;
    TlsChange::plan(edited, &inputs, tls)
}

/// The host that the steps change.
struct Host<'a> {
    layout: &'a Layout,
    appliance: &'a Appliance,
    /// The configuration before.
    applied: Config,
    /// The wanted settings.
    tls: Tls,
    /// What the authority was asked for, once it was.
    results: Vec<NameResult>,
    reporter: Reporter,
}

impl Host<'_> {
    fn apply(&mut self, step: &Step) -> anyhow::Result<()> {
        let edge = &self.appliance.edge;
        match step {
            Step::CheckNginx => {
                edge.check_nginx(&self.applied)?;
                edge.check_tls_ports(&self.applied)?;
            }
            Step::WriteSite(_) => {
                let config = with_names(&self.applied, &self.tls);
                // The notices are about certificates that are missing, which come next.
                write_site(self.appliance, &config, self.reporter.style())?;
                ensure!(
                    !edge.status(&self.applied)?.edited,
                    "the nginx site was edited by somebody else, so links cannot add HTTPS to it; `linksctl rollout --force` \
                     replaces it, and keeps a copy"
                );
            }
            Step::GetCertificates { names, .. } => {
                let self_check = match self.applied.nginx.manage {
                    true => edge.plain_address(&self.applied),
                    false => None,
                };
                let request = Request {
                    verb: Verb::Issue,
                    tls: &self.tls,
                    names,
                    force: false,
                    self_check,
                    is_proxied: self.applied.nginx.proxy_protocol,
                    dry_run: false,
                };
                self.results = authority::ask(self.layout, request, &mut self.reporter)?.results;
                self.tls = with_first(&self.tls, &self.have_certificates());
            }
            Step::CopyFiles(_) => {
                for problem in edge.certificates.take(&self.tls)?.problems {
                    log::error!("linksctl: {problem}");
                }
            }
            Step::Apply(_) => {
                let change = plan_change(self.appliance, &self.tls)?;
                apply_tls(self.appliance, &change, self.reporter.style())?;
            }
        }
        Ok(())
    }

    fn have_certificates(&self) -> Vec<String> {
        let have = self.results.iter().filter(|result| result.status.certificate.is_some());
        have.map(|result| result.name.clone()).collect()
    }

    /// Whether the authority was asked, and no name has a certificate.
    fn got_nothing(&self) -> bool {
        !self.results.is_empty() && self.have_certificates().is_empty()
    }

    /// Writes the site of the settings that are in effect: those from before, unless only the end of their rollout failed.
    fn restore(&mut self) {
        if !self.applied.nginx.manage {
            return;
        }
        let restored = applied_config(self.appliance)
            .map_err(Into::into)
            .and_then(|config| write_site(self.appliance, &config, self.reporter.style()));
        if let Err(error) = restored {
            // The error to report is the one that led here.
            log::error!("linksctl: the nginx site could not be restored; run `linksctl rollout`: {error:#}");
        }
    }

    fn report(&mut self, served: &[String]) -> ExitCode {
        let error = |name: &String| {
            let result = self.results.iter().find(|result| result.name == *name)?;
            result.error.clone()
        };
        let names = self.tls.names.iter().map(|name| Name {
            name: name.clone(),
            https: served.contains(name),
            error: error(name),
        });
        let names: Vec<_> = names.collect();
        let https = Https {
            ok: names.iter().all(|name| name.https && name.error.is_none()),
            names,
        };
        self.reporter.finish(&https);
        if self.got_nothing() {
            self.reporter
                .note("nothing was changed, because no name has got a certificate");
        } else if !https.ok {
            self.reporter.note("links-tls.timer tries the other names again");
        }
        match https.ok {
            true => ExitCode::SUCCESS,
            false => ExitCode::FAILURE,
        }
    }
}

/// The configuration of a site that also answers to the wanted names on port 80. Names that are served with the administrator's
/// files keep them until the authority has issued certificates.
fn with_names(applied: &Config, wanted: &Tls) -> Config {
    let mut config = applied.clone();
    if applied.tls.mode == TlsMode::Files {
        let mut with_all = applied.clone();
        with_all.tls.names.extend(wanted.names.iter().cloned());
        config.nginx.server_name = server_names(&with_all);
    } else {
        config.tls = wanted.clone();
    }
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acme(names: &[&str]) -> Tls {
        Tls {
            mode: TlsMode::Acme,
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            ..Tls::default()
        }
    }

    #[test]
    fn files_are_served_until_the_authority_has_issued() {
        let applied = Config {
            public_url: Some("https://s.example".into()),
            tls: Tls {
                mode: TlsMode::Files,
                certificate: vec!["/c.pem".into()],
                ..acme(&["a.example"])
            },
            ..Config::default()
        };
        let wanted = acme(&["a.example", "b.example"]);
        let during = with_names(&applied, &wanted);
        assert_eq!(during.tls, applied.tls);
        assert_eq!(during.nginx.server_name, ["s.example", "a.example", "b.example"]);
        let during = with_names(&Config::default(), &wanted);
        assert_eq!((during.tls, during.nginx), (wanted, Config::default().nginx));
    }

    fn shown(tls: &Tls, manages_site: bool) -> Vec<String> {
        let steps = plan(tls, manages_site, "/tls.toml".into());
        steps.iter().map(Step::to_string).collect()
    }

    const APPLY: &str = "write /tls.toml, apply it to the instances one at a time and to nginx, and make a TLS handshake for \
                         each name";

    #[test]
    fn names_lead_here_before_the_authority_is_asked_and_settings_come_last() {
        let mut tls = acme(&["a.example", "b.example"]);
        let get = "get the missing certificates of a.example, b.example from Let's Encrypt";
        assert_eq!(
            shown(&tls, true),
            [
                "check that nginx accepts its configuration, and can listen on port 443",
                "make nginx answer to a.example, b.example on port 80",
                get,
                APPLY
            ]
        );
        assert_eq!(shown(&tls, false), [get, APPLY]);
        tls.mode = TlsMode::Files;
        tls.certificate = vec!["/c.pem".into()];
        assert_eq!(
            shown(&tls, true),
            [
                "check that nginx accepts its configuration, and can listen on port 443",
                "check /c.pem and the keys, and copy them",
                APPLY
            ]
        );
    }
}
