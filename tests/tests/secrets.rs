//! Secrets appear only where they have to be, even after everything that can go wrong with them has gone wrong.

use std::hash::{BuildHasher as _, RandomState};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use links_tests::http::{Answer, Client, Failure};
use links_tests::otlp::Requests;
use links_tests::servers::{Collector, LibSql, Server, Vault, redis};
use links_tests::{Host, UNPACKED, eventually};

const SOON: Duration = Duration::from_secs(30);
/// A file with one secret per line, for grep.
const LIST: &str = "/var/tmp/secrets";

const LINKS_TOML: &str = "\
[rollout]
min_healthy = \"200ms\"
[health]
start_timeout = \"5s\"
[cache]
ttl = \"1s\"
[secrets]
ttl = \"1s\"
stale = \"0s\"
[telemetry]
endpoint = \"http://127.0.0.1:4318\"
headers = \"credential:otlp_headers\"
logs = true
";
const RUNTIME_TOML: &str = "\
[sqlite_database.default]
type = \"libsql\"
url = \"http://127.0.0.1:8080\"
token = \"credential:turso_token\"
[key_value_store.default]
type = \"redis\"
url = \"credential:redis_url\"
[[variables_provider]]
type = \"vault\"
url = \"http://127.0.0.1:8200\"
token = \"credential:vault_token\"
mount = \"secret\"
prefix = \"links\"
";

#[test]
fn no_secret_leaks_whatever_goes_wrong() -> Result<()> {
    let host = Host::builder().packages(&["redis-server"]).serving()?;
    let secrets = Secrets::new();
    host.write_secret(LIST, &secrets.lines())?;
    let collector = Collector::start(&host.network(), 4318)?;
    let providers = Providers {
        libsql: LibSql::start_in(&host, &secrets.turso)?,
        redis: redis(&host, &secrets.redis)?,
        vault: Vault::start_in(&host, &secrets.root)?,
        host: &host,
        secrets: &secrets,
    };
    providers.fill_vault()?;
    host.credential("admin_token", &secrets.host)?;
    host.credential("turso_token", &secrets.turso)?;
    host.credential("redis_url", &format!("redis://:{}@127.0.0.1:6379", secrets.redis))?;
    host.credential("vault_token", &secrets.reader)?;
    host.credential("otlp_headers", &format!("x-key={}", secrets.headers))?;
    host.configure(LINKS_TOML, RUNTIME_TOML)?;
    providers.shortens()?;

    let mut texts = providers.texts_of_outages()?;
    texts.extend(providers.texts_of_broken_configurations()?);
    texts.push(providers.status_after_a_crash()?);
    texts.push(text(&host.http_at(9464).get("/metrics")));

    // The answers to clients and the output of commands.
    ensure!(texts.len() > 50, "only {} texts were collected", texts.len());
    for text in &texts {
        secrets.are_not_in(text)?;
    }
    // The exports, of which there is at least this one. Only the collector's own header may contain a secret: its key.
    let sent = Requests::FIRST;
    host.export(&sent)?;
    eventually("the collector has received the export", SOON, || {
        let collected = collector.collected();
        Ok(collected.iter().any(|it| it.message == sent.message()).then_some(()))
    })?;
    for collected in collector.collected() {
        ensure!(
            collected.headers.get("x-key") == Some(&secrets.headers),
            "{collected:?}"
        );
        secrets.are_not_in(&String::from_utf8_lossy(&collected.message))?;
        let mut others = collected.headers;
        others.remove("x-key");
        secrets.are_not_in(&format!("{others:?}"))?;
    }
    providers.no_secret_is_exposed()
}

/// A different random secret for each purpose, which cannot occur anywhere by accident.
struct Secrets {
    /// The admin token in /etc/links/credentials.
    host: String,
    turso: String,
    redis: String,
    /// Vault's root token.
    root: String,
    /// The token with which the instances read from Vault.
    reader: String,
    /// The admin token in Vault.
    admin: String,
    headers: String,
    wrong: String,
}

impl Secrets {
    fn new() -> Self {
        let random = RandomState::new();
        let secret = |name: &str| format!("{:016x}{:016x}", random.hash_one(name), random.hash_one((name, 2)));
        Self {
            host: secret("host"),
            turso: secret("turso"),
            redis: secret("redis"),
            root: secret("root"),
            reader: secret("reader"),
            admin: secret("admin"),
            headers: secret("headers"),
            wrong: secret("wrong"),
        }
    }

