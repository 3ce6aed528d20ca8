//! A booted machine.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Condvar, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::Pid;

use crate::cgroup::{Cgroup, MemoryGroup};
use crate::http::Client;
use crate::namespace::NetNamespace;
use crate::stream::Address;
use crate::tree::Tree;
use crate::{cache, process};

const BOOT: &str = include_str!("../lab/boot.sh");
/// How long systemd may take to boot, and to end after `poweroff`.
const BOOT_DEADLINE: Duration = Duration::from_secs(120);
/// How long a command inside may take, unless [`Machine::run_within`] sets another limit.
const COMMAND_DEADLINE: Duration = Duration::from_secs(120);

/// The result of a command inside.
#[derive(Clone, Debug)]
pub struct Output {
    /// The exit status, or 128 + N if signal N ended the command.
    pub status: i32,
    pub stdout: String,
    pub stderr: String,
}

/// Debian, booted from a [`Tree`]. Its writes go to a directory of its own, which is removed when this is dropped.
///
/// A test process runs two machines at a time. Booting a third waits until one of them is dropped.
#[derive(Debug)]
pub struct Machine {
    tree: Tree,
    running: Option<Running>,
    /// Declared after `running`: the group can be removed only when all processes are gone.
    memory: Option<MemoryGroup>,
    home: Home,
    _slot: Slot,
}

impl Machine {
    /// Boots a machine and waits until systemd has started everything.
    ///
    /// # Errors
    /// Fails if the caller is not root, if a command is missing, if systemd does not come up in two minutes, or if a unit of
    /// the pristine system fails.
    pub fn boot(tree: &Tree) -> Result<Self> {
        Self::boot_within(tree, None)
    }

    /// Like [`Self::boot`], with `bytes` of memory for everything that runs inside, page cache included.
    ///
    /// # Errors
    /// Fails as [`Self::boot`] does, or if the host cannot limit the memory.
    pub fn boot_with_memory(tree: &Tree, bytes: u64) -> Result<Self> {
        Self::boot_within(tree, Some(bytes))
    }

    fn boot_within(tree: &Tree, memory: Option<u64>) -> Result<Self> {
        process::require(&[("nsenter", "util-linux"), ("unshare", "util-linux"), ("ip", "iproute2")])?;
        let slot = Slot::take();
        let home = Home::create()?;
        let memory = memory.map(|bytes| MemoryGroup::create(&home.cgroup_name(), bytes));
        let mut machine = Self {
            tree: tree.clone(),
            running: None,
            memory: memory.transpose()?,
            home,
            _slot: slot,
        };
        machine.start()?;
        let state = machine.run(["systemctl", "is-system-running"])?;
        if state.stdout.trim() != "running" {
            let failed = machine.ok(["systemctl", "--failed", "--no-pager"])?;
            bail!(
                "the machine booted into the state {}:\n{}",
                state.stdout.trim(),
                failed.stdout
            );
        }
        Ok(machine)
    }

    /// Runs a command with an empty standard input, and waits for its end, two minutes at most.
    ///
    /// # Errors
    /// Fails if the machine is not running or the command takes too long. A failing command is no error: see [`Self::ok`].
    pub fn run(&self, command: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Result<Output> {
        self.run_within(COMMAND_DEADLINE, command)
    }

    /// Like [`Self::run`] with another deadline, in whole seconds.
    pub fn run_within(
        &self,
        deadline: Duration,
        command: impl IntoIterator<Item = impl AsRef<OsStr>>,
    ) -> Result<Output> {
        let command: Vec<OsString> = command.into_iter().map(|word| word.as_ref().to_owned()).collect();
        let shown = command.join(" ".as_ref()).to_string_lossy().into_owned();
        let begin = Instant::now();
        // `timeout` inside ends the command with everything it started. From out here only nsenter could be ended.
        let mut nsenter = Command::new("nsenter");
        enter_on_start(&mut nsenter, self.memory.as_ref())?;
        let output = nsenter
            .args([
                "--all",
                "--target",
                &self.running()?.init.to_string(),
                "--",
                "env",
                "-i",
            ])
            .args([
                "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                "HOME=/root",
                "LANG=C.UTF-8",
            ])
            .args(["DEBIAN_FRONTEND=noninteractive", "SYSTEMD_PAGER=", "SYSTEMD_COLORS=0"])
            .args(["timeout", "--kill-after=5", &deadline.as_secs().to_string()])
            .args(&command)
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("Running {shown} inside"))?;
        let output = Output {
            status: exit_status(output.status),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        };
        ensure!(
            begin.elapsed() < deadline,
            "`{shown}` did not end within {deadline:?}\n{}",
            output.streams()
        );
        Ok(output)
    }

