//! `linksctl stats`: the clicks of one link or of all links, as the component reports them.

use std::env;
use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Context as _, bail};
use links_domain::clicks::OTHER;
use links_domain::slug::Slug;
use links_domain::stats::{Granularity, Report, Share};
use nix::unistd::geteuid;

use crate::cli::{StatsArgs, StatsBy};
use links_base::endpoint::Endpoint;
use links_base::http::Request;
use links_base::layout::Layout;
use links_base::privileges::require_root;
use links_base::{privileges, rotation};
use links_config::admin_token;
use links_config::files::ConfigFiles;
use links_config::load::load_links;
use links_release::Snapshots;

/// The time limit of a request. An instance waits up to 14 seconds for its database.
const TIMEOUT: Duration = Duration::from_secs(20);
/// The maximum size of a report, in bytes.
const MAX_BYTES: usize = 16 << 20;

/// The width of the longest bar, in cells. With the text beside it, a line fits a terminal of 80 columns.
const WIDTH: u64 = 44;
/// The maximum number of names in each list.
const LISTED: usize = 10;

/// The characters of a bar: one to eight eighths of a cell.
const BLOCKS: [char; 8] = ['▏', '▎', '▍', '▌', '▋', '▊', '▉', '█'];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bars {
    Blocks,
    /// For a terminal that shows ASCII only.
    Plain,
}

/// Prints the statistics.
///
/// # Errors
/// No instance answers, the token cannot be read, or there is no such link.
pub fn show(layout: &Layout, args: &StatsArgs) -> anyhow::Result<()> {
    if layout.is_host() {
        require_root()?;
    }
    let token = admin_token::read(&ConfigFiles::new(layout))?;
    let report = ask(layout, &path(args)?, &token)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{}", text(&report, bars()));
    }
    Ok(())
}

/// The path and query of the request to the component.
fn path(args: &StatsArgs) -> anyhow::Result<String> {
    let path = match &args.slug {
        Some(slug) => {
            let slug = Slug::in_path(slug).with_context(|| format!("{slug:?} is not a slug"))?;
            format!("/api/v1/links/{slug}/stats?")
        }
        None => "/api/v1/stats?".to_owned(),
    };
    let mut query = url::form_urlencoded::Serializer::new(String::new());
    let by = args.by.map(|by| match by {
        StatsBy::Hour => "hour",
        StatsBy::Day => "day",
    });
    for (name, value) in [
        ("from", args.from.as_deref()),
        ("to", args.to.as_deref()),
        ("granularity", by),
    ] {
        if let Some(value) = value {
            query.append_pair(name, value);
        }
    }
    Ok(path + &query.finish())
}

/// Asks the instances in rotation until one answers.
fn ask(layout: &Layout, path: &str, token: &str) -> anyhow::Result<Report> {
    let authorization = format!("Bearer {token}");
    // `linksctl up` runs everything as its caller.
    let owner = match layout.is_host() {
        true => privileges::links()?.uid,
        false => geteuid(),
    };
    let mut why = "no instance is ready; `linksctl status` shows why".to_owned();
    for endpoint in endpoints(layout)? {
        let request = Request {
            headers: &[("authorization", &authorization)],
            limit: MAX_BYTES,
            ..Request::get(path)
        };
        match endpoint.send_secret(&request, TIMEOUT, owner) {
            Ok(answer) if answer.status == 200 => {
                return serde_json::from_str(&answer.body).context("Reading the instance's answer");
            }
            Ok(answer) => {
                let problem = serde_json::from_str::<serde_json::Value>(&answer.body).unwrap_or_default();
                let detail = problem["detail"].as_str().unwrap_or("without a reason");
                why = format!("{endpoint} answers {}: {detail}", answer.status);
                // Another instance would answer the same.
                if answer.status < 500 {
                    bail!(why);
                }
            }
            Err(error) => why = format!("{endpoint}: {error}"),
        }
    }
    bail!(why)
}

fn endpoints(layout: &Layout) -> anyhow::Result<Vec<Endpoint>> {
    let ready = rotation::ready_instances(&layout.ready_dir()).context("Reading the ready flags")?;
    let endpoints = ready.into_iter().map(|instance| {
        let (applied, _) = Snapshots::new(layout).of_instance(instance);
        let config = load_links(&applied)?;
        Ok(Endpoint::of_running(&layout.sockets_dir(), config.base_port, instance))
    });
    endpoints.collect()
}

fn bars() -> Bars {
    // The first variable that is set counts, as in setlocale(3).
    let mut locale = ["LC_ALL", "LC_CTYPE", "LANG"]
        .into_iter()
        .filter_map(|name| env::var(name).ok());
    let locale = locale.find(|value| !value.is_empty()).unwrap_or_default();
    match locale.to_ascii_lowercase().replace('-', "").contains("utf8") {
        true => Bars::Blocks,
        false => Bars::Plain,
    }
}

