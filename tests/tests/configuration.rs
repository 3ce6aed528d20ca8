//! The files of the configuration: what the package, people and programs write, in upgrades, downgrades and a purge.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use links_tests::{Artifacts, Check, DEB, Host, LINKS_TOML, RELEASED, RELEASED_DEB, RUNTIME_TOML};
use serde_json::Value;

/// The file that `linksctl scale` writes.
const INSTANCES_TOML: &str = "/etc/links/links.toml.d/instances.toml";
/// EX_CONFIG of sysexits.h.
const WRONG_CONFIGURATION: i32 = 78;

#[test]
fn an_edited_and_scaled_configuration_survives_upgrades_and_downgrades_without_a_question() -> Result<()> {
    let host = Host::builder().first_release(RELEASED).serving()?;
    host.ok(["linksctl", "scale", "3"])?;
    host.shell(&format!(
        "sed -i 's/^#min_healthy = .*/min_healthy = \"1s\" # mine/' {LINKS_TOML}
        grep --quiet '# mine' {LINKS_TOML}
        systemctl reload links"
    ))?;
    host.wait_for_rotation(3)?;
    let edited = host.read(LINKS_TOML)?;

    install(&host, DEB, host.version()?, 3).context("the upgrade")?;
    assert_eq!(host.read(LINKS_TOML)?, edited);
    nothing_is_left_to_decide(&host)?;

    files_in_links_toml_d_extend_links_toml(&host).context("links.toml.d")?;
    scale_writes_a_file_of_its_own(&host, 4).context("scale")?;
    assert_eq!(host.read(LINKS_TOML)?, edited);
    programs_have_changed_no_conffile(&host)?;

    install(&host, RELEASED_DEB, RELEASED, 4).context("the downgrade")?;
    nothing_is_left_to_decide(&host)?;
    let folded = host.read(LINKS_TOML)?;
    for part in [
        "\ninstances = 4\n",
        "\nmin_healthy = \"1s\" # mine\n",
        "\ntimeout = \"7s\"\n",
        "\nstart_timeout = \"90s\"\n",
    ] {
        ensure!(folded.contains(part), "{part:?} should be in {folded}");
    }
    assert_eq!(host.read(&format!("{LINKS_TOML}.before-downgrade"))?, edited);
    // Version 0.1.0 applies the settings that it reads.
    host.shell(&format!(
        "sed -i 's/^instances = 4/instances = 2/' {LINKS_TOML}; systemctl reload links"
    ))?;
    host.wait_for_rotation(2)?;
    host.ok(["linksctl", "check"])?;

    install(&host, DEB, host.version()?, 2).context("the second upgrade")?;
    assert!(applied(&host)?.contains("drain.timeout = \"7s\"\n"));
    host.ok(["apt-get", "--yes", "purge", "links-shortener"])?;
    ensure!(!host.exists("/etc/links")?, "purge should remove the configuration");
    Ok(())
}

#[test]
fn a_new_installation_has_a_small_links_toml_that_a_downgrade_keeps_too() -> Result<()> {
    let host = Host::builder().uninstalled()?;
    let before = host.inventory()?;
    host.apt_install()?;
    host.wait_for_rotation(2)?;
    let shipped = host.read(LINKS_TOML)?;
    ensure!(
        shipped.lines().count() < 10 && shipped.lines().all(|line| line.starts_with('#')),
        "{shipped}"
    );
    // It names the documentation, which exists.
    let example = shipped
        .split_whitespace()
        .find(|word| word.starts_with("/usr/share/doc/"))
        .context("links.toml names its example")?;
    host.shell(&format!(
        "cp {example} {LINKS_TOML}; linksctl check; zgrep --quiet 'SH KEYS' /usr/share/man/man5/links.toml.5.gz"
    ))?;
    let conffiles = host
        .ok(["dpkg-query", "--show", "--showformat=${Conffiles}", "links-shortener"])?
        .stdout;
    ensure!(
        conffiles.contains(RUNTIME_TOML) && !conffiles.contains(LINKS_TOML),
        "{conffiles}"
    );

    // A symbolic link to the file is fine too.
    let mine = "# mine\n[drain]\ntimeout = \"7s\"\n";
    host.write("/etc/links/mine.toml", mine)?;
    host.shell(&format!("ln --symbolic --force mine.toml {LINKS_TOML}"))?;
    scale_writes_a_file_of_its_own(&host, 3)?;
    host.copy_in(&Artifacts::released(RELEASED)?, RELEASED_DEB)?;
    install(&host, RELEASED_DEB, RELEASED, 3).context("the downgrade")?;
    nothing_is_left_to_decide(&host)?;
    let folded = host.read("/etc/links/mine.toml")?;
    ensure!(
        folded.contains("# mine\n") && folded.contains("instances = 3\n") && folded.contains("timeout = \"7s\"\n"),
        "{folded}"
    );
    host.ok(["test", "-L", LINKS_TOML])?;

    install(&host, DEB, host.version()?, 3).context("the upgrade")?;
    assert_eq!(host.read(LINKS_TOML)?, folded);
    host.ok(["apt-get", "--yes", "purge", "links-shortener"])?;
    let left: Vec<_> = before.symmetric_difference(&host.inventory()?).cloned().collect();
    assert_eq!(left, Vec::<String>::new());
    Ok(())
}

