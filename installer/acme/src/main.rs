//! links-acme: gets certificates from a certificate authority (RFC 8555), and renews them, for linksctl, which contains no TLS.
//!
//! It runs as two processes. The one that linksctl starts is root, decides, and owns the files. The one that it starts in turn
//! speaks to the authority as user links-acme, who owns nothing ([`ca`]).

mod ca;
mod certificate;
mod cli;
mod inspect;
mod name;
mod obtain;
mod probe;
mod record;
mod run;
mod schedule;
mod status;
mod store;
mod words;

use std::fmt;
use std::fs;
use std::io::{self, Write as _};
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser as _;
use cli::{Cli, Command, Renew, Status, Trust};
use links_base::layout::Layout;
use links_base::privileges::{self, require_root};
use links_base::{clock, files, log};
use links_config::acme::{EX_TEMPFAIL, Event};
use links_config::load::{self, EX_CONFIG};
use obtain::SelfCheck;
use run::{EabFile, Order};
use schedule::Asks;
use store::{Issued, Store};

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            log::error!("links-acme: {error:#}");
            exit_code(&error).into()
        }
    }
}

/// A file that the caller has named cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct WrongFile(String);

/// Another links-acme holds the lock.
#[derive(Debug)]
struct Busy;

impl fmt::Display for Busy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("another links-acme is at work; try again when it has finished")
    }
}

impl std::error::Error for Busy {}

/// Requests on standard input that cannot be understood.
#[derive(Debug, thiserror::Error)]
#[error("{0:#}")]
struct Usage(anyhow::Error);

fn exit_code(error: &anyhow::Error) -> u8 {
    if error.is::<Busy>() {
        EX_TEMPFAIL
    } else if error.is::<WrongFile>() {
        EX_CONFIG
    } else if error.is::<Usage>() {
        2
    } else {
        load::exit_code(error)
    }
}

/// Runs the command. Returns whether all went well.
fn run(cli: Cli) -> anyhow::Result<bool> {
    let layout = Layout::new(std::path::absolute(cli.root)?);
    let store = Store::new(&layout);
    match cli.command {
        Command::Issue(args) => renew(&layout, &store, args, Asks::Person),
        Command::Renew(args) => renew(&layout, &store, args, Asks::Timer),
        Command::Status(args) => print_status(&store, args),
        Command::Loaded { loaded } => {
            let _lock = lock(&layout)?;
            record_loaded(&store, &loaded)
        }
        Command::Forget { names, revoke, trust } => {
            let roots = roots(&trust)?;
            let _lock = lock(&layout)?;
            run::forget(&layout, &store, &names, revoke, roots.as_deref()).map(|()| true)
        }
        Command::Deactivate { directory, trust } => {
            let roots = roots(&trust)?;
            let _lock = lock(&layout)?;
            run::deactivate(&layout, &store, &directory.url, roots).map(|()| true)
        }
        Command::CheckFiles {
            certificate,
            key,
            names,
        } => {
            let (certificate, key) = (inspect::Read::new(&certificate), inspect::Read::new(&key));
            let checked = inspect::check(&certificate, &key, &names, clock::now());
            let is_usable = checked.usable;
            emit(Event::Files(checked));
            match is_usable {
                true => Ok(true),
                false => Err(WrongFile("the certificate and the key cannot be served".to_owned()).into()),
            }
        }
        Command::Probe => {
            if privileges::are_roots(&layout) {
                privileges::give_up_for_network()?;
            }
            let requests = probe::read_requests(io::stdin().lock()).map_err(Usage)?;
            probe::probe(requests).into_iter().map(Event::Probe).for_each(emit);
            Ok(true)
        }
        Command::Network { as_user } => ca::network::serve(as_user).map(|()| true),
    }
}

fn renew(layout: &Layout, store: &Store, args: Renew, asks: Asks) -> anyhow::Result<bool> {
    let eab = match (args.eab_kid, &args.eab_key_file) {
        (Some(kid), Some(file)) => Some(EabFile::new(kid, read(file)?)),
        _ => None,
    };
    let order = Order {
        names: without_repetitions(args.names),
        issued: Issued {
            directory: args.directory.url,
            profile: args.profile,
        },
        emails: args.emails,
        roots: roots(&args.trust)?,
        eab,
        self_check: args.self_check.map(|address| SelfCheck {
            address,
            proxy_protocol: args.proxy_protocol,
        }),
        asks: if args.force { Asks::Force } else { asks },
    };
    if args.dry_run {
        run::plan(store, &order, &mut emit)?;
        return Ok(true);
    }
    let _lock = lock(layout)?;
    run::run(layout, store, &order, &mut emit)
}

fn without_repetitions(names: Vec<name::Name>) -> Vec<name::Name> {
    let mut unique = vec![];
    for name in names {
        if !unique.contains(&name) {
            unique.push(name);
        }
    }
    unique
}

fn print_status(store: &Store, args: Status) -> anyhow::Result<bool> {
    let names = match args.names.is_empty() {
        true => store.names()?,
        false => args.names.iter().map(ToString::to_string).collect(),
    };
    let wanted = args.directory.map(|directory| Issued {
        directory,
        profile: args.profile,
    });
    status::print(store, &names, wanted.as_ref(), clock::now(), &mut emit)?;
    Ok(true)
}

fn record_loaded(store: &Store, loaded: &[(name::Name, String)]) -> anyhow::Result<bool> {
    for (name, id) in loaded {
        let name = name.to_string();
        let Some(live) = store.live(&name)?.filter(|live| live.id == *id) else {
            continue;
        };
        let mut record = store.record(&name)?.with(Some(&live.id));
        record.loaded = Some(live.id);
        store.save_record(&name, &record)?;
    }
    Ok(true)
}

/// The certificates by which the authority's server is trusted.
fn roots(trust: &Trust) -> anyhow::Result<Option<String>> {
    let Some(path) = &trust.ca_file else {
        return Ok(None);
    };
    let pem = read(path)?;
    ca::check_roots(&pem).map_err(|error| WrongFile(format!("{}: {error}", path.display())))?;
    Ok(Some(pem))
}

fn read(path: &Path) -> anyhow::Result<String> {
    let text = fs::read_to_string(path);
    text.map_err(|error| WrongFile(format!("{}: {error}", path.display())).into())
}

/// The right to change the files. Only one process has it.
fn lock(layout: &Layout) -> anyhow::Result<impl Drop> {
    if layout.is_host() {
        require_root()?;
    }
    files::make_directory(&layout.tls_dir(), 0o755)?;
    let holder = std::process::id().to_string();
    files::lock(&layout.tls_lock(), 0o600, &holder)?.context(Busy)
}

/// Prints a line. The work goes on if nobody reads it: linksctl may have been killed, but the certificates are still due.
fn emit(event: Event) {
    if let Ok(line) = serde_json::to_string(&event) {
        let mut stdout = io::stdout().lock();
        let _ = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
    }
}
