//! `links-host up`: loads an application and serves it.

use std::collections::HashMap;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};

use crate::cli::Up;
use crate::config::manifest::{self, Application};
use crate::config::runtime::{self as config, Config, Flags};
use crate::guest::context::ComponentState;
use crate::outbound::{Address, Outbound};
use crate::output;
use crate::serve::address_space::MAX_INSTANCES;
use crate::serve::component;
use crate::serve::engine::{self, CodeCache, Prepared};
use crate::serve::instances::{Handler, Serving};
use crate::serve::listen::{Bound, Listener};
use crate::serve::respond::{App, Target};
use crate::serve::route::Router;
use crate::serve::server::{self, End, Signals};
use crate::serve::stop::Stop;
use crate::storage::database::Database;
use crate::storage::key_value::{Store, StoreFile};
use crate::storage::sqlite;
use crate::telemetry::Telemetry;
use crate::variables::{ComponentVariables, Template, Variables};

/// How long blocking tasks may take to end after the server has stopped.
const BLOCKING_TASK_TIMEOUT: Duration = Duration::from_secs(1);

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// The application cannot be loaded or its addresses cannot be bound. No request has been accepted by then.
pub fn up(up: &Up) -> Result<()> {
    let (application, app_dir) = manifest::load(&up.from)?;
    let config = config::load(&Flags {
        file: up.runtime_config_file.as_deref(),
        state_dir: up.state_dir.as_deref(),
        log_dir: up.log_dir.as_deref(),
        app_dir: &app_dir,
    })?;
    check_grants(&application, &config)?;
    if !config.logs_turned_off && !up.quiet {
        tracing::info!("component output goes to standard output and standard error, not to log files");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let (end, telemetry) = runtime.block_on(async {
        let signals = Signals::new()?;
        let bound = up.listen.iter().map(Bound::new).collect::<Result<Vec<_>>>()?;
        let telemetry = Telemetry::from_environment()?;
        let app = Arc::new(app(up, application, config, &app_dir, &telemetry).await?);
        let listeners = bound.into_iter().map(Bound::listen).collect::<Result<Vec<_>>>()?;
        let urls = listeners
            .iter()
            .map(Listener::url)
            .collect::<std::io::Result<Vec<_>>>()?;
        announce(&app, &urls);
        let end = server::serve(listeners, app, signals, &up.timeouts()).await;
        Ok::<_, anyhow::Error>((end, telemetry))
    })?;
    telemetry.flush();
    output::flush();
    match end {
        End::Complete => runtime.shutdown_timeout(BLOCKING_TASK_TIMEOUT),
        End::CutOff => runtime.shutdown_background(),
    }
    Ok(())
}

/// Checks that every database and key-value store that a component uses is defined.
fn check_grants(application: &Application, config: &Config) -> Result<()> {
    for (id, component) in &application.components {
        for name in &component.sqlite_databases {
            if !config.sqlite_databases.contains_key(name) {
                bail!(
                    "component {id} uses the SQLite database {name:?}, which is not defined: check the spelling, or add \
                     [sqlite_database.{name}] to the runtime configuration"
                );
            }
        }
        for label in &component.key_value_stores {
            if !config.key_value_stores.contains_key(label) {
                bail!(
                    "component {id} uses the key-value store {label:?}, which is not defined: check the spelling, or add \
                     [key_value_store.{label}] to the runtime configuration"
                );
            }
        }
    }
    Ok(())
}

/// Opens the databases in use and compiles the components.
async fn app(up: &Up, application: Application, config: Config, app_dir: &Path, telemetry: &Telemetry) -> Result<App> {
    let Application {
        name,
        variables,
        routes,
        components,
    } = application;
    tracing::info!("application {name:?}");
    let variables = Arc::new(Variables::new(variables, config.providers)?);
    let mut databases = HashMap::new();
    for (label, database) in config.sqlite_databases {
        let used = components
            .values()
            .any(|component| component.sqlite_databases.contains(&label));
        let (database, shown) = match database {
            config::Database::File {
                place,
                allow_attach_file,
            } => {
                let shown = place.to_string();
                let database = sqlite::Database::new(place, allow_attach_file);
                if used {
                    database
                        .prepare()
                        .with_context(|| format!("The SQLite database {label:?} cannot be used"))?;
                }
                (Database::File(database), shown)
            }
            // Servers are not checked at startup: one that is down may come back, and a restart would not help.
            config::Database::Server(server) => (Database::Server(server.clone()), server.to_string()),
        };
        if used {
            tracing::info!("SQLite database {label:?}: {shown}");
        }
        databases.insert(label, database);
    }
    let mut stores = HashMap::new();
    for (label, store) in config.key_value_stores {
        let used = components
            .values()
            .any(|component| component.key_value_stores.contains(&label));
        let (store, shown) = match store {
            config::Store::File(place) => {
                let shown = place.to_string();
                let store = StoreFile::new(label.clone(), place);
                if used {
                    store
                        .prepare()
                        .with_context(|| format!("The key-value store {label:?} cannot be used"))?;
                }
                (Store::File(store), shown)
            }
            config::Store::Redis(server) => (Store::Redis(server.clone()), server.to_string()),
        };
        if used {
            tracing::info!("key-value store {label:?}: {shown}");
        }
        stores.insert(label, store);
    }
    let (databases, stores) = (Arc::new(databases), Arc::new(stores));

    let cache = match &up.cache {
        _ if up.disable_cache => CodeCache::Off,
        Some(file) => CodeCache::Configured(file.clone()),
        None => CodeCache::Default,
    };
    let Prepared { engine, max_instances } = engine::prepare(&cache, !up.disable_pooling)?;
    if max_instances < MAX_INSTANCES {
        tracing::warn!(
            "at most {max_instances} instances of components exist at once instead of {MAX_INSTANCES}, because this process \
             has little address space (see LimitAS= of the unit; some kernels have little for every process)"
        );
    }
    let linker = engine::linker(&engine)?;
    let tracer = telemetry.tracer();
    let reuse = up.reuse();
    let stop = Stop::default();
    let mut handlers = HashMap::new();
    for (id, component) in components {
        let source = app_dir.join(&component.source);
        let allowed = allowed(&component.allowed_outbound_hosts, &variables).await;
        let allowed = allowed.with_context(|| format!("component {id}: allowed_outbound_hosts"))?;
        let state = ComponentState {
            id: id.clone(),
            variables: ComponentVariables {
                component: id.clone(),
                templates: component.variables,
                application: variables.clone(),
            },
            environment: component
                .environment
                .into_iter()
                .chain(up.env.iter().cloned())
                .collect(),
            granted_databases: component.sqlite_databases.into_iter().collect(),
            granted_stores: component.key_value_stores.into_iter().collect(),
            outbound: Arc::new(Outbound::new(allowed)),
            databases: databases.clone(),
            stores: stores.clone(),
            quiet: up.quiet,
            max_memory: config.max_instance_memory,
            instances: telemetry.instances(&id),
            logs: telemetry.logs(&id),
        };
        let service = component::load(&linker, &id, &source, up.precompiled.as_deref())
            .with_context(|| format!("component {id}"))?;
        let serving = Serving {
            engine: engine.clone(),
            service,
            component: Arc::new(state),
            reuse,
            stop: stop.clone(),
        };
        handlers.insert(id, Handler::new(serving));
    }
    let mut targets = Vec::new();
    for (route, id) in routes {
        let Some(handler) = handlers.get(&id) else {
            bail!("there is no [component.{id}]")
        };
        let requests = telemetry.requests(&name, &id);
        let target = Target::new(id, handler.clone(), &route, requests)?;
        targets.push((route, target));
    }
    let router = Router::new(targets)?;
    Ok(App::new(router, max_instances, up.client_timeout, stop, tracer))
}

/// The addresses that a component may call. Their variables are resolved once, so the list does not change while serving.
async fn allowed(templates: &[Template], variables: &Variables) -> Result<Vec<Address>> {
    let mut allowed = Vec::with_capacity(templates.len());
    for template in templates {
        let text = variables.fill_in(template).await.map_err(|error| anyhow!("{error}"))?;
        allowed.push(Address::parse(&text)?);
    }
    Ok(allowed)
}

/// Prints the URLs of the application in Spin's format.
fn announce(app: &App, urls: &[String]) {
    let mut text: String = urls.iter().map(|url| format!("Serving {url}\n")).collect();
    text.push_str("Available Routes:\n");
    for url in urls {
        for (route, id) in app.routes() {
            let wildcard = if route.is_wildcard() { " (wildcard)" } else { "" };
            text.push_str(&format!("  {id}: {url}{}{wildcard}\n", route.prefix()));
        }
    }
    // A closed standard output does not prevent serving.
    if let Err(error) = std::io::stdout().write_all(text.as_bytes()) {
        tracing::debug!("standard output: {error}");
    }
}
