//! `issue` and `renew`: decides what is due, and gets it.

use anyhow::Context as _;
use links_base::clock;
use links_base::layout::Layout;
use rand::TryRng as _;
use rand::rngs::SysRng;

use crate::ca::Authority;
use crate::ca::child::Network;
use crate::ca::protocol::{Eab, Open, Opened, Reply, Request};
use crate::name::Name;
use crate::obtain::{SelfCheck, Wanted, obtain};
use crate::record::Record;
use crate::schedule::{ARI_UNSUPPORTED_WAIT, Asks, Decision, Facts, ari_wait, decide};
use crate::status;
use crate::store::{Account, Issued, Live, Store};
use crate::words::{Attempt, failure};
use links_config::acme::{AccountInUse, Action, End, Event, Failure, FailureKind, NameResult, Outcome, Planned, State};

/// What is asked for.
#[derive(Debug)]
pub struct Order {
    pub names: Vec<Name>,
    pub issued: Issued,
    pub emails: Vec<String>,
    /// The certificates, in PEM, that the authority's server is trusted by. `None`: those of this machine.
    pub roots: Option<String>,
    pub eab: Option<EabFile>,
    pub self_check: Option<SelfCheck>,
    pub asks: Asks,
}

/// The external account binding. The key is not shown in debug output.
#[derive(Debug)]
pub struct EabFile(Eab);

impl EabFile {
    pub fn new(kid: String, key: String) -> Self {
        Self(Eab { kid, key })
    }
}

/// A name, with all that the decision about it depends on.
struct Item<'a> {
    name: &'a Name,
    text: String,
    live: Option<Live>,
    record: Record,
}

impl<'a> Item<'a> {
    fn read(store: &Store, name: &'a Name) -> anyhow::Result<Self> {
        let text = name.to_string();
        let live = store.live(&text)?;
        let record = store.record(&text)?.with(live.as_ref().map(|live| live.id.as_str()));
        Ok(Self {
            name,
            text,
            live,
            record,
        })
    }

    fn facts(&self, issued: &Issued, now: u64) -> Facts {
        status::facts(self.live.as_ref(), &self.record, Some(issued), now)
    }
}

/// Prints what would be done about each name.
///
/// # Errors
/// A file may not be read.
pub fn plan(store: &Store, order: &Order, report: &mut dyn FnMut(Event)) -> anyhow::Result<()> {
    for name in &order.names {
        let item = Item::read(store, name)?;
        let Decision { action, why, at } = decide(&item.facts(&order.issued, clock::now()), order.asks);
        report(Event::Plan(Planned {
            name: item.text,
            action,
            why,
            at,
        }));
    }
    Ok(())
}

/// Gets what is due. The caller holds the lock. Returns whether every name has a usable certificate, and no attempt has failed.
///
/// # Errors
/// A file of links cannot be read or written, or the network process cannot be started.
pub fn run(layout: &Layout, store: &Store, order: &Order, report: &mut dyn FnMut(Event)) -> anyhow::Result<bool> {
    store.prepare()?;
    let mut authority = Connection {
        layout,
        store,
        order,
        network: None,
    };
    let mut end = End::default();
    for name in &order.names {
        let mut item = Item::read(store, name)?;
        refresh_window(&mut authority, &mut item, report)?;
        let result = one(&mut authority, item, report)?;
        if let Some(argument) = result.status.loaded_argument().filter(|_| !result.status.loaded) {
            end.reload.push(argument);
        }
        let is_usable = result.status.state == State::Valid || result.outcome != Outcome::Paused;
        if result.outcome == Outcome::Failed || !is_usable {
            end.failed.push(result.name.clone());
        }
        report(Event::Result(result));
    }
    let all_well = end.failed.is_empty();
    report(Event::End(end));
    Ok(all_well)
}

/// Asks the authority when the certificate should be renewed, if it is time to ask.
fn refresh_window(
    authority: &mut Connection<'_>,
    item: &mut Item<'_>,
    report: &mut dyn FnMut(Event),
) -> anyhow::Result<()> {
    let (order, now) = (authority.order, clock::now());
    let Some(live) = item.live.as_ref().filter(|live| live.issued == order.issued) else {
        return Ok(());
    };
    let decision = decide(&item.facts(&order.issued, now), order.asks);
    let (Action::Keep, Some(id)) = (decision.action, live.certificate.id().cloned()) else {
        return Ok(());
    };
    // Without an account, asking would create one.
    if !item.record.asks_ari(now) || authority.store.account(&order.issued.directory)?.is_none() {
        return Ok(());
    }
    let asked = authority.ask(&Request::RenewalInfo { certificate: id }, report)?;
    let record = std::mem::take(&mut item.record);
    item.record = match asked {
        Ok(Reply::RenewalInfo { window, wait }) => {
            let random = SysRng.try_next_u64().context("Asking the kernel for randomness")?;
            let wait = wait.map_or(ARI_UNSUPPORTED_WAIT, ari_wait);
            record.with_window(window, wait, now, random)
        }
        // The certificate is not due, so nothing is lost yet.
        _ => record.without_answer(now),
    };
    authority.store.save_record(&item.text, &item.record)
}