    /// The highest memory usage so far in bytes, and the number of processes that the kernel has killed for lack of memory.
    ///
    /// # Errors
    /// Fails if the machine was booted without a memory limit.
    pub fn memory_usage(&self) -> Result<(u64, u64)> {
        self.memory
            .as_ref()
            .context("the machine's memory is not bounded")?
            .usage()
    }

    /// Runs a command that must succeed.
    ///
    /// # Errors
    /// Fails as [`Self::run`] does, or if the command fails. The error then holds its exit status and both of its outputs.
    pub fn ok<W: AsRef<OsStr>>(&self, command: impl IntoIterator<Item = W>) -> Result<Output> {
        let command: Vec<W> = command.into_iter().collect();
        let output = self.run(&command)?;
        if output.status != 0 {
            let words: Vec<_> = command.iter().map(AsRef::as_ref).collect();
            let shown = words.join(" ".as_ref());
            bail!("`{}` failed: {output}", shown.to_string_lossy());
        }
        Ok(output)
    }

    /// Runs a shell script that must succeed. A pipeline fails if any of its commands fails.
    ///
    /// # Errors
    /// Fails as [`Self::ok`] does.
    pub fn shell(&self, script: &str) -> Result<Output> {
        self.ok(["bash", "-euo", "pipefail", "-c", script])
    }

    /// Writes a file with mode 0644, owned by root, and creates the directories above it.
    ///
    /// # Errors
    /// Fails if a directory or the file cannot be written.
    pub fn write(&self, path: &str, contents: impl AsRef<[u8]>) -> Result<()> {
        let parent = Path::new(path).parent().unwrap_or(Path::new("/"));
        self.ok([OsStr::new("mkdir"), OsStr::new("-p"), parent.as_os_str()])?;
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_TRUNC;
        let write = || self.open(path, flags)?.write_all(contents.as_ref());
        write().with_context(|| format!("Writing {path} inside"))
    }

    /// The contents of a text file.
    ///
    /// # Errors
    /// Fails if the file is missing or is not UTF-8.
    pub fn read(&self, path: &str) -> Result<String> {
        let read = || io::read_to_string(self.open(path, OFlag::O_RDONLY)?);
        read().with_context(|| format!("Reading {path} inside"))
    }

