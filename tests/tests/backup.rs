//! Backups: made under load, restored on the same host and on another one, and the many ways in which they fail.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use links_tests::load::{Link, Load, verify_all};
use links_tests::servers::S3;
use links_tests::{Broken, Crowd, DATABASE, Host, LINKS_TOML, Output, eventually};
use serde_json::Value;

/// A key for this test alone, as `age-keygen` makes them, and its public key.
const SECRET_KEY: &str = "AGE-SECRET-KEY-18JYMGEY0UR0K84SVKJA68Z59Q6MVTJVFWE8V9A5VDCWDEJA7R3VSG4R6AU";
const PUBLIC_KEY: &str = "age1zeza7zjz7dtxact4xnk2rwtnshz0sjkm6mzzeg3duap8fe2tc9wqju3gf7";
/// A key that opens nothing.
const OTHER_KEY: &str = "AGE-SECRET-KEY-1XWRGW0USF468CNQHN8UQ3UAN0QXE3HN9T0C5NW73SWAAJFN2LDHST53ET6";
const KEY: &str = "/srv/backup.key";
const BACKUP: &str = "/var/tmp/moved.tar.zst.age";

/// The last event that a command has printed.
fn event(output: &Output) -> Result<Value> {
    let last = output
        .stdout
        .lines()
        .last()
        .with_context(|| format!("no event: {output}"))?;
    serde_json::from_str(last).with_context(|| format!("the last line is no event: {output}"))
}

/// The result of a command that succeeds.
fn done(host: &Host, command: &[&str]) -> Result<Value> {
    let output = host.run(command)?;
    ensure!(output.status == 0, "{command:?}: {output}");
    let event = event(&output)?;
    ensure!(event["event"] == "done", "{command:?}: {output}");
    Ok(event)
}

/// Checks that a command fails with this problem.
fn fails(host: &Host, command: &[&str], problem: &str) -> Result<()> {
    let output = host.run(command)?;
    ensure!(output.status == 1, "{command:?}: {output}");
    let event = event(&output)?;
    ensure!(
        event["event"] == "failed" && event["problem"] == problem,
        "{command:?}: {event}"
    );
    Ok(())
}

/// The clicks on all links together, and their sum over the links.
fn clicks(host: &Host) -> Result<(u64, u64)> {
    host.read_database(DATABASE, |database| {
        let sum = |filter: &str| -> Result<u64> {
            let sql = format!("SELECT ifnull(sum(clicks + bots), 0) FROM click_days WHERE link_id {filter} 0");
            Ok(database.query_row(&sql, [], |row| row.get::<_, i64>(0))?.unsigned_abs())
        };
        Ok((sum("=")?, sum("<>")?))
    })
}

/// Follows links on a host, and checks that each click is counted once on top of those that the database has.
fn counts_each_click_once_from_now_on(host: &Host, crowd: &Crowd) -> Result<()> {
    counted_so_far(host)?;
    let (counted, answered) = (crowd.counts(host)?, crowd.answers());
    let target = crowd.answered() + 5_000;
    crowd.during(&host.http(), Broken::Never, || crowd.wait_for(target))?;
    let mut expected = counted;
    for (slug, answers) in crowd.answers() {
        let new = answers - answered.get(&slug).copied().unwrap_or_default();
        *expected.entry(slug).or_default() += new;
    }
    expected.retain(|_, count| *count > 0);
    crowd.settles_at(host, &expected)
}

/// Waits until everything that nginx has logged is counted. An agent that has just started does not know how much that is.
fn counted_so_far(host: &Host) -> Result<()> {
    let link = host.shorten("https://example.com/last")?;
    host.follow(&link)?;
    eventually("the last click is counted", Duration::from_secs(60), || {
        let stats: Value = host.ok(["linksctl", "stats", &link.slug, "--json"])?.json()?;
        Ok((stats["bots"] == 1).then_some(()))
    })
}

fn none_is_lost(host: &Host, links: &[Link]) -> Result<()> {
    let lost = verify_all(&host.http(), links)?;
    ensure!(
        lost.is_empty(),
        "{} of {} links are lost, such as {:?}",
        lost.len(),
        links.len(),
        lost.first()
    );
    Ok(())
}

