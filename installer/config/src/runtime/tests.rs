#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a failed unwrap is a failed test"
)]

use super::{Database, RuntimeToml, read};
use crate::finding::Severity;

const SHIPPED: &str = include_str!("../../../../runtime.toml");

/// The commented-out blocks, without their `#`. Prose has a blank after its `#`, settings have none.
fn alternatives(text: &str) -> Vec<String> {
    let mut blocks = vec![String::new()];
    for line in text.lines() {
        match line.strip_prefix('#') {
            Some(setting) if setting.starts_with(|first: char| first == '[' || first.is_ascii_lowercase()) => {
                let block = blocks.last_mut().unwrap();
                block.push_str(setting);
                block.push('\n');
            }
            _ => blocks.push(String::new()),
        }
    }
    blocks.retain(|block| !block.is_empty());
    blocks
}

/// The findings in a `runtime.toml` with this text.
fn found(text: &str) -> Vec<String> {
    let (runtime, findings) = read(text, "runtime.toml");
    let has_errors = findings.iter().any(|finding| finding.severity == Severity::Error);
    assert_eq!(runtime.is_none(), has_errors, "{text}");
    findings.iter().map(ToString::to_string).collect()
}

#[test]
fn the_shipped_file_and_each_of_its_alternatives_are_fine() {
    let shipped = RuntimeToml::parse(SHIPPED, "runtime.toml").unwrap();
    assert_eq!(
        shipped.database(),
        Database::File("/var/lib/links/data/links.db".to_owned())
    );
    assert_eq!(shipped.table().len(), 1);
    let alternatives = alternatives(SHIPPED);
    assert_eq!(alternatives.len(), 15);
    for text in alternatives {
        assert_eq!(found(&text), [""; 0], "{text}");
    }
}

/// Checks that every type and key of Spin 4.0.2 is in the file, in case an alternative gets lost.
#[test]
fn the_shipped_file_shows_every_key() {
    let shown = alternatives(SHIPPED).concat() + SHIPPED;
    let keys = "type path allow_attach_file url token account database container key region table consistent_read \
                access_key secret_key mount prefix vault_url client_id client_secret tenant_id authority_host \
                dotenv_path values block_networks connection_pooling max_concurrent_requests component_ids hosts \
                ca_use_platform_roots ca_use_webpki_roots ca_roots_file client_cert_file client_private_key_file \
                auth_token api_type max_instance_memory";
    for key in keys.split_whitespace() {
        assert!(
            shown.contains(&format!("\n{key} = ")) || shown.starts_with(&format!("{key} = ")),
            "{key}"
        );
    }
    for kind in "spin libsql redis azure_cosmos aws_dynamo vault azure_key_vault env static remote_http".split(' ') {
        assert!(shown.contains(&format!("type = \"{kind}\"")), "{kind}");
    }
}

#[test]
fn all_alternatives_together_are_fine() {
    let mut text = String::new();
    let mut headers = Vec::new();
    for block in alternatives(SHIPPED) {
        let header = block.lines().next().unwrap().to_owned();
        if header.starts_with("[[") || !headers.contains(&header) {
            text.push_str(&block);
            headers.push(header);
        }
    }
    let runtime = RuntimeToml::parse(&text, "runtime.toml").unwrap();
    let credentials: Vec<_> = runtime
        .references()
        .iter()
        .map(|reference| reference.credential.as_str())
        .collect();
    assert_eq!(
        credentials,
        [
            "turso_token",
            "vault_token",
            "azure_client_secret",
            "another_admin_token",
            "llm_token"
        ]
    );
}

