//! How much slower redirects and new links become when there are many links.

use std::path::Path;

use anyhow::{Context as _, Result};
use rusqlite::Connection;
use serde::Serialize;

use crate::edge::fill;
use crate::load::wrk;
use crate::{CREATE, Up, median, quotient};

const SIZES: [u32; 3] = [1_000, 100_000, 10_000_000];
/// Many short rounds, because each result is compared with those of the same round.
const ROUNDS: usize = 9;
const SECONDS_PER_ROUND: u32 = 3;
const GENERATOR: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/bench/links.lua");

/// The medians over all rounds, for one instance.
#[derive(Clone, Debug, Serialize)]
pub struct Figures {
    links: u32,
    lookups_per_second: f64,
    creates_per_second: f64,
    /// The time of a redirect, relative to one with the fewest links in the same round.
    lookup_cost: f64,
    /// The time of a new link, relative to one with the fewest links in the same round.
    create_cost: f64,
}

/// # Errors
/// Fails if the appliance does not start, or if an answer is not the expected one.
pub fn measure(linksctl: &Path, bundle: &Path) -> Result<Vec<Figures>> {
    // On the disk of the build, because ten million links need a gigabyte.
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
    let mut figures = vec![];
    if let Some((_, _, few_lookups, few_creates)) = sizes.first() {
        figures.extend(sizes.iter().map(|(links, _, lookups, creates)| Figures {
            links: *links,
            lookups_per_second: median(lookups.clone()),
            creates_per_second: median(creates.clone()),
            lookup_cost: quotient(few_lookups, lookups),
            create_cost: quotient(few_creates, creates),
        }));
    }
    sizes.into_iter().try_for_each(|(_, up, ..)| up.stop())?;
    Ok(figures)
}

pub fn print(all: &[Figures]) {
    println!(
        "\n{:<12} {:>12} {:>10} {:>12} {:>10}",
        "links", "redirects/s", "cost", "creates/s", "cost"
    );
    for figures in all {
        println!(
            "{:<12} {:>12.0} {:>10.2} {:>12.0} {:>10.2}",
            figures.links,
            figures.lookups_per_second,
            figures.lookup_cost,
            figures.creates_per_second,
            figures.create_cost
        );
    }
    println!(
        "\nrandom links, one instance, no nginx, medians of {ROUNDS} rounds of {SECONDS_PER_ROUND} s; cost: the time of one request \
         relative\nto the first row's, median of the rounds"
    );
}