/// Installs this version, and checks that dpkg asks nothing and that `count` instances run it afterwards.
fn install(host: &Host, deb: &str, version: &str, count: u16) -> Result<()> {
    let output = host.apt_install_any(deb)?;
    ensure!(output.status == 0, "{output}");
    ensure!(
        !output.stdout.contains("Configuration file"),
        "dpkg asked about a conffile: {output}"
    );
    ensure!(host.package_state()? == "installed", "{output}");
    host.wait_for_rotation(count)?;
    let releases = host.running_releases(count)?;
    ensure!(
        host.in_rotation()?.len() == usize::from(count)
            && releases
                .iter()
                .all(|release| release.starts_with(&format!("{version}-"))),
        "{count} instances should run {version}, not {releases:?}: {output}"
    );
    Ok(())
}

/// Checks that there is no other version of a configuration file that somebody would have to look at.
fn nothing_is_left_to_decide(host: &Host) -> Result<()> {
    let files = host.ok(["find", "/etc/links", "/etc/needrestart", "-name", "*.dpkg-*"])?;
    ensure!(files.stdout.is_empty(), "{files}");
    Ok(())
}

/// Checks that the conffiles of the package are as they were installed.
fn programs_have_changed_no_conffile(host: &Host) -> Result<()> {
    // dpkg keeps the record of links.toml, which was a conffile in version 0.1.0 and belongs to the administrator now.
    let verified = host.run(["dpkg", "--verify", "links-shortener"])?;
    let changed: Vec<_> = verified
        .stdout
        .lines()
        .filter(|line| !line.ends_with(LINKS_TOML))
        .collect();
    ensure!(changed.is_empty(), "{verified}");
    Ok(())
}

/// The settings with which instance 1 was started.
fn applied(host: &Host) -> Result<String> {
    host.read("/var/lib/links/instances/1.config/links.toml")
}

fn files_in_links_toml_d_extend_links_toml(host: &Host) -> Result<()> {
    let directory = "/etc/links/links.toml.d";
    host.write(
        &format!("{directory}/10-mine.toml"),
        "[health]\nstart_timeout = \"1m30s\"\n[drain]\ntimeout = \"5s\"\n",
    )?;
    host.write(&format!("{directory}/20-mine.toml"), "drain.timeout = \"7s\"\n")?;
    let ignored = [".10-mine.toml", "10-mine.toml~", "10-mine.toml.dpkg-old", "README"];
    let ignored = ignored.map(|name| format!("{directory}/{name}"));
    for path in &ignored {
        host.write(path, "not TOML")?;
    }
    host.ok(["systemctl", "reload", "links"])?;
    host.wait_for_rotation(3)?;
    let settings = applied(host)?;
    ensure!(
        settings.contains("drain.timeout = \"7s\"\n") && settings.contains("instances = 3\n"),
        "{settings}"
    );

    let wrong = format!("{directory}/30-wrong.toml");
    host.write(&wrong, "\ninstnaces = 2\n")?;
    let check = Check::of(&host.run(["linksctl", "check", "--json"])?)?;
    let errors: Vec<_> = check
        .findings
        .iter()
        .filter(|finding| finding.severity == "error")
        .collect();
    ensure!(
        check.status == WRONG_CONFIGURATION
            && errors.len() == 1
            && errors[0].file == wrong
            && (errors[0].line, errors[0].column) == (Some(2), Some(1)),
        "{check:?}"
    );
    assert_eq!(host.run(["linksctl", "rollout"])?.status, WRONG_CONFIGURATION);
    assert_eq!(applied(host)?, settings);
    host.ok(["rm".to_owned(), wrong].into_iter().chain(ignored))?;
    host.ok(["linksctl", "check"])?;
    Ok(())
}

fn scale_writes_a_file_of_its_own(host: &Host, count: u16) -> Result<()> {
    let before = host.read(LINKS_TOML)?;
    host.ok(["linksctl", "scale", &count.to_string()])?;
    host.wait_for_rotation(count)?;
    assert_eq!(host.read(LINKS_TOML)?, before);
    let written = host.read(INSTANCES_TOML)?;
    ensure!(
        written.starts_with("# Written by `linksctl scale`") && written.ends_with(&format!("\ninstances = {count}\n")),
        "{written}"
    );
    let check: Value = host.ok(["linksctl", "check", "--json"])?.json()?;
    let overrides = check["overrides"].as_array().context("overrides")?;
    let replaced: BTreeSet<_> = overrides
        .iter()
        .filter(|one| one["key"] == "instances" && one["position"]["file"] == INSTANCES_TOML)
        .filter_map(|one| one["replaced"]["file"].as_str())
        .collect();
    let expected = if before.contains("\ninstances = ") {
        vec![LINKS_TOML]
    } else {
        vec![]
    };
    assert_eq!(replaced.into_iter().collect::<Vec<_>>(), expected, "{check}");

    // A file that is read later would win, so nothing is changed.
    let later = "/etc/links/links.toml.d/z.toml";
    host.write(later, format!("instances = {count}\n"))?;
    let refused = host.run(["linksctl", "scale", "1"])?;
    ensure!(
        refused.status == 1 && refused.stderr.contains(&format!("{later}:1:13")),
        "{refused}"
    );
    assert_eq!(host.read(INSTANCES_TOML)?, written);
    assert_eq!(host.in_rotation()?.len(), usize::from(count));
    host.ok(["rm", later])?;
    Ok(())
}
