//! Finds out which certificate nginx really serves for a name, by TLS handshakes. links-acme makes them, because linksctl
//! contains no TLS.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, ensure};

use crate::certificates::{Certificate, events};
use links_base::{exec, programs};
use links_config::acme::{Event, ProbeRequest, Probed};

/// How long all handshakes may take besides the requests, which links-acme makes at the same time.
const OVERHEAD: Duration = Duration::from_secs(5);

/// One certificate on one address.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// The address on which nginx is to serve the certificate.
    pub listen: SocketAddr,
    /// An address that leads there.
    pub to: SocketAddr,
    /// Whether nginx expects the PROXY protocol there.
    pub is_proxied: bool,
    pub certificate: &'a Certificate,
}

/// What is requested after the handshake.
#[derive(Clone, Copy, Debug)]
pub enum Request<'a> {
    None,
    /// The path, which has to be answered with 200.
    Health(&'a str),
    /// The path, and the text that it has to be answered with.
    Identity(&'a str, &'a str),
}

impl<'a> Request<'a> {
    fn path(self) -> Option<&'a str> {
        match self {
            Self::None => None,
            Self::Health(path) | Self::Identity(path, _) => Some(path),
        }
    }
}

/// Asks all questions at the same time, each for at most `timeout`. Returns what is wrong with each answer.
///
/// # Errors
/// links-acme does not run.
pub fn ask(questions: &[Question], request: Request, timeout: Duration) -> anyhow::Result<Vec<Result<(), String>>> {
    let requests: Vec<_> = questions
        .iter()
        .map(|question| probe(question, request, timeout))
        .collect();
    let program = programs::path(programs::ACME)?;
    let timeout = timeout + OVERHEAD;
    let input = serde_json::to_vec(&requests)?;
    let finished = exec::feed_within(&program.to_string_lossy(), ["probe"], timeout, |stdin| {
        stdin.write_all(&input)
    })?
    .with_context(|| format!("the TLS handshakes took longer than {timeout:?}"))?;
    ensure!(finished.success, "{}", finished.stderr.trim_end());
    let probed = events(&finished.stdout)?.into_iter().filter_map(|event| match event {
        Event::Probe(probed) => Some(probed),
        _ => None,
    });
    let probed: Vec<_> = probed.collect();
    ensure!(
        probed.len() == questions.len(),
        "{} made {} of {} handshakes",
        programs::ACME,
        probed.len(),
        questions.len()
    );
    let judged = questions.iter().zip(&probed);
    Ok(judged
        .map(|(question, probed)| judge(question.certificate, request, probed))
        .collect())
}

fn probe(question: &Question, request: Request, timeout: Duration) -> ProbeRequest {
    ProbeRequest {
        address: question.to,
        name: question.certificate.name.clone(),
        path: request.path().map(str::to_owned),
        headers: vec![],
        h2: false,
        proxy_protocol: question.is_proxied,
        timeout_ms: u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX),
    }
}

fn judge(certificate: &Certificate, request: Request, probed: &Probed) -> Result<(), String> {
    let name = &certificate.name;
    let why = probed.error.as_deref().unwrap_or("no answer");
    let Some(handshake) = &probed.tls else {
        return Err(format!("{name}: the TLS handshake fails ({why})"));
    };
    if handshake.sha256 != certificate.described.sha256 {
        let served = handshake.certificate.as_ref();
        return Err(match served.filter(|served| served.names.contains(name)) {
            Some(_) => format!("{name}: nginx serves an earlier certificate"),
            None => format!(
                "{name}: nginx serves another certificate{}",
                served.map_or_else(String::new, |served| format!(" (for {})", served.names.join(", ")))
            ),
        });
    }
    let Some(path) = request.path() else {
        return Ok(());
    };
    match (probed.status, request) {
        (None, _) => Err(format!("{name}: GET {path} gets no answer ({why})")),
        (Some(200), Request::Identity(_, identity)) if probed.body.as_deref().map(str::trim_end) != Some(identity) => {
            Err(format!("{name}: a server other than the links site answers"))
        }
        (Some(200), _) => Ok(()),
        (Some(status), _) => Err(format!("{name}: GET {path} returned {status}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certificates::example;
    use links_config::acme::Handshake;

    const HEALTH: Request = Request::Health("/health");

    fn probed(sha256: Option<(&str, &str)>, status: Option<u16>, body: &str) -> Probed {
        let handshake = |(sha256, name): (&str, &str)| Handshake {
            version: "TLSv1.3".into(),
            alpn: None,
            sha256: sha256.into(),
            certificate: Some(example(name).described),
        };
        Probed {
            address: SocketAddr::from(([127, 0, 0, 1], 443)),
            name: "a.example".into(),
            tls: sha256.map(handshake),
            status,
            body: Some(body.into()),
            error: sha256.is_none().then(|| "connection refused".into()),
        }
    }

    #[test]
    fn only_the_right_certificate_with_the_right_answer_counts() {
        let ours = Some(("new", "a.example"));
        let judge = |request, probed: &Probed| judge(&example("a.example"), request, probed).err().unwrap_or_default();
        assert_eq!(judge(HEALTH, &probed(ours, Some(200), "")), "");
        for (probed, expected) in [
            (probed(None, None, ""), "handshake fails (connection refused)"),
            (probed(Some(("old", "a.example")), Some(200), ""), "earlier certificate"),
            (
                probed(Some(("x", "b.example")), Some(200), ""),
                "another certificate (for b.example)",
            ),
            (probed(ours, None, ""), "gets no answer"),
            (probed(ours, Some(502), ""), "returned 502"),
        ] {
            let wrong = judge(HEALTH, &probed);
            assert!(wrong.starts_with("a.example: ") && wrong.contains(expected), "{wrong}");
        }
        let site = Request::Identity("/internal/site", "links-site abc");
        assert_eq!(judge(Request::None, &probed(ours, None, "")), "");
        assert_eq!(judge(site, &probed(ours, Some(200), "links-site abc\n")), "");
        assert!(judge(site, &probed(ours, Some(200), "hello")).contains("other than the links site"));
    }
}