    /// Whether a path exists, even as a dangling symbolic link.
    ///
    /// # Errors
    /// Fails if a parent of the path is a file, a loop of symbolic links, or the like.
    pub fn exists(&self, path: &str) -> Result<bool> {
        match self.open(path, OFlag::O_PATH | OFlag::O_NOFOLLOW) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error).with_context(|| format!("Looking for {path} inside")),
        }
    }

    /// Copies a file from the host, with its permissions.
    ///
    /// # Errors
    /// Fails if the file cannot be read or written.
    pub fn copy_in(&self, from: &Path, to: &str) -> Result<()> {
        let mut contents = Vec::new();
        let mut read = || -> io::Result<_> {
            let mut file = File::open(from)?;
            file.read_to_end(&mut contents)?;
            file.metadata()
        };
        let mode = read()
            .with_context(|| format!("Reading {}", from.display()))?
            .permissions()
            .mode()
            & 0o7777;
        self.write(to, contents)?;
        let file = self
            .open(to, OFlag::O_RDONLY)
            .with_context(|| format!("Opening {to} inside"))?;
        file.set_permissions(fs::Permissions::from_mode(mode))
            .with_context(|| format!("Setting the mode of {to} inside"))
    }

    /// The messages of a unit in the journal, over all boots, without timestamps.
    ///
    /// # Errors
    /// Fails as [`Self::ok`] does.
    pub fn journal(&self, unit: &str) -> Result<String> {
        self.ok(["journalctl", "--sync"])?;
        Ok(self
            .ok(["journalctl", "--quiet", "--output=cat", "--unit", unit])?
            .stdout)
    }

    /// A client for port 80.
    ///
    /// # Panics
    /// Panics if the machine is shut down.
    pub fn http(&self) -> Client {
        self.http_at(80)
    }

    /// A client for a port of the loopback interface.
    ///
    /// # Panics
    /// Panics if the machine is shut down.
    pub fn http_at(&self, port: u16) -> Client {
        self.http_through(Address::Tcp((Ipv4Addr::LOCALHOST, port).into()))
    }

    /// A client for another address inside.
    ///
    /// # Panics
    /// Panics if the machine is shut down.
    pub fn http_through(&self, address: Address) -> Client {
        Client::new(self.network(), address)
    }

    /// The network namespace of the machine, until its next boot.
    ///
    /// # Panics
    /// Panics if the machine is shut down.
    #[allow(
        clippy::expect_used,
        reason = "talking to a machine after its shutdown is a bug of the test"
    )]
    pub fn network(&self) -> NetNamespace {
        self.running().expect("the machine is running").network.clone()
    }

    /// The path on the host of a file inside, until the next boot. The path must not contain an absolute symbolic link.
    ///
    /// # Panics
    /// Panics if the machine is shut down.
    #[allow(
        clippy::expect_used,
        reason = "reading a machine after its shutdown is a bug of the test"
    )]
    pub fn path_on_host(&self, path: &str) -> PathBuf {
        let init = self.running().expect("the machine is running").init;
        PathBuf::from(format!("/proc/{init}/root{path}"))
    }

    /// Runs a function in a thread that sees the files and the network of the machine instead of the host's.
    ///
    /// # Errors
    /// Fails if the machine is not running, if the thread cannot enter it, or if the function fails.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let running = self.running()?;
        let mounts = format!("/proc/{}/ns/mnt", running.init);
        let mounts = File::open(&mounts).with_context(|| format!("Opening {mounts}"))?;
        let enter = || {
            // setns(2) refuses a thread that shares its root and current directory with others, as threads do.
            unshare(CloneFlags::CLONE_FS)?;
            setns(&mounts, CloneFlags::CLONE_NEWNS)?;
            running.network.enter()?;
            anyhow::Ok(())
        };
        let work = || {
            enter().context("Entering the machine")?;
            work()
        };
        thread::scope(|scope| scope.spawn(work).join()).unwrap_or_else(|_| bail!("the thread inside panicked"))
    }

    /// Shuts the machine down in an orderly way, and boots it again.
    ///
    /// # Errors
    /// Fails if shutting down or booting takes more than two minutes. A unit that fails to start is no error.
    pub fn reboot(&mut self) -> Result<()> {
        self.shutdown()?;
        self.start()
    }

    /// Kills every process of the machine at once, as a power cut would, and boots it again.
    ///
    /// Unlike after a power cut, everything that was written is still there, synced or not: the host keeps its page cache.
    ///
    /// # Errors
    /// Fails as [`Self::reboot`] does.
    pub fn kill_host(&mut self) -> Result<()> {
        self.running.take().context("the machine is shut down")?.kill()?;
        self.start()
    }

    /// Stops every unit in order, and then systemd.
    ///
    /// # Errors
    /// Fails if this takes more than two minutes. The machine is then killed.
    pub fn shutdown(&mut self) -> Result<()> {
        // systemd may end before it has answered systemctl; only the end counts.
        self.run(["systemctl", "poweroff"])?;
        self.running
            .take()
            .context("the machine is shut down")?
            .wait(BOOT_DEADLINE)
    }

    fn running(&self) -> Result<&Running> {
        self.running.as_ref().context("the machine is shut down")
    }

    fn start(&mut self) -> Result<()> {
        self.running = Some(Running::start(&self.home, &self.tree, self.memory.as_ref())?);
        if let Some(memory) = &self.memory {
            // A tenth of the memory, as Debian would choose on real hardware. By default the size follows the host's memory.
            let size = memory.limit()? / 10;
            self.ok(["mount", "-o", &format!("remount,size={size}"), "/run"])?;
        }
        Ok(())
    }

    /// Opens a path inside. Symbolic links stay inside, absolute ones too.
    fn open(&self, path: &str, flags: OFlag) -> io::Result<File> {
        let init = self.running().map_err(io::Error::other)?.init;
        let root = File::open(format!("/proc/{init}/root"))?;
        // openat2(2) accepts a mode only together with O_CREAT.
        let mode = if flags.contains(OFlag::O_CREAT) { 0o644 } else { 0 };
        let how = OpenHow::new()
            .flags(flags | OFlag::O_CLOEXEC)
            .mode(Mode::from_bits_truncate(mode))
            .resolve(ResolveFlag::RESOLVE_IN_ROOT);
        let file: OwnedFd = openat2(&root, path, how)?;
        Ok(file.into())
    }
}

