//! Decides which files to change for the site, from what was found and what is wanted. It does no I/O.

use std::path::{Path, PathBuf};

use anyhow::{bail, ensure};

use super::conf::{Conf, Overrides};
use super::neighbours::{NAMES_BUCKET, NamesBucket, Neighbours, OBSTACLE_HELP, obstacle};
use super::record::{Change, State, digest};
use super::released;
use crate::nginx::{self, Terms};
use links_base::layout::Layout;
use links_config::links::Config;

/// The paths of the files that a change of the site may touch, and those that the site names.
#[derive(Clone, Debug)]
pub struct Files {
    pub available: PathBuf,
    pub enabled: PathBuf,
    pub conf_d: PathBuf,
    /// Debian's default site.
    pub default_available: PathBuf,
    pub default_enabled: PathBuf,
    /// Keeps the link target of the default site while links has disabled that site.
    pub parked: PathBuf,
    /// Keeps a site that somebody had edited when links replaced it.
    pub replaced: PathBuf,
    /// The paths that the site names.
    pub named: nginx::Paths,
}

impl Files {
    pub fn new(layout: &Layout) -> Self {
        Self {
            available: layout.nginx_site_available(),
            enabled: layout.nginx_site_enabled(),
            conf_d: layout.nginx_conf_d_site(),
            default_available: layout.nginx_default_site_available(),
            default_enabled: layout.nginx_default_site_enabled(),
            parked: layout.parked_default_site(),
            replaced: layout.replaced_site(),
            named: nginx::Paths::new(layout),
        }
    }
}

/// The current state of the files that matter to the site.
#[derive(Clone, Debug)]
pub struct Found {
    /// Whether the directory sites-available exists.
    pub has_sites: bool,
    /// The site in sites-available.
    pub available: State,
    /// The site's entry in sites-enabled.
    pub enabled: State,
    /// The site in conf.d.
    pub conf_d: State,
    /// The entry of Debian's default site in sites-enabled.
    pub default: State,
    /// Whether the default site has the contents that its package installed.
    pub default_is_pristine: bool,
    /// Whether the default site is in sites-available.
    pub default_is_available: bool,
    /// The file that keeps the link target of the default site while links has disabled that site.
    pub parked: State,
    /// The file that keeps a site that somebody had edited when links replaced it.
    pub replaced: State,
    /// The SHA-256 of the site that links wrote last.
    pub written: Option<String>,
}

/// A site that nginx reads, or will read after the changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// The path at which nginx reads it.
    pub path: PathBuf,
    pub text: String,
    /// Whether somebody else has edited it.
    pub edited: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The changes, in an order in which nginx accepts the configuration after each: sites that make way come first.
    pub changes: Vec<Change>,
    /// The site after the changes. `None` if it is removed.
    pub site: Option<Site>,
    pub notices: Vec<String>,
}

impl Plan {
    fn add(&mut self, path: PathBuf, before: &State, after: State) {
        if *before != after {
            self.changes.push(Change {
                path,
                before: before.clone(),
                after,
            });
        }
    }

    /// Disables Debian's default site if links may.
    fn make_way(&mut self, found: &Found, files: &Files, config: &Config) {
        if let State::Link(target) = &found.default
            && makes_way(found, config)
        {
            let target = State::File(target.to_string_lossy().into_owned());
            self.add(files.parked.clone(), &found.parked, target);
            self.add(files.default_enabled.clone(), &found.default, State::Absent);
        }
    }

    /// The files that nginx would read after the changes instead of those it reads now. `candidate` has the site's new text.
    pub fn overrides(&self, candidate: &Path) -> Overrides {
        let mut overrides: Overrides = self
            .changes
            .iter()
            .map(|change| match &change.after {
                State::Absent => (change.path.clone(), None),
                // The site is the only file among these that nginx reads, and it is overridden below.
                State::File(_) => (change.path.clone(), Some(change.path.clone())),
                State::Link(target) => {
                    let directory = change.path.parent().unwrap_or(Path::new("/"));
                    (change.path.clone(), Some(directory.join(target)))
                }
            })
            .collect();
        if let Some(site) = &self.site {
            overrides.insert(site.path.clone(), Some(candidate.to_owned()));
        }
        overrides
    }
}

/// Whether links may disable Debian's default site: nobody has changed it, and links.toml does not forbid it.
fn makes_way(found: &Found, config: &Config) -> bool {
    config.nginx.replace_default_site && found.default_is_pristine && matches!(found.default, State::Link(_))
}

