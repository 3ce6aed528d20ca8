//! A disk whose power can be cut, for a process that has this loaded by LD_PRELOAD: beside the files of its database,
//! `links.db` and `links.db-wal`, it keeps what a power failure would leave of them, as `FILE.durable`. While the file
//! `sync-fails` is beside them, syncs fail with EIO. As on Linux, what such a sync should have written counts as written
//! afterwards: the next sync does not write it again (<https://lwn.net/Articles/752063/>).
//!
//! It knows the writes of one process, so no other one may write to the database.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CStr, c_char, c_int, c_void};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::RawFd;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use nix::errno::Errno;
use nix::libc;

const PAGE: u64 = 4096;

/// By file: the pages that were written since the last sync.
static DIRTY: Mutex<BTreeMap<PathBuf, BTreeSet<u64>>> = Mutex::new(BTreeMap::new());

/// # Safety
/// As pwrite(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pwrite64(file: c_int, bytes: *const c_void, count: usize, offset: libc::off64_t) -> isize {
    let next = next::<unsafe extern "C" fn(c_int, *const c_void, usize, libc::off64_t) -> isize>(c"pwrite64");
    written(file, count, || offset);
    // SAFETY: the caller's arguments.
    unsafe { next(file, bytes, count, offset) }
}

/// # Safety
/// As pwrite(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pwrite(file: c_int, bytes: *const c_void, count: usize, offset: libc::off64_t) -> isize {
    // SAFETY: the caller's arguments; on 64-bit Linux both are the same.
    unsafe { pwrite64(file, bytes, count, offset) }
}

/// # Safety
/// As write(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn write(file: c_int, bytes: *const c_void, count: usize) -> isize {
    let next = next::<unsafe extern "C" fn(c_int, *const c_void, usize) -> isize>(c"write");
    // SAFETY: it only asks.
    written(file, count, || unsafe { libc::lseek(file, 0, libc::SEEK_CUR) });
    // SAFETY: the caller's arguments.
    unsafe { next(file, bytes, count) }
}

#[unsafe(no_mangle)]
pub extern "C" fn fsync(file: c_int) -> c_int {
    sync(file, next::<extern "C" fn(c_int) -> c_int>(c"fsync"))
}

#[unsafe(no_mangle)]
pub extern "C" fn fdatasync(file: c_int) -> c_int {
    sync(file, next::<extern "C" fn(c_int) -> c_int>(c"fdatasync"))
}

fn written(file: c_int, count: usize, offset: impl FnOnce() -> libc::off64_t) {
    let Some(path) = watched(file) else { return };
    let Ok(start) = u64::try_from(offset()) else { return };
    begin(&path);
    let after = (start + count as u64).div_ceil(PAGE);
    let mut dirty = DIRTY.lock().unwrap_or_else(PoisonError::into_inner);
    dirty.entry(path).or_default().extend(start / PAGE..after);
}

fn sync(file: c_int, next: extern "C" fn(c_int) -> c_int) -> c_int {
    let Some(path) = watched(file) else {
        return next(file);
    };
    begin(&path);
    let mut dirty = DIRTY.lock().unwrap_or_else(PoisonError::into_inner);
    let pages = dirty.remove(&path).unwrap_or_default();
    if path.with_file_name("sync-fails").exists() {
        Errno::EIO.set();
        return -1;
    }
    match keep(&path, &pages) {
        Ok(()) => next(file),
        Err(error) => {
            Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)).set();
            -1
        }
    }
}

/// What is there when it is first written to is on the disk.
fn begin(path: &Path) {
    let durable = durable(path);
    if !durable.exists() {
        // A failure shows at the next sync, which finds no file to write to.
        let _ = fs::copy(path, durable);
    }
}

fn keep(path: &Path, pages: &BTreeSet<u64>) -> io::Result<()> {
    let from = File::open(path)?;
    let to = OpenOptions::new().write(true).open(durable(path))?;
    let size = from.metadata()?.len();
    to.set_len(size)?;
    let mut bytes = [0; PAGE as usize];
    for page in pages {
        let start = page * PAGE;
        let length = size.saturating_sub(start).min(PAGE) as usize;
        from.read_exact_at(&mut bytes[..length], start)?;
        to.write_all_at(&bytes[..length], start)?;
    }
    Ok(())
}

fn durable(path: &Path) -> PathBuf {
    path.with_added_extension("durable")
}

/// The path of an open file, if it is one of the database's.
fn watched(file: RawFd) -> Option<PathBuf> {
    let path = fs::read_link(format!("/proc/self/fd/{file}")).ok()?;
    matches!(path.file_name()?.to_str()?, "links.db" | "links.db-wal").then_some(path)
}

/// What would be called if this were not loaded.
fn next<F: Copy>(name: &CStr) -> F {
    const { assert!(size_of::<F>() == size_of::<*mut c_void>()) };
    // SAFETY: the name is a C string.
    let found = unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr().cast::<c_char>()) };
    if found.is_null() {
        // Nothing can be told from here, and nothing can go on.
        std::process::abort();
    }
    // SAFETY: libc's function of this name has this type, by its manual page.
    unsafe { std::mem::transmute_copy(&found) }
}
