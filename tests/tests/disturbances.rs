//! Disturbances on the host: nginx restarts, log rotation, slow clients, a full disk, a clock that is set back.

use std::io::{self, Read as _, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use links_tests::http::Client;
use links_tests::load::Outcome;
use links_tests::{Events, Fault, Host, Stream, Traffic, eventually, verify, wording};

const DEADLINE: Duration = Duration::from_secs(30);

#[test]
fn killing_the_agent_loses_no_request() -> Result<()> {
    let host = Host::builder().serving()?;
    let traffic = Traffic::start(&host, "agent")?;
    let before = host.invocation_ids(2)?;
    let agent = host.main_pid("links")?;
    traffic.during("killed", || {
        host.ok(["kill", "-KILL", &agent.to_string()])?;
        eventually("a new agent runs", DEADLINE, || {
            let now = host.main_pid("links")?;
            Ok((now != 0 && now != agent).then_some(()))
        })?;
        host.wait_for_status("2/2").map(drop)
    })?;
    assert_eq!(
        host.invocation_ids(2)?,
        before,
        "the instances should not have restarted"
    );
    traffic.finish(&host)?;
    Ok(())
}

#[test]
fn logrotate_loses_no_request() -> Result<()> {
    let host = Host::builder().packages(&["logrotate"]).serving()?;
    // Requests for links are logged in a journal that logrotate does not touch, but nginx reopens all of its logs.
    let log = || -> Result<String> { Ok(host.ok(["stat", "--format=%i", "/var/log/nginx/error.log"])?.stdout) };
    let open = "stat --dereference --format=%i /proc/$(cat /run/nginx.pid)/fd/*";
    let traffic = Traffic::start(&host, "logrotate")?;
    for _ in 0..3 {
        // logrotate skips an empty log.
        host.shell("echo >>/var/log/nginx/error.log")?;
        let before = log()?;
        traffic.during("logrotate", || {
            host.ok(["logrotate", "--force", "/etc/logrotate.d/nginx"])
        })?;
        let after = log()?;
        ensure!(after != before, "the log was not rotated");
        eventually("nginx has the new log open", Duration::from_secs(10), || {
            let inodes = host.run(["bash", "-c", open])?.stdout;
            Ok(inodes.lines().any(|inode| inode == after.trim()).then_some(()))
        })?;
    }
    traffic.finish(&host)?;
    Ok(())
}

#[test]
fn a_restart_of_nginx_loses_only_requests_while_it_is_down() -> Result<()> {
    let host = Host::builder().serving()?;
    let before = host.invocation_ids(2)?;
    let traffic = Traffic::start(&host, "nginx")?;
    for _ in 0..3 {
        let failed = traffic.failed();
        let begin = Instant::now();
        // `during` returns only after further requests. The time below includes them.
        traffic.during("restart", || host.ok(["systemctl", "restart", "nginx"]))?;
        let down = traffic.failed();
        println!(
            "{} requests failed; nginx served again after {:.2} s",
            down - failed,
            begin.elapsed().as_secs_f64()
        );
        traffic.wait_for(2_000)?;
        assert_eq!(traffic.failed(), down, "requests failed although nginx is up");
    }
    assert_eq!(
        host.invocation_ids(2)?,
        before,
        "the instances should not have restarted"
    );

    let report = traffic.stop()?;
    assert_eq!(
        report.failed(),
        report.of(Outcome::Refused) + report.of(Outcome::Reset),
        "only refused and reset connections may fail: {report}"
    );
    verify(&host, "nginx", &report)
}

#[test]
fn a_slow_client_is_answered_across_a_restart() -> Result<()> {
    let host = Host::builder().serving()?;
    let traffic = Traffic::start(&host, "slow")?;
    let mut slow = SlowClient::connect(&host.site()?)?;
    thread::scope(|scope| {
        let restart = scope.spawn(|| traffic.during("restart", || host.ok(["linksctl", "restart"])));
        slow.drip_until(|_| restart.is_finished())?;
        restart.join().ok().context("the thread panicked")?
    })?;
    slow.is_acknowledged()?;
    traffic.finish(&host)?;
    Ok(())
}

#[test]
fn a_drain_waits_for_a_slow_client() -> Result<()> {
    let host = Host::builder().serving()?;
    let traffic = Traffic::start(&host, "drain")?;
    let mut slow = SlowClient::connect(&host.instance(1)?)?;
    let logged_before = host.journal("links@1")?.len();
    let enough = Duration::from_secs(3);
    thread::scope(|scope| {
        let restart = scope.spawn(|| {
            traffic.during("restart", || {
                host.restarted(|| host.ok(["systemctl", "restart", "links@1"]))
            })
        });
        eventually("instance 1 drains", Duration::from_secs(10), || {
            Ok((!host.in_rotation()?.contains(&1)).then_some(()))
        })?;
        slow.drip_until(|taken| taken >= enough)?;
        slow.is_acknowledged()?;
        restart.join().ok().context("the thread panicked")?
    })?;
    let journal = host.journal("links@1")?;
    let logged = &journal[logged_before..];
    let seconds = wording::drained_in(logged).with_context(|| logged.to_owned())?;
    ensure!(seconds > enough.as_secs_f64(), "{logged}");
    println!("drained in {seconds} s");
    traffic.finish(&host)?;
    Ok(())
}

#[test]
fn a_drain_ends_at_its_deadline() -> Result<()> {
    let host = Host::builder().links_toml("[drain]\ntimeout = \"2s\"\n").serving()?;
    let traffic = Traffic::start(&host, "deadline")?;
    let logged_before = host.journal("links@1")?.len();
    let mut slow = SlowClient::connect(&host.instance(1)?)?;
    let cut = thread::scope(|scope| {
        let begin = Instant::now();
        let restart = scope.spawn(|| {
            traffic.during("restart", || {
                host.restarted(|| host.ok(["systemctl", "restart", "links@1"]))
            })
        });
        slow.is_cut_off()?;
        let cut = begin.elapsed();
        restart.join().ok().context("the thread panicked")??;
        anyhow::Ok(cut)
    })?;
    println!("cut off after {:.2} s", cut.as_secs_f64());
    // The default deadline is 30 s. The upper bound allows for a busy machine.
    ensure!(
        Duration::from_secs(2) <= cut && cut < Duration::from_secs(15),
        "cut off after {cut:?}"
    );
    let journal = host.journal("links@1")?;
    let logged = &journal[logged_before..];
    ensure!(
        logged.contains("drain.timeout") && logged.contains("1 connection"),
        "the log should name the setting and the number of connections: {logged}"
    );
    traffic.finish(&host)?;
    Ok(())
}

#[test]
fn a_release_that_does_not_fit_on_the_disk_changes_nothing_until_there_is_space() -> Result<()> {
    let host = Host::builder().serving()?;
    let (first, next) = (host.version()?, host.later_version(1)?);
    let bundle = host.bundle(&next, None)?;
    // The store gets a file system of its own, with the running release and space for another.
    host.ok(["systemctl", "stop", "links"])?;
    host.wait_until_stopped()?;
    host.shell(
        "used=$(du --summarize --block-size=1 /var/lib/links/releases | cut --fields 1)
        mount -t tmpfs -o size=$((3 * used)),mode=755 tmpfs /mnt
        cp --archive /var/lib/links/releases/. /mnt
        mount --bind /mnt /var/lib/links/releases
        systemctl start links",
    )?;
    host.wait_for_rotation(2)?;
    let free = "df --output=avail --block-size=1 /var/lib/links/releases | tail -1";
    host.shell(&format!("fallocate --length $(($({free}) - (4 << 20))) /mnt/ballast"))?;
    let content = || host.ok(["ls", "--almost-all", "/var/lib/links/releases"]);
    let before = (content()?.stdout, host.invocation_ids(2)?);

    let traffic = Traffic::start(&host, "full")?;
    let rollout = || traffic.during("rollout", || host.run(["linksctl", "rollout", "--release", &bundle]));
    let failed = rollout()?;
    assert_eq!(failed.status, 1, "{failed}");
    ensure!(
        failed
            .stderr
            .contains("/var/lib/links/releases: No space left on device"),
        "{failed}"
    );
    assert_eq!((content()?.stdout, host.invocation_ids(2)?), before, "{failed}");
    host.runs_version(first)?;

    host.ok(["rm", "/mnt/ballast"])?;
    let succeeded = rollout()?;
    assert_eq!(succeeded.status, 0, "{succeeded}");
    host.wait_for_rotation(2)?;
    host.runs_version(&next)?;
    traffic.finish(&host)?;
    Ok(())
}

#[test]
fn setting_the_clock_back_by_an_hour_does_not_disturb_rollouts() -> Result<()> {
    let host = Host::builder().packages(&["libfaketime"]).serving()?;
    // The machine shares the clock of this computer, so only the clock of one command is set.
    let clock = "/var/tmp/clock";
    let with_clock = [
        "env",
        "LD_PRELOAD=/usr/$LIB/faketime/libfaketime.so.1",
        &format!("FAKETIME_TIMESTAMP_FILE={clock}"),
        "FAKETIME_NO_CACHE=1",
        "FAKETIME_DONT_FAKE_MONOTONIC=1",
    ];
    host.write(clock, "+1h\n")?;
    let time = |date: &[&str]| -> Result<u64> { Ok(host.ok(date)?.stdout.trim().parse()?) };
    let ahead = time(&[&with_clock[..], &["date", "+%s"]].concat())? - time(&["date", "+%s"])?;
    // The real time is read second, so it can only make the difference smaller.
    ensure!(
        (3590..=3600).contains(&ahead),
        "the command's clock is {ahead} s ahead, not an hour"
    );

    let traffic = Traffic::start(&host, "clock")?;
    let rollout = |fault| {
        let bundle = host.bundle(&host.later_version(1)?, fault)?;
        let command = [&with_clock[..], &["linksctl", "rollout", "--release", &bundle]].concat();
        host.write(clock, "+1h\n")?;
        let begin = Instant::now();
        let output = traffic.during("rollout", || {
            thread::scope(|scope| {
                let rollout = scope.spawn(|| host.run(&command));
                eventually("an instance is being restarted", Duration::from_secs(20), || {
                    Ok((host.in_rotation()?.len() < 2).then_some(()))
                })?;
                host.write(clock, "+0\n")?;
                rollout.join().ok().context("the thread panicked")?
            })
        })?;
        println!("{fault:?}: {:.1} s", begin.elapsed().as_secs_f64());
        host.wait_for_rotation(2)?;
        anyhow::Ok(output)
    };

    let failed = rollout(Some(Fault::Exits))?;
    assert_ne!(failed.status, 0, "{failed}");
    ensure!(
        failed.stderr.contains("this is its last log line"),
        "the error should quote the journal of the unit: {failed}"
    );
    host.runs_version(host.version()?)?;

    let succeeded = rollout(None)?;
    assert_eq!(succeeded.status, 0, "{succeeded}");
    host.runs_version(&host.later_version(1)?)?;
    traffic.finish(&host)?;
    Ok(())
}

#[test]
fn a_rollout_of_the_only_instance_warns_and_interrupts_service_briefly() -> Result<()> {
    let host = Host::builder().serving()?;
    let link = host.shorten("https://example.com/alone")?;
    let bundle = host.bundle(&host.later_version(1)?, None)?;
    host.ok(["linksctl", "scale", "1"])?;
    host.wait_for_rotation(1)?;
    // Deletes the compiled components, so that the next start has to compile them.
    let forget = || host.ok(["find", "/var/cache/links", "/run/links/edge", "-type", "f", "-delete"]);
    forget()?;
    let begin = Instant::now();
    host.restarted_of(1, || host.ok(["systemctl", "restart", "links@1"]))?;
    let cold = begin.elapsed();
    forget()?;

    let done = AtomicBool::new(false);
    let (gap, rollout) = thread::scope(|scope| {
        let client = scope.spawn(|| {
            let (mut last, mut longest) = (Instant::now(), Duration::ZERO);
            while !done.load(Ordering::Relaxed) {
                if host.follow(&link).is_ok() {
                    longest = longest.max(last.elapsed());
                    last = Instant::now();
                }
            }
            longest
        });
        let rollout = host.run(["linksctl", "rollout", "--json", "--release", &bundle]);
        done.store(true, Ordering::Relaxed);
        let gap = client.join().ok().context("the thread panicked")?;
        anyhow::Ok((gap, rollout?))
    })?;
    println!("service was interrupted for {:.2} s", gap.as_secs_f64());
    assert_eq!(rollout.status, 0, "{rollout}");
    // The plan, which comes before everything else, warns.
    let events = Events::of(&rollout)?;
    let planned = events.first("planned")?;
    ensure!(planned["interrupts"] == true, "{rollout}");
    let (planned, restart) = (events.position("planned"), events.step("restart", 1));
    ensure!(planned.is_some() && planned < restart, "{rollout}");
    // The interruption may take as long as a restart on this machine, but not as long as the whole rollout.
    ensure!(
        gap < cold * 2 + Duration::from_secs(1),
        "service was interrupted for {gap:?}; a restart takes {cold:?}"
    );
    host.follow(&link)
}

#[test]
fn a_release_that_fails_on_the_last_of_five_instances_is_undone_and_no_request_fails() -> Result<()> {
    let host = Host::builder()
        .links_toml("[rollout]\nmin_healthy = \"200ms\"\n")
        .serving()?;
    host.ok(["linksctl", "scale", "5"])?;
    host.wait_for_rotation(5)?;
    let before = host.running_releases(5)?;
    let bundle = host.bundle(&host.later_version(1)?, Some(Fault::Instance(5)))?;
    let traffic = Traffic::start(&host, "five")?;
    let rollout = ["linksctl", "rollout", "--json", "--release", &bundle];
    let failed = traffic.during("rollout", || host.run(rollout))?;
    assert_ne!(failed.status, 0, "{failed}");
    let events = Events::of(&failed)?;
    ensure!(events.first("failed")?["instance"] == 5, "{failed}");
    ensure!(events.position("failed") < events.position("undo"), "{failed}");
    ensure!(failed.stderr.contains(wording::UNDONE), "{failed}");
    host.wait_for_rotation(5)?;
    assert_eq!(host.running_releases(5)?, before, "{failed}");
    traffic.finish(&host)?;
    Ok(())
}

#[test]
fn needrestart_leaves_the_instances_alone() -> Result<()> {
    let host = Host::builder().packages(&["needrestart"]).serving()?;
    // Replaces a library as an upgrade does. Programs in C do not load this one.
    host.shell("cd \"$(dirname \"$(ldconfig -p | awk '/libgcc_s.so.1/ { print $NF; exit }')\")\"; cp --archive libgcc_s.so.1 new; mv new libgcc_s.so.1")?;
    let listed = |units: &[&str]| -> Result<bool> {
        let list = host.ok(["needrestart", "-b", "-l"])?.stdout;
        println!("{list}");
        Ok(units
            .iter()
            .all(|unit| list.contains(&format!("NEEDRESTART-SVC: {unit}.service"))))
    };
    let ours = "/etc/needrestart/conf.d/links.conf";
    host.ok(["mv", ours, "/var/tmp/"])?;
    ensure!(
        listed(&["links", "links@1", "links@2"])?,
        "without its configuration, needrestart should list the units of links"
    );
    host.ok(["mv", "/var/tmp/links.conf", ours])?;

    let before = (host.invocation_ids(2)?, host.main_pid("links")?);
    let traffic = Traffic::start(&host, "needrestart")?;
    let output = traffic.during("needrestart", || host.ok(["needrestart", "-r", "a", "-l", "-v"]))?;
    println!("{output}");
    assert_eq!((host.invocation_ids(2)?, host.main_pid("links")?), before, "{output}");
    // `linksctl restart` is the way to load the new library.
    traffic.during("restart", || host.restarted(|| host.ok(["linksctl", "restart"])))?;
    traffic.finish(&host)?;
    Ok(())
}

/// A client in the middle of a POST.
struct SlowClient {
    stream: Stream,
    unsent: Vec<u8>,
}

impl SlowClient {
    /// The pause between two bytes.
    const PACE: Duration = Duration::from_millis(250);
    /// The number of spaces before the JSON in the body: enough for half a minute.
    const SPACES: usize = 120;

    /// Sends the head and the first byte of the body.
    fn connect(client: &Client) -> Result<Self> {
        let mut stream = client.stream()?;
        stream.set_read_timeout(Duration::from_secs(20))?;
        let body = " ".repeat(Self::SPACES) + r#"{"url":"http://slow.example"}"#;
        let head = format!(
            "POST /shorten HTTP/1.1\r\n{}content-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
            client.header_lines(),
            body.len()
        );
        let (first, unsent) = body.split_at(1);
        stream.write_all((head + first).as_bytes())?;
        Ok(Self {
            stream,
            unsent: unsent.into(),
        })
    }

    /// Sends byte by byte until `may_end` returns true for the time since the start, then sends the rest.
    fn drip_until(&mut self, may_end: impl Fn(Duration) -> bool) -> Result<()> {
        let begin = Instant::now();
        let mut sent = 0;
        while !may_end(begin.elapsed()) {
            ensure!(sent < Self::SPACES - 1, "no spaces are left to send slowly");
            // The slowness is the point of the test.
            thread::sleep(Self::PACE);
            self.stream.write_all(&self.unsent[sent..=sent])?;
            sent += 1;
        }
        self.stream.write_all(&self.unsent[sent..])?;
        Ok(())
    }

    fn is_acknowledged(&mut self) -> Result<()> {
        let answer = io::read_to_string(&mut self.stream)?;
        ensure!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        Ok(())
    }

    fn is_cut_off(&mut self) -> Result<()> {
        match self.stream.read(&mut [0; 512]) {
            Ok(0) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(()),
            other => bail!("expected the end of the stream or a reset, got {other:?}"),
        }
    }
}
