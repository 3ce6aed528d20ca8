//! Programs of another architecture, which run here under an emulator such as qemu-aarch64.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

/// How much longer an emulated program may take: generous, because it may have to compile the components.
const SLOWDOWN: u32 = 20;

/// How a program runs on this machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Emulator {
    /// By itself: it is of this machine's architecture.
    #[default]
    None,
    /// Under this program, which takes the path of the other one and its arguments.
    Program(PathBuf),
}

impl Emulator {
    /// The command that does here what `command` does on its own architecture. Under an emulator its standard input is empty.
    pub fn wrap(&self, command: Command) -> Command {
        let Self::Program(emulator) = self else {
            return command;
        };
        let mut wrapped = Command::new(emulator);
        wrapped.arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => wrapped.env(name, value),
                None => wrapped.env_remove(name),
            };
        }
        if let Some(directory) = command.get_current_dir() {
            wrapped.current_dir(directory);
        }
        wrapped.stdin(Stdio::null());
        wrapped
    }

    /// The time that a program may take here for what takes it `native` on its own architecture.
    pub fn timeout(&self, native: Duration) -> Duration {
        match self {
            Self::None => native,
            Self::Program(_) => native * SLOWDOWN,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic fails the test")]
mod tests {
    use super::*;

    #[test]
    fn a_wrapped_command_keeps_its_arguments_environment_and_directory() {
        let command = || {
            let mut command = Command::new("/bin/sh");
            command.args(["-c", "echo $0 $WORD ${HOME-none}; pwd", "a b"]);
            command.env("WORD", "word").env_remove("HOME").current_dir("/usr");
            command
        };
        // `env` runs a program as an emulator does.
        for emulator in [Emulator::None, Emulator::Program("/usr/bin/env".into())] {
            let output = emulator.wrap(command()).output().unwrap();
            assert_eq!(
                String::from_utf8_lossy(&output.stdout),
                "a b word none\n/usr\n",
                "{emulator:?}"
            );
        }
    }

    #[test]
    fn only_emulated_programs_get_more_time() {
        let second = Duration::from_secs(1);
        assert_eq!(Emulator::None.timeout(second), second);
        assert!(Emulator::Program("qemu".into()).timeout(second) > second);
    }
}