#[test]
fn each_mistake_gets_one_finding_with_its_position() {
    let put = "put the secret into /etc/links/credentials/NAME, mode 0600, and write \"credential:NAME\"";
    let secret = "must be a credential, not the secret itself: everybody on this host can read this file";
    for (text, message) in [
        // Unknown keys, in every table.
        ("[sqlite_databse.default]", "1:2: unknown key `sqlite_databse`; did you mean `sqlite_database`?".to_owned()),
        ("[sqlite_database.default]\ntype = \"spin\"\npth = \"a.db\"", "3:1: unknown key `pth` in [sqlite_database.default]; did you mean `path`?".to_owned()),
        ("[sqlite_database.default]\ntype = \"spin\"\nurl = \"https://x\"", "3:1: unknown key `url` in [sqlite_database.default]; valid keys: `type`, `path`, `allow_attach_file`".to_owned()),
        ("[sqlite_database.default]\ntype = \"libsql\"\nurl = \"https://x.example\"\ntoken = \"\"\npath = \"x\"", "5:1: unknown key `path` in [sqlite_database.default]; valid keys: `type`, `url`, `token`".to_owned()),
        ("[key_value_store.c]\ntype = \"redis\"\nurl = \"redis://h\"\nurls = 1", "4:1: unknown key `urls` in [key_value_store.c]; did you mean `url`?".to_owned()),
        ("[[variables_provider]]\ntype = \"vault\"\nurl = \"https://v.example\"\ntoken = \"credential:v\"\nmount = \"m\"\nprefx = \"p\"", "6:1: unknown key `prefx` in [variables_provider]; did you mean `prefix`?".to_owned()),
        ("[[variables_provider]]\ntype = \"env\"\ndotenv = \"p\"", "3:1: unknown key `dotenv` in [variables_provider]; did you mean `dotenv_path`?".to_owned()),
        ("[outbound_http]\nconection_pooling = true", "2:1: unknown key `conection_pooling` in [outbound_http]; did you mean `connection_pooling`?".to_owned()),
        ("[outbound_networking]\nblock_network = []", "2:1: unknown key `block_network` in [outbound_networking]; did you mean `block_networks`?".to_owned()),
        ("[[client_tls]]\ncomponent_ids = [\"a\"]\nhosts = [\"a\"]\nca_root_file = \"x\"", "4:1: unknown key `ca_root_file` in [client_tls]; did you mean `ca_roots_file`?".to_owned()),
        ("[llm_compute]\ntype = \"spin\"\nmodel = 1", "3:1: unknown key `model` in [llm_compute]; valid keys: `type`".to_owned()),
        // Keys of Spin that are not allowed here.
        ("state_dir = \"/tmp\"", "1:1: `state_dir` is set by linksctl; remove it".to_owned()),
        ("log_dir = \"\"", "1:1: `log_dir` is set by linksctl: output goes to the journal; remove it".to_owned()),
        ("\n[key_value_store.local]\ntype = \"redis\"\nurls = 1", "2:1: `key_value_store.local` is reserved for links, which keeps it in a file on this machine; remove it, or give the store another name".to_owned()),
        ("[[config_provider]]", "1:3: `config_provider` is an old name; write `variables_provider`".to_owned()),
        // Types of stores.
        ("[sqlite_database.default]\npath = \"x\"", "1:1: `type` is missing in [sqlite_database.default]".to_owned()),
        ("[sqlite_database.default]\ntype = \"turso\"\nx = 1", "2:8: `sqlite_database.default.type` must be one of `spin`, `libsql`, found \"turso\"".to_owned()),
        ("[key_value_store.c]\ntype = \"reddis\"", "2:8: `key_value_store.c.type` must be one of `spin`, `redis`, `azure_cosmos`, `aws_dynamo`, found \"reddis\"; did you mean `redis`?".to_owned()),
        ("sqlite_database = 1", "1:19: `sqlite_database` must be a table, found an integer".to_owned()),
        ("[sqlite_database]\ntype = \"spin\"", "2:8: `sqlite_database.type` must be a table, found a string".to_owned()),
        ("[variables_provider]\ntype = \"env\"", "1:1: `variables_provider` must be an array of tables, found a table; write `[[variables_provider]]`".to_owned()),
        ("variables_provider = [1]", "1:23: `variables_provider` must be a table, found an integer".to_owned()),
        // Missing and incomplete.
        ("[sqlite_database.default]\ntype = \"libsql\"\nurl = \"https://x.example\"", "1:1: `token` is missing in [sqlite_database.default]".to_owned()),
        ("[[variables_provider]]\ntype = \"static\"", "1:1: `values` is missing in [variables_provider]".to_owned()),
        ("[key_value_store.c]\ntype = \"aws_dynamo\"\nregion = \"r\"\ntable = \"t\"\naccess_key = \"a\"", "1:1: [key_value_store.c] needs all of `access_key`, `secret_key` or none of them; missing: `secret_key`".to_owned()),
        ("[[client_tls]]\ncomponent_ids = [\"a\"]\nhosts = [\"a\"]\nclient_cert_file = \"x\"", "1:1: [client_tls] needs all of `client_cert_file`, `client_private_key_file` or none of them; missing: `client_private_key_file`".to_owned()),
        // Wrong types and ranges.
        ("max_instance_memory = \"1g\"", "1:23: `max_instance_memory` must be an integer, found a string".to_owned()),
        ("max_instance_memory = 1024", "1:23: `max_instance_memory` must be from 1048576 to 1099511627776, found 1024".to_owned()),
        ("[outbound_networking]\nblock_networks = [\"private\", \"10.0.0.0/33\"]", "2:30: `outbound_networking.block_networks` must name networks as \"10.0.0.0/8\" or \"private\", found \"10.0.0.0/33\"".to_owned()),
        // URLs and paths.
        ("[sqlite_database.default]\ntype = \"libsql\"\nurl = \"libsql://x.turso.io\"\ntoken = \"\"", "3:7: `sqlite_database.default.url` must be an https or http URL; write https:// in place of libsql://".to_owned()),
        ("[sqlite_database.default]\ntype = \"libsql\"\nurl = \"https://x.turso.io?authToken=abc\"\ntoken = \"\"", "3:7: `sqlite_database.default.url` must not have a query; give the token as `token`".to_owned()),
        ("[sqlite_database.default]\ntype = \"spin\"\npath = \":memory:\"", "3:8: `sqlite_database.default.path` must be the path of a file; remove `path` for the default".to_owned()),
        ("[sqlite_database.default]\ntype = \"spin\"\npath = \"../links.db\"", "3:8: `sqlite_database.default.path` must not contain `..`".to_owned()),
        ("[sqlite_database.default]\ntype = \"libsql\"\nurl = \"https://x.example\"\ntoken = \"env:9X\"", "4:9: \"9X\" is not a valid variable name; use letters, digits and `_`, not a digit first".to_owned()),
        ("[key_value_store.default]\ntype = \"redis\"\nurl = \"env:REDIS_URL\"", "3:7: `key_value_store.default.url` must be written here or in a credential: linksctl must know the host before it starts an instance".to_owned()),
        ("[sqlite_database.default]\ntype = \"spin\"\npath = \"credential:p\"", "3:8: `sqlite_database.default.path` must be a path, not a reference".to_owned()),
        ("[sqlite_database.default]\ntype = \"spin\"\npath = \"/srv/links.db\"", "3:8: warning: `sqlite_database.default.path` is outside /var/lib/links/data, the only directory that the instances may write to; move it there, or add ReadWritePaths= to links@.service".to_owned()),
        // Secrets.
        ("[sqlite_database.default]\ntype = \"libsql\"\nurl = \"https://x.example\"\ntoken = \"eyJhb\"", format!("4:9: `sqlite_database.default.token` {secret}; {put}")),
        ("[[variables_provider]]\ntype = \"vault\"\nurl = \"https://v.example\"\ntoken = \"hvs.1\"\nmount = \"m\"", format!("4:9: `variables_provider.token` {secret}; {put}")),
        ("[[variables_provider]]\ntype = \"static\"\nvalues = { admin_token = \"abc\" }", format!("3:26: `variables_provider.values.admin_token` {secret}; {put}")),
        ("[key_value_store.c]\ntype = \"redis\"\nurl = \"redis://:hunter2@h:6379\"", "3:7: `key_value_store.c.url` must not hold a password; put the whole URL into /etc/links/credentials/NAME, mode 0600, and write \"credential:NAME\"".to_owned()),
        ("[[variables_provider]]\ntype = \"static\"\nvalues.api_key = \"abc\"", "3:18: warning: `api_key` looks like a secret, and everybody on this host can read this file; put it into /etc/links/credentials/api_key and write \"credential:api_key\"".to_owned()),
        ("[[variables_provider]]\ntype = \"static\"\nvalues.greeting = \"credential:../shadow\"", "3:19: \"../shadow\" is not a valid credential name; use letters, digits, `_`, `-` and `.`".to_owned()),
        // Variables.
        ("[[variables_provider]]\ntype = \"static\"\nvalues = { public_url = \"https://x.example\" }", "3:25: `variables_provider.values.public_url` is set in links.toml; set `public_url` there".to_owned()),
        ("[[variables_provider]]\ntype = \"static\"\nvalues.database_place = \"local\"", "3:25: `variables_provider.values.database_place` follows from [sqlite_database.default]; remove it".to_owned()),
        ("[[variables_provider]]\ntype = \"static\"\nvalues.shorten_access = \"open\"", "3:25: `variables_provider.values.shorten_access` is set in links.toml; set `shorten.access` there".to_owned()),
        ("[[variables_provider]]\ntype = \"static\"\nvalues.a-b = \"c\"", "3:14: `variables_provider.values.a-b` is not a valid variable name; use lower-case letters, digits and `_`".to_owned()),
        ("[[variables_provider]]\ntype = \"static\"\nvalues.a = 1", "3:12: `variables_provider.values.a` must be a string, found an integer".to_owned()),
    ] {
        assert_eq!(found(text), [format!("runtime.toml:{message}")], "{text}");
    }
}

