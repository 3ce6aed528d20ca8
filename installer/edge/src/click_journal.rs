//! The click journal's directory has to belong to root. nginx's master opens `clicks.log` there as root, and chowns it by path
//! when it reopens its logs, following symbolic links (as in CVE-2016-1247). Up to version 0.1.0 the directory belonged to user
//! `links`, so it may contain anything that this user could create.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, RenameFlags, Stat, Uid, fchmod, fchown, fremovexattr, openat, renameat_with,
    statat,
};
use rustix::io::Errno;

use crate::reload::Nginx;
use links_base::layout::{Layout, USER};
use links_base::services::Services;
use links_base::{beneath, privileges};

/// The mode of the journal's directory. packaging/tmpfiles.d/links.conf repeats it.
const DIRECTORY_MODE: u32 = 0o2751;
/// The mode of the journal. packaging/tmpfiles.d/links.conf repeats it.
const FILE_MODE: u32 = 0o660;
/// The attributes that hold access control lists (acl(5)). An earlier owner may have granted rights in them, and they survive a
/// chown.
const ACCESS_LISTS: [&str; 2] = ["system.posix_acl_access", "system.posix_acl_default"];

/// The required owner of the journal.
#[derive(Clone, Copy, Debug)]
struct Owner {
    user: Uid,
    group: Gid,
    /// User `links`, who must not own it.
    links: Uid,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Missing,
    Good,
    /// nginx must not open it; the text says what it is.
    Unsafe(&'static str),
}

/// Judges whatever has the journal's name, without following a symbolic link.
fn judge(found: Option<&Stat>) -> Verdict {
    match found {
        None => Verdict::Missing,
        Some(found) => match FileType::from_raw_mode(found.st_mode) {
            FileType::RegularFile if found.st_nlink == 1 => Verdict::Good,
            FileType::RegularFile => Verdict::Unsafe("a file with several hard links"),
            other => Verdict::Unsafe(beneath::name(other)),
        },
    }
}

/// The paths of the journal.
#[derive(Clone, Debug)]
pub struct ClickJournal {
    /// The parent of the journal's directory. It belongs to root.
    state: PathBuf,
    directory: PathBuf,
    path: PathBuf,
    nginx: Nginx,
}

impl ClickJournal {
    pub fn new(layout: &Layout, services: Services) -> Self {
        Self {
            state: layout.state_dir(),
            directory: layout.journal_dir(),
            path: layout.journal(),
            nginx: Nginx::new(layout, services),
        }
    }

