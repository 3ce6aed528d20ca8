//! The scripts that make a release: which commits they refuse, and what they sign.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;

/// The path of a script of this repository.
fn script(name: &str) -> String {
    format!("{}/../.ci/{name}", env!("CARGO_MANIFEST_DIR"))
}

fn output(command: &mut Command) -> Result<Output> {
    command.output().with_context(|| format!("Starting {command:?}"))
}

fn ok(command: &mut Command) -> Result<String> {
    let output = output(command)?;
    ensure!(output.status.success(), "{command:?}: {output:?}");
    Ok(String::from_utf8(output.stdout)?)
}

/// A repository with nothing but the files that a release is checked by, in one commit.
struct Sources(TempDir);

impl Sources {
    fn new() -> Result<Self> {
        let sources = Self(tempfile::tempdir()?);
        sources.write(
            "Cargo.toml",
            "[workspace.package]\nversion = \"1.2.0\"\nedition = \"2024\"\n",
        )?;
        sources.write(
            "CHANGELOG.md",
            "# Changelog\n\n## 1.2.0 - 2026-11-28\n\n- New.\n\n## 1.1.0 - 2026-11-22\n\n- Old.\n",
        )?;
        sources.write(".gitignore", "/target/\n")?;
        fs::create_dir(sources.0.path().join(".ci"))?;
        for name in ["release", "newest-release", "packages", "sums"] {
            fs::copy(script(name), sources.0.path().join(".ci").join(name))?;
        }
        sources.git(&["init", "--quiet"])?;
        sources.commit()?;
        Ok(sources)
    }

    fn write(&self, name: &str, text: &str) -> Result<()> {
        fs::write(self.0.path().join(name), text).with_context(|| format!("Writing {name}"))
    }

    fn git(&self, arguments: &[&str]) -> Result<String> {
        let mut git = Command::new("git");
        git.args(["-c", "user.name=Tests", "-c", "user.email=tests@links.invalid"]);
        git.env("GIT_CONFIG_GLOBAL", "/dev/null").current_dir(self.0.path());
        ok(git.args(arguments))
    }

    fn commit(&self) -> Result<()> {
        self.git(&["add", "--all"])?;
        self.git(&["commit", "--quiet", "--message=Change"]).map(drop)
    }

    fn check(&self) -> Result<Output> {
        output(Command::new(self.0.path().join(".ci/release")).arg("--check"))
    }

    /// Checks that the commit is refused, and that the reason names `what`.
    fn refuses(&self, what: &str) -> Result<()> {
        let refused = self.check()?;
        let reason = String::from_utf8_lossy(&refused.stderr);
        ensure!(
            !refused.status.success() && reason.contains(what),
            "{what}: {refused:?}"
        );
        Ok(())
    }
}

#[test]
fn only_a_clean_commit_with_one_version_is_released() -> Result<()> {
    let sources = Sources::new()?;
    ensure!(sources.check()?.status.success(), "{:?}", sources.check()?);
    sources.git(&["tag", "v1.1.0"])?;
    sources.git(&["tag", "v1.2.0"])?;
    ensure!(sources.check()?.status.success(), "its own tag: {:?}", sources.check()?);

    // Even in a directory: git status would name only the directory.
    fs::create_dir(sources.0.path().join("new"))?;
    sources.write("new/unknown.rs", "")?;
    sources.refuses("new/unknown.rs")?;
    sources.commit()?;
    sources.refuses("v1.2.0")?;
    sources.git(&["tag", "--delete", "v1.2.0"])?;
    ensure!(sources.check()?.status.success(), "{:?}", sources.check()?);

    sources.write("Cargo.toml", "[workspace.package]\nversion = \"1.3.0\"\n")?;
    sources.refuses("Cargo.toml")?;
    sources.commit()?;
    sources.refuses("1.3.0")?;

    let changes = "# Changelog\n\n## Unreleased\n\n- Newer.\n\n## [1.3.0] - 2026-11-29\n\n- New.\n";
    sources.write("CHANGELOG.md", changes)?;
    sources.commit()?;
    sources.refuses("Unreleased")?;
    sources.write("CHANGELOG.md", &changes.replace("## Unreleased\n\n- Newer.\n\n", ""))?;
    sources.commit()?;
    ensure!(sources.check()?.status.success(), "{:?}", sources.check()?);

    sources.write("CHANGELOG.md", "# Changelog\n\n- No release.\n")?;
    sources.commit()?;
    sources.refuses("CHANGELOG.md")
}