#[test]
fn findings_never_repeat_a_secret() {
    for text in [
        "[sqlite_database.default]\ntype = \"libsql\"\nurl = \"https://u:HUSH@[x\"\ntoken = \"HUSH\"",
        "[key_value_store.c]\ntype = \"redis\"\nurl = \"rediss://u:HUSH@h\"",
        "[key_value_store.c]\ntype = \"redis\"\nurl = \"mysql://u:HUSH@h\"",
        "[key_value_store.c]\ntype = \"azure_cosmos\"\naccount = \"a\"\ndatabase = \"b\"\ncontainer = \"c\"\nkey = \"HUSH\"",
        "[[variables_provider]]\ntype = \"azure_key_vault\"\nvault_url = \"https://x.example\"\nclient_id = \"a\"\ntenant_id = \"b\"\nclient_secret = \"HUSH\"",
        "[llm_compute]\ntype = \"remote_http\"\nurl = \"https://x.example\"\nauth_token = \"HUSH\"",
        "[[variables_provider]]\ntype = \"static\"\nvalues.password = \"HUSH\"",
        "[sqlite_database.default]\ntype = \"libsql\"\ntoken = \"HUSH\" HUSH",
    ] {
        let found = found(text);
        assert!(!found.is_empty() && !found.concat().contains("HUSH"), "{found:?}");
    }
}

