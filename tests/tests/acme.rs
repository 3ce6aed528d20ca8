//! links-acme with pebble, a certificate authority for tests that refuses good nonces on purpose.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use links_tests::eventually;
use links_tests::local::{Acme, Pebble, Run, Settings, TestDir};
use nix::fcntl::{Flock, FlockArg};
use serde_json::Value;

const NAME: &str = "s.example.org";
const OTHER: &str = "t.example.org";
/// The steps that a certificate takes, as links-acme prints them.
const STEPS: [&str; 5] = ["order", "challenge", "validation", "finalization", "stored"];
const TIMEOUT: Duration = Duration::from_secs(60);

fn start(directory: &TestDir, settings: Settings) -> Result<(Pebble, Acme)> {
    let root = directory.path("root");
    let pebble = directory.pebble(settings, &Acme::challenges(&root))?;
    let acme = Acme::new(&root, &pebble);
    Ok((pebble, acme))
}

/// Checks that the certificate in place and its key are complete and belong together, and returns the certificate's ID.
fn consistent(acme: &Acme, name: &str) -> Result<String> {
    let (chain, key) = files(acme, name);
    let checked = acme
        .with_options(&[])
        .run(&["check-files", "--certificate", &chain, "--key", &key, name])?;
    ensure!(checked.status == Some(0), "{checked:?}");
    ensure!(mode(Path::new(&key))? == 0o600, "{key}");
    let status = acme.status(name)?;
    status["id"].as_str().map(str::to_owned).context("no ID")
}

fn files(acme: &Acme, name: &str) -> (String, String) {
    let file = |file: &str| acme.path("live").join(name).join(file).display().to_string();
    (file("fullchain.pem"), file("privkey.pem"))
}

fn mode(path: &Path) -> Result<u32> {
    Ok(fs::metadata(path)?.permissions().mode() & 0o7777)
}

fn steps(run: &Run) -> Vec<&str> {
    run.of("step")
        .iter()
        .filter_map(|event| event["step"].as_str())
        .collect()
}

fn is_done(run: &Run, name: &str, outcome: &str) -> Result<()> {
    let found = run.outcome(name)?;
    ensure!(
        run.status == Some(0) && found == (outcome.to_owned(), String::new()),
        "{run:?}"
    );
    Ok(())
}

/// Changes what links-acme remembers about a name, as if time had passed.
fn edit_record(acme: &Acme, name: &str, edit: impl FnOnce(&mut Value)) -> Result<()> {
    let path = acme.path("names").join(format!("{name}.json"));
    let mut record = serde_json::from_slice(&fs::read(&path)?)?;
    edit(&mut record);
    Ok(fs::write(path, serde_json::to_vec(&record)?)?)
}

