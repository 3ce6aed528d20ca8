//! The commands in README.md and in docs/ work as they are written there.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use links_tests::local::Settings;
use links_tests::servers::Pebble;
use links_tests::{DEB, Host, LINKS_TOML};

const CERTIFICATES: &str = include_str!("../lab/https.sh");
const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// What happens on the host, in this order.
enum Step {
    /// The following commands are those of this file, in the same order.
    File(&'static str),
    /// A command, with what is replaced in it: placeholders, and answers to questions.
    Runs(&'static str, &'static [(&'static str, &'static str)]),
    /// A command that a test of this name runs.
    Test(&'static str, &'static str),
    /// A command that cannot run here, and the reason.
    Cannot(&'static str, &'static str),
    /// Something that the text around the commands asks for or assumes.
    Given(&'static str),
}
use Step::{Cannot, File, Given, Runs, Test};

/// Options for a certificate authority in the machine.
const AUTHORITY: &str = "--directory https://127.0.0.1:14000/dir --ca-file /etc/pebble/cert.pem";
const ENABLE: &str = "linksctl tls enable s.example.org --email me@example.org";
const BACKUP: &str = "linksctl backup --to /var/backups/links --encrypt-to age1...";
const DIRECTORY: &str = "mkdir -p -m 700 /var/backups/links";
const WITH_AUTHORITY: &[(&str, &str)] = &[("s.example.org", "s.example.org AUTHORITY")];
const PUBLIC_KEY: (&str, &str) = ("age1...", "$(age-keygen -y backup.key)");
const FILE: (&str, &str) = ("FILE", "$(ls /var/backups/links/*.age | tail -n 1)");
/// The host has links already.
const FORCED: (&str, &str) = (" --identity", " --force --identity");

const MOVING: &str = "links_move_to_libsql_and_redis_and_back_under_load";
const REPOSITORY: &str = "a_host_installs_from_the_repository_and_follows_it_and_refuses_what_was_changed";
const UPGRADES: &str = "upgrades_downgrades_and_rollbacks_cost_no_request_and_no_click";
const TARBALL: &str = "the_tarball_installs_and_uninstalls_without_apt";
const HTTPS: &str = "https_takes_one_command_and_a_name_that_fails_takes_no_other_down";
const SUMS: &str = "a_change_of_a_download_or_of_the_sums_is_noticed";
const CI: &str = ".ci/run runs it";
const RELEASE: &str = "it builds everything twice; the tests of releasing.rs and repository.rs run its parts";

const STEPS: &[Step] = &[
    File("README.md"),
    Test(
        "curl -fsSo /etc/apt/sources.list.d/links.sources https://apt.example.org/links.sources",
        REPOSITORY,
    ),
    Test("apt update", REPOSITORY),
    Test("apt install links-shortener", REPOSITORY),
    Cannot("linksctl status", "the package is installed with the next command"),
    Runs("apt install ./links-shortener_0.2.0_amd64.deb", &[("install ./links-shortener_0.2.0_amd64.deb", "install --yes PACKAGE")]),
    Test("tar -xzf links-0.2.0-amd64.tar.gz", TARBALL),
    Test("./links-0.2.0-amd64/usr/bin/linksctl install", TARBALL),
    Runs(
        r#"curl -H "Authorization: Bearer $(linksctl token)" -H 'Content-Type: application/json' -d '{"url": "https://example.com/"}' http://localhost/shorten"#,
        &[("curl", "curl --fail"), (r#"{"url""#, r#"{"slug": "k3x9qa", "url""#)],
    ),
    Runs("curl -i http://localhost/k3x9qa", &[("curl", "curl --fail")]),
    Runs(ENABLE, WITH_AUTHORITY),
    Test("apt update && apt upgrade", REPOSITORY),
    Test("apt install ./links-shortener_NEW_amd64.deb", UPGRADES),
    Test("linksctl rollback", UPGRADES),
    Test("apt install ./links-shortener_OLD_amd64.deb", UPGRADES),
    Given("age-keygen -o backup.key"),
    Runs(DIRECTORY, &[]),
    Runs(BACKUP, &[PUBLIC_KEY]),
    Runs("linksctl restore FILE --identity backup.key", &[FILE, FORCED]),
    Runs("linksctl stats", &[]),
    Runs(
        r#"curl -H "Authorization: Bearer $(linksctl token)" http://localhost/api/v1/links/SLUG/stats"#,
        &[("curl", "curl --fail"), ("SLUG", "k3x9qa")],
    ),
    Cannot("make run", "this machine builds links already"),
    Cannot("make test", CI),
    File("docs/https.md"),
    Runs(ENABLE, WITH_AUTHORITY),
    Runs("linksctl tls status", &[]),
    Runs("linksctl tls renew --force", &[]),
    Runs("linksctl tls disable", &[]),
    Runs("linksctl tls enable s.example.org go.example.net", WITH_AUTHORITY),
    Runs(
        "linksctl tls enable s.example.org --directory https://acme-staging-v02.api.letsencrypt.org/directory",
        &[("--directory https://acme-staging-v02.api.letsencrypt.org/directory", "AUTHORITY")],
    ),
    Cannot(
        "linksctl tls enable s.example.org --profile shortlived",
        "this authority has no profiles",
    ),
    Runs(
        "linksctl tls enable s.example.org --directory https://ca.internal/acme/directory --ca-file /etc/ssl/ca.pem",
        &[("--directory https://ca.internal/acme/directory --ca-file /etc/ssl/ca.pem", "AUTHORITY")],
    ),
    Test(
        "linksctl tls enable s.example.org --directory URL --eab-kid KID --eab-key-file /etc/ssl/private/eab-key",
        "short_certificates_are_renewed_and_only_one_run_works_at_a_time",
    ),
    Given(
        "linksctl tls disable; bash /var/tmp/https.sh /etc/own s.example.org 30; mkdir -p /etc/letsencrypt/live/s.example.org
        cp /etc/own/fullchain.pem /etc/ssl/s.pem; cp /etc/own/privkey.pem /etc/ssl/s.key
        cp /etc/own/fullchain.pem /etc/own/privkey.pem /etc/letsencrypt/live/s.example.org",
    ),
    Runs(
        "linksctl tls enable s.example.org --certificate /etc/ssl/s.pem --key /etc/ssl/s.key",
        &[],
    ),
    Cannot(
        "certbot certonly --dns-... -d s.example.org --deploy-hook 'linksctl tls renew'",
        "it needs a provider of DNS",
    ),
    Runs(
        "linksctl tls enable s.example.org --certificate /etc/letsencrypt/live/s.example.org/fullchain.pem --key \
         /etc/letsencrypt/live/s.example.org/privkey.pem",
        &[],
    ),
    Given("linksctl tls disable"),
    File("docs/backup.md"),
    Runs(DIRECTORY, &[]),
    Runs(BACKUP, &[PUBLIC_KEY]),
    Runs(
        "linksctl restore /var/backups/links/links-20301231T040000Z.tar.zst.age --identity backup.key",
        &[("/var/backups/links/links-20301231T040000Z.tar.zst.age", "FILE"), FILE, FORCED],
    ),
    Runs("age --decrypt --identity backup.key FILE | zstd --decompress | tar --list", &[FILE]),
    Runs("age-keygen -o backup.key", &[("backup.key", "other.key")]),
    Given("printf '[backup]\\nto = \"/var/backups/links\"\\n' >>/etc/links/links.toml; systemctl reload links"),
    Runs("linksctl backup list", &[]),
    Runs("linksctl backup verify FILE --identity backup.key", &[FILE]),
    Runs("linksctl restore FILE --identity backup.key --check", &[FILE]),
    Runs("linksctl restore FILE --identity backup.key --dry-run", &[FILE]),
    Runs("linksctl restore FILE --identity backup.key", &[FILE, FORCED]),
    Runs(
        "linksctl db copy --resume --from sqlite:/var/lib/links/data/links.db.replaced-20301231T120000Z",
        &[("/var/lib/links/data/links.db.replaced-20301231T120000Z", "$(ls /var/lib/links/data/*.replaced-*Z | tail -n 1)")],
    ),
    Test("apt install links-shortener", REPOSITORY),
    Runs("linksctl backup --to /var/backups/links.tar.zst.age --encrypt-to age1...", &[PUBLIC_KEY]),
    Runs("linksctl restore /var/backups/links.tar.zst.age --identity backup.key", &[FORCED]),
    File("docs/databases.md"),
    Runs("linksctl check --online", &[]),
    Test("linksctl db copy --to libsql://links-you.turso.io --token credential:turso_token", MOVING),
    Runs("linksctl check --online && systemctl reload links", &[]),
    Test("linksctl db copy --resume --from sqlite:/var/lib/links/data/links.db", MOVING),
    Test("linksctl db copy --resume --to sqlite:/var/lib/links/data/links.db", MOVING),
    Runs("linksctl check && systemctl reload links", &[]),
    Test(
        "linksctl db copy --resume --from libsql://links-you.turso.io --token credential:turso_token",
        MOVING,
    ),
    Runs("systemctl stop links", &[]),
    Given("mkdir -p /var/lib/links/backups; cp /var/lib/links/data/links.db /var/lib/links/backups/COPY.db"),
    Runs(
        "cd /var/lib/links && runuser -u links -- sh -c 'rm -f data/links.db* && cat >data/links.db' <backups/COPY.db",
        &[],
    ),
    Runs("systemctl start links", &[]),
    Runs("curl -i http://localhost/k3x9qa", &[("curl", "curl --fail")]),
    File("docs/nginx.md"),
    Given("printf '[nginx]\\nmanage = false\\ncache_ttl = \"5m\"\\n' >/etc/links/links.toml"),
    Runs("linksctl sample-site >/etc/nginx/conf.d/shortener.conf", &[]),
    Runs("rm /etc/nginx/sites-enabled/links", &[]),
    Runs("nginx -t && systemctl reload nginx links", &[]),
    Given("curl --fail http://localhost/k3x9qa; rm /etc/nginx/conf.d/shortener.conf; : >/etc/links/links.toml; systemctl reload links"),
    File("docs/operation.md"),
    Runs("journalctl -u links", &[]),
    Runs("journalctl -u 'links@*'", &[]),
    Runs("journalctl -u links-tls -u links-backup", &[]),
    Runs("journalctl -u links -u 'links@*' --since today --priority warning", &[]),
    Runs("linksctl status", &[]),
    Runs("linksctl tls status", &[]),
    Runs("curl http://127.0.0.1:9464/metrics", &[("curl", "curl --fail")]),
    Runs("apt remove links-shortener", &[("remove", "remove --yes")]),
    Runs("apt purge links-shortener", &[("purge", "purge --yes")]),
    File("docs/releasing.md"),
    Cannot("mkdir -m 700 ../keys", RELEASE),
    Test("gpg --quick-generate-key 'links apt repository' ed25519 sign never", REPOSITORY),
    Test("gpg --armor --export-secret-keys 'links apt repository' >../keys/repository.key", REPOSITORY),
    Test("minisign -G -p ../keys/links.pub -s ../keys/links.key", SUMS),
    Cannot(
        "make release REPO_URL=https://apt.example.org REPO_KEY=../keys/repository.key MINISIGN_KEY=../keys/links.key",
        RELEASE,
    ),
    Test("rsync -a --exclude=InRelease --exclude='Release*' target/repo/ HOST:/srv/apt/", REPOSITORY),
    Test("rsync -a target/repo/ HOST:/srv/apt/", REPOSITORY),
    Test(
        "minisign -V -p links.pub -m SHA256SUMS && sha256sum --check --ignore-missing SHA256SUMS",
        SUMS,
    ),
];

/// Commands of links and apt in running text, and a test that runs each of them.
const MENTIONED: &[(&str, &str)] = &[
    ("LINKS_KEEP_ACME_ACCOUNT=1 apt purge links-shortener", HTTPS),
    (
        "apt remove links-shortener",
        "removal_keeps_the_links_and_purge_leaves_nothing",
    ),
    ("linksctl agent", "killing_the_agent_loses_no_request"),
    (
        "linksctl backup",
        "a_backup_under_load_is_restored_on_another_host_and_on_the_same_one",
    ),
    ("linksctl check", "links_fits_in_with_any_layout_and_any_neighbour"),
    (
        "linksctl configure",
        "links_serves_in_a_container_and_names_the_missing_protection",
    ),
    ("linksctl db copy", MOVING),
    (
        "linksctl deliver-credentials",
        "links_serves_in_a_container_and_names_the_missing_protection",
    ),
    (
        "linksctl prepare-downgrade",
        "an_edited_and_scaled_configuration_survives_upgrades_and_downgrades_without_a_question",
    ),
    (
        "linksctl releases",
        "a_rollout_and_a_rollback_change_the_release_and_no_request_fails",
    ),
    (
        "linksctl restart",
        "clients_do_not_notice_a_rollout_rollback_or_restart_by_linksctl",
    ),
    (
        "linksctl restore --undo",
        "a_backup_under_load_is_restored_on_another_host_and_on_the_same_one",
    ),
    (
        "linksctl rollout",
        "clients_do_not_notice_a_rollout_rollback_or_restart_by_linksctl",
    ),
    (
        "linksctl rollout --force",
        "an_edited_site_is_kept_until_it_is_replaced_by_force",
    ),
    ("linksctl run N", "killing_a_supervisor_leaves_no_process_behind"),
    ("linksctl sample-site", "the_commands_in_the_documents_work"),
    ("linksctl scale", "scale_adds_and_removes_instances"),
    ("linksctl scale 4", "scale_adds_and_removes_instances"),
    ("linksctl tls", HTTPS),
    ("linksctl tls disable NAME", HTTPS),
    ("linksctl tls enable", HTTPS),
    ("linksctl tls enable --hsts=false", HTTPS),
    ("linksctl tls enable NAME", HTTPS),
    (
        "linksctl tls renew",
        "neither_kills_nor_expiry_nor_wrong_files_take_links_down",
    ),
    ("linksctl uninstall", TARBALL),
    ("linksctl uninstall --purge", TARBALL),
    ("linksctl up", "the_printed_commands_work_and_ctrl_c_ends_every_process"),
    (
        "systemctl reload links",
        "clients_do_not_notice_a_restart_or_reload_of_the_service",
    ),
    (
        "systemctl restart links",
        "clients_do_not_notice_a_restart_or_reload_of_the_service",
    ),
    (
        "systemctl status links",
        "an_installed_appliance_passes_its_checks_starts_at_boot_and_stops_on_request",
    ),
];

#[test]
fn every_command_in_the_documents_is_run_by_a_test() -> Result<()> {
    let mut tested = vec![];
    let mut file = "";
    for step in STEPS {
        match step {
            File(name) => file = name,
            Runs(command, _) | Test(command, _) | Cannot(command, _) => {
                tested.push((file.to_owned(), (*command).to_owned()))
            }
            Given(_) => {}
        }
    }
    let documents = documents()?;
    for (file, text) in &documents {
        ensure!(!text.contains("@SIZES@"), "{file} has a gap");
    }
    let documented = all_of(&documents, commands);
    ensure!(documented.len() > 30, "only {} commands were found", documented.len());
    for command in &documented {
        ensure!(tested.contains(command), "no test runs {command:?}");
    }
    // One that checks another is not in that document.
    let is_documented = |command: &str| documented.iter().any(|(_, documented)| documented == command);
    for (file, command) in &tested {
        ensure!(is_documented(command), "{file} does not contain `{command}`");
    }
    let mentioned = all_of(&documents, mentioned);
    for (file, command) in &mentioned {
        let is_tested =
            MENTIONED.iter().any(|(known, _)| known == command) || tested.iter().any(|(_, tested)| tested == command);
        ensure!(is_tested, "no test runs `{command}` of {file}");
    }
    for (command, _) in MENTIONED {
        ensure!(
            mentioned.iter().any(|(_, found)| found == command),
            "no document contains `{command}`"
        );
    }
    let tests = tests()?;
    let in_steps = STEPS.iter().filter_map(|step| match step {
        Test(command, test) => Some((*command, *test)),
        _ => None,
    });
    for (command, test) in in_steps.chain(MENTIONED.iter().copied()) {
        ensure!(
            tests.contains(&format!("fn {test}(")),
            "no test {test} runs `{command}`"
        );
    }
    Ok(())
}

#[test]
fn the_commands_in_the_documents_work() -> Result<()> {
    let host = Host::builder().packages(&["age", "zstd"]).uninstalled()?;
    host.write("/var/tmp/https.sh", CERTIFICATES)?;
    let _pebble = Pebble::start_in(&host, Settings::default())?;
    for step in STEPS {
        let (command, replaced) = match step {
            Runs(command, replaced) => (*command, *replaced),
            Given(command) => (*command, &[][..]),
            File(name) => {
                println!("{name}");
                continue;
            }
            Cannot(command, reason) => {
                println!("    {command}: not run: {reason}");
                continue;
            }
            Test(..) => continue,
        };
        let mut text = command.to_owned();
        for (from, to) in replaced {
            ensure!(text.contains(from), "`{text}` has no `{from}`");
            text = text.replace(from, to);
        }
        let text = text.replace("AUTHORITY", AUTHORITY).replace("PACKAGE", DEB);
        println!("    {text}");
        let script = format!("set -o pipefail; cd; {text}");
        let output = host.run_within(Duration::from_secs(180), ["bash", "-ec", &script])?;
        ensure!(output.status == 0, "{command}: {output}");
        if matches!(step, Runs(command, _) if command.starts_with("apt install")) {
            host.wait_for_rotation(2)?;
        }
    }
    ensure!(!host.exists(LINKS_TOML)?, "purge should remove the configuration");
    Ok(())
}

/// The names and the texts of all documents.
fn documents() -> Result<Vec<(String, String)>> {
    let mut files = vec!["README.md".to_owned()];
    for entry in fs::read_dir(Path::new(ROOT).join("docs"))? {
        files.push(format!("docs/{}", entry?.file_name().to_string_lossy()));
    }
    let read = |file: String| {
        let text = fs::read_to_string(Path::new(ROOT).join(&file)).with_context(|| file.clone())?;
        Ok((file, text))
    };
    files.into_iter().map(read).collect()
}

/// What `find` finds in the documents, each with its file.
fn all_of(documents: &[(String, String)], find: fn(&str) -> Vec<String>) -> Vec<(String, String)> {
    let of_one = |(file, text): &(String, String)| {
        let file = file.clone();
        find(text).into_iter().map(move |command| (file.clone(), command))
    };
    documents.iter().flat_map(of_one).collect()
}

/// The commands of links and apt, with at least one argument, in the running text of a document.
fn mentioned(text: &str) -> Vec<String> {
    let lines = text.lines().filter(|line| !line.starts_with("    "));
    let text = lines.collect::<Vec<_>>().join(" ");
    let quoted = text.split('`').skip(1).step_by(2);
    let commands = quoted.filter(|quoted| {
        let mut words = quoted.split(' ').skip_while(|word| word.contains('='));
        let program = words.next().unwrap_or_default();
        let is_ours = match program {
            "linksctl" => true,
            "apt" | "systemctl" => quoted.contains(" links"),
            _ => false,
        };
        is_ours && words.next().is_some()
    });
    commands.map(str::to_owned).collect()
}

/// The commands in the indented blocks of a document.
fn commands(text: &str) -> Vec<String> {
    let mut lines = text.lines();
    let mut commands = vec![];
    while let Some(line) = lines.next() {
        let Some(line) = line.strip_prefix("    ") else {
            continue;
        };
        // A block may be in a list. What is indented further continues a line of a table.
        let mut command = line.trim_start().to_owned();
        if line.len() - command.len() > 3 {
            continue;
        }
        while let Some(begun) = command.strip_suffix('\\') {
            command = format!("{} {}", begun.trim_end(), lines.next().unwrap_or_default().trim());
        }
        let command = command.split("  #").next().unwrap_or_default().trim_end();
        if is_command(command) {
            commands.push(command.to_owned());
        }
    }
    commands
}

/// Whether this is not a setting, a path, an answer, or a part of a picture.
fn is_command(line: &str) -> bool {
    let mut words = line.split(' ');
    let program = words.next().unwrap_or_default();
    let is_name = |name: &str| {
        name.starts_with(|first: char| first.is_ascii_lowercase() || first == '.')
            && name
                .chars()
                .all(|letter| letter.is_ascii_alphanumeric() || "./-".contains(letter))
    };
    // Columns of a table or a picture are further apart.
    is_name(program)
        && !program.ends_with('/')
        && !matches!(words.next(), Some("=" | ""))
        && !line.ends_with(';')
        && line.is_ascii()
}

/// The sources of all tests.
fn tests() -> Result<String> {
    let mut all = String::new();
    for entry in fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/tests"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            all += &fs::read_to_string(path)?;
        }
    }
    Ok(all)
}