impl Output {
    fn streams(&self) -> String {
        format!(
            "stdout:\n{}\nstderr:\n{}",
            self.stdout.trim_end(),
            self.stderr.trim_end()
        )
    }
}

impl std::fmt::Display for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "exit status {}\n{}", self.status, self.streams())
    }
}

/// Makes the command start in the memory group, with everything that it starts itself.
fn enter_on_start(command: &mut Command, memory: Option<&MemoryGroup>) -> Result<()> {
    if let Some(memory) = memory {
        let mut entrance = memory.entrance()?;
        // SAFETY: The closure only writes to an open file.
        unsafe { command.pre_exec(move || entrance.write_all(b"0")) };
    }
    Ok(())
}

fn exit_status(status: std::process::ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt as _;
    status
        .code()
        .or(status.signal().map(|signal| 128 + signal))
        .unwrap_or(-1)
}

/// One boot of a machine. It is killed when dropped.
#[derive(Debug)]
struct Running {
    /// The PID of systemd on the host.
    init: Pid,
    network: NetNamespace,
    /// Whether systemd may still run. Once it has ended, another process may have its PID.
    alive: bool,
    /// Receives a message when systemd has ended. The mutex is for tests that share a machine between threads.
    ended: Mutex<mpsc::Receiver<()>>,
    console: PathBuf,
    /// Declared last: the group can be removed only when all processes are gone.
    _cgroup: Cgroup,
}

impl Running {
    fn start(home: &Home, tree: &Tree, memory: Option<&MemoryGroup>) -> Result<Self> {
        let console = home.directory.join("console.log");
        let notify = home.directory.join("notify");
        if notify.exists() {
            fs::remove_file(&notify).with_context(|| format!("Removing {}", notify.display()))?;
        }
        let messages = UnixDatagram::bind(&notify).with_context(|| format!("Binding {}", notify.display()))?;
        let cgroup = Cgroup::create(&home.cgroup_name())?;
        let mut entrance = cgroup.entrance()?;

        let mut command = process::isolated(&["--pid", "--mount", "--uts", "--ipc", "--net", "--cgroup"], BOOT);
        command
            .arg(&home.directory)
            .arg(tree.overlay_lower())
            .stdout(Stdio::piped())
            .stderr(File::create(&console).with_context(|| format!("Creating {}", console.display()))?);
        // SAFETY: The closure only writes to an open file. It runs before unshare, so the group becomes the namespace's root.
        unsafe { command.pre_exec(move || entrance.write_all(b"0")) };
        enter_on_start(&mut command, memory)?;

        // The machine dies with the thread that starts it. So that is a thread of its own, not one of a test.
        let (started, starting) = mpsc::channel();
        let (ending, ended) = mpsc::channel();
        thread::spawn(move || {
            let mut child = match command.spawn().context("Starting unshare") {
                Ok(child) => child,
                Err(error) => return drop(started.send(Err(error))),
            };
            let mut first_line = String::new();
            let pid = child
                .stdout
                .take()
                .map_or(Ok(0), |stdout| BufReader::new(stdout).read_line(&mut first_line))
                .map_err(anyhow::Error::from)
                .and_then(|_| {
                    first_line
                        .trim()
                        .parse()
                        .with_context(|| format!("Parsing the PID {first_line:?}"))
                });
            // Nobody receives these once the machine has been dropped.
            let _ = started.send(pid);
            let _ = child.wait();
            // This also ends the wait for the boot, if it is still going on.
            drop(UnixDatagram::unbound().and_then(|socket| socket.send_to(b"EXITED=1", &notify)));
            let _ = ending.send(());
        });
        let init = Pid::from_raw(starting.recv().map_err(|_| anyhow!("the machine's thread ended"))??);
        let running = Self {
            init,
            network: NetNamespace::of_process(init).context("Opening the machine's network")?,
            alive: true,
            ended: Mutex::new(ended),
            console,
            _cgroup: cgroup,
        };
        running.wait_until_booted(&messages).with_context(|| {
            format!(
                "the machine did not boot; the end of its console:\n{}",
                process::tail(&running.console)
            )
        })?;
        Ok(running)
    }