#[test]
fn certificates_are_issued_kept_renewed_and_forgotten() -> Result<()> {
    let directory = TestDir::new()?;
    let (pebble, acme) = start(&directory, Settings::default())?;
    let planned = acme.run(&["issue", NAME, "--dry-run"])?;
    assert_eq!(planned.of("plan")[0]["action"], "issue");
    ensure!(!acme.path("").exists(), "--dry-run has changed something");

    let web = pebble.web_address().to_string();
    let issued = acme.run(&[
        "issue",
        NAME,
        OTHER,
        "127.0.0.1",
        "--email",
        "me@example.org",
        "--self-check",
        &web,
    ])?;
    for name in [NAME, OTHER, "127.0.0.1"] {
        is_done(&issued, name, "issued")?;
        consistent(&acme, name)?;
        pebble.verify(Path::new(&files(&acme, name).0))?;
    }
    assert_eq!(steps(&issued)[..5], STEPS);
    let account = &issued.of("account")[0];
    ensure!(
        account["created"] == true && account["terms_of_service"].is_string(),
        "{account}"
    );
    let waiting = issued.of("end")[0]["reload"].as_array().cloned().unwrap_or_default();
    assert_eq!(waiting.len(), 3);
    for (path, expected) in [
        ("accounts", 0o700),
        ("pending", 0o700),
        ("challenges", 0o755),
        ("live", 0o755),
    ] {
        assert_eq!(mode(&acme.path(path))?, expected, "{path}");
    }
    ensure!(
        fs::read_dir(acme.path("challenges"))?.next().is_none(),
        "an answer is left"
    );

    // What nginx has loaded is remembered, and outdated IDs are not.
    let loaded: Vec<_> = waiting.iter().filter_map(Value::as_str).collect();
    let run = acme
        .with_options(&[])
        .run(&[&["loaded", "s.example.org=0123456789abcdef"][..], &loaded[1..]].concat())?;
    ensure!(run.status == Some(0), "{run:?}");
    ensure!(acme.status(NAME)?["loaded"] == false && acme.status(OTHER)?["loaded"] == true);

    // The first early run asks for the authority's window, and the next one asks for nothing.
    let before = consistent(&acme, NAME)?;
    let early = acme.run(&["renew", NAME, OTHER, "--email", "me@example.org"])?;
    is_done(&early, NAME, "kept")?;
    let status = acme.status(NAME)?;
    ensure!(
        status["ari"]["start"].is_u64() && status["next"]["why"] == "ari",
        "{status}"
    );
    let end = &early.of("end")[0];
    assert_eq!(end["reload"], serde_json::json!([format!("{NAME}={before}")]));
    let idle = acme.run(&["renew", NAME, OTHER, "--email", "me@example.org"])?;
    ensure!(
        idle.of("account").is_empty(),
        "a run without work has connected: {idle:?}"
    );

    // With another address for the account, which the authority is told.
    let forced = acme.run(&["renew", NAME, "--force", "--email", "you@example.org"])?;
    is_done(&forced, NAME, "renewed")?;
    ensure!(consistent(&acme, NAME)? != before && acme.status(NAME)?["loaded"] == false);
    assert_eq!(forced.of("account")[0]["created"], false);
    assert_eq!(fs::read_dir(acme.path("certificates").join(NAME))?.count(), 2);

    // A revocation moves the window into the past. Here, it is that of a copy of the files.
    let copy = directory.path("copy");
    let copied = Command::new("cp")
        .arg("-a")
        .arg(directory.path("root"))
        .arg(&copy)
        .status()?;
    ensure!(copied.success());
    let root = pebble.root_file().display().to_string();
    let revoked = Acme::new(&copy, &pebble)
        .with_options(&["--ca-file", &root])
        .run(&["forget", OTHER, "--revoke"])?;
    ensure!(revoked.status == Some(0), "{revoked:?}");
    edit_record(&acme, OTHER, |record| record["ari_asked"] = Value::Null)?;
    is_done(&acme.run(&["renew", OTHER])?, OTHER, "renewed")?;

    let forgotten = acme.with_options(&[]).run(&["forget", NAME])?;
    ensure!(
        forgotten.status == Some(0) && acme.status(NAME)?["state"] == "missing",
        "{forgotten:?}"
    );
    ensure!(!acme.path("certificates").join(NAME).exists());
    let names = acme.with_options(&[]).run(&["status"])?;
    assert_eq!(names.events.len(), 2);

    for _ in 0..2 {
        let ended = acme.run(&["deactivate"])?;
        ensure!(
            ended.status == Some(0) && fs::read_dir(acme.path("accounts"))?.next().is_none(),
            "{ended:?}"
        );
    }
    let anew = acme.run(&["issue", NAME])?;
    is_done(&anew, NAME, "issued")?;
    assert_eq!(anew.of("account")[0]["created"], true);
    Ok(())
}