fn text(report: &Report, bars: Bars) -> String {
    let mut text = heading(report);
    let most = report.series.iter().map(|bar| bar.clicks).max().unwrap_or(0);
    let digits = counted(most).len();
    for entry in &report.series {
        let when = match report.granularity {
            Granularity::Day => entry.start.get(..10),
            Granularity::Hour => entry.start.get(..16),
        };
        let when = when.unwrap_or(&entry.start).replace('T', " ");
        let clicks = counted(entry.clicks);
        let bar = bar(entry.clicks, most, bars);
        let line = format!("{when}  {clicks:>digits$}  {bar}");
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{}", line.trim_end());
    }
    for (title, shares) in [
        ("Referrers", &report.referrers),
        ("Devices", &report.devices),
        ("Browsers", &report.browsers),
        ("Systems", &report.systems),
        ("Countries", &report.countries),
    ] {
        text += &list(title, shares, report.clicks);
    }
    let links = report.links.iter().flatten().map(|link| Share {
        name: link.slug.clone(),
        clicks: link.clicks,
    });
    text + &list("Links", &links.collect::<Vec<_>>(), report.clicks)
}

/// `abc: 1,234 clicks from 2026-01-01 to 2026-01-30 (UTC), about 900 daily visitors; 56 more by bots`
fn heading(report: &Report) -> String {
    let what = report.slug.as_deref().unwrap_or("all links");
    let first = report.series.first().map_or("", |bar| &bar.start);
    let last = report.series.last().map_or("", |bar| &bar.start);
    let day = |moment: &str| moment.get(..10).unwrap_or(moment).to_owned();
    let mut heading = format!(
        "{what}: {} click{} from {} to {} (UTC)",
        counted(report.clicks),
        if report.clicks == 1 { "" } else { "s" },
        day(first),
        day(last)
    );
    if let Some(visitors) = report.visitors.filter(|visitors| *visitors > 0) {
        heading += &format!(
            ", about {} daily visitor{}",
            counted(visitors),
            if visitors == 1 { "" } else { "s" }
        );
    }
    if report.bots > 0 {
        heading += &format!("; {} more by bots", counted(report.bots));
    }
    heading + "\n\n"
}

fn list(title: &str, shares: &[Share], clicks: u64) -> String {
    if shares.is_empty() {
        return String::new();
    }
    let mut text = format!("\n{title}\n");
    let digits = shares.first().map_or(0, |share| counted(share.clicks).len());
    for share in shares.iter().take(LISTED) {
        let name = match share.name.as_str() {
            "" => "(none)",
            OTHER => "(others)",
            name => name,
        };
        let percent = (share.clicks * 100).checked_div(clicks).unwrap_or(0);
        // Writing to a string cannot fail.
        let _ = writeln!(text, "  {:>digits$}  {percent:>3} %  {name}", counted(share.clicks));
    }
    if shares.len() > LISTED {
        let _ = writeln!(text, "  and {} more: --json shows all", shares.len() - LISTED);
    }
    text
}

fn bar(clicks: u64, most: u64, bars: Bars) -> String {
    if clicks == 0 || most == 0 {
        return String::new();
    }
    match bars {
        Bars::Plain => "#".repeat((clicks * WIDTH).div_ceil(most) as usize),
        Bars::Blocks => {
            // At least an eighth, so that a single click is visible.
            let eighths = (clicks * WIDTH * 8 / most).max(1) as usize;
            let mut bar = BLOCKS[7].to_string().repeat(eighths / 8);
            if !eighths.is_multiple_of(8) {
                bar.push(BLOCKS[eighths % 8 - 1]);
            }
            bar
        }
    }
}