#[test]
fn keys_that_cannot_sign_are_noticed_before_the_builds() -> Result<()> {
    let (sources, keys) = (Sources::new()?, tempfile::tempdir()?);
    let at = |name: &str| keys.path().join(name);
    fs::write(at("wrong.key"), "not a key")?;
    for (repository, minisign, wrong) in [
        ("missing.key", "wrong.key", "REPO_KEY"),
        ("wrong.key", "wrong.key", "MINISIGN_KEY"),
    ] {
        let mut release = Command::new(sources.0.path().join(".ci/release"));
        release
            .env("REPO_KEY", at(repository))
            .env("REPO_URL", "https://apt.example.org")
            .env("MINISIGN_KEY", at(minisign))
            .env("GNUPGHOME", keys.path());
        let refused = output(&mut release)?;
        let reason = String::from_utf8_lossy(&refused.stderr);
        ensure!(
            !refused.status.success() && reason.contains(&format!(".ci/release: {wrong} is ")),
            "{wrong}: {refused:?}"
        );
    }
    Ok(())
}

#[test]
fn packages_for_tests_get_into_no_repository() -> Result<()> {
    let packages = tempfile::tempdir()?;
    fs::write(packages.path().join("only-for-tests"), "")?;
    let mut make = Command::new("make");
    make.arg("--directory")
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .arg("repo")
        .arg(format!("DIST={}", packages.path().display()));
    let refused = output(make.env_remove("MAKEFLAGS"))?;
    let reason = String::from_utf8_lossy(&refused.stderr);
    ensure!(
        !refused.status.success() && reason.contains("for tests only"),
        "{refused:?}"
    );
    Ok(())
}

/// The scripts read the version from CHANGELOG.md, links-pack has it from Cargo.toml.
#[test]
fn the_scripts_and_the_programs_have_one_version() -> Result<()> {
    let newest = ok(&mut Command::new(script("newest-release")))?;
    let (version, time) = newest.trim().split_once(' ').context("no time")?;
    assert_eq!(version, env!("CARGO_PKG_VERSION"));
    ensure!(time.parse::<u64>()?.is_multiple_of(86_400), "{time} is not midnight");
    Ok(())
}

#[test]
fn a_change_of_a_download_or_of_the_sums_is_noticed() -> Result<()> {
    let (keys, downloads) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let (secret, public) = (keys.path().join("links.key"), keys.path().join("links.pub"));
    let mut generate = Command::new("minisign");
    ok(generate.args(["-G", "-W", "-p"]).arg(&public).arg("-s").arg(&secret))?;
    let write = |name: &str, text: &str| fs::write(downloads.path().join(name), text);
    write("links 1.deb", "package")?;
    write("-bill.cdx.json", "{}")?;
    write("SHA256SUMS.minisig", "of an earlier run")?;
    let sums = |key: &Path| -> Result<Output> {
        let mut sums = Command::new(script("sums"));
        output(sums.arg(downloads.path()).arg("links 1.2.0").env("MINISIGN_KEY", key))
    };
    let missing = sums(&keys.path().join("missing.key"))?;
    ensure!(!missing.status.success(), "{missing:?}");
    let signed = sums(&secret)?;
    ensure!(signed.status.success(), "{signed:?}");

    let is_signed = || -> Result<bool> {
        let mut verify = Command::new("minisign");
        verify.args(["-V", "-q", "-m", "SHA256SUMS", "-p"]).arg(&public);
        Ok(output(verify.current_dir(&downloads))?.status.success())
    };
    let is_complete = || -> Result<bool> {
        let mut check = Command::new("sha256sum");
        check
            .args(["--check", "--strict", "SHA256SUMS"])
            .current_dir(&downloads);
        Ok(output(&mut check)?.status.success())
    };
    let text = fs::read_to_string(downloads.path().join("SHA256SUMS"))?;
    let names: Vec<_> = text.lines().filter_map(|line| line.get(66..)).collect();
    assert_eq!(names, ["-bill.cdx.json", "links 1.deb"]);
    ensure!(is_signed()? && is_complete()?, "{text}");
    write("links 1.deb", "Package")?;
    ensure!(is_signed()? && !is_complete()?, "the package was changed");
    write("SHA256SUMS", &text.replace('a', "b"))?;
    ensure!(!is_signed()?, "the sums were changed");
    Ok(())
}