#[test]
fn a_name_that_fails_says_why_waits_and_takes_no_other_down() -> Result<()> {
    let directory = TestDir::new()?;
    let (mut pebble, acme) = start(&directory, Settings::default())?;
    pebble.break_dns("dns.example.org")?;
    pebble.point_elsewhere("away.example.org")?;
    pebble.hide("hidden.example.org");
    let names = [
        "dns.example.org",
        "away.example.org",
        "hidden.example.org",
        Pebble::BLOCKED,
        NAME,
    ];
    let run = acme.run(&[&["renew"][..], &names].concat())?;
    assert_eq!(run.status, Some(1));
    let failed = |kind: &str| ("failed".to_owned(), kind.to_owned());
    for (name, kind) in [
        ("away.example.org", "connection"),
        ("hidden.example.org", "unauthorized"),
        (Pebble::BLOCKED, "rejected_identifier"),
    ] {
        assert_eq!(run.outcome(name)?, failed(kind), "{run:?}");
        let error = &run.result(name)?["error"];
        ensure!(
            error["acme_type"]
                .as_str()
                .is_some_and(|it| it.starts_with("urn:ietf:params:acme:error:")),
            "{error}"
        );
        ensure!(error["hint"].as_str().is_some_and(|hint| !hint.is_empty()), "{error}");
    }
    let dns = run.outcome("dns.example.org")?;
    ensure!(dns == failed("dns") || dns == failed("connection"), "{run:?}");
    assert_eq!(run.outcome(NAME)?.0, "issued");
    consistent(&acme, NAME)?;

    // The timer waits; a person need not.
    pebble.show("hidden.example.org");
    let paused = acme.run(&["renew", "hidden.example.org"])?;
    assert_eq!(paused.outcome("hidden.example.org")?.0, "paused");
    assert_eq!(paused.status, Some(1), "there is no certificate");
    let status = acme.status("hidden.example.org")?;
    ensure!(status["attempts"] == 1 && status["next"]["why"] == "retry", "{status}");
    is_done(
        &acme.run(&["issue", "hidden.example.org"])?,
        "hidden.example.org",
        "issued",
    )?;
    assert_eq!(acme.status("hidden.example.org")?["attempts"], 0);

    // An answer that is not served costs no validation: the order can be continued.
    pebble.hide(OTHER);
    let web = pebble.web_address().to_string();
    let unserved = acme.run(&["issue", OTHER, "--self-check", &web])?;
    assert_eq!(unserved.outcome(OTHER)?, failed("not_served"));
    pebble.show(OTHER);
    is_done(&acme.run(&["issue", OTHER, "--self-check", &web])?, OTHER, "issued")?;

    // Neither an unknown profile nor an authority that is not trusted, not there, or has forgotten the account.
    let profile = acme.run(&["issue", NAME, "--profile", "gold"])?;
    assert_eq!(profile.outcome(NAME)?, failed("profile"));
    let untrusted = acme
        .with_options(&["--directory", &pebble.url()])
        .run(&["issue", NAME, "--force"])?;
    assert_eq!(untrusted.outcome(NAME)?, failed("tls"));
    pebble.stop();
    let absent = acme.run(&["issue", NAME, OTHER, "--force"])?;
    assert_eq!(
        (absent.outcome(NAME)?, absent.outcome(OTHER)?),
        (failed("network"), failed("network"))
    );
    let before = consistent(&acme, NAME)?;
    pebble.start()?;
    let anew = acme.run(&["renew", NAME, "--force"])?;
    is_done(&anew, NAME, "renewed")?;
    ensure!(consistent(&acme, NAME)? != before);

    let none = acme
        .with_options(&["--directory", &pebble.url(), "--ca-file", "/nonexistent"])
        .run(&["renew", NAME])?;
    assert_eq!((none.status, none.events.len()), (Some(78), 0));
    Ok(())
}