    /// Gives the journal's directory to root, if it exists, and makes `clicks.log` a file that nginx can safely open.
    ///
    /// Anything unsafe of that name is renamed, not removed: it still holds what nginx wrote into it, and the agent continues to
    /// read a file that it knows. In that case the function returns a message for the administrator.
    ///
    /// # Errors
    /// User `links` does not exist, or the file system refuses a change.
    pub fn take_over(&self) -> anyhow::Result<Option<String>> {
        let directory = &self.directory;
        let state = match beneath::directory(&self.state) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            state => state.with_context(|| format!("Opening {}", self.state.display()))?,
        };
        // /var/lib/links belongs to root, so nobody else can replace the directory.
        let opened = match beneath::subdirectory(&state, Path::new(directory.file_name().unwrap_or_default())) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened.with_context(|| format!("Opening {}", directory.display()))?,
        };
        let links = privileges::links()?;
        let owner = Owner {
            user: Uid::ROOT,
            group: Gid::from_raw(links.gid.as_raw()),
            links: Uid::from_raw(links.uid.as_raw()),
        };
        let path = &self.path;
        let changed = secure(&opened, path.file_name().unwrap_or_default(), owner)
            .with_context(|| format!("Taking over {}", directory.display()))?;
        if changed != Changed::Nothing {
            self.reopen_logs();
        }
        Ok(match changed {
            Changed::Nothing | Changed::Made => None,
            Changed::MovedAside { was, name } => Some(format!(
                "{} was {was}, which user {USER} must have created. It was renamed to {}, and nginx writes to a new file",
                path.display(),
                directory.join(name).display()
            )),
        })
    }

    /// Makes nginx open the new file: so far it has the old one open, or none.
    fn reopen_logs(&self) {
        let Some(pid) = self.nginx.master().and_then(|pid| i32::try_from(pid).ok()) else {
            return;
        };
        if let Err(error) = kill(Pid::from_raw(pid), Signal::SIGUSR1) {
            links_base::log::error!("signalling nginx to reopen its logs: {error}");
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Changed {
    Nothing,
    Made,
    MovedAside { was: &'static str, name: OsString },
}

fn secure(directory: &OwnedFd, name: &OsStr, owner: Owner) -> io::Result<Changed> {
    // The owner comes first: from then on nobody else can change the mode, and with that mode nobody else can rename anything
    // in the directory.
    fchown(directory, Some(owner.user), Some(owner.group))?;
    fchmod(directory, Mode::from_raw_mode(DIRECTORY_MODE))?;
    remove_access_lists(directory)?;

    let found = match statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => None,
        found => Some(found?),
    };
    Ok(match judge(found.as_ref()) {
        Verdict::Good => {
            let (file, found) = beneath::regular_file(directory, Path::new(name))?;
            // nginx gives the file to its workers' user, so it only changes hands if user `links` owns it.
            let user = (found.st_uid == owner.links.as_raw()).then_some(owner.user);
            give(&file, user, owner.group)?;
            Changed::Nothing
        }
        Verdict::Missing => {
            make(directory, name, owner)?;
            Changed::Made
        }
        Verdict::Unsafe(was) => {
            let aside = move_aside(directory, name)?;
            make(directory, name, owner)?;
            Changed::MovedAside { was, name: aside }
        }
    })
}

fn make(directory: &OwnedFd, name: &OsStr, owner: Owner) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = openat(directory, name, flags, Mode::RUSR | Mode::WUSR)?;
    give(&file, Some(owner.user), owner.group)
}

fn give(file: impl AsFd, user: Option<Uid>, group: Gid) -> io::Result<()> {
    fchown(&file, user, Some(group))?;
    fchmod(&file, Mode::from_raw_mode(FILE_MODE))?;
    remove_access_lists(&file)
}

fn remove_access_lists(file: impl AsFd) -> io::Result<()> {
    for name in ACCESS_LISTS {
        match fremovexattr(&file, name) {
            // The file has no such list, or its file system does not support them.
            Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn move_aside(directory: &OwnedFd, name: &OsStr) -> io::Result<OsString> {
    for number in 1_u32.. {
        let mut aside = name.to_owned();
        aside.push(format!(".unsafe-{number}"));
        match renameat_with(directory, name, directory, &aside, RenameFlags::NOREPLACE) {
            Err(Errno::EXIST) => {}
            moved => return Ok(moved.map(|()| aside)?),
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt as _, symlink};

    use rustix::fs::{CWD, XattrFlags, mknodat, setxattr};
    use rustix::process::{getgid, getuid};

    use super::*;

    const NAME: &str = "clicks.log";

    struct Setting {
        directory: tempfile::TempDir,
    }

    impl Setting {
        fn new() -> Self {
            Self {
                directory: tempfile::tempdir().unwrap(),
            }
        }

        fn at(&self, name: &str) -> PathBuf {
            self.directory.path().join(name)
        }

        fn secure(&self) -> Changed {
            let owner = Owner {
                user: getuid(),
                group: getgid(),
                links: Uid::from_raw(12345),
            };
            let directory = beneath::directory(self.directory.path()).unwrap();
            secure(&directory, OsStr::new(NAME), owner).unwrap()
        }

        /// Expects a new journal, with the file that was in its place kept beside it.
        #[track_caller]
        fn expect_aside(&self, was: &'static str) {
            let name = "clicks.log.unsafe-1";
            assert_eq!(self.secure(), Changed::MovedAside { was, name: name.into() });
            let journal = fs::symlink_metadata(self.at(NAME)).unwrap();
            assert!(journal.is_file());
            assert_eq!(
                (journal.mode() & 0o7777, journal.nlink(), journal.len()),
                (FILE_MODE, 1, 0)
            );
            assert!(fs::symlink_metadata(self.at(name)).is_ok());
            assert_eq!(self.secure(), Changed::Nothing);
        }
    }

    #[test]
    fn a_safe_journal_keeps_its_contents() {
        let setting = Setting::new();
        fs::write(setting.at(NAME), "l1\n").unwrap();
        let before = fs::metadata(setting.at(NAME)).unwrap().ino();
        assert_eq!(setting.secure(), Changed::Nothing);
        let after = fs::metadata(setting.at(NAME)).unwrap();
        assert_eq!((after.ino(), after.mode() & 0o7777), (before, FILE_MODE));
        assert_eq!(fs::read_to_string(setting.at(NAME)).unwrap(), "l1\n");
        let directory = fs::metadata(setting.directory.path()).unwrap();
        assert_eq!(directory.mode() & 0o7777, DIRECTORY_MODE);
    }

    #[test]
    fn a_missing_journal_is_created() {
        let setting = Setting::new();
        assert_eq!(setting.secure(), Changed::Made);
        assert_eq!(setting.secure(), Changed::Nothing);
    }

    #[test]
    fn an_unsafe_file_is_renamed_and_its_target_is_not_touched() {
        let setting = Setting::new();
        fs::write(setting.at("target"), "root's").unwrap();
        let before = fs::metadata(setting.at("target")).unwrap().mode();
        symlink("target", setting.at(NAME)).unwrap();
        setting.expect_aside("a symbolic link");
        let after = fs::metadata(setting.at("target")).unwrap();
        assert_eq!((after.mode(), after.len()), (before, 6));

        let setting = Setting::new();
        mknodat(CWD, setting.at(NAME), FileType::Fifo, Mode::RWXU, 0).unwrap();
        setting.expect_aside("a FIFO");

        let setting = Setting::new();
        fs::create_dir_all(setting.at(NAME).join("inside")).unwrap();
        setting.expect_aside("a directory");

        let setting = Setting::new();
        fs::write(setting.at("target"), "root's").unwrap();
        fs::hard_link(setting.at("target"), setting.at(NAME)).unwrap();
        setting.expect_aside("a file with several hard links");
        assert_eq!(fs::metadata(setting.at("target")).unwrap().mode(), before);
    }

    #[test]
    fn a_file_that_was_renamed_earlier_stays() {
        let setting = Setting::new();
        fs::write(setting.at("clicks.log.unsafe-1"), "first").unwrap();
        symlink("nowhere", setting.at(NAME)).unwrap();
        let name = OsString::from("clicks.log.unsafe-2");
        assert_eq!(
            setting.secure(),
            Changed::MovedAside {
                was: "a symbolic link",
                name
            }
        );
        assert_eq!(fs::read_to_string(setting.at("clicks.log.unsafe-1")).unwrap(), "first");
    }

    #[test]
    fn access_control_lists_are_removed() {
        let setting = Setting::new();
        // Version 2 of the format: rwx for the owner, user 1, the group and the mask; nothing for others (acl(5)).
        let entry = |tag: u16, rights: u16, id: u32| {
            [&tag.to_le_bytes()[..], &rights.to_le_bytes(), &id.to_le_bytes()].concat()
        };
        let list = [
            2_u32.to_le_bytes().to_vec(),
            entry(1, 7, u32::MAX),
            entry(2, 7, 1),
            entry(4, 7, u32::MAX),
            entry(16, 7, u32::MAX),
            entry(32, 0, u32::MAX),
        ]
        .concat();
        for name in ACCESS_LISTS {
            match setxattr(setting.directory.path(), name, &list, XattrFlags::empty()) {
                // The file system that the test runs on does not support them.
                Err(Errno::OPNOTSUPP) => return,
                set => set.unwrap(),
            }
        }
        setting.secure();
        let mut value = [0; 64];
        for name in ACCESS_LISTS {
            let left = rustix::fs::getxattr(setting.directory.path(), name, &mut value);
            assert_eq!(left, Err(Errno::NODATA), "{name}");
        }
    }

    #[test]
    fn tmpfiles_d_has_the_same_owners_and_modes() {
        let tmpfiles = include_str!("../../../packaging/tmpfiles.d/links.conf");
        for line in [
            format!("d /var/lib/links/journal {DIRECTORY_MODE:04o} root {USER} -"),
            format!("f /var/lib/links/journal/{NAME} {FILE_MODE:04o} - {USER} -"),
        ] {
            assert!(tmpfiles.lines().any(|found| found == line), "{line}");
        }
    }
}