fn one(
    authority: &mut Connection<'_>,
    mut item: Item<'_>,
    report: &mut dyn FnMut(Event),
) -> anyhow::Result<NameResult> {
    let (store, order) = (authority.store, authority.order);
    let decision = decide(&item.facts(&order.issued, clock::now()), order.asks);
    let (outcome, error) = match decision.action {
        Action::Keep => {
            // An order of a run that was killed after the certificate was in place.
            store.remove_pending(&item.text)?;
            (Outcome::Kept, None)
        }
        Action::Pause => (Outcome::Paused, item.record.error.clone()),
        Action::Issue | Action::Renew => match attempt(authority, &item, report)? {
            Ok(id) => {
                item.live = store.live(&item.text)?;
                item.record = item.record.with(Some(&id));
                store.save_record(&item.text, &item.record)?;
                let outcome = match decision.action {
                    Action::Issue => Outcome::Issued,
                    _ => Outcome::Renewed,
                };
                (outcome, None)
            }
            Err(failure) => {
                let validity = item.live.as_ref().map(|live| live.certificate.validity());
                item.record = item.record.failed((*failure).clone(), clock::now(), validity);
                store.save_record(&item.text, &item.record)?;
                (Outcome::Failed, Some(*failure))
            }
        },
    };
    let status = status::of(
        &item.text,
        item.live.as_ref(),
        &item.record,
        Some(&order.issued),
        clock::now(),
    );
    Ok(NameResult {
        name: item.text,
        outcome,
        status,
        error,
    })
}

/// Gets the certificate of a name. If the authority no longer knows the account, it gets another account first: without it, the
/// key of the old one is of no use.
fn attempt(
    authority: &mut Connection<'_>,
    item: &Item<'_>,
    report: &mut dyn FnMut(Event),
) -> anyhow::Result<Attempt<String>> {
    let first = authority.obtain(item, report)?;
    match first {
        Err(failure) if is_unknown_account(&failure) => {
            authority.forget_account()?;
            authority.obtain(item, report)
        }
        result => Ok(result),
    }
}

fn is_unknown_account(failure: &Failure) -> bool {
    failure.acme_type.as_deref() == Some("urn:ietf:params:acme:error:accountDoesNotExist")
}

/// The connection to the authority, which is opened when it is first needed.
struct Connection<'a> {
    layout: &'a Layout,
    store: &'a Store,
    order: &'a Order,
    network: Option<Opening>,
}

/// The network process with an open account, or why there is none. A run does not try again: each name would wait as long as
/// the first.
type Opening = Attempt<(Network, String)>;

