//! What a redirect and a new link cost when there are many links.

use std::path::Path;

use anyhow::{Context as _, Result};
use rusqlite::Connection;
use serde::Serialize;

use crate::edge::fill;
use crate::load::wrk;
use crate::{CREATE, ROUNDS, SECONDS_PER_ROUND, Up, median};

const SIZES: [u32; 3] = [1_000, 100_000, 10_000_000];
const GENERATOR: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/bench/links.lua");

/// One instance, medians of the rounds.
#[derive(Clone, Debug, Serialize)]
pub struct Figures {
    links: u32,
    lookups_per_second: f64,
    creates_per_second: f64,
}

/// # Errors
/// The appliance does not start, or an answer is not the expected one.
pub fn measure(linksctl: &Path, bundle: &Path) -> Result<Vec<Figures>> {
    // On the disk that the build is on: ten million links need a gigabyte.
    let scratch = tempfile::tempdir_in("target").context("Making a temporary directory")?;
    let mut sizes = vec![];
    for links in SIZES {
        let root = scratch.path().canonicalize()?.join(links.to_string());
        let up = Up::start(linksctl, &root, bundle)?;
        fill(&Connection::open(root.join("var/lib/links/data/links.db"))?, links)?;
        sizes.push((links, up, vec![], vec![]));
    }
    for round in 0..ROUNDS {
        for (links, up, lookups, creates) in &mut sizes {
            let url = format!("http://{}", up.instance);
            let (count, seed) = (links.to_string(), round.to_string());
            let arguments = ["-s", GENERATOR, &url, "--", "uniform", &count, &seed];
            lookups.push(wrk(SECONDS_PER_ROUND, 32, &arguments)?.per_second);
            let url = format!("{url}/shorten");
            let arguments = ["-s", CREATE, &url, "--", &up.token, &seed];
            creates.push(wrk(SECONDS_PER_ROUND, 32, &arguments)?.per_second);
        }
    }
    sizes
        .into_iter()
        .map(|(links, up, lookups, creates)| {
            up.stop()?;
            Ok(Figures {
                links,
                lookups_per_second: median(lookups),
                creates_per_second: median(creates),
            })
        })
        .collect()
}

pub fn print(all: &[Figures]) {
    println!(
        "\n{:<12} {:>12} {:>10} {:>12} {:>10}",
        "links", "redirects/s", "cost", "creates/s", "cost"
    );
    let Some(first) = all.first() else { return };
    for figures in all {
        println!(
            "{:<12} {:>12.0} {:>10.2} {:>12.0} {:>10.2}",
            figures.links,
            figures.lookups_per_second,
            first.lookups_per_second / figures.lookups_per_second,
            figures.creates_per_second,
            first.creates_per_second / figures.creates_per_second
        );
    }
    println!("\nof random links, one instance, no nginx; the cost of one beside the first row's");
}
