//! The endpoints of the instances that nginx's site lists.

use std::collections::BTreeSet;
use std::path::Path;

use links_base::endpoint::Endpoint;
use links_base::layout;
use links_config::links::Config;
use links_release::Release;

/// Which endpoints of each instance a site lists.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stage {
    /// Sockets and ports, so that instances can move from one to the other without a failed request.
    Transition,
    /// Only the endpoints on which the instances listen, because any program can take a port that no instance holds.
    #[default]
    Final,
}

/// The endpoint of an instance that runs this release with this configuration. `sockets` is the directory of the sockets.
pub fn of(release: &Release, config: &Config, sockets: &Path, instance: u16) -> Endpoint {
    match release.can_listen_on_socket(&sockets.join(layout::socket_name(instance))) {
        true => Endpoint::socket(sockets, instance),
        false => Endpoint::tcp(config.base_port, instance),
    }
}

/// The endpoints that the site lists for one instance. `runs` is its current endpoint, `next` the one from its next start on.
pub fn listed(
    sockets: &Path,
    config: &Config,
    stage: Stage,
    instance: u16,
    runs: Option<Endpoint>,
    next: Option<Endpoint>,
) -> BTreeSet<Endpoint> {
    let tcp = Endpoint::tcp(config.base_port, instance);
    let planned = match stage {
        Stage::Transition => vec![Endpoint::socket(sockets, instance), tcp],
        Stage::Final => vec![next.unwrap_or(tcp)],
    };
    runs.into_iter().chain(planned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transition_lists_both_endpoints_and_the_final_site_only_those_in_use() {
        let (sockets, config) = (Path::new("/run/links/sockets"), Config::default());
        let (socket, tcp) = (Endpoint::socket(sockets, 1), Endpoint::tcp(config.base_port, 1));
        let old_port = Endpoint::tcp(8000, 1);
        let list = |stage, runs: Option<&Endpoint>, next: Option<&Endpoint>| -> Vec<Endpoint> {
            let listed = listed(sockets, &config, stage, 1, runs.cloned(), next.cloned());
            listed.into_iter().collect()
        };
        let both = [socket.clone(), tcp.clone()];
        assert_eq!(list(Stage::Transition, Some(&tcp), Some(&tcp)), both);
        assert_eq!(list(Stage::Transition, Some(&socket), Some(&tcp)), both);
        assert_eq!(
            list(Stage::Transition, Some(&old_port), Some(&tcp)),
            [socket.clone(), tcp.clone(), old_port]
        );
        assert_eq!(
            list(Stage::Final, Some(&socket), Some(&socket)),
            std::slice::from_ref(&socket)
        );
        assert_eq!(list(Stage::Final, None, Some(&socket)), std::slice::from_ref(&socket));
        assert_eq!(list(Stage::Final, None, None), std::slice::from_ref(&tcp));
        // An instance that may not be restarted keeps its endpoint.
        assert_eq!(list(Stage::Final, Some(&tcp), Some(&socket)), both);
    }
}
