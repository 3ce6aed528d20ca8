//! The journal's directory belongs to root: nginx's master opens `clicks.log` there as root, and chowns it by path when it
//! reopens its logs, following symbolic links (as in CVE-2016-1247). Up to 0.1.0 the directory belonged to user `links`,
//! so what is found there may be anything that this user could make.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use anyhow::Context as _;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, RenameFlags, Stat, Uid, fchmod, fchown, fremovexattr, openat, renameat_with,
    statat,
};
use rustix::io::Errno;

use crate::edge;
use crate::layout::{Layout, USER};
use crate::{beneath, privileges};

/// tmpfiles.d has both modes too.
const DIRECTORY_MODE: u32 = 0o2751;
const FILE_MODE: u32 = 0o660;
/// A directory's owner can give anybody more rights with these (acl(5)), and they survive a chown.
const ACCESS_LISTS: [&str; 2] = ["system.posix_acl_access", "system.posix_acl_default"];

/// Whom the journal is to belong to.
#[derive(Clone, Copy, Debug)]
struct Owner {
    user: Uid,
    group: Gid,
    /// Whom it may not belong to.
    links: Uid,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Missing,
    Good,
    /// nginx must not open it.
    Unsafe(&'static str),
}

/// Of what bears the journal's name, not followed.
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

/// Gives the directory to root where it is there already, and makes `clicks.log` a file that nginx can safely open.
/// Whatever else has that name is kept beside it under another one: what nginx wrote into it is still there, and the agent
/// goes on reading a file that it knows. Returns what a person should hear of.
///
/// # Errors
/// There is no user `links`, or the file system refuses.
pub fn take_over(layout: &Layout) -> anyhow::Result<Option<String>> {
    let directory = layout.journal_dir();
    let state = match beneath::directory(&layout.state_dir()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        state => state.with_context(|| format!("Opening {}", layout.state_dir().display()))?,
    };
    // /var/lib/links is root's: nobody else can put something in the directory's place.
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
    let path = layout.journal();
    let changed = secure(&opened, path.file_name().unwrap_or_default(), owner)
        .with_context(|| format!("Taking over {}", directory.display()))?;
    if changed != Changed::Nothing {
        reopen_logs(layout);
    }
    Ok(match changed {
        Changed::Nothing | Changed::Made => None,
        Changed::MovedAside { was, name } => Some(format!(
            "{} was {was}, which user {USER} must have made: it is now {}, and nginx writes to a new file",
            path.display(),
            directory.join(name).display()
        )),
    })
}

#[derive(Debug, PartialEq, Eq)]
enum Changed {
    Nothing,
    Made,
    MovedAside { was: &'static str, name: OsString },
}

fn secure(directory: &OwnedFd, name: &OsStr, owner: Owner) -> io::Result<Changed> {
    // First the owner: from then on nobody else can change the mode, nor, with that mode, a name in the directory.
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
            // nginx gives it to its workers' user, whom it shall stay with.
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
            // There is none, or the file system has none.
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

/// nginx has the old file open, or none.
fn reopen_logs(layout: &Layout) {
    let Some(pid) = edge::master(layout).and_then(|pid| i32::try_from(pid).ok()) else {
        return;
    };
    if let Err(error) = kill(Pid::from_raw(pid), Signal::SIGUSR1) {
        crate::log::error!("telling nginx to reopen its logs: {error}");
    }
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

        fn at(&self, name: &str) -> std::path::PathBuf {
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

        /// A new journal is there, and what was in its place is beside it.
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
    fn the_journal_that_nginx_writes_stays_with_all_that_is_in_it() {
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
    fn a_missing_journal_is_made() {
        let setting = Setting::new();
        assert_eq!(setting.secure(), Changed::Made);
        assert_eq!(setting.secure(), Changed::Nothing);
    }

    #[test]
    fn anything_else_of_that_name_goes_aside_and_its_target_is_not_touched() {
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
    fn what_went_aside_before_stays() {
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
    fn rights_that_were_given_by_an_access_control_list_are_taken_back() {
        let setting = Setting::new();
        // Version 2: rwx for the owner, for user 1 and for the group, by a mask of rwx; nothing for others (acl(5)).
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
                // Of the file system that tests run on, not of links.
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
    fn tmpfiles_d_says_the_same() {
        let tmpfiles = include_str!("../../packaging/tmpfiles.d/links.conf");
        for line in [
            format!("d /var/lib/links/journal {DIRECTORY_MODE:04o} root {USER} -"),
            format!("f /var/lib/links/journal/{NAME} {FILE_MODE:04o} - {USER} -"),
        ] {
            assert!(tmpfiles.lines().any(|found| found == line), "{line}");
        }
    }
}