/// One host makes a backup under load. Another one, with a configuration and a token of its own, gets it.
#[test]
fn a_backup_under_load_is_restored_on_another_host_and_on_the_same_one() -> Result<()> {
    let host = Host::builder()
        .packages(&["age", "zstd"])
        .links_toml("[rollout]\nmin_healthy = \"750ms\"\n")
        .serving()?;
    host.write_secret(KEY, &format!("# public key: {PUBLIC_KEY}\n{SECRET_KEY}\n"))?;
    host.write("/etc/links/nginx.d/own.conf", "add_header X-Own kept always;\n")?;
    host.ok(["mkdir", "/var/backups/links"])?;
    let crowd = Crowd::new(&host)?.rate(4_000);
    let load = Load::through([host.site()?]).workers(4).rate(100);
    let first = load.clone().label("before").run(Duration::from_secs(5))?;
    ensure!(first.failed() == 0 && first.acknowledged.len() > 200, "{first}");

    let (made, during) = crowd.during(&host.http(), Broken::Never, || {
        crowd.wait_for(20_000)?;
        let writers = load.label("during").start();
        writers.wait_for(100, Duration::from_secs(30))?;
        let backup = [
            "linksctl",
            "backup",
            "--to",
            "/var/backups/links",
            "--encrypt-to",
            PUBLIC_KEY,
            "--json",
        ];
        let made = done(&host, &backup)?;
        crowd.wait_for(crowd.answered() + 5_000)?;
        Ok((made, writers.stop()?))
    })?;
    ensure!(during.failed() == 0, "{during}");
    crowd.is_counted_once(&host)?;
    println!("{made}");
    let file = format!("/var/backups/links/{}", made["name"].as_str().unwrap_or_default());
    ensure!(made["encrypted"] == true && made["secrets"] == true, "{made}");
    ensure!(made["links"].as_u64() > Some(first.acknowledged.len() as u64), "{made}");
    assert_eq!(
        host.shell(&format!(
            "stat --format='%a %U' {file}; ls --almost-all /var/backups/links | wc --lines"
        ))?
        .stdout,
        "600 root\n1\n"
    );
    // Programs that know nothing of links can read it.
    let listed = host
        .shell(&format!(
            "age --decrypt --identity {KEY} {file} | zstd --decompress | tar --list"
        ))?
        .stdout;
    for name in [
        "manifest.json",
        "etc/links/links.toml",
        "etc/links/credentials/admin_token",
        "database/links.db",
    ] {
        ensure!(listed.lines().any(|line| line == name), "{name} is not in {listed}");
    }
    let verified = done(
        &host,
        &["linksctl", "backup", "verify", &file, "--identity", KEY, "--json"],
    )?;
    assert_eq!(
        (&verified["opened"], &verified["contents"]["database"]["clicks"]),
        (&Value::from(true), &made["clicks"])
    );

    on_another_host(&host, &file, &made, &crowd, &first.acknowledged).context("on another host")?;
    on_the_same_host(&host, &file, &crowd, &first.acknowledged).context("on the same host")
}