    fn all(&self) -> [(&'static str, &str); 8] {
        [
            ("the admin token of this host", &self.host),
            ("the database's token", &self.turso),
            ("Redis's password", &self.redis),
            ("Vault's root token", &self.root),
            ("Vault's token", &self.reader),
            ("the admin token in Vault", &self.admin),
            ("the collector's header", &self.headers),
            ("the wrong token of a client", &self.wrong),
        ]
    }

    fn lines(&self) -> String {
        self.all().map(|(_, secret)| format!("{secret}\n")).concat()
    }

    fn are_not_in(&self, text: &str) -> Result<()> {
        for (name, secret) in self.all() {
            ensure!(!text.contains(secret), "{name} ({secret}) is in:\n{text}");
        }
        Ok(())
    }
}

/// A host, and the servers that its configuration names.
struct Providers<'a> {
    host: &'a Host,
    secrets: &'a Secrets,
    libsql: LibSql<'a>,
    redis: Server<'a>,
    vault: Vault<'a>,
}

impl Providers<'_> {
    fn fill_vault(&self) -> Result<()> {
        self.vault.token(&self.secrets.reader)?;
        self.vault.write("links/admin_token", &self.secrets.admin)
    }

    fn site(&self, token: &str) -> Client {
        self.host.http().bearer(token)
    }

    /// Shortens with the token from Vault, which works only once every server does.
    fn shortens(&self) -> Result<()> {
        eventually("links are shortened", SOON, || {
            let answer = self.site(&self.secrets.admin).post("/shorten", BODY)?;
            Ok((answer.status == 200).then_some(()))
        })
        .with_context(|| self.host.instances_journal().unwrap_or_default())
    }

    /// All texts while every server works, while every server refuses its secret, and while all are paused or stopped.
    fn texts_of_outages(&self) -> Result<Vec<String>> {
        let Self {
            libsql, redis, vault, ..
        } = self;
        let servers = [&**libsql, redis, &**vault];
        let copies = [
            "linksctl db copy --to sqlite:/var/tmp/copy.db --resume",
            "linksctl db copy --from sqlite:/var/tmp/copy.db --resume",
        ];
        let mut texts = self.texts(&copies)?;

        libsql.set_token("another")?;
        vault.revoke(&self.secrets.reader)?;
        self.host.shell(&format!(
            "redis-cli --no-auth-warning -a \"$(sed -n 3p {LIST})\" config set requirepass another
             redis-cli --no-auth-warning -a another client kill type normal"
        ))?;
        texts.extend(self.texts(&copies)?);

        for server in servers {
            server.pause()?;
        }
        texts.extend(self.texts(&[])?);
        for server in servers {
            server.resume()?;
            server.stop()?;
        }
        texts.extend(self.texts(&copies)?);
        for server in servers {
            server.start()?;
        }
        vault.restart()?;
        self.fill_vault()?;
        self.shortens()?;
        Ok(texts)
    }

    /// The answers to clients and the output of commands. Clients, commands and `more` run concurrently: some take long.
    fn texts(&self, more: &[&str]) -> Result<Vec<String>> {
        let commands = [
            "linksctl check",
            "linksctl check --online",
            "linksctl check --online --json",
            "linksctl status",
            "linksctl status --json",
            "linksctl rollout --dry-run",
            "linksctl rollout --dry-run --force",
            "linksctl releases",
            "systemctl status links links@1 links@2",
            "systemctl show links links@1 links@2",
        ];
        let run = |command: &str| Ok(self.host.run(command.split(' '))?.to_string());
        let ask = |token: &str| {
            let site = self.site(token);
            [
                text(&site.post("/shorten", BODY)),
                text(&site.post("/shorten", "{")),
                text(&site.get("/health")),
                text(&site.get("/no-such-link")),
                text(&site.get("/.well-known/spin/info")),
            ]
        };
        thread::scope(|scope| {
            let tokens = [&self.secrets.admin, &self.secrets.host, &self.secrets.wrong];
            let asking = tokens.map(|token| scope.spawn(move || ask(token)));
            let copying = scope.spawn(move || more.iter().map(|command| run(command)).collect::<Result<Vec<_>>>());
            let mut texts = commands
                .iter()
                .map(|command| run(command))
                .collect::<Result<Vec<_>>>()?;
            for asked in asking {
                texts.extend(asked.join().map_err(|_| anyhow!("a client panicked"))?);
            }
            texts.extend(copying.join().map_err(|_| anyhow!("a copy panicked"))??);
            Ok(texts)
        })
    }

    /// The output of commands for configurations with a secret in the wrong place.
    fn texts_of_broken_configurations(&self) -> Result<Vec<String>> {
        let path = "/etc/links/runtime.toml";
        let mut texts = vec![];
        let [admin, turso] = [&self.secrets.host, &self.secrets.turso];
        for broken in [
            RUNTIME_TOML.replace("url = \"credential:redis_url\"", "url = \"credential:turso_token\""),
            RUNTIME_TOML.replace("url = \"http://127.0.0.1:8080\"", "url = \"credential:turso_token\""),
            RUNTIME_TOML.replace("url = \"http://127.0.0.1:8200\"", "url = \"credential:turso_token\""),
            RUNTIME_TOML.replace("type = \"redis\"", "type = \"credential:turso_token\""),
            RUNTIME_TOML.replace("mount = \"secret\"", "mount = \"credential:turso_token\""),
        ] {
            // Only root can read this file, so it may contain secrets. The output of the commands may not.
            self.host.write(path, broken)?;
            for command in ["linksctl check", "linksctl rollout --dry-run", "systemctl reload links"] {
                texts.push(self.host.run(command.split(' '))?.to_string());
            }
        }
        for (name, wrong) in [
            ("otlp_headers", format!("{admin} {turso}")),
            ("redis_url", format!("redis://:{turso}@127.0.0.1:6379/{admin}")),
            ("turso_token", format!("{turso}\n{admin}")),
        ] {
            let right = self.host.read(&format!("/etc/links/credentials/{name}"))?;
            self.host.write(path, RUNTIME_TOML)?;
            self.host.credential(name, &wrong)?;
            for command in ["linksctl check", "linksctl check --online", "systemctl reload links"] {
                texts.push(self.host.run(command.split(' '))?.to_string());
            }
            self.host.credential(name, right.trim_end())?;
        }
        self.host.configure(LINKS_TOML, RUNTIME_TOML)?;
        self.shortens()?;
        Ok(texts)
    }

    /// Checks that no process of links may dump core, crashes a runtime, and checks that there is no core dump. Returns the
    /// output of `linksctl status`.
    fn status_after_a_crash(&self) -> Result<String> {
        let pid = self.host.main_pid("links@1")?;
        let agent = self.host.main_pid("links")?;
        let runtime = self.host.ok(["pgrep", "--parent", &pid.to_string()])?.stdout;
        let runtime = runtime.lines().next().context("no runtime")?.to_owned();
        for process in [&pid.to_string(), &agent.to_string(), &runtime] {
            let limits = self.host.read(&format!("/proc/{process}/limits"))?;
            let core = limits.lines().find(|line| line.starts_with("Max core file size"));
            let core: Vec<_> = core.unwrap_or_default().split_whitespace().collect();
            ensure!(core == ["Max", "core", "file", "size", "0", "0", "bytes"], "{limits}");
        }
        // A runtime handles the first SIGSEGV, since WebAssembly code may have caused it.
        eventually("the runtime has ended", SOON, || {
            self.host.run(["kill", "-SEGV", &runtime])?;
            Ok((!self.host.exists(&format!("/proc/{runtime}"))?).then_some(()))
        })?;
        eventually("another runtime runs", SOON, || {
            let another = self.host.main_pid("links@1")?;
            let runs = self.host.run(["pgrep", "--parent", &another.to_string()])?;
            Ok((runs.status == 0 && !runs.stdout.contains(&runtime)).then_some(()))
        })?;
        self.host.wait_for_rotation(2)?;
        let journal = self.host.instances_journal()?;
        ensure!(
            journal.contains("SIGSEGV") || journal.contains("signal: 11"),
            "{journal}"
        );
        let cores = self
            .host
            .shell("find / -xdev -type f \\( -name core -o -name 'core.*' \\) -size +100k")?;
        ensure!(cores.stdout.is_empty(), "{}", cores.stdout);
        Ok(self.host.run(["linksctl", "status"])?.to_string())
    }

    /// Checks that nobody without the right to can read a secret on the disk, in the journal or in /proc.
    fn no_secret_is_exposed(&self) -> Result<()> {
        let inside = |script: &str| Ok::<_, anyhow::Error>(self.host.shell(script)?.stdout);
        self.host.ok(["journalctl", "--sync"])?;
        let ours = "/etc/links /run/links /var/lib/links /var/cache/links /var/log /usr/lib/links \
                    /usr/share/doc/links-shortener /etc/nginx /etc/systemd /run/systemd";
        // grep exits with 1 if it finds nothing, and with 2 if it cannot read a file. xargs turns both into 123.
        let finds = |files: &str| {
            format!(
                "{files} | xargs -0 --no-run-if-empty grep --files-with-matches --text --fixed-strings --file={LIST} || test $? = 1 -o $? = 123"
            )
        };

        // The search works: it finds the files that have to contain secrets.
        let holders = inside(&finds(&format!("find {ours} -xdev -type f -print0")))?;
        println!("files with secrets:\n{holders}");
        for part in ["/etc/links/credentials/turso_token", "/run/links/1/", "/run/links/2/"] {
            ensure!(
                holders.contains(part),
                "{part} should contain a secret, but only these files do:\n{holders}"
            );
        }
        let journal = inside(&format!(
            "journalctl --quiet --output=export >/var/tmp/journal; grep --count '^MESSAGE=' /var/tmp/journal; \
             grep --text --fixed-strings --file={LIST} /var/tmp/journal || test $? = 1"
        ))?;
        let (lines, secret) = journal.split_once('\n').context("no count")?;
        ensure!(lines.parse::<u32>()? > 100, "the journal has only {lines} lines");
        ensure!(secret.is_empty(), "secrets in the journal:\n{secret}");

        let open = format!("find {ours} -xdev -type f -perm /077 -print0");
        let searched = inside(&format!("{open} | tr -cd '\\0' | wc --bytes"))?;
        ensure!(
            searched.trim().parse::<u32>()? > 20,
            "only {searched} files were searched"
        );
        let found = inside(&finds(&open))?;
        ensure!(found.is_empty(), "others can read the secrets in:\n{found}");

        self.host.unpack_tarball()?;
        let package = inside(&finds(&format!("find {UNPACKED} -type f -print0")))?;
        ensure!(package.is_empty(), "secrets in the package:\n{package}");

        // Any user can read all command lines. Environments contain secrets, but only their own user and root can read them.
        let lines = inside(&format!(
            "cat /proc/[0-9]*/cmdline | tr '\\0' '\\n' >/var/tmp/lines; grep --count --extended-regexp 'links-(run|agent)' /var/tmp/lines; \
             grep --fixed-strings --file={LIST} /var/tmp/lines || test $? = 1"
        ))?;
        let (count, secret) = lines.split_once('\n').context("no count")?;
        ensure!(count.parse::<u32>()? >= 3, "{lines}");
        ensure!(secret.is_empty(), "secrets on command lines:\n{secret}");
        let environments =
            "for file in /proc/[0-9]*/environ; do test -r $file && cat $file; done 2>/dev/null | tr '\\0' '\\n'";
        let seen_by = |user: &str| {
            format!(
                "setpriv --reuid={user} --regid={user} --clear-groups bash -c \"$1\" >/var/tmp/environments || true; \
                 grep --count --fixed-strings --file={LIST} /var/tmp/environments || test $? = 1"
            )
        };
        for (user, sees) in [("root", true), ("nobody", false), ("www-data", false)] {
            let script = seen_by(user).replace("regid=nobody", "regid=nogroup");
            let shell = ["bash", "-c", &script, "search", environments];
            let count: u32 = self.host.ok(shell)?.stdout.trim().parse()?;
            ensure!((count > 0) == sees, "{user} sees {count} secrets in environments");
        }
        Ok(())
    }
}

const BODY: &str = r#"{"url":"https://example.com/"}"#;

/// The whole answer, or why there is none.
fn text(answer: &Result<Answer, Failure>) -> String {
    match answer {
        Ok(answer) => answer.to_string(),
        Err(failure) => failure.to_string(),
    }
}
