//! A disk whose power can be cut, as a library for LD_PRELOAD. Beside each of the database's files, `links.db` and
//! `links.db-wal`, it keeps `FILE.durable`, the contents that would survive a power failure. While the file `sync-fails`
//! is in the same directory, syncs fail with EIO. As on Linux, the pages of a failed sync count as clean, and the next sync
//! does not write them again (<https://lwn.net/Articles/752063/>).
//!
//! The library sees the writes of one process only, so no other process may write to the database.

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

/// The pages of each file that were written since its last sync.
static DIRTY: Mutex<BTreeMap<PathBuf, BTreeSet<u64>>> = Mutex::new(BTreeMap::new());

/// # Safety
/// The contract of pwrite(2) applies.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pwrite64(file: c_int, bytes: *const c_void, count: usize, offset: libc::off64_t) -> isize {
    let next = next::<unsafe extern "C" fn(c_int, *const c_void, usize, libc::off64_t) -> isize>(c"pwrite64");
    written(file, count, || offset);
    // SAFETY: These are the caller's arguments.
    unsafe { next(file, bytes, count, offset) }
}

/// # Safety
/// The contract of pwrite(2) applies.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pwrite(file: c_int, bytes: *const c_void, count: usize, offset: libc::off64_t) -> isize {
    // SAFETY: These are the caller's arguments, and on 64-bit Linux the two functions are the same.
    unsafe { pwrite64(file, bytes, count, offset) }
}

/// # Safety
/// The contract of write(2) applies.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn write(file: c_int, bytes: *const c_void, count: usize) -> isize {
    let next = next::<unsafe extern "C" fn(c_int, *const c_void, usize) -> isize>(c"write");
    // SAFETY: Seeking by 0 from the current position changes nothing.
    written(file, count, || unsafe { libc::lseek(file, 0, libc::SEEK_CUR) });
    // SAFETY: These are the caller's arguments.
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

/// Copies the file before the first write to it: whatever it contains by then counts as durable.
fn begin(path: &Path) {
    let durable = durable(path);
    if !durable.exists() {
        // If this fails, the next sync fails too, because the copy is missing.
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

/// The path of an open file, if it is a file of the database.
fn watched(file: RawFd) -> Option<PathBuf> {
    let path = fs::read_link(format!("/proc/self/fd/{file}")).ok()?;
    matches!(path.file_name()?.to_str()?, "links.db" | "links.db-wal").then_some(path)
}

/// The function that this library replaces: the next one of this name in the order of the dynamic linker.
fn next<F: Copy>(name: &CStr) -> F {
    const { assert!(size_of::<F>() == size_of::<*mut c_void>()) };
    // SAFETY: The name is a C string.
    let found = unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr().cast::<c_char>()) };
    if found.is_null() {
        // There is no way to report the error from here, and no way to go on.
        std::process::abort();
    }
    // SAFETY: `F` is the type of libc's function of this name, by its manual page.
    unsafe { std::mem::transmute_copy(&found) }
}