fn on_another_host(from: &Host, file: &str, made: &Value, crowd: &Crowd, links: &[Link]) -> Result<()> {
    let host = Host::builder().packages(&["zstd"]).serving()?;
    let (token, own) = (from.token()?, host.token()?);
    host.copy_in(&from.path_outside(file), BACKUP)?;
    host.write_secret(KEY, &format!("{SECRET_KEY}\n"))?;
    refuses_what_cannot_be_believed(&host).context("what cannot be believed")?;

    let restore = ["linksctl", "restore", BACKUP, "--identity", KEY, "--json"];
    let planned = host.ok(restore.into_iter().chain(["--dry-run"]))?.stdout;
    for step in ["stop", "swap_database", "renew_journal", "start"] {
        ensure!(
            planned.contains(&format!("\"step\":\"{step}\"")),
            "{step} is not in {planned}"
        );
    }
    done(&host, &[&restore[..], &["--check"]].concat())?;
    ensure!(host.token()? == own, "a check has changed the token");
    let restored = done(&host, &restore)?;
    assert_eq!(&restored["contents"]["database"]["clicks"], &made["clicks"]);

    let (all, sum) = clicks(&host)?;
    assert_eq!((Some(all), all), (made["clicks"].as_u64(), sum));
    none_is_lost(&host, links)?;
    assert_eq!(host.token()?, token);
    assert_eq!(host.http().get("/health")?.header("x-own"), "kept");
    ensure!(host.read(LINKS_TOML)?.contains("750ms"));
    host.shorten("https://example.com/after-the-move")?;
    host.ok(["linksctl", "status"])?;
    // What it replaced is kept.
    let kept = host.shell("cat /etc/links/replaced-*/credentials/admin_token")?.stdout;
    assert_eq!(kept.trim(), own);
    let left = host
        .shell("ls --almost-all /etc/links /var/lib/links | grep --extended-regexp '^\\.|restore.json' || true")?
        .stdout;
    assert_eq!(left, "", "something of the restore is left");
    counts_each_click_once_from_now_on(&host, crowd)?;
    // The restored database has links now.
    fails(&host, &restore, "refusal")
}

fn refuses_what_cannot_be_believed(host: &Host) -> Result<()> {
    host.write_secret("/srv/other.key", &format!("{OTHER_KEY}\n"))?;
    host.shell(&format!(
        "cd /var/tmp
        head --bytes=-1000 {BACKUP} >cut-off
        cp {BACKUP} tampered
        printf tampered | dd of=tampered bs=1 seek=$(($(stat --format=%s tampered) / 2)) conv=notrunc status=none
        echo '{{\"format\": 1, \"links\": \"99.0.0\"}}' >manifest.json
        tar --create manifest.json | zstd --quiet >newer
        tar --create /etc/hostname 2>/dev/null | zstd --quiet >other"
    ))?;
    for (file, key, problem) in [
        (BACKUP, Some("/srv/other.key"), "wrong_key"),
        (BACKUP, None, "locked"),
        ("/var/tmp/tampered", Some(KEY), "damaged"),
        ("/var/tmp/cut-off", Some(KEY), "damaged"),
        ("/var/tmp/newer", None, "newer"),
        ("/var/tmp/other", None, "damaged"),
        ("/var/tmp/missing", None, "missing"),
    ] {
        let identity: Vec<_> = key.into_iter().flat_map(|key| ["--identity", key]).collect();
        fails(
            host,
            &[&["linksctl", "backup", "verify", file, "--json"], &identity[..]].concat(),
            problem,
        )?;
        fails(
            host,
            &[&["linksctl", "restore", file, "--force", "--json"], &identity[..]].concat(),
            problem,
        )?;
    }
    // links has served all the time.
    host.ok(["linksctl", "status"]).map(drop)
}

fn on_the_same_host(host: &Host, file: &str, crowd: &Crowd, links: &[Link]) -> Result<()> {
    // Some of the crowd's answers came from the other host.
    counted_so_far(host)?;
    let counts = crowd.counts(host)?;

    killed_in_each_step(host, file, links)?;
    crowd.settles_at(host, &counts).context("after the undos")?;

    // The clicks since the backup that are not in the journal any more are gone. None is counted twice.
    let restore = ["linksctl", "restore", file, "--identity", KEY, "--json"];
    fails(host, &restore, "refusal")?;
    let restored = done(host, &[&restore[..], &["--force"]].concat())?;
    counted_so_far(host)?;
    for (slug, count) in crowd.counts(host)? {
        let most = counts.get(&slug).copied().unwrap_or_default();
        ensure!(count <= most, "{slug}: {most} clicks before, {count} after");
    }
    let (all, _) = clicks(host)?;
    ensure!(
        Some(all) >= restored["contents"]["database"]["clicks"].as_u64(),
        "{all}: {restored}"
    );
    none_is_lost(host, links)?;
    let kept = host
        .shell("ls /var/lib/links/data | grep --count 'links.db.replaced-.*Z$'")?
        .stdout;
    assert_eq!(kept.trim(), "1");
    counts_each_click_once_from_now_on(host, crowd)
}

