//! A test disk whose power can be cut, which loses everything that was not synced. SQLite works on real files as usual; the
//! content that would be on the disk is tracked separately.

use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, Once};

use rusqlite::ffi;
use tempfile::TempDir;

#[derive(Default)]
struct State {
    files: HashMap<PathBuf, File>,
    failures: usize,
}

/// The durable content of a file and the changes since the last sync.
#[derive(Default)]
struct File {
    durable: Vec<u8>,
    pending: Vec<Change>,
}

enum Change {
    Write(usize, Vec<u8>),
    Truncate(usize),
}

impl File {
    fn sync(&mut self) {
        for change in self.pending.drain(..) {
            match change {
                Change::Write(offset, bytes) => {
                    let end = offset + bytes.len();
                    if self.durable.len() < end {
                        self.durable.resize(end, 0);
                    }
                    self.durable[offset..end].copy_from_slice(&bytes);
                }
                Change::Truncate(size) => self.durable.resize(size, 0),
            }
        }
    }
}

pub struct Disk {
    dir: TempDir,
    state: Arc<Mutex<State>>,
}

/// The disks by directory.
static DISKS: LazyLock<Mutex<HashMap<PathBuf, Arc<Mutex<State>>>>> = LazyLock::new(Mutex::default);
/// The open files by the address of SQLite's file object.
static OPEN: LazyLock<Mutex<HashMap<usize, Open>>> = LazyLock::new(Mutex::default);

#[derive(Clone)]
struct Open {
    path: PathBuf,
    state: Arc<Mutex<State>>,
    methods: &'static ffi::sqlite3_io_methods,
}

impl Disk {
    pub fn new() -> Self {
        install();
        let dir = tempfile::tempdir().unwrap();
        let state = Arc::<Mutex<State>>::default();
        DISKS.lock().unwrap().insert(dir.path().to_owned(), state.clone());
        Self { dir, state }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Makes the next `count` syncs fail. As on Linux, the data that they should have written counts as written afterwards.
    pub fn fail_syncs(&self, count: usize) {
        self.state.lock().unwrap().failures = count;
    }

    /// The files as they are after a power cut.
    pub fn after_power_cut(&self) -> TempDir {
        let found = tempfile::tempdir().unwrap();
        for (path, file) in &self.state.lock().unwrap().files {
            std::fs::write(found.path().join(path.file_name().unwrap()), &file.durable).unwrap();
        }
        found
    }
}

/// Installs a VFS that wraps SQLite's default one. Files outside of the test disks are not affected.
fn install() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        // SAFETY: the default VFS lives forever, and so does ours, a copy with two other functions and another name.
        unsafe {
            let base = ffi::sqlite3_vfs_find(std::ptr::null());
            BASE.lock().unwrap().0 = base as usize;
            let ours = Box::leak(Box::new(ffi::sqlite3_vfs {
                zName: c"links-power".as_ptr(),
                pNext: std::ptr::null_mut(),
                xOpen: Some(open),
                xDelete: Some(delete),
                ..*base
            }));
            assert_eq!(ffi::sqlite3_vfs_register(ours, 1), ffi::SQLITE_OK);
        }
    });
}

struct Base(usize);

static BASE: Mutex<Base> = Mutex::new(Base(0));

fn base() -> *mut ffi::sqlite3_vfs {
    BASE.lock().unwrap().0 as *mut ffi::sqlite3_vfs
}

/// The test disk that a file is on. It does not contain the shared-memory file of a write-ahead log.
fn disk_of(name: *const c_char) -> Option<(PathBuf, Arc<Mutex<State>>)> {
    if name.is_null() {
        return None;
    }
    // SAFETY: SQLite passes a C string.
    let path = PathBuf::from(unsafe { CStr::from_ptr(name) }.to_str().ok()?);
    let state = DISKS.lock().unwrap().get(path.parent()?)?.clone();
    Some((path, state))
}

fn opened(file: *mut ffi::sqlite3_file) -> Open {
    OPEN.lock().unwrap()[&(file as usize)].clone()
}