/// `1,234`
fn counted(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use std::fs;
    use std::sync::{Arc, Mutex};

    use links_domain::stats::{Found, Link, Span};
    use links_domain::visitors::Sketch;

    use super::*;
    use links_base::layout::{ADMIN_TOKEN, temporary};
    use links_base::testing::{Request, Server};

    /// 2026-01-31T18:30:00Z
    const NOW: i64 = 1_769_884_200;
    const TODAY: i64 = NOW / 86_400;

    fn report(slug: Option<&str>) -> Report {
        let span = Span::new(Some(NOW - 2 * 86_400), None, Granularity::Day, NOW).unwrap();
        let mut sketch = Sketch::default();
        sketch.join(0, 1);
        sketch.join(1, 1);
        let found = Found {
            clicks: vec![(TODAY - 2, 2, 3), (TODAY, 1234, 0)],
            visitors: vec![(TODAY, sketch)],
            details: vec![
                (1, String::new(), 1000),
                (1, "news.example".into(), 200),
                (1, "*".into(), 36),
                (2, "pca".into(), 1236),
            ],
            links: slug.is_none().then(|| {
                vec![Link {
                    slug: "abc".into(),
                    clicks: 1236,
                    bots: 3,
                }]
            }),
        };
        Report::new(slug, span, found)
    }

    #[test]
    fn a_report_is_shown_as_bars_and_lists() {
        let wanted = "abc: 1,236 clicks from 2026-01-29 to 2026-01-31 (UTC), about 2 daily visitors; 3 more by bots\n\n\
             2026-01-29      2  ▏\n\
             2026-01-30      0\n\
             2026-01-31  1,234  ████████████████████████████████████████████\n\n\
             Referrers\n  1,000   80 %  (none)\n    200   16 %  news.example\n     36    2 %  (others)\n\n\
             Devices\n  1,236  100 %  phone\n\n\
             Browsers\n  1,236  100 %  Chrome\n\n\
             Systems\n  1,236  100 %  Android\n";
        assert_eq!(text(&report(Some("abc")), Bars::Blocks), wanted);
        let plain = text(&report(None), Bars::Plain);
        assert!(plain.is_ascii() && plain.contains("2026-01-29      2  #\n"), "{plain}");
        assert!(plain.starts_with("all links: 1,236 clicks"), "{plain}");
        assert!(plain.ends_with("Links\n  1,236  100 %  abc\n"), "{plain}");
        assert!(plain.lines().all(|line| line.len() <= 100), "{plain}");
    }

    #[test]
    fn a_link_without_clicks_has_no_bars() {
        let span = Span::new(None, None, Granularity::Hour, NOW).unwrap();
        let text = text(&Report::new(Some("abc"), span, Found::default()), Bars::Blocks);
        assert!(
            text.starts_with("abc: 0 clicks from 2026-01-29 to 2026-01-31 (UTC)\n\n2026-01-29 19:00  0\n"),
            "{text}"
        );
        assert_eq!(text.lines().count(), 50);
    }

    #[test]
    fn numbers_have_thousands_separators() {
        for (number, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(counted(number), text);
        }
    }

    fn args(slug: Option<&str>) -> StatsArgs {
        StatsArgs {
            slug: slug.map(str::to_owned),
            from: None,
            to: None,
            by: None,
            json: false,
        }
    }

    #[test]
    fn the_request_has_the_path_and_query_of_the_api() {
        let from_to = StatsArgs {
            from: Some("2026-01-01".into()),
            to: Some("2026-01-31T18:00:00+01:00".into()),
            by: Some(StatsBy::Hour),
            ..args(Some("abc"))
        };
        let asked = path(&from_to).unwrap();
        assert_eq!(
            asked,
            "/api/v1/links/abc/stats?from=2026-01-01&to=2026-01-31T18%3A00%3A00%2B01%3A00&granularity=hour"
        );
        assert_eq!(path(&args(None)).unwrap(), "/api/v1/stats?");
        assert!(path(&args(Some("../admin"))).is_err());
    }

    fn host(server: &Server) -> (tempfile::TempDir, Layout) {
        let (root, layout) = temporary(&[Layout::config_dir, Layout::credentials_dir, Layout::ready_dir]);
        let port: u16 = server.url("").rsplit(':').next().unwrap().parse().unwrap();
        fs::write(layout.links_toml(), format!("base_port = {}\n", port - 1)).unwrap();
        fs::write(layout.credential(ADMIN_TOKEN), "s3cret\n").unwrap();
        fs::write(layout.ready_flag(1), b"").unwrap();
        (root, layout)
    }

    #[test]
    fn the_request_carries_the_token() {
        let seen = Arc::new(Mutex::new(String::new()));
        let asked = Arc::clone(&seen);
        let server = Server::start(move |request: &Request| {
            *asked.lock().unwrap() = request.header("authorization").unwrap_or_default().to_owned();
            match request.path.contains("nope") {
                true => (404, "{\"detail\":\"There is no such link.\"}".to_owned()),
                false => (200, serde_json::to_string(&report(Some("abc"))).unwrap()),
            }
        });
        let (_root, layout) = host(&server);
        show(&layout, &args(Some("abc"))).unwrap();
        assert_eq!(*seen.lock().unwrap(), "Bearer s3cret");
        let error = show(&layout, &args(Some("nope"))).unwrap_err().to_string();
        assert!(error.contains("404: There is no such link."), "{error}");
        fs::remove_file(layout.ready_flag(1)).unwrap();
        let error = show(&layout, &args(None)).unwrap_err().to_string();
        assert!(error.contains("no instance is ready"), "{error}");
    }
}