/// Kills a restore at the beginning of each step, except the first, before which there is nothing to undo, and the last, after
/// which there is nothing either. Nothing but an undo is possible then, and it brings back what the backup does not have.
fn killed_in_each_step(host: &Host, file: &str, links: &[Link]) -> Result<()> {
    host.write("/etc/links/nginx.d/own.conf", "add_header X-Own later always;\n")?;
    let later = host.shorten("https://example.com/later")?;
    let files = || -> Result<String> {
        let sums = host.shell("find /etc/links -type f -exec sha256sum {} + | sort")?;
        Ok(sums.stdout)
    };
    let before = files()?;
    for step in [
        "stop",
        "swap_database",
        "swap",
        "renew_journal",
        "roll_out",
        "count_links",
        "start",
        "soak",
        "empty_cache",
        "site",
    ] {
        // Instances that start this often reach systemd's limit.
        host.ok(["systemctl", "reset-failed"])?;
        kill_restore_at(host, file, step)
            .and_then(|()| undo(host))
            .and_then(|()| {
                ensure!(
                    files()? == before,
                    "the files differ: {before} before, {} after",
                    files()?
                );
                host.follow(&later)?;
                none_is_lost(host, links)
            })
            .with_context(|| format!("killed in the step {step}"))?;
    }
    Ok(())
}

/// Kills a restore as soon as it reports this step, which it does before it begins with it.
fn kill_restore_at(host: &Host, file: &str, step: &str) -> Result<()> {
    // The last line succeeds if the restore has not.
    host.shell(&format!(
        "rm --force /var/tmp/steps; mkfifo /var/tmp/steps
        linksctl restore {file} --identity {KEY} --force --json >/var/tmp/steps 2>/dev/null &
        while read -r event; do
            case $event in *'\"step\":\"{step}\"'*) kill -KILL $!; break ;; esac
        done </var/tmp/steps
        ! wait $!"
    ))?;
    ensure!(
        !host.status()?["restore"].is_null(),
        "the status should name the restore"
    );
    ensure!(
        host.run(["linksctl", "rollout"])?.status == 1,
        "a rollout should be refused"
    );
    Ok(())
}

fn undo(host: &Host) -> Result<()> {
    let undo = ["linksctl", "restore", "--undo", "--json"];
    // links.service may be starting, and hold the lock of the rollouts for a moment.
    let undone = eventually("nothing holds the lock", Duration::from_secs(30), || {
        let output = host.run(undo)?;
        Ok((!output.printed().contains("a rollout is under way")).then_some(output))
    })?;
    ensure!(undone.status == 0 && event(&undone)?["event"] == "done", "{undone}");
    host.wait_for_rotation(2)?;
    ensure!(host.status()?["restore"].is_null());
    Ok(())
}

/// The places of these checks share a host with enough links for an upload in two parts.
#[test]
fn a_place_that_fails_gets_nothing_that_looks_like_a_backup() -> Result<()> {
    let host = Host::builder()
        .packages(&["python3", "python3-cryptography"])
        .serving()?;
    host.change_database(DATABASE, |database| {
        // Random texts cannot be compressed to less than half.
        Ok(database.execute_batch(
            "INSERT INTO links (slug, url, created_at)
             WITH RECURSIVE numbers (number) AS (SELECT 1 UNION ALL SELECT number + 1 FROM numbers WHERE number < 150000)
             SELECT 'filler-' || number, 'https://example.com/' || hex(randomblob(160)), 1 FROM numbers",
        )?)
    })?;
    places_that_fail(&host).context("places that fail")?;
    a_killed_backup(&host).context("a killed backup")?;
    backups_in_s3(&host).context("S3")?;
    the_timer(&host).context("the timer")
}

fn names(host: &Host, directory: &str) -> Result<Vec<String>> {
    let listed = host.ok(["ls", "--almost-all", directory])?.stdout;
    Ok(listed.lines().map(str::to_owned).collect())
}

