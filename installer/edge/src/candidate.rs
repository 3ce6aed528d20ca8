//! A new site while nginx tests it, before it replaces the current one.

use std::path::PathBuf;

use anyhow::{Context as _, bail};

use crate::conf::Conf;
use crate::found::ERROR_LINES;
use crate::plan::{Files, Plan};
use links_base::layout::Layout;
use links_base::{exec, files};

/// The files that nginx tests.
#[derive(Clone, Debug)]
pub struct Candidate {
    site: PathBuf,
    /// The copy of nginx's main file. It goes beside the original, which need not be Debian's.
    main: PathBuf,
}

impl Candidate {
    pub fn new(layout: &Layout) -> Self {
        Self {
            site: layout.site_candidate(),
            main: layout.nginx_candidate(),
        }
    }

    /// Has nginx test the configuration `conf` as it would be after the planned change.
    ///
    /// # Errors
    /// nginx refuses it, or a file cannot be written.
    pub fn test(&self, conf: &Conf, plan: &Plan, paths: &Files) -> anyhow::Result<()> {
        let main = conf.main().with_file_name(self.main.file_name().unwrap_or_default());
        let tested = (|| {
            if let Some(site) = &plan.site {
                files::replace(&self.site, site.text.as_bytes(), 0o644)?;
            }
            files::replace(&main, conf.with(&plan.overrides(&self.site)).as_bytes(), 0o644)?;
            exec::finish("nginx", ["-t".as_ref(), "-q".as_ref(), "-c".as_ref(), main.as_os_str()])
        })();
        for path in [&main, &self.site] {
            files::remove_if_present(path).with_context(|| format!("Removing {}", path.display()))?;
        }
        let finished = tested?;
        if finished.success {
            return Ok(());
        }
        bail!(
            "nginx refuses its configuration with the links site in it, so nothing was written:\n{}\nChange [nginx] in \
             links.toml (listen, server_name, or manage = false), or what is in {}",
            exec::tail(&finished.stderr, ERROR_LINES),
            paths.named.include_dir.display()
        );
    }

    /// Removes what an interrupted test has left.
    ///
    /// # Errors
    /// A file cannot be removed.
    pub fn remove_leftovers(&self) -> anyhow::Result<()> {
        for left in [&self.site, &self.main] {
            files::remove_if_present(left).with_context(|| format!("Removing {}", left.display()))?;
        }
        Ok(())
    }
}
