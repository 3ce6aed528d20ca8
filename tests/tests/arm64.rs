//! The package for arm64, whose programs run here under qemu.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Output};

use anyhow::{Context as _, Result, ensure};
use links_tests::local::TestDir;
use links_tests::{Artifacts, arm64_emulator};

const URL: &str = "https://example.com/on-arm64";
const CONFIGURATION: &str = "[[variables_provider]]\ntype = \"static\"\nvalues = { admin_token = \"4dmin\" }\n";

#[test]
#[ignore = "needs `make deb ARCH=arm64`: `make soak`"]
fn the_programs_for_arm64_start_shorten_and_follow() -> Result<()> {
    let (package, emulator) = (Artifacts::foreign("arm64")?, arm64_emulator()?);
    let dir = TestDir::new()?;
    let unpacked = dir.path("package");
    let field = Command::new("dpkg-deb")
        .arg("--field")
        .arg(&package)
        .arg("Architecture")
        .output()?;
    assert_eq!(String::from_utf8(field.stdout)?, "arm64\n");
    succeeds(Command::new("dpkg-deb").arg("--extract").arg(&package).arg(&unpacked))?;

    let version = |program: &str| -> Result<String> {
        let output = succeeds(Command::new(&emulator).arg(unpacked.join(program)).arg("--version"))?;
        Ok(String::from_utf8(output.stdout)?)
    };
    for program in [
        "usr/bin/linksctl",
        "usr/lib/links/bin/links-acme",
        "usr/lib/links/bin/links-backup",
        "usr/lib/links/bundle/runtime/links-host",
    ] {
        let name = Path::new(program)
            .file_name()
            .and_then(OsStr::to_str)
            .unwrap_or_default();
        ensure!(version(program)?.starts_with(&format!("{name} ")), "{program}");
    }
    for program in ["links-agent", "links-db", "links-run"] {
        let program = unpacked.join("usr/lib/links/bin").join(program);
        succeeds(Command::new(&emulator).arg(program).arg("--help"))?;
    }

    // An installation compiles the components on the host.
    let bundle = unpacked.join("usr/lib/links/bundle");
    let (application, compiled) = (bundle.join("spin.toml"), dir.path("compiled"));
    let links_host = || {
        let mut command = Command::new(&emulator);
        command.arg(bundle.join("runtime/links-host"));
        command
    };
    let mut compile = links_host();
    compile
        .arg("compile")
        .arg("--from")
        .arg(&application)
        .arg("--out")
        .arg(&compiled);
    succeeds(&mut compile)?;

    let mut up = links_host();
    up.arg("up").arg("--precompiled").arg(&compiled);
    let runtime = dir.serve(up, &application, CONFIGURATION, &[])?;
    let slug = runtime.slug("4dmin", URL)?;
    runtime.leads_to(&slug, URL)?;
    let health = runtime.http_through_socket().get("/health")?;
    ensure!(health.status == 200, "{health}");
    let log = dir.runtime_errors()?;
    ensure!(!log.contains("is compiled at startup"), "{log}");
    runtime.process.terminate()
}

fn succeeds(command: &mut Command) -> Result<Output> {
    let output = command.output().with_context(|| format!("Starting {command:?}"))?;
    ensure!(
        output.status.success(),
        "{command:?} failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(output)
}