fn places_that_fail(host: &Host) -> Result<()> {
    host.shell(
        "mkdir /mnt/full /mnt/bare; mount -t tmpfs -o size=8m tmpfs /mnt/full; mount -t tmpfs -o ro tmpfs /mnt/bare",
    )?;
    for (place, problem) in [("/mnt/full", "full"), ("/mnt/bare", "read_only")] {
        fails(host, &["linksctl", "backup", "--to", place, "--json"], problem)?;
        assert_eq!(names(host, place)?, [""; 0]);
    }
    fails(
        host,
        &["linksctl", "backup", "--to", "/mnt/none/x.tar.zst", "--json"],
        "missing",
    )?;
    // A directory that nobody has made does not become a file.
    fails(host, &["linksctl", "backup", "--to", "/mnt/none", "--json"], "missing")?;
    // The copy of the database has no room.
    host.shell("fallocate --length 1M /mnt/full/x.tar.zst; ln --symbolic /mnt/full/x.tar.zst /mnt/full/link.tar.zst")?;
    for name in ["x.tar.zst", "link.tar.zst"] {
        let output = host.run(["linksctl", "backup", "--to", &format!("/mnt/full/{name}")])?;
        ensure!(output.status == 1, "a file that exists was replaced: {output}");
    }
    // A file of that name, by a person who is not root.
    let user = host.run(["runuser", "-u", "nobody", "--", "linksctl", "backup", "--to", "/tmp"])?;
    ensure!(user.status == 77, "{user}");
    // Nothing is left of the copies of the database.
    assert_eq!(
        host.shell("ls --almost-all /var/lib/links | grep '^\\.' || true")?
            .stdout,
        ""
    );
    Ok(())
}

fn a_killed_backup(host: &Host) -> Result<()> {
    host.shell(
        "mkdir /mnt/killed
        linksctl backup --to /mnt/killed >/dev/null 2>&1 &
        until ls --almost-all /mnt/killed | grep --quiet 'tar\\.zst'; do :; done
        kill -KILL $!",
    )?;
    let left = names(host, "/mnt/killed")?;
    ensure!(
        left.len() == 1 && left[0].starts_with('.') && left[0].ends_with(".partial"),
        "{left:?}"
    );
    let listed = host.ok(["linksctl", "backup", "list", "--to", "/mnt/killed", "--json"])?;
    assert_eq!(listed.json::<Vec<Value>>()?, [Value::Null; 0]);
    // Its programs have ended with it.
    eventually("nothing of the backup runs", Duration::from_secs(10), || {
        let running = host.run(["pgrep", "--full", "[l]inks-backup|[l]inks-db"])?;
        Ok((running.status == 1).then_some(()))
    })?;
    done(host, &["linksctl", "backup", "--to", "/mnt/killed", "--json"])?;
    let complete = names(host, "/mnt/killed")?;
    ensure!(
        complete.len() == 1 && complete[0].ends_with("Z.tar.zst"),
        "{complete:?}"
    );
    let leftovers = host
        .shell("ls --almost-all /var/lib/links | grep '^\\.' || true")?
        .stdout;
    assert_eq!(leftovers, "");
    Ok(())
}