impl Connection<'_> {
    /// # Errors
    /// The network process cannot be started, or a file cannot be read or written.
    fn open(&mut self, report: &mut dyn FnMut(Event)) -> anyhow::Result<&mut Opening> {
        if self.network.is_none() {
            let opened = self.start(report)?;
            self.network = Some(opened);
        }
        self.network.as_mut().context("the connection was not opened")
    }

    fn start(&self, report: &mut dyn FnMut(Event)) -> anyhow::Result<Opening> {
        let order = self.order;
        let directory = &order.issued.directory;
        let known = self.store.account(directory)?;
        let contacts_changed = known.as_ref().is_some_and(|known| known.emails != order.emails);
        let request = Request::Open(Open {
            directory: directory.clone(),
            roots: order.roots.clone(),
            emails: order.emails.clone(),
            eab: order.eab.as_ref().map(|EabFile(eab)| Eab {
                kid: eab.kid.clone(),
                key: eab.key.clone(),
            }),
            account: known.as_ref().map(|known| known.credentials.clone()),
            contacts_changed,
        });
        let mut network = Network::start(self.layout)?;
        let Opened {
            url,
            created,
            terms_of_service,
        } = match network.ask(&request) {
            Ok(Reply::Opened(opened)) => opened,
            Ok(_) => anyhow::bail!("got an unexpected reply from the network process"),
            Err(failure) if is_unknown_account(&failure) && known.is_some() => {
                self.store.remove_account(directory)?;
                return self.start(report);
            }
            Err(failure) => return Ok(Err(failure)),
        };
        let is_new = created.is_some();
        let credentials = created.or_else(|| Some(known?.credentials));
        if let Some(credentials) = credentials.filter(|_| is_new || contacts_changed) {
            self.store.save_account(&Account {
                directory: directory.clone(),
                emails: order.emails.clone(),
                credentials,
            })?;
        }
        report(Event::Account(AccountInUse {
            directory: directory.clone(),
            account: url.clone(),
            created: is_new,
            terms_of_service,
        }));
        Ok(Ok((network, url)))
    }

    fn ask(&mut self, request: &Request, report: &mut dyn FnMut(Event)) -> anyhow::Result<Attempt<Reply>> {
        let result = match self.open(report)? {
            Ok((network, _)) => network.ask(request),
            Err(failure) => return Ok(Err(failure.clone())),
        };
        self.replace_if_lost(&result);
        Ok(result)
    }

    fn obtain(&mut self, item: &Item<'_>, report: &mut dyn FnMut(Event)) -> anyhow::Result<Attempt<String>> {
        let (store, order) = (self.store, self.order);
        let (network, account) = match self.open(report)? {
            Ok(opened) => opened,
            Err(failure) => return Ok(Err(failure.clone())),
        };
        let same_authority = |live: &&Live| live.issued.directory == order.issued.directory;
        let wanted = Wanted {
            name: item.name,
            issued: &order.issued,
            account,
            replaces: item
                .live
                .as_ref()
                .filter(same_authority)
                .and_then(|live| live.certificate.id().cloned()),
            self_check: order.self_check,
        };
        let result = obtain(network, store, &wanted, report);
        self.replace_if_lost(&result);
        Ok(result)
    }

    /// The process may still be at work on a request that took too long, so the next request gets another.
    fn replace_if_lost<T>(&mut self, result: &Attempt<T>) {
        if result.as_ref().is_err_and(|failure| is_lost(failure)) {
            self.network = None;
        }
    }

    fn forget_account(&mut self) -> anyhow::Result<()> {
        self.network = None;
        self.store.remove_account(&self.order.issued.directory)
    }
}

fn is_lost(failure: &Failure) -> bool {
    matches!(failure.kind, FailureKind::Network | FailureKind::Other)
}

/// Ends the account at the authority, and removes it from this machine. Without an account, this does nothing.
///
/// # Errors
/// The authority refuses, or cannot be reached.
pub fn deactivate(layout: &Layout, store: &Store, directory: &str, roots: Option<String>) -> anyhow::Result<()> {
    store.prepare()?;
    let Some(account) = store.account(directory)? else {
        return Ok(());
    };
    let mut network = Network::start(layout)?;
    let result = open_existing(&mut network, &account, roots).and_then(|()| network.ask(&Request::Deactivate));
    match result {
        Ok(_) => {}
        // It was deactivated before, or the authority has forgotten it.
        Err(failure) if failure.kind == FailureKind::Account => {}
        Err(failure) => return Err(failure.into()),
    }
    store.remove_account(directory)
}

/// Removes the certificates of these names from this machine, and revokes them first if asked to.
///
/// # Errors
/// The authority refuses, or cannot be reached. Names before that one are gone.
pub fn forget(layout: &Layout, store: &Store, names: &[Name], revoke: bool, roots: Option<&str>) -> anyhow::Result<()> {
    store.prepare()?;
    for name in names {
        let name = name.to_string();
        if let Some(live) = store.live(&name)?.filter(|_| revoke) {
            revoke_one(layout, store, &live, roots).with_context(|| format!("Revoking the certificate of {name}"))?;
        }
        store.forget(&name)?;
    }
    Ok(())
}

fn revoke_one(layout: &Layout, store: &Store, live: &Live, roots: Option<&str>) -> anyhow::Result<()> {
    let directory = &live.issued.directory;
    let account = store
        .account(directory)?
        .with_context(|| format!("there is no account for {directory} on this machine"))?;
    let mut network = Network::start(layout)?;
    open_existing(&mut network, &account, roots.map(str::to_owned))?;
    let certificate = data_encoding::BASE64.encode(live.certificate.der());
    network.ask(&Request::Revoke { certificate })?;
    Ok(())
}

fn open_existing(network: &mut Network, account: &Account, roots: Option<String>) -> Attempt<()> {
    let opened = network.ask(&Request::Open(Open {
        directory: account.directory.clone(),
        roots,
        emails: account.emails.clone(),
        eab: None,
        account: Some(account.credentials.clone()),
        contacts_changed: false,
    }))?;
    match opened {
        Reply::Opened(_) => Ok(()),
        _ => Err(failure(
            FailureKind::Other,
            "links-acme got an unexpected reply from its network process.",
            "Please report this as a bug of links.",
        )),
    }
}