unsafe extern "C" fn open(
    _: *mut ffi::sqlite3_vfs,
    name: *const c_char,
    file: *mut ffi::sqlite3_file,
    flags: c_int,
    out_flags: *mut c_int,
) -> c_int {
    // SAFETY: all arguments come from SQLite and are passed on unchanged. The replaced methods live forever.
    unsafe {
        let base = base();
        let Some(open) = (*base).xOpen else {
            return ffi::SQLITE_ERROR;
        };
        let code = open(base, name, file, flags, out_flags);
        if code != ffi::SQLITE_OK {
            return code;
        }
        let Some((path, state)) = disk_of(name) else {
            return code;
        };
        let methods: &'static ffi::sqlite3_io_methods = &*(*file).pMethods;
        (*file).pMethods = Box::leak(Box::new(ffi::sqlite3_io_methods {
            xClose: Some(close),
            xWrite: Some(write),
            xTruncate: Some(truncate),
            xSync: Some(sync),
            ..*methods
        }));
        state.lock().unwrap().files.entry(path.clone()).or_default();
        OPEN.lock()
            .unwrap()
            .insert(file as usize, Open { path, state, methods });
        code
    }
}

unsafe extern "C" fn delete(_: *mut ffi::sqlite3_vfs, name: *const c_char, sync_directory: c_int) -> c_int {
    if let Some((path, state)) = disk_of(name) {
        state.lock().unwrap().files.remove(&path);
    }
    let base = base();
    // SAFETY: the arguments come from SQLite.
    unsafe {
        match (*base).xDelete {
            Some(delete) => delete(base, name, sync_directory),
            None => ffi::SQLITE_ERROR,
        }
    }
}

unsafe extern "C" fn close(file: *mut ffi::sqlite3_file) -> c_int {
    let open = OPEN.lock().unwrap().remove(&(file as usize)).unwrap();
    // SAFETY: the arguments come from SQLite.
    unsafe { open.methods.xClose.unwrap()(file) }
}

unsafe extern "C" fn write(file: *mut ffi::sqlite3_file, bytes: *const c_void, size: c_int, offset: i64) -> c_int {
    let open = opened(file);
    // SAFETY: the arguments come from SQLite, and `bytes` points to `size` bytes.
    let (code, written) = unsafe {
        let written = std::slice::from_raw_parts(bytes.cast::<u8>(), size as usize);
        (open.methods.xWrite.unwrap()(file, bytes, size, offset), written)
    };
    if code == ffi::SQLITE_OK {
        let change = Change::Write(offset as usize, written.to_vec());
        let mut state = open.state.lock().unwrap();
        state.files.entry(open.path).or_default().pending.push(change);
    }
    code
}

unsafe extern "C" fn truncate(file: *mut ffi::sqlite3_file, size: i64) -> c_int {
    let open = opened(file);
    // SAFETY: the arguments come from SQLite.
    let code = unsafe { open.methods.xTruncate.unwrap()(file, size) };
    if code == ffi::SQLITE_OK {
        let change = Change::Truncate(size as usize);
        let mut state = open.state.lock().unwrap();
        state.files.entry(open.path).or_default().pending.push(change);
    }
    code
}

unsafe extern "C" fn sync(file: *mut ffi::sqlite3_file, _: c_int) -> c_int {
    let open = opened(file);
    let mut state = open.state.lock().unwrap();
    let fails = state.failures > 0;
    state.failures = state.failures.saturating_sub(1);
    let file = state.files.entry(open.path.clone()).or_default();
    if fails {
        file.pending.clear();
        return ffi::SQLITE_IOERR_FSYNC;
    }
    file.sync();
    ffi::SQLITE_OK
}

/// The numbers in the table `t`, after an integrity check.
pub fn numbers(database: &Path) -> Vec<i64> {
    let db = rusqlite::Connection::open(database).unwrap();
    let check: String = db.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(check, "ok");
    let mut rows = db.prepare("SELECT a FROM t ORDER BY a").unwrap();
    let rows = rows.query_map([], |row| row.get(0)).unwrap();
    rows.map(Result::unwrap).collect()
}