#[test]
fn all_findings_are_reported_at_once() {
    let text = "
log_dir = \"/tmp\"
[sqlite_database.default]
type = \"libsql\"
url = 5
tokn = \"a\"
[key_value_store.cache]
type = \"memcached\"
[[variables_provider]]
type = \"env\"
prefix = []
";
    let places: Vec<_> = read(text, "runtime.toml")
        .1
        .iter()
        .map(|finding| (finding.line.unwrap(), finding.column.unwrap()))
        .collect();
    assert_eq!(places, [(2, 1), (3, 1), (5, 7), (6, 1), (8, 8), (11, 10)]);
}

#[test]
fn the_database_the_references_and_the_suppliers_of_variables_are_known() {
    let parse = |text| RuntimeToml::parse(text, "runtime.toml").unwrap();
    let empty = parse("");
    assert_eq!(empty.database(), Database::File("links.db".to_owned()));
    assert!(!empty.may_supply("admin_token"));

    let remote =
        parse("[sqlite_database.default]\ntype = \"libsql\"\nurl = \"https://x.example\"\ntoken = \"credential:t\"");
    assert_eq!(remote.database(), Database::LibSql("https://x.example".to_owned()));
    let reference = &remote.references()[0];
    assert_eq!(
        (reference.credential.as_str(), reference.position.to_string()),
        ("t", "runtime.toml:4:9".to_owned())
    );

    let other = parse("[[variables_provider]]\ntype = \"static\"\nvalues = { greeting = \"hello\" }");
    assert!(other.may_supply("greeting") && !other.may_supply("admin_token"));
    assert!(parse("[[variables_provider]]\ntype = \"env\"").may_supply("admin_token"));
}

/// An interrupted copy may leave such a file. It is either valid or has errors, and never causes a panic.
#[test]
fn a_file_cut_off_anywhere_is_handled() {
    for text in alternatives(SHIPPED) {
        for (end, _) in text.char_indices() {
            let (runtime, findings) = read(&text[..end], "runtime.toml");
            assert_eq!(
                runtime.is_none(),
                findings.iter().any(|finding| finding.severity == Severity::Error),
                "{text}"
            );
        }
    }
}
