//! What `linksctl check` says about the files of `[tls]`.

use links_base::layout::Layout;
use links_config::acme::FileProblem;
use links_config::finding::Finding;
use links_config::links::{Tls, TlsMode};
use links_edge::{Certificates, Pair};

/// The findings in the administrator's certificates and keys.
pub fn findings(layout: &Layout, tls: &Tls) -> Vec<Finding> {
    if tls.mode != TlsMode::Files {
        return vec![];
    }
    match Certificates::new(layout).check_files(tls) {
        Ok(files) => {
            let of_pairs = files.pairs.iter().flat_map(of_pair);
            of_pairs
                .chain(files.uncovered.iter().map(|name| uncovered(layout, name)))
                .collect()
        }
        Err(error) => vec![Finding::warning(
            layout.links_toml().display().to_string(),
            format!("the files of [tls] were not checked: {error:#}"),
        )],
    }
}

fn of_pair(pair: &Pair) -> Vec<Finding> {
    let file = pair.certificate.display().to_string();
    // Findings are no sentences.
    let text = |text: &str| text.trim_end_matches('.').to_owned();
    let error = |problem: &FileProblem| Finding::error(&file, text(&problem.message)).help(text(&problem.hint));
    let warning = |problem: &FileProblem| Finding::warning(&file, text(&problem.message)).help(text(&problem.hint));
    let errors = pair.checked.problems.iter().map(error);
    errors.chain(pair.checked.warnings.iter().map(warning)).collect()
}

fn uncovered(layout: &Layout, name: &str) -> Finding {
    let file = layout.links_toml().display().to_string();
    Finding::error(file, format!("no usable certificate is for {name} in `tls.names`"))
        .help("add one to `tls.certificate` and `tls.key`")
}

#[cfg(test)]
mod tests {
    use super::*;
    use links_config::acme::{CheckedFiles, FileProblemKind, State};

    #[test]
    fn problems_are_errors_and_warnings_are_warnings() {
        let problem = |kind, message: &str| FileProblem {
            kind,
            message: message.to_owned(),
            hint: "Fix it.".to_owned(),
        };
        let pair = Pair {
            certificate: "/c.pem".into(),
            key: "/k.pem".into(),
            checked: CheckedFiles {
                usable: false,
                certificate: None,
                state: State::Missing,
                problems: vec![problem(FileProblemKind::KeyMismatch, "The key is another one.")],
                warnings: vec![problem(FileProblemKind::KeyReadable, "everybody may read the key")],
            },
        };
        let findings = of_pair(&pair);
        assert!(findings[0].is_error() && !findings[1].is_error());
        assert_eq!(findings[0].to_string(), "/c.pem: The key is another one; Fix it");
    }
}
