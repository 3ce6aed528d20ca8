//! How fast redirects are with a database on another machine, with and without the redirect cache. The libSQL server takes
//! 25 ms for each answer, like one that is a few hundred kilometres away.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use links_tests::Address;
use links_tests::http::Client;
use links_tests::local::TestDir;
use rusqlite::Connection;
use serde::Serialize;

use crate::load::{Wrk, wrk};
use crate::{SECONDS_PER_ROUND, Up};

const ANY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
const ROUND_TRIP: Duration = Duration::from_millis(25);
const LINKS: u32 = 200_000;
/// The number of links that are requested again and again. The other links are requested once.
const HOT: u32 = 1_000;
const TOKEN: &str = "bench-token";
const FOLLOW: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/bench/follow.lua");

/// The figures of one runtime.
#[derive(Clone, Debug, Serialize)]
pub struct Figures {
    runtime: String,
    /// Links that are in the cache.
    cached: Wrk,
    /// Links that are not in the cache yet.
    missed: Wrk,
    /// Links while the cache is off.
    uncached: Wrk,
}

/// # Errors
/// Fails if the server or the appliance does not start, or if an answer is not the expected one.
pub fn measure(linksctl: &Path, runtime: &str, bundle: &Path) -> Result<Figures> {
    let dir = TestDir::new()?;
    let (_server, address) = dir.hrana(ANY, TOKEN)?;
    let slow = Client::here(Address::Tcp(address)).put("/test/delay", ROUND_TRIP.as_millis())?;
    ensure!(slow.status == 204, "{slow}");
    let up = |cache: bool| {
        let root = dir.path(if cache { "cached" } else { "uncached" });
        configure(&root, address, cache)?;
        let up = Up::start(linksctl, &root, bundle)?;
        fill(&dir)?;
        Ok::<_, anyhow::Error>(up)
    };
    let on = up(true)?;
    follow(&on, 2, 0..HOT)?;
    let cached = follow(&on, SECONDS_PER_ROUND, 0..HOT)?;
    let missed = follow(&on, SECONDS_PER_ROUND, HOT..LINKS)?;
    on.stop()?;
    let off = up(false)?;
    let uncached = follow(&off, SECONDS_PER_ROUND, 0..HOT)?;
    off.stop()?;
    Ok(Figures {
        runtime: runtime.to_owned(),
        cached,
        missed,
        uncached,
    })
}

fn configure(root: &Path, server: SocketAddr, cache: bool) -> Result<()> {
    let etc = root.join("etc/links");
    let credentials = etc.join("credentials");
    fs::create_dir_all(&credentials)?;
    fs::write(credentials.join("database_token"), TOKEN)?;
    fs::write(
        etc.join("runtime.toml"),
        format!(
            "[sqlite_database.default]\ntype = \"libsql\"\nurl = \"http://{server}\"\ntoken = \"credential:database_token\"\n"
        ),
    )?;
    fs::write(etc.join("links.toml"), format!("[cache]\nenabled = {cache}\n"))?;
    Ok(())
}

/// Requests these links in turn.
fn follow(up: &Up, seconds: u32, links: Range<u32>) -> Result<Wrk> {
    let url = format!("http://{}", up.instance);
    let (first, count) = (links.start.to_string(), links.len().to_string());
    wrk(seconds, 32, &["-s", FOLLOW, &url, "--", &first, &count])
}

/// Inserts the links unless they exist. The tables exist, because the instance is ready.
fn fill(dir: &TestDir) -> Result<()> {
    let changed = Connection::open(dir.path("links.db"))?.execute(
        "WITH RECURSIVE numbers(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM numbers WHERE n + 1 < ?1)
         INSERT INTO links (slug, url, created_at)
         SELECT 'bench' || n, 'https://example.com/' || n, 0 FROM numbers WHERE true ON CONFLICT DO NOTHING",
        [LINKS],
    )?;
    ensure!(
        changed == 0 || changed == LINKS as usize,
        "only {changed} links were new"
    );
    Ok(())
}

pub fn print(all: &[Figures]) {
    println!(
        "\n{:<27} {:>12} {:>8} {:>8}",
        "database at 25 ms", "redirects/s", "p50 ms", "p99 ms"
    );
    for Figures {
        runtime,
        cached,
        missed,
        uncached,
    } in all
    {
        for (how, wrk) in [("cached", cached), ("not yet cached", missed), ("cache off", uncached)] {
            println!(
                "{:<27} {:>12.0} {:>8.2} {:>8.2}",
                format!("{runtime}, {how}"),
                wrk.per_second,
                wrk.p50_ms,
                wrk.p99_ms
            );
        }
    }
    println!("\n{HOT} links in turn, or (not yet cached) each link once; 32 connections, one instance, no nginx");
}