/// The directory for the site.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Debian's: sites-available, with a link in sites-enabled that enables the site.
    Sites,
    /// nginx's own: conf.d.
    ConfD,
}

impl Place {
    /// Where nginx reads the site.
    pub fn read_at(self, files: &Files) -> &Path {
        match self {
            Self::Sites => &files.enabled,
            Self::ConfD => &files.conf_d,
        }
    }
}

/// The directory for the site that nginx reads.
///
/// # Errors
/// nginx reads none of the usual directories.
pub fn place(found: &Found, conf: &Conf, files: &Files) -> anyhow::Result<Place> {
    if found.has_sites && conf.includes(&files.enabled) {
        return Ok(Place::Sites);
    }
    ensure!(
        conf.includes(&files.conf_d),
        "nginx would not read the links site: {} includes neither {} nor {}. Add `include {};` to its http block",
        conf.main().display(),
        files.enabled.display(),
        files.conf_d.display(),
        files.conf_d.with_file_name("*.conf").display()
    );
    Ok(Place::ConfD)
}

/// Whether any version of links wrote exactly this text.
fn is_ours(text: &str, found: &Found, files: &Files) -> bool {
    found.written.as_ref() == Some(&digest(text))
        || nginx::is_authentic(text)
        || released::is_unedited(text, &files.named)
}

/// The text of a site that links did not write, empty for a symbolic link. `None` if the path is absent or links wrote it.
fn foreign<'a>(state: &'a State, found: &Found, files: &Files) -> Option<&'a str> {
    match state {
        State::Absent => None,
        State::File(text) => (!is_ours(text, found, files)).then_some(text),
        State::Link(_) => Some(""),
    }
}

/// A file that somebody else has put in the place of the site's link in sites-enabled, as `sed -i` does. nginx reads it instead
/// of the site in sites-available.
fn is_own_entry(found: &Found, files: &Files) -> bool {
    matches!(found.enabled, State::File(_)) && foreign(&found.enabled, found, files).is_some()
}

fn is_link_to_available(state: &State, files: &Files) -> bool {
    let State::Link(target) = state else { return false };
    // An administrator may have written a relative link.
    *target == files.available || target == Path::new("../sites-available/links")
}

/// The current site in that place, whether or not it is enabled.
fn site_in(place: Place, found: &Found, files: &Files) -> Option<Site> {
    let site = |path, state: &State, edited| {
        let text = match state {
            State::Absent => return None,
            State::File(text) => text.clone(),
            State::Link(_) => String::new(),
        };
        Some(Site { path, text, edited })
    };
    let is_edited = |state| foreign(state, found, files).is_some();
    match place {
        Place::ConfD => site(files.conf_d.clone(), &found.conf_d, is_edited(&found.conf_d)),
        Place::Sites => match &found.enabled {
            State::Absent => site(files.enabled.clone(), &found.available, is_edited(&found.available)),
            link if is_link_to_available(link, files) => {
                site(files.enabled.clone(), &found.available, is_edited(&found.available))
            }
            other => site(files.enabled.clone(), other, true),
        },
    }
}

/// The site that nginx would read at its next start, in either place.
pub fn in_force(found: &Found, files: &Files) -> Option<Site> {
    match &found.enabled {
        State::Absent => site_in(Place::ConfD, found, files),
        _ => site_in(Place::Sites, found, files),
    }
}

/// The other sites of nginx after links has written its own in this place.
pub fn neighbours<'a>(
    place: Place,
    found: &Found,
    conf: &'a Conf,
    files: &'a Files,
    config: &'a Config,
) -> Neighbours<'a> {
    let mut except = vec![files.enabled.as_path(), files.conf_d.as_path()];
    if place == Place::Sites && makes_way(found, config) {
        except.push(files.default_enabled.as_path());
    }
    Neighbours::new(conf, config, place.read_at(files), except)
}

/// Checks that nginx would pass requests to the site.
///
/// # Errors
/// The site has no host names, and another one answers for those that no site has.
fn ensure_requests(neighbours: &Neighbours, config: &Config) -> anyhow::Result<()> {
    if let Some(other) = neighbours.default_server()
        && nginx::server_names(config) == ["_"]
    {
        bail!(
            "no request would reach links: {} answers for every host name that no other site has. Set public_url, or \
             server_name in [nginx], in links.toml, or disable that site",
            other.place
        );
    }
    Ok(())
}