    /// Waits for systemd's `READY=1`, sent when every unit has started or failed (systemd.io/CONTAINER_INTERFACE).
    fn wait_until_booted(&self, messages: &UnixDatagram) -> Result<()> {
        let deadline = Instant::now() + BOOT_DEADLINE;
        let mut buffer = [0; 4096];
        loop {
            let left = deadline
                .saturating_duration_since(Instant::now())
                .max(Duration::from_millis(1));
            messages.set_read_timeout(Some(left))?;
            let length = match messages.recv(&mut buffer) {
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    bail!("systemd is not ready after {BOOT_DEADLINE:?}")
                }
                Err(error) => return Err(error.into()),
            };
            let message = String::from_utf8_lossy(&buffer[..length]);
            if message.lines().any(|line| line == "READY=1") {
                return Ok(());
            }
            ensure!(message != "EXITED=1", "systemd has ended");
        }
    }

    fn ended(&mut self) -> &mut mpsc::Receiver<()> {
        self.ended.get_mut().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait(&mut self, deadline: Duration) -> Result<()> {
        self.ended()
            .recv_timeout(deadline)
            .with_context(|| format!("systemd did not end within {deadline:?}"))?;
        self.alive = false;
        Ok(())
    }

    /// Kills systemd. The kernel then kills every process in its PID namespace before systemd itself is gone.
    fn kill(&mut self) -> Result<()> {
        if self.ended().try_recv().is_ok() {
            self.alive = false;
            return Ok(());
        }
        kill(self.init, Signal::SIGKILL).context("Killing systemd")?;
        self.wait(Duration::from_secs(20))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.alive
            && let Err(error) = self.kill()
        {
            eprintln!("lab: {error:#}");
        }
    }
}

/// The directory of a machine on the host. It is removed when dropped.
#[derive(Debug)]
struct Home {
    machines: PathBuf,
    directory: PathBuf,
    /// Held as long as the machine may run. An abandoned directory is one whose lock is free.
    _lock: cache::Lock,
}

impl Home {
    fn create() -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(1);
        let machines = cache::directory()?.join("machines");
        fs::create_dir_all(&machines).with_context(|| format!("Creating {}", machines.display()))?;
        let _changing = cache::lock(&machines.join("lock"))?;
        remove_abandoned(&machines)?;

        let name = format!("{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let directory = machines.join(name);
        for part in ["upper", "work", "root"] {
            let part = directory.join(part);
            fs::create_dir_all(&part).with_context(|| format!("Creating {}", part.display()))?;
        }
        let lock = cache::lock(&directory.join("lock"))?;
        Ok(Self {
            machines,
            directory,
            _lock: lock,
        })
    }

    fn remove(&self) -> Result<()> {
        // While the directory is being removed, no other process may treat it as abandoned.
        let _changing = cache::lock(&self.machines.join("lock"))?;
        fs::remove_dir_all(&self.directory).with_context(|| format!("Removing {}", self.directory.display()))
    }

    fn cgroup_name(&self) -> String {
        cgroup_name(&self.directory)
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if let Err(error) = self.remove() {
            eprintln!("lab: {error:#}");
        }
    }
}

/// Removes the directories and control groups of machines whose test process was killed. Their processes and mounts have
/// ended with that process.
fn remove_abandoned(machines: &Path) -> Result<()> {
    let entries = fs::read_dir(machines).with_context(|| format!("Reading {}", machines.display()))?;
    for entry in entries {
        let directory = entry?.path();
        if !directory.is_dir() {
            continue;
        }
        if let Some(_lock) = cache::try_lock(&directory.join("lock"))? {
            Cgroup::remove_abandoned(&cgroup_name(&directory))?;
            MemoryGroup::remove_abandoned(&cgroup_name(&directory))?;
            fs::remove_dir_all(&directory).with_context(|| format!("Removing {}", directory.display()))?;
        }
    }
    Ok(())
}

fn cgroup_name(directory: &Path) -> String {
    let name = directory.file_name().unwrap_or_default().to_string_lossy();
    format!("links-lab-{name}")
}

/// The right to run a machine. Only two run at a time, because more would slow each other down past their deadlines.
#[derive(Debug)]
struct Slot;

static RUNNING: Mutex<usize> = Mutex::new(0);
static FREED: Condvar = Condvar::new();

impl Slot {
    const COUNT: usize = 2;

    fn take() -> Self {
        let running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
        let mut running = FREED
            .wait_while(running, |running| *running >= Self::COUNT)
            .unwrap_or_else(PoisonError::into_inner);
        *running += 1;
        Self
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        *RUNNING.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        FREED.notify_one();
    }
}
