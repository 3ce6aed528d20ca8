//! How much of the instances' sandbox is in force on this host. A container may weaken it: LXC's tools write a drop-in for
//! every service, and some containers do not allow mounts.

use anyhow::bail;

use crate::layout::{self, Layout};
use crate::services::Services;
use crate::{exec, files};

const UNIT: &str = include_str!("../../../systemd/links@.service");

/// Values that systemd shows in the same form as in the unit file.
const COMPARABLE: [&str; 5] = ["yes", "strict", "invisible", "pid", "closed"];
/// systemd shows this directive as the list of namespaces that are still allowed.
const NOT_COMPARABLE: &str = "RestrictNamespaces";

/// The name and the value of a directive in the unit.
type Directive = (String, String);

/// The comparable directives of the shipped unit.
fn shipped() -> Vec<Directive> {
    let service = UNIT.split("\n[Service]\n").nth(1).unwrap_or_default();
    let lines = service.lines().take_while(|line| !line.starts_with('['));
    lines
        .filter_map(|line| line.split_once('='))
        .filter(|(name, value)| COMPARABLE.contains(value) && *name != NOT_COMPARABLE)
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

/// The same directives as systemd applies them to an instance, including drop-ins. `None` if systemd does not answer.
fn in_force() -> Option<Vec<Directive>> {
    let names: Vec<_> = shipped().into_iter().map(|(name, _)| name).collect();
    let property = format!("--property={}", names.join(","));
    let shown = exec::finish("systemctl", ["show", &property, &layout::instance_unit(1)]).ok()?;
    shown.success.then(|| parse(&shown.stdout))
}

fn parse(shown: &str) -> Vec<Directive> {
    let pairs = shown.lines().filter_map(|line| line.split_once('='));
    pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// Describes, for a person, how the instances' sandbox is weaker than the shipped unit. Empty if it is not.
pub fn lacks(layout: &Layout, services: Services) -> Vec<String> {
    if !layout.is_host() || !services.running() {
        return vec![];
    }
    let mut lacks = in_force().map_or_else(Vec::new, |found| differences(&shipped(), &found));
    // There is one name per instance that got its credentials from linksctl.
    if files::list(&layout.fallback_credentials_base()).is_ok_and(|names| !names.is_empty()) {
        lacks.push("credentials come from linksctl, as systemd could not deliver them".to_owned());
    }
    lacks
}

fn differences(shipped: &[Directive], found: &[Directive]) -> Vec<String> {
    let value = |name: &str| found.iter().find(|(found, _)| found == name);
    shipped
        .iter()
        // A systemd that does not know a directive does not show it.
        .filter_map(|(name, wanted)| match value(name) {
            Some((_, value)) if value == wanted => None,
            Some((_, value)) => Some(format!("{name}={value}, not {wanted}")),
            None => Some(format!("{name} is unknown to this systemd")),
        })
        .collect()
}

/// Checks that a process can be started in the instances' sandbox.
///
/// # Errors
/// The process cannot be started. The error names the directives that this host does not support, and the remedy.
pub fn check(services: Services) -> anyhow::Result<()> {
    if !services.running() {
        return Ok(());
    }
    let Some(directives) = in_force() else { return Ok(()) };
    let Err(why) = try_with(&directives)? else {
        return Ok(());
    };
    let mut refused = vec![];
    for directive in &directives {
        if directive.1 != "no" && try_with(std::slice::from_ref(directive))?.is_err() {
            refused.push(directive.clone());
        }
    }
    bail!("{}", explain(&refused, &why))
}

/// Starts `/bin/true` with these directives. The inner error is systemd's reason why that failed.
fn try_with(directives: &[Directive]) -> anyhow::Result<Result<(), String>> {
    let user = format!("--property=User={}", layout::USER);
    let properties = directives
        .iter()
        .map(|(name, value)| format!("--property={name}={value}"));
    let arguments = ["--quiet", "--wait", "--collect"]
        .map(str::to_owned)
        .into_iter()
        .chain([user]);
    let arguments = arguments.chain(properties).chain(["/bin/true".to_owned()]);
    let run = exec::finish("systemd-run", arguments)?;
    Ok(match run.success {
        true => Ok(()),
        false => Err(exec::tail(&run.stderr, 2)),
    })
}

fn explain(refused: &[Directive], why: &str) -> String {
    let why = match why {
        "" => "`journalctl -b` has systemd's reason".to_owned(),
        why => why.to_owned(),
    };
    if refused.is_empty() {
        return format!(
            "this host cannot start a process in the instances' sandbox, although each directive works alone: {why}\n\
             Enable nesting for the container (LXC: `security.nesting=true`), or turn off directives of links@.service in \
             /etc/systemd/system/links@.service.d/50-container.conf, then run `systemctl daemon-reload` and `linksctl configure`"
        );
    }
    let names: Vec<_> = refused.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let lines: String = refused.iter().map(|(name, _)| format!("    {name}=no\n")).collect();
    format!(
        "this host does not support {} for the instances ({why}). Enable nesting for the container (LXC: \
         `security.nesting=true`), or do without: put\n    [Service]\n{}into \
         /etc/systemd/system/links@.service.d/50-container.conf, then run `systemctl daemon-reload` and `linksctl configure`",
        names.join(", "),
        lines
            .replace("ProtectProc=no", "ProtectProc=default")
            .replace("ProcSubset=no", "ProcSubset=all")
            .replace("DevicePolicy=no", "DevicePolicy=auto"),
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use super::*;

    fn directives(pairs: &[(&str, &str)]) -> Vec<Directive> {
        pairs
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect()
    }

    #[test]
    fn the_shipped_unit_has_comparable_directives() {
        let shipped = shipped();
        for (name, value) in [
            ("ProtectSystem", "strict"),
            ("ProtectProc", "invisible"),
            ("PrivateUsers", "yes"),
        ] {
            assert!(
                shipped.contains(&(name.to_owned(), value.to_owned())),
                "{name}: {shipped:?}"
            );
        }
        assert!(!shipped.iter().any(|(name, _)| name == "RestrictNamespaces"));
    }

    #[test]
    fn directives_that_a_container_weakens_are_named() {
        let wanted = directives(&[
            ("ProtectProc", "invisible"),
            ("ProcSubset", "pid"),
            ("PrivateUsers", "yes"),
        ]);
        assert!(differences(&wanted, &wanted).is_empty());
        let found = parse("ProtectProc=default\nPrivateUsers=yes\n");
        assert_eq!(
            differences(&wanted, &found),
            [
                "ProtectProc=default, not invisible",
                "ProcSubset is unknown to this systemd"
            ]
        );
    }

    #[test]
    fn a_refusal_names_the_directives_and_the_drop_in() {
        let refused = directives(&[("PrivateUsers", "yes"), ("ProcSubset", "pid")]);
        let message = explain(&refused, "Failed at step NAMESPACE");
        for part in [
            "does not support PrivateUsers=yes, ProcSubset=pid",
            "Failed at step NAMESPACE",
            "    PrivateUsers=no\n    ProcSubset=all\n",
            "links@.service.d/50-container.conf",
            "`linksctl configure`",
        ] {
            assert!(message.contains(part), "{part}: {message}");
        }
        assert!(explain(&[], "").contains("each directive works alone"));
    }
}