#[test]
fn whatever_kills_it_the_old_certificate_or_the_new_one_is_in_place() -> Result<()> {
    let directory = TestDir::new()?;
    let (_pebble, acme) = start(&directory, Settings::default())?;
    for first in ["account", "order"] {
        let killed = acme.run_until(&["issue", NAME], |event| {
            event["event"] == first || event["step"] == first
        })?;
        ensure!(
            killed.status.is_none() && acme.status(NAME)?["state"] == "missing",
            "{killed:?}"
        );
    }
    is_done(&acme.run(&["renew", NAME])?, NAME, "issued")?;

    for step in STEPS {
        let before = consistent(&acme, NAME)?;
        let killed = acme.run_until(&["renew", NAME, "--force"], |event| event["step"] == step)?;
        ensure!(killed.status.is_none(), "it was not killed: {killed:?}");
        // Before the last step, the kill may come a moment too late.
        let after = consistent(&acme, NAME)?;
        ensure!(
            after != before || step != "stored",
            "the new certificate is not in place"
        );
        let next = acme.run(&["renew", NAME])?;
        // What the killed run did not finish is not due, so the next one leaves it alone.
        is_done(&next, NAME, "kept")?;
        assert_eq!(
            next.of("end")[0]["reload"],
            serde_json::json!([format!("{NAME}={after}")])
        );
        ensure!(
            fs::read_dir(acme.path("challenges"))?.next().is_none(),
            "an answer is left"
        );
    }

    // The kernel kills it while it writes the chain, which is longer than the 1024 bytes that are allowed.
    let script = "ulimit -f 1; exec \"$0\" \"$@\"";
    let killed = acme.run_with(&["bash", "-c", script], &["issue", OTHER])?;
    ensure!(killed.status.is_none() && steps(&killed) == STEPS[..4], "{killed:?}");
    ensure!(acme.status(OTHER)?["state"] == "missing");
    // The order is continued with its key: the authority issues no second certificate.
    let key = fs::read_to_string(acme.path("pending").join(OTHER).join("privkey.pem"))?;
    let continued = acme.run(&["renew", OTHER])?;
    is_done(&continued, OTHER, "issued")?;
    assert_eq!(fs::read_to_string(files(&acme, OTHER).1)?, key);
    assert_eq!(steps(&continued), ["order", "finalization", "stored"]);
    Ok(())
}

#[test]
fn short_certificates_are_renewed_and_only_one_run_works_at_a_time() -> Result<()> {
    let directory = TestDir::new()?;
    let settings = Settings {
        lifetime: 6,
        eab: true,
        ..Settings::default()
    };
    let (_pebble, acme) = start(&directory, settings)?;
    let without = acme.run(&["issue", NAME])?;
    assert_eq!(without.outcome(NAME)?, ("failed".to_owned(), "eab_required".to_owned()));
    let key = directory.path("eab.key");
    fs::write(&key, format!("{}\n", Pebble::EAB_KEY))?;
    let acme = acme.and(&["--eab-kid", "kid-1", "--eab-key-file", &key.display().to_string()]);
    let first = acme.run(&["issue", NAME])?;
    is_done(&first, NAME, "issued")?;

    // It is due before it expires, and after it has expired.
    eventually("the certificate is renewed in time", TIMEOUT, || {
        let run = acme.run(&["renew", NAME])?;
        let outcome = run.outcome(NAME)?.0;
        ensure!(outcome == "kept" || outcome == "renewed", "{run:?}");
        Ok((outcome == "renewed").then_some(()))
    })?;
    eventually("the certificate has expired", TIMEOUT, || {
        Ok((acme.status(NAME)?["state"] == "expired").then_some(()))
    })?;
    assert_eq!(acme.status(NAME)?["next"]["why"], "expired");
    is_done(&acme.run(&["renew", NAME])?, NAME, "renewed")?;

    let lock = fs::File::open(acme.path("lock"))?;
    let _held = Flock::lock(lock, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| error)?;
    let busy = acme.run(&["renew", NAME])?;
    assert_eq!((busy.status, busy.events.len()), (Some(75), 0));
    Ok(())
}