/// What a sample of the site has to consider, wherever the administrator puts it. If one is in use already, it is no neighbour
/// of the next one.
///
/// # Errors
/// No request would reach the site.
pub fn around_sample(found: &Found, conf: &Conf, files: &Files, config: &Config) -> anyhow::Result<Terms> {
    let formats = conf.of_http("log_format", &[]).into_iter();
    let mut ours = formats.filter(|format| format.arguments.first().is_some_and(|name| name == nginx::LOG_FORMAT));
    let in_use = ours.next().map(|format| format.place.file);
    let usual = place(found, conf, files).map_or(&*files.conf_d, |place| place.read_at(files));
    let read_at = in_use.as_deref().unwrap_or(usual);
    let except = vec![read_at, files.enabled.as_path(), files.conf_d.as_path()];
    let neighbours = Neighbours::new(conf, config, read_at, except);
    ensure_requests(&neighbours, config)?;
    Ok(neighbours.terms())
}

/// Plans the installation of the site. `render` gives its text, depending on the other sites. With `force`, a site that
/// somebody else has edited is replaced as well.
///
/// # Errors
/// nginx reads none of the usual directories, no request would reach the site or one of its names, or nginx has no room for its
/// names or sockets.
pub fn install(
    found: &Found,
    conf: &Conf,
    files: &Files,
    config: &Config,
    force: bool,
    render: impl FnOnce(Terms) -> anyhow::Result<String>,
) -> anyhow::Result<Plan> {
    let place = place(found, conf, files)?;
    let mut plan = Plan::default();
    let read_at = place.read_at(files).to_owned();
    let (file, was) = match place {
        Place::Sites => (files.available.clone(), &found.available),
        Place::ConfD => (files.conf_d.clone(), &found.conf_d),
    };
    let (edited_file, edited) = match place {
        Place::Sites if is_own_entry(found, files) => (&files.enabled, &found.enabled),
        _ => (&file, was),
    };
    let link = State::Link(files.available.clone());

    if let Some(site) = site_in(place, found, files).filter(|site| site.edited && !force) {
        plan.notices.push(format!(
            "{} was edited by somebody else, so it stays as it is, and changes in links.toml do not reach it. \
             `linksctl rollout --force` replaces it; put your own directives into {}/*.conf",
            edited_file.display(),
            files.named.include_dir.display()
        ));
        if place == Place::Sites && found.enabled == State::Absent {
            plan.make_way(found, files, config);
            plan.add(read_at, &found.enabled, link);
        }
        plan.site = Some(site);
        return Ok(plan);
    }

    // Remove a site of ours that is in the other place, where nginx either does not read it or would read a second one.
    match place {
        Place::Sites => {
            plan.make_way(found, files, config);
            if foreign(&found.conf_d, found, files).is_none() {
                plan.add(files.conf_d.clone(), &found.conf_d, State::Absent);
            }
        }
        Place::ConfD => {
            if foreign(&found.available, found, files).is_none() && !is_own_entry(found, files) {
                plan.add(files.enabled.clone(), &found.enabled, State::Absent);
                plan.add(files.available.clone(), &found.available, State::Absent);
            }
        }
    }
    let neighbours = neighbours(place, found, conf, files, config);
    ensure_requests(&neighbours, config)?;
    if let Some(same) = neighbours.same_names().into_iter().find(|same| same.hides_us) {
        bail!(
            "{}: this site has the host name {} on {} too, and nginx reads it first, so links would get no request for \
             it. Remove the name there, or set server_name in [nginx] of links.toml",
            same.name.place,
            same.name.name,
            same.address
        );
    }
    if let Some(listen) = neighbours.obstacles().first() {
        bail!("{}: {}: {OBSTACLE_HELP}", listen.place, obstacle(listen));
    }
    if let NamesBucket::TooSmall { set, needed } = neighbours.names_bucket() {
        bail!(
            "nginx has no room for the host names of links: set {NAMES_BUCKET} to {needed} in {}",
            set.place
        );
    }
    let text = render(neighbours.terms())?;
    if let State::File(old) = edited
        && foreign(edited, found, files).is_some()
    {
        let kept = files.replaced.clone();
        plan.notices.push(format!(
            "the former {} is now {}",
            edited_file.display(),
            kept.display()
        ));
        plan.add(kept, &found.replaced, State::File(old.clone()));
    }
    plan.add(file, was, State::File(text.clone()));
    if place == Place::Sites && !is_link_to_available(&found.enabled, files) {
        plan.add(read_at.clone(), &found.enabled, link);
    }
    plan.site = Some(Site {
        path: read_at,
        text,
        edited: false,
    });
    Ok(plan)
}

