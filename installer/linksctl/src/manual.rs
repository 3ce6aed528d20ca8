//! The man page and the completions, generated from the declarations in `cli`.

use std::io::Write as _;

use clap::{Command, CommandFactory as _};
use clap_mangen::Man;

use crate::cli::{Cli, CompletionShell};

/// The sections that are not generated.
const MAN_TAIL: &str = include_str!("../../../packaging/linksctl.1.tail");

/// The man page linksctl(1), which describes every visible command. `date` (`YYYY-MM-DD`) is shown in the footer.
///
/// # Errors
/// None in practice, because the page is written to memory.
pub fn man_page(date: &str) -> anyhow::Result<Vec<u8>> {
    let mut command = Cli::command();
    command.build();
    let mut page = Vec::new();
    let man = Man::new(command.clone()).date(date).manual("links");
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    writeln!(page, ".SH COMMANDS")?;
    for subcommand in command.get_subcommands().filter(|command| shown(command)) {
        if subcommand.has_subcommands() {
            // A command that also works without one of its subcommands.
            if !subcommand.is_subcommand_required_set() {
                write_subcommand(&mut page, subcommand.get_name(), subcommand.clone())?;
            }
            for inner in subcommand.get_subcommands().filter(|command| shown(command)) {
                let heading = format!("{} {}", subcommand.get_name(), inner.get_name());
                write_subcommand(&mut page, &heading, inner.clone())?;
            }
        } else {
            write_subcommand(&mut page, subcommand.get_name(), subcommand.clone())?;
        }
    }
    let mut exit_status = Vec::new();
    man.render_extra_section(&mut exit_status)?;
    let exit_status = String::from_utf8_lossy(&exit_status).replace(".SH EXTRA", ".SH \"EXIT STATUS\"");
    page.extend_from_slice(exit_status.as_bytes());
    page.extend_from_slice(MAN_TAIL.as_bytes());
    Ok(page)
}

fn shown(command: &Command) -> bool {
    !command.is_hide_set() && command.get_name() != "help"
}

/// Writes a subsection: the sections of the command's own page without their headings.
fn write_subcommand(page: &mut Vec<u8>, heading: &str, command: Command) -> anyhow::Result<()> {
    writeln!(page, ".SS {heading}")?;
    let name = command.get_bin_name().unwrap_or(command.get_name()).to_owned();
    // Options that all commands share are described once, at the top of the page.
    let command = command.mut_args(|argument| {
        let everywhere = argument.is_global_set() || matches!(argument.get_id().as_str(), "help" | "version");
        argument.hide(everywhere)
    });
    let has_options = command.get_arguments().any(|argument| !argument.is_hide_set());
    let man = Man::new(command.display_name(name));
    let mut sections = Vec::new();
    man.render_synopsis_section(&mut sections)?;
    writeln!(sections, ".PP")?;
    man.render_description_section(&mut sections)?;
    if has_options {
        man.render_options_section(&mut sections)?;
    }
    for line in String::from_utf8_lossy(&sections).lines() {
        if !line.starts_with(".SH ") && !line.starts_with(".ie ") && !line.starts_with(".el ") {
            writeln!(page, "{line}")?;
        }
    }
    Ok(())
}

/// The completion script for a shell.
///
/// # Errors
/// None in practice, because the script is written to memory.
pub fn completions(shell: CompletionShell) -> anyhow::Result<Vec<u8>> {
    let shell = match shell {
        CompletionShell::Bash => clap_complete::Shell::Bash,
        CompletionShell::Zsh => clap_complete::Shell::Zsh,
    };
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "linksctl", &mut text);
    Ok(text)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use super::*;

    #[test]
    fn the_man_page_has_every_command_but_the_hidden_ones() {
        let page = String::from_utf8(man_page("2026-11-22").unwrap()).unwrap();
        for part in [
            ".TH linksctl 1 2026-11-22",
            ".SH COMMANDS",
            ".SS rollout",
            ".SS status",
            ".SS db copy",
            ".SS backup\n",
            ".SS backup verify",
            ".SS restore",
            "\\-\\-resume",
            ".SH FILES",
            "dry\\-run",
        ] {
            assert!(page.contains(part), "{part}");
        }
        for part in [
            ".SS completions",
            ".SS man",
            ".SS help",
            ".SS db\n",
            "linksctl\\-pack(1)",
        ] {
            assert!(!page.contains(part), "{part}");
        }
    }

    #[test]
    fn the_completions_contain_the_commands() {
        for shell in [CompletionShell::Bash, CompletionShell::Zsh] {
            let text = String::from_utf8(completions(shell).unwrap()).unwrap();
            assert!(text.contains("linksctl") && text.contains("rollout") && text.contains("dry-run"));
        }
    }
}