fn backups_in_s3(host: &Host) -> Result<()> {
    let s3 = S3::start_in(host)?;
    host.credential("s3_access_key_id", "id")?;
    host.credential("s3_secret_access_key", "hush-s3cret")?;
    host.configure_links(&format!(
        "[backup]\nto = \"s3://{}/vm-1\"\nkeep = 2\ns3_endpoint = \"{}\"\n",
        S3::BUCKET,
        S3::ENDPOINT
    ))?;
    // The instances do not get the key.
    let delivered = host.shell("ls /var/lib/links/instances/1.config/credentials")?.stdout;
    assert_eq!(delivered, "admin_token\n");

    // Killed between two parts: the server is stopped as soon as the upload has begun.
    host.shell(
        "linksctl backup >/dev/null 2>&1 &
        until grep --quiet '\"id\"' /var/lib/links/backups.json 2>/dev/null; do :; done
        systemctl kill --signal=STOP moto
        kill -KILL $!
        systemctl kill --signal=CONT moto",
    )?;
    assert_eq!((s3.keys()?.len(), s3.uploads()?.len()), (0, 1));

    let mut made = vec![];
    for _ in 0..3 {
        let backup = done(host, &["linksctl", "backup", "--json"])?;
        made.push(backup["name"].as_str().unwrap_or_default().to_owned());
        // Names have seconds.
        host.ok(["sleep", "1.1"])?;
    }
    assert_eq!(s3.uploads()?, [""; 0]);
    let expected: Vec<_> = made[1..].iter().map(|name| format!("vm-1/{name}")).collect();
    assert_eq!(s3.keys()?, expected);
    let listed: Vec<Value> = host.ok(["linksctl", "backup", "list", "--json"])?.json()?;
    let names: Vec<_> = listed.iter().filter_map(|listed| listed["name"].as_str()).collect();
    assert_eq!(names, made[1..]);
    ensure!(
        listed.iter().all(|listed| listed["recorded"]["secrets"] == false),
        "{listed:?}"
    );
    let object = format!("s3://{}/vm-1/{}", S3::BUCKET, made[2]);
    done(host, &["linksctl", "backup", "verify", &object, "--json"])?;
    done(host, &["linksctl", "restore", &object, "--check", "--force", "--json"])?;
    fails(
        host,
        &["linksctl", "backup", "verify", &format!("{object}x"), "--json"],
        "missing",
    )?;

    s3.stop()?;
    fails(host, &["linksctl", "backup", "--json"], "unreachable")?;
    let status = host.status()?;
    ensure!(
        status["backup"]["last"]["error"].is_string() && status["backup"]["latest"]["name"] == made[2],
        "{status}"
    );
    let everything = host
        .shell("journalctl --output=cat; cat /var/lib/links/backups.json")?
        .stdout;
    ensure!(
        !everything.contains("hush-s3cret"),
        "the secret is in the journal or in the record"
    );
    Ok(())
}

fn the_timer(host: &Host) -> Result<()> {
    host.ok(["mkdir", "/var/backups/links"])?;
    host.configure_links(&format!(
        "[backup]\nevery = \"24h\"\nto = \"/var/backups/links\"\nencrypt_to = \"{PUBLIC_KEY}\"\n"
    ))?;
    for question in ["is-enabled", "is-active"] {
        host.ok(["systemctl", question, "links-backup.timer"])?;
    }
    let verified = host.ok([
        "systemd-analyze",
        "verify",
        "--man=no",
        "links-backup.service",
        "links-backup.timer",
    ])?;
    ensure!(verified.printed().is_empty(), "{verified}");
    ensure!(host.exposure("links-backup.service")? <= 3.5);
    // Once: the second time none is due.
    for _ in 0..2 {
        let run = host.run(["systemctl", "start", "links-backup.service"])?;
        ensure!(run.status == 0, "{run}\n{}", host.journal("links-backup")?);
        assert_eq!(names(host, "/var/backups/links")?.len(), 1);
    }
    let latest = host.status()?["backup"]["latest"].clone();
    ensure!(latest["encrypted"] == true && latest["secrets"] == true, "{latest}");
    let page = host.metrics()?.text();
    for sample in [
        "links_backup_last_success 1",
        "links_backup_interval_seconds 86400",
        "links_backup_failures 0",
    ] {
        ensure!(page.lines().any(|line| line == sample), "{sample} is not in\n{page}");
    }
    // This host knows that the file is as it wrote it, although it cannot open it.
    let file = format!("/var/backups/links/{}", latest["name"].as_str().unwrap_or_default());
    let verified = done(host, &["linksctl", "backup", "verify", &file, "--json"])?;
    assert_eq!(verified["opened"], false);
    host.shell(&format!(
        "printf tampered | dd of={file} bs=1 seek=5000 conv=notrunc status=none"
    ))?;
    fails(host, &["linksctl", "backup", "verify", &file, "--json"], "damaged")?;

    host.configure_links("")?;
    let states: BTreeMap<_, _> = ["is-enabled", "is-active"]
        .into_iter()
        .map(|question| {
            Ok((
                question,
                host.run(["systemctl", question, "links-backup.timer"])?.status,
            ))
        })
        .collect::<Result<_>>()?;
    ensure!(states.values().all(|status| *status != 0), "{states:?}");
    Ok(())
}