/// Plans to take the IPv6 addresses of every host out of our site. `None` if that changes nothing, or somebody else has edited
/// the site.
pub fn without_ipv6(found: &Found, files: &Files) -> Option<Plan> {
    rewritten(found, files, nginx::without_ipv6)
}

/// Plans to take `default_server` out of our site. `None` if that changes nothing, or somebody else has edited the site.
pub fn without_default_server(found: &Found, files: &Files) -> Option<Plan> {
    rewritten(found, files, nginx::without_default_server)
}

fn rewritten(found: &Found, files: &Files, rewrite: impl FnOnce(&str) -> Option<String>) -> Option<Plan> {
    let site = in_force(found, files).filter(|site| !site.edited)?;
    let text = rewrite(&site.text)?;
    let (file, before) = match found.enabled {
        State::Absent => (&files.conf_d, &found.conf_d),
        _ => (&files.available, &found.available),
    };
    let mut plan = Plan::default();
    plan.add(file.clone(), before, State::File(text.clone()));
    plan.site = Some(Site { text, ..site });
    Some(plan)
}

/// Plans the removal of the site. Debian's default site is enabled again if links had disabled it.
pub fn remove(found: &Found, files: &Files) -> Plan {
    let mut plan = Plan::default();
    let moved = match is_own_entry(found, files) {
        true => Some((&files.enabled, &found.enabled)),
        false => foreign(&found.conf_d, found, files).map(|_| (&files.conf_d, &found.conf_d)),
    };
    if let Some((file, state)) = moved {
        let kept = files.replaced.clone();
        plan.notices.push(format!(
            "{} was edited by somebody else, so it was moved to {}",
            file.display(),
            kept.display()
        ));
        plan.add(kept, &found.replaced, state.clone());
    }
    plan.add(files.enabled.clone(), &found.enabled, State::Absent);
    match foreign(&found.available, found, files) {
        None => plan.add(files.available.clone(), &found.available, State::Absent),
        // nginx does not read it there, and the next installation finds it.
        Some(_) => plan.notices.push(format!(
            "{} was edited by somebody else, so it is disabled but stays",
            files.available.display()
        )),
    }
    plan.add(files.conf_d.clone(), &found.conf_d, State::Absent);
    if let State::File(target) = &found.parked {
        // The administrator may have put something else there, or removed the default site for good.
        if found.default == State::Absent && found.default_is_available {
            let target = State::Link(target.into());
            plan.add(files.default_enabled.clone(), &found.default, target);
        }
        plan.add(files.parked.clone(), &found.parked, State::Absent);
    }
    plan
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use super::*;
    use links_config::links::Listen;

    const DEFAULT: &str = "server { listen 80 default_server; listen [::]:80 default_server; }";

    fn files() -> Files {
        Files::new(&Layout::new("/"))
    }

    fn file(text: &str) -> State {
        State::File(text.to_owned())
    }

    fn link(target: &str) -> State {
        State::Link(target.into())
    }

    /// Debian's nginx after its installation, without links.
    fn fresh() -> Found {
        Found {
            has_sites: true,
            available: State::Absent,
            enabled: State::Absent,
            conf_d: State::Absent,
            default: link("/etc/nginx/sites-available/default"),
            default_is_pristine: true,
            default_is_available: true,
            parked: State::Absent,
            replaced: State::Absent,
            written: None,
        }
    }

    /// After the first installation, which wrote `text`.
    fn installed(text: &str) -> Found {
        Found {
            available: file(text),
            enabled: link("/etc/nginx/sites-available/links"),
            default: State::Absent,
            parked: file("/etc/nginx/sites-available/default"),
            written: Some(digest(text)),
            ..fresh()
        }
    }

    fn edited() -> Found {
        Found {
            available: file("listen 443 ssl; # managed by Certbot"),
            ..installed("old")
        }
    }

    fn conf(includes: &str, others: &[(&str, &str)]) -> Conf {
        let main = [("/etc/nginx/nginx.conf", format!("http {{ {includes} }}"))];
        let others = others.iter().map(|(path, text)| (*path, (*text).to_owned()));
        let files = main.into_iter().chain(others);
        let dump: String = files
            .map(|(path, text)| format!("# configuration file {path}:\n{text}\n"))
            .collect();
        Conf::read(&dump).unwrap()
    }

    fn debian() -> Conf {
        let includes = "include /etc/nginx/conf.d/*.conf; include /etc/nginx/sites-enabled/*;";
        conf(includes, &[("/etc/nginx/sites-enabled/default", DEFAULT)])
    }

    fn nginx_org() -> Conf {
        conf(
            "include /etc/nginx/conf.d/*.conf;",
            &[(
                "/etc/nginx/conf.d/default.conf",
                "server { listen 80; server_name localhost; }",
            )],
        )
    }

    /// Renders the site as the word `default`, or `other` if another server answers for unknown names, with the other terms.
    fn to_default(terms: Terms) -> anyhow::Result<String> {
        let default = if terms.default_server { "default" } else { "other" };
        let shared = terms.shared.iter().map(|address| format!(" and {address}"));
        let bucket = terms.names_bucket.map(|size| format!(" in {size}"));
        Ok(std::iter::once(default.to_owned())
            .chain(shared)
            .chain(bucket)
            .collect())
    }

    fn plan(found: &Found, conf: &Conf, force: bool) -> Plan {
        install(found, conf, &files(), &Config::default(), force, to_default).unwrap()
    }

    /// The plan's changes in order, one line each.
    fn list(plan: &Plan) -> Vec<String> {
        let changes = plan.changes.iter().map(|change| {
            let path = change.path.display().to_string();
            match &change.after {
                State::Absent => format!("- {path}"),
                State::File(text) => format!("{path} = {text}"),
                State::Link(target) => format!("{path} -> {}", target.display()),
            }
        });
        changes.collect()
    }

    const PARKED: &str = "/var/lib/links/nginx-default-site = /etc/nginx/sites-available/default";

    #[test]
    fn the_first_installation_replaces_debian_s_default_site() {
        let plan = plan(&fresh(), &debian(), false);
        assert_eq!(
            list(&plan),
            [
                PARKED,
                "- /etc/nginx/sites-enabled/default",
                "/etc/nginx/sites-available/links = default",
                "/etc/nginx/sites-enabled/links -> /etc/nginx/sites-available/links",
            ]
        );
        let site = plan.site.clone().unwrap();
        assert_eq!(
            (site.path.as_path(), site.edited),
            (Path::new("/etc/nginx/sites-enabled/links"), false)
        );
        let candidate = debian().with(&plan.overrides(Path::new("/c")));
        assert!(
            candidate.contains("\"/c\"") && !candidate.contains("default"),
            "{candidate}"
        );
    }

    #[test]
    fn the_same_text_changes_nothing_and_a_new_text_only_the_file() {
        assert_eq!(
            list(&plan(&installed("default"), &debian_without_default(), false)),
            Vec::<String>::new()
        );
        assert_eq!(
            list(&plan(&installed("old"), &debian_without_default(), false)),
            ["/etc/nginx/sites-available/links = default"]
        );
        let relative = Found {
            enabled: link("../sites-available/links"),
            ..installed("default")
        };
        assert_eq!(
            list(&plan(&relative, &debian_without_default(), false)),
            Vec::<String>::new()
        );
    }

    fn debian_without_default() -> Conf {
        conf(
            "include /etc/nginx/conf.d/*.conf; include /etc/nginx/sites-enabled/*;",
            &[],
        )
    }

    #[test]
    fn an_edited_site_stays_unless_forced() {
        let conf = debian_without_default();
        let kept = plan(&edited(), &conf, false);
        assert_eq!(list(&kept), Vec::<String>::new());
        assert!(kept.site.unwrap().edited);
        assert!(kept.notices[0].contains("edited by somebody else") && kept.notices[0].contains("--force"));

        let forced = plan(&edited(), &conf, true);
        assert_eq!(
            list(&forced),
            [
                "/var/lib/links/site-replaced.conf = listen 443 ssl; # managed by Certbot",
                "/etc/nginx/sites-available/links = default",
            ]
        );
        for other in [file("own"), link("/srv/own")] {
            let own = Found {
                enabled: other,
                ..installed("old")
            };
            assert_eq!(list(&plan(&own, &conf, false)), Vec::<String>::new());
        }
    }

    #[test]
    fn an_edited_file_in_the_place_of_the_link_is_kept_by_a_copy() {
        let own = Found {
            enabled: file("own"),
            replaced: file("earlier"),
            ..installed("old")
        };
        let conf = debian_without_default();
        let kept = plan(&own, &conf, false);
        let enabled = "/etc/nginx/sites-enabled/links";
        assert!(kept.notices[0].starts_with(&format!("{enabled} was edited")));
        let forced = plan(&own, &conf, true);
        let copy = "/var/lib/links/site-replaced.conf = own";
        assert_eq!(
            list(&forced),
            [
                copy,
                "/etc/nginx/sites-available/links = default",
                "/etc/nginx/sites-enabled/links -> /etc/nginx/sites-available/links",
            ]
        );
        assert!(forced.notices[0].starts_with(&format!("the former {enabled} is now")));
        // An undo brings the earlier copy back.
        assert_eq!(forced.changes[0].before, file("earlier"));
        let removed = remove(&own, &files());
        assert_eq!(
            list(&removed)[..3],
            [
                copy,
                "- /etc/nginx/sites-enabled/links",
                "- /etc/nginx/sites-available/links"
            ]
        );
        assert!(removed.notices[0].contains(enabled), "{:?}", removed.notices);
        assert_eq!(removed.changes[0].before, file("earlier"));
        // nginx no longer reads sites-enabled.
        let unread = list(&plan(&own, &nginx_org(), true));
        assert_eq!(unread, ["/etc/nginx/conf.d/links.conf = default"]);
        // A file with the text of links needs no copy.
        let copied = Found {
            enabled: file("old"),
            ..installed("old")
        };
        assert!(
            !list(&plan(&copied, &conf, true))
                .iter()
                .any(|line| line.contains("replaced"))
        );
    }

    #[test]
    fn an_edited_site_that_a_removal_disabled_is_enabled_again() {
        let found = Found {
            available: file("certbot's"),
            ..fresh()
        };
        assert_eq!(
            list(&plan(&found, &debian(), false)),
            [
                PARKED,
                "- /etc/nginx/sites-enabled/default",
                "/etc/nginx/sites-enabled/links -> /etc/nginx/sites-available/links",
            ]
        );
    }

    #[test]
    fn if_nginx_does_not_read_sites_enabled_the_site_goes_to_conf_d() {
        let found = Found {
            has_sites: false,
            default: State::Absent,
            ..fresh()
        };
        assert_eq!(
            list(&plan(&found, &nginx_org(), false)),
            ["/etc/nginx/conf.d/links.conf = default"]
        );
        // The directories exist, but nginx does not read them. A site of ours that stayed there could take effect by surprise.
        let moved = Found {
            has_sites: true,
            default: State::Absent,
            ..installed("old")
        };
        assert_eq!(
            list(&plan(&moved, &nginx_org(), false)),
            [
                "- /etc/nginx/sites-enabled/links",
                "- /etc/nginx/sites-available/links",
                "/etc/nginx/conf.d/links.conf = default",
            ]
        );
        let back = Found {
            conf_d: file("old"),
            ..fresh()
        };
        let back = Found {
            written: Some(digest("old")),
            ..back
        };
        assert!(list(&plan(&back, &debian(), false)).contains(&"- /etc/nginx/conf.d/links.conf".to_owned()));
    }

    #[test]
    fn if_nginx_reads_no_usual_directory_nothing_is_written() {
        let conf = conf("include /srv/own/*.conf;", &[]);
        let error = install(&fresh(), &conf, &files(), &Config::default(), false, to_default).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("include /etc/nginx/conf.d/*.conf;"), "{text}");
    }

    #[test]
    fn only_a_file_that_nginx_reads_can_be_the_default_server() {
        let found = installed("default");
        let default_server = "server { listen 80 default_server; }";
        let mut named = Config {
            public_url: Some("https://s.example.org".into()),
            ..Config::default()
        };
        let to = |conf: &Conf, config: &Config| {
            install(&found, conf, &files(), config, false, to_default).map(|plan| plan.site.unwrap().text)
        };
        // A backup beside the configuration is not part of it, and so not in the dump.
        assert_eq!(to(&debian_without_default(), &named).unwrap(), "default");
        let elsewhere = conf(
            "include /etc/nginx/conf.d/*.conf; include /etc/nginx/sites-enabled/*; server { listen 80 default_server; }",
            &[],
        );
        assert_eq!(to(&elsewhere, &named).unwrap(), "other");
        let error = to(&elsewhere, &Config::default()).unwrap_err().to_string();
        assert!(
            error.contains("/etc/nginx/nginx.conf:1 answers for every host name"),
            "{error}"
        );

        let other = conf(
            "include /etc/nginx/sites-enabled/*;",
            &[("/etc/nginx/sites-enabled/own", default_server)],
        );
        named.nginx.listen = vec![Listen::Port(8080)];
        assert_eq!(to(&other, &named).unwrap(), "default", "it is on another port");
    }

    #[test]
    fn a_default_site_that_somebody_changed_stays() {
        let changed = Found {
            default_is_pristine: false,
            ..fresh()
        };
        let error = install(&changed, &debian(), &files(), &Config::default(), false, to_default).unwrap_err();
        assert!(error.to_string().contains("sites-enabled/default:1 answers"), "{error}");
    }

    #[test]
    fn the_site_fits_in_with_its_neighbours() {
        let own = "server { listen 192.0.2.1:80 default_server; }";
        let mut conf = conf(
            "include /etc/nginx/sites-enabled/*;",
            &[("/etc/nginx/sites-enabled/own", own)],
        );
        let mut config = Config {
            public_url: Some("https://s.example.org".into()),
            ..Config::default()
        };
        let found = installed("default");
        let to = |conf: &Conf, config: &Config| {
            install(&found, conf, &files(), config, false, to_default).map(|plan| plan.site.unwrap().text)
        };
        assert_eq!(to(&conf, &config).unwrap(), "default and 192.0.2.1:80");
        config.nginx.server_name = vec!["x".repeat(60)];
        assert_eq!(to(&conf, &config).unwrap(), "default and 192.0.2.1:80 in 128");
        conf = Conf::read(&format!(
            "# configuration file /etc/nginx/nginx.conf:\nhttp {{\n{NAMES_BUCKET} 64;\ninclude /etc/nginx/sites-enabled/*; }}\n"
        ))
        .unwrap();
        let error = to(&conf, &config).unwrap_err().to_string();
        assert!(error.contains("to 128 in /etc/nginx/nginx.conf:2"), "{error}");
    }

    #[test]
    fn a_name_that_another_site_takes_is_refused() {
        let mut config = Config::default();
        config.nginx.server_name = vec!["a.example".into(), "b.example".into()];
        let to = |path: &str| {
            let site = (path, "server {\n listen 80;\n server_name b.example; }");
            let conf = conf("include /etc/nginx/sites-enabled/*;", &[site]);
            install(&installed("old"), &conf, &files(), &config, false, to_default)
        };
        // nginx reads the files in the order of their names.
        let error = to("/etc/nginx/sites-enabled/blog").unwrap_err().to_string();
        assert!(
            error.starts_with("/etc/nginx/sites-enabled/blog:3: this site has the host name b.example on 0.0.0.0:80")
                && error.contains("Remove the name there"),
            "{error}"
        );
        assert!(to("/etc/nginx/sites-enabled/own").is_ok());
    }

    #[test]
    fn a_socket_that_nginx_cannot_have_beside_another_is_refused() {
        let includes = "include /etc/nginx/sites-enabled/*; server { listen [::]:80 ipv6only=off; }";
        let error = install(
            &fresh(),
            &conf(includes, &[]),
            &files(),
            &Config::default(),
            false,
            to_default,
        );
        let error = error.unwrap_err().to_string();
        assert!(
            error.starts_with("/etc/nginx/nginx.conf:1: the socket of this server on [::]:80"),
            "{error}"
        );
    }

    #[test]
    fn a_sample_that_is_in_use_is_no_neighbour_of_the_next_one() {
        let sample = "log_format links_l1 x; server { listen 80 default_server; }";
        let is_default = |site: &str, config: &Config| {
            let includes = "include /etc/nginx/conf.d/*.conf;";
            let conf = conf(includes, &[("/etc/nginx/conf.d/own.conf", site)]);
            around_sample(&fresh(), &conf, &files(), config).map(|terms| terms.default_server)
        };
        let named = Config {
            public_url: Some("https://s.example.org".into()),
            ..Config::default()
        };
        assert!(is_default(sample, &Config::default()).unwrap());
        assert!(!is_default("server { listen 80 default_server; }", &named).unwrap());
    }

    #[test]
    fn a_sample_that_gets_no_request_is_refused() {
        let sample = |conf: &Conf, found: &Found| around_sample(found, conf, &files(), &Config::default());
        let error = sample(&debian(), &fresh()).unwrap_err().to_string();
        assert!(
            error.contains("sites-enabled/default:1 answers") && error.ends_with("or disable that site"),
            "{error}"
        );
        // While the site of links is enabled, Debian's default site is not.
        let includes = "include /etc/nginx/sites-enabled/*;";
        let ours = "log_format links_l1 x; server { listen 80 default_server; }";
        let with_ours = conf(includes, &[("/etc/nginx/sites-enabled/links", ours)]);
        assert!(sample(&with_ours, &installed(ours)).unwrap().default_server);
    }

    #[test]
    fn ipv6_and_default_server_can_be_taken_out_of_the_site() {
        let config = Config::default();
        let site = |ipv6| {
            let facts = nginx::HostFacts {
                ipv6,
                ..nginx::HostFacts::alone(nginx::CacheSize::MODEST, vec![])
            };
            nginx::site(
                &config,
                &files().named,
                &facts,
                &nginx::Peers::new(),
                &nginx::Https::default(),
            )
            .unwrap()
        };
        let (with, without) = (site(true), site(false));
        let plan = without_ipv6(&installed(&with), &files()).unwrap();
        assert_eq!(list(&plan), [format!("/etc/nginx/sites-available/links = {without}")]);
        let conf_d = Found {
            conf_d: file(&with),
            ..fresh()
        };
        let plan = without_ipv6(&conf_d, &files()).unwrap();
        assert_eq!(list(&plan), [format!("/etc/nginx/conf.d/links.conf = {without}")]);
        assert_eq!(without_ipv6(&installed(&without), &files()), None);
        let edited = Found {
            available: file(&format!("{with}# edited")),
            ..installed(&with)
        };
        assert_eq!(without_ipv6(&edited, &files()), None);
        assert_eq!(without_ipv6(&fresh(), &files()), None);

        // The same for `default_server`, which nginx accepts once for an address.
        let config = Config::parse("public_url = \"http://s.example.org\"", "links.toml").unwrap();
        let site = |default_server| {
            let mut facts = nginx::HostFacts::alone(nginx::CacheSize::MODEST, vec![]);
            facts.terms.default_server = default_server;
            let named = &files().named;
            nginx::site(&config, named, &facts, &nginx::Peers::new(), &nginx::Https::default()).unwrap()
        };
        let plan = without_default_server(&installed(&site(true)), &files()).unwrap();
        assert_eq!(
            list(&plan),
            [format!("/etc/nginx/sites-available/links = {}", site(false))]
        );
        assert_eq!(without_default_server(&installed(&site(false)), &files()), None);
    }

    #[test]
    fn a_removal_restores_debian_s_default_site() {
        assert_eq!(
            list(&remove(&installed("default"), &files())),
            [
                "- /etc/nginx/sites-enabled/links",
                "- /etc/nginx/sites-available/links",
                "/etc/nginx/sites-enabled/default -> /etc/nginx/sites-available/default",
                "- /var/lib/links/nginx-default-site",
            ]
        );
        let nothing = remove(&fresh(), &files());
        assert_eq!(list(&nothing), Vec::<String>::new());
    }

    #[test]
    fn a_removal_keeps_what_somebody_else_has_written() {
        let plan = remove(&edited(), &files());
        assert_eq!(list(&plan)[0], "- /etc/nginx/sites-enabled/links");
        assert!(!list(&plan).contains(&"- /etc/nginx/sites-available/links".to_owned()));
        assert!(plan.notices[0].contains("stays"), "{:?}", plan.notices);
        let conf_d = Found {
            conf_d: file("certbot's"),
            ..fresh()
        };
        assert_eq!(
            list(&remove(&conf_d, &files())),
            [
                "/var/lib/links/site-replaced.conf = certbot's",
                "- /etc/nginx/conf.d/links.conf"
            ]
        );
        let own_default = Found {
            default: file("own"),
            ..installed("default")
        };
        assert!(
            !list(&remove(&own_default, &files()))
                .iter()
                .any(|line| line.contains("enabled/default"))
        );
    }
}