/// The programs that the Makefile builds for the packages are those whose crates are listed.
#[test]
fn the_bill_of_a_package_is_about_all_of_its_programs() -> Result<()> {
    let makefile = include_str!("../../Makefile");
    let packed = makefile.lines().find_map(|line| line.strip_prefix("PACKED := "));
    let packed: BTreeSet<_> = packed
        .context("no PACKED")?
        .split(' ')
        .filter(|word| *word != "-p")
        .collect();
    let bill = include_str!("../../.ci/sbom");
    let listed = bill
        .lines()
        .find_map(|line| line.strip_prefix("readonly programs=(")?.strip_suffix(')'));
    assert_eq!(
        listed.context("no programs")?.split(' ').collect::<BTreeSet<_>>(),
        packed
    );
    Ok(())
}

/// A bill of materials as cargo-cyclonedx writes it for a program: the program, the crates that it depends on, and who
/// depends on whom.
fn bill(program: &str, crates: &[(&str, &str)], dependencies: &[(&str, &[&str])]) -> Value {
    let own = |name: &str| format!("path+file:///build/source/{name}#{name}@1.2.0");
    let reference = |name: &str, version: &str| match name {
        "base" => own(name),
        _ => format!("registry#{name}@{version}"),
    };
    let of = |name: &str| {
        let known = crates.iter().find(|(known, _)| *known == name);
        known.map_or_else(|| own(name), |(name, version)| reference(name, version))
    };
    let components = crates.iter().map(|(name, version)| {
        json!({ "bom-ref": reference(name, version), "name": name, "version": version, "purl": format!("pkg:cargo/{name}") })
    });
    let dependencies = dependencies.iter().map(|(name, on)| {
        let on: Vec<_> = on.iter().map(|name| of(name)).collect();
        json!({ "ref": of(name), "dependsOn": on })
    });
    json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "timestamp": "2026-11-28T00:00:00Z",
            "tools": [],
            "component": {
                "bom-ref": own(program), "name": program, "version": "1.2.0", "purl": "pkg:cargo/x", "components": [{}],
            },
        },
        "components": components.collect::<Vec<_>>(),
        "dependencies": dependencies.collect::<Vec<_>>(),
    })
}

#[test]
fn the_bill_of_a_package_lists_what_is_in_its_programs_and_no_path_of_the_builder() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let at = |name: &str| directory.path().join(name);
    let shared = [("base", "1.2.0"), ("serde", "1.0.9"), ("unused", "3.0.0")];
    let one = bill(
        "ctl",
        &shared,
        &[
            ("ctl", &["base", "unused"]),
            ("base", &["serde"]),
            ("unused", &["serde"]),
        ],
    );
    let other = bill("run", &shared, &[("run", &["base"]), ("base", &["serde", "unused"])]);
    fs::write(at("one"), one.to_string())?;
    fs::write(at("other"), other.to_string())?;
    fs::write(at("crates"), "base 1.2.0\nctl 1.2.0\nrun 1.2.0\nserde 1.0.9\n")?;
    let mut jq = Command::new("jq");
    jq.args([
        "--slurp",
        "--argjson",
        "package",
        r#"{"bom-ref": "links"}"#,
        "--arg",
        "root",
        "/build/source",
    ]);
    jq.args(["--rawfile", "crates"])
        .arg(at("crates"))
        .arg("--from-file")
        .arg(script("sbom.jq"));
    let merged = ok(jq.arg(at("one")).arg(at("other")))?;
    let merged: Value = serde_json::from_str(&merged)?;

    let references: Vec<_> = merged["components"]
        .as_array()
        .context("no components")?
        .iter()
        .map(|component| (component["bom-ref"].as_str(), component["purl"].as_str()))
        .collect();
    let expected = [
        (Some("base#base@1.2.0"), None),
        (Some("ctl#ctl@1.2.0"), None),
        (Some("run#run@1.2.0"), None),
        (Some("registry#serde@1.0.9"), Some("pkg:cargo/serde")),
    ];
    assert_eq!(references, expected);
    let dependencies = json!([
        { "ref": "links", "dependsOn": ["ctl#ctl@1.2.0", "run#run@1.2.0"] },
        { "ref": "base#base@1.2.0", "dependsOn": ["registry#serde@1.0.9"] },
        { "ref": "ctl#ctl@1.2.0", "dependsOn": ["base#base@1.2.0"] },
        { "ref": "run#run@1.2.0", "dependsOn": ["base#base@1.2.0"] },
    ]);
    assert_eq!(merged["dependencies"], dependencies);
    assert_eq!(merged["metadata"]["component"]["bom-ref"], "links");
    Ok(())
}
