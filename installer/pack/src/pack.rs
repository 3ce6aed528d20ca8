//! Makes a bundle from files, and a .deb and a tarball from the bundle.

use std::borrow::Cow;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;
use indicatif::ProgressBar;
use serde::Serialize;

use crate::archive::{self, Content, Member};
use crate::bundle::{self, Ingredients, Program};
use crate::changelog::{self, Release};
use crate::choice::{self, Choice, HostFacts, Wanted};
use crate::cli::Args;
use crate::identity::{Arch, Identity};
use crate::item::{self, Item};
use crate::libraries::{Needs, check_architecture};
use crate::payload::{self, Document, Entry, HELPERS, LINKSCTL};
use crate::publish::{Published, publish};
use crate::release::Release as SpinRelease;
use crate::source::{self, Found};
use crate::{app, control, download, links_toml};
use links_base::emulator::Emulator;
use links_base::{exec, layout, log};
use links_release::manifest::RuntimeKind;
use links_release::payload::LIST_NAME;

const TARBALL_README: &str = include_str!("../../../packaging/tarball/README");

/// Writes both packages, or shows what they would contain.
///
/// # Errors
/// Fails if a file is missing or invalid, if the bundle does not serve, or if a package cannot be written.
pub fn pack(args: &Args) -> anyhow::Result<()> {
    let plan = Plan::make(args)?;
    if args.dry_run {
        return plan.show(args.json);
    }
    let packed = plan.carry_out()?;
    packed.print(args.json)
}

/// The decisions that are made before anything is written.
struct Plan {
    out: PathBuf,
    /// The directory in which all programs were built.
    programs: PathBuf,
    /// How they run on this machine.
    emulator: Emulator,
    releases: Vec<Release>,
    /// The timestamp of the packed files, in seconds since 1970.
    time: u64,
    identity: Identity,
    app_file: PathBuf,
    app: app::App,
    /// The version of the database's tables.
    schema: u32,
    runtime_config: PathBuf,
    choice: Choice,
    spin: SpinRelease,
    cache: PathBuf,
}

impl Plan {
    fn make(args: &Args) -> anyhow::Result<Self> {
        let arch = match args.arch {
            Some(arch) => arch,
            None => Arch::from_rust(std::env::consts::ARCH)?,
        };
        let programs = match &args.programs {
            Some(directory) => directory.clone(),
            None => directory_of_this_program()?,
        };
        let emulator = args.emulator.clone().map_or(Emulator::None, Emulator::Program);
        let version = args.release_version.as_deref().unwrap_or(env!("CARGO_PKG_VERSION"));
        let identity = Identity::new(version, arch)?;
        let releases = changelog::own()?;
        let epoch = std::env::var_os("SOURCE_DATE_EPOCH").map(|value| value.to_string_lossy().into_owned());
        let time = changelog::timestamp(epoch.as_deref(), &releases)?;
        let text =
            fs::read_to_string(&args.from).with_context(|| format!("Reading {} (--from)", args.from.display()))?;
        let app = app::rewrite(&text).with_context(|| format!("Reading {}", args.from.display()))?;
        let spin = SpinRelease::pinned(arch);
        let cache = download::cache_dir()?;
        let is_native = emulator == Emulator::None;
        let facts = HostFacts::gather(args.offline, spin.is_cached(&cache), &programs, is_native);
        let choice = choice::choose(&Wanted::new(args.runtime.as_deref()), &facts)?;
        let plan = Self {
            out: args.out.clone(),
            programs,
            emulator,
            releases,
            time,
            identity,
            app_file: args.from.clone(),
            app,
            schema: app::schema_version(&args.from)?,
            runtime_config: args.runtime_config.clone(),
            choice,
            spin,
            cache,
        };
        plan.check_inputs()?;
        Ok(plan)
    }

    /// Finds errors early that would otherwise appear only after a download.
    fn check_inputs(&self) -> anyhow::Result<()> {
        bundle::read_runtime_config(&self.runtime_config)?;
        let expected = self.ingredients(source::preview(&self.choice, &self.spin, &self.emulator)?);
        for component in &self.app.components {
            bundle::read_component(&expected.build_of(component), expected.runtime.interface)
                .with_context(|| format!("component.{} of {}", component.id, self.app_file.display()))?;
        }
        Ok(())
    }

    fn ingredients(&self, runtime: Program) -> Ingredients {
        Ingredients {
            identity: self.identity.clone(),
            app_file: self.app_file.clone(),
            app: self.app.clone(),
            schema: self.schema,
            runtime_config: self.runtime_config.clone(),
            runtime,
        }
    }

    fn entries(&self, ingredients: &Ingredients) -> Vec<Entry> {
        payload::table(&ingredients.plan(), &self.programs, &self.runtime_config)
    }

    fn deb(&self) -> PathBuf {
        self.out.join(self.identity.deb_name())
    }

    fn tarball(&self) -> PathBuf {
        self.out.join(self.identity.tarball_name())
    }

    fn show(&self, json: bool) -> anyhow::Result<()> {
        let ingredients = self.ingredients(source::preview(&self.choice, &self.spin, &self.emulator)?);
        let entries = self.entries(&ingredients);
        let mut out = io::stdout().lock();
        if json {
            let shown: Vec<_> = entries.iter().map(ShownEntry::new).collect();
            let value = serde_json::json!({
                "version": self.identity.version,
                "arch": self.identity.arch.debian(),
                "runtime": ShownRuntime::new(&ingredients.runtime),
                "packages": [self.deb(), self.tarball()],
                "entries": shown,
            });
            writeln!(out, "{}", serde_json::to_string_pretty(&value)?)?;
            return Ok(());
        }
        writeln!(out, "{}", self.deb().display())?;
        writeln!(out, "{}", self.tarball().display())?;
        writeln!(out, "runtime: {}", describe(&ingredients.runtime))?;
        for entry in &entries {
            let mark = if entry.conffile { " (conffile)" } else { "" };
            writeln!(out, "{:04o} /{}{mark} <- {}", entry.mode, entry.path, entry.source)?;
        }
        Ok(())
    }

    fn carry_out(&self) -> anyhow::Result<Packed> {
        fs::create_dir_all(&self.out).with_context(|| format!("Creating {} (--out)", self.out.display()))?;
        // The runtime is started from this directory, so it is below --out: /tmp may be mounted noexec.
        let scratch = tempfile::Builder::new()
            .prefix(".pack-")
            .tempdir_in(&self.out)
            .with_context(|| format!("Creating a temporary directory in {}", self.out.display()))?;
        let found = source::obtain(&self.choice, &self.spin, &self.cache, scratch.path(), &self.emulator)?;
        self.print_notices(&found);
        let ingredients = self.ingredients(found.program);
        let bundle = scratch.path().join("bundle");
        let manifest = bundle::build(&bundle, &ingredients, &found.executable)?;
        links_release::runtime::smoke(&bundle, &self.emulator).context("Starting the bundle for a test")?;

        let items = item::load(&self.entries(&ingredients), &bundle, |document| self.document(document))?;
        let libraries = self.libraries(&bundle.join(&manifest.runtime.path))?;
        let deb = self.write_deb(&items, &libraries)?;
        let tarball = self.write_tarball(&items)?;
        scratch
            .close()
            .with_context(|| format!("Removing the temporary directory in {}", self.out.display()))?;
        Ok(Packed {
            version: self.identity.version.clone(),
            arch: self.identity.arch.debian(),
            release: manifest.release_id()?,
            runtime: ShownRuntime::new(&ingredients.runtime),
            deb,
            tarball,
        })
    }

    /// Prints notices for the user on standard error.
    fn print_notices(&self, found: &Found) {
        if let Some(notice) = &found.notice {
            log::notice!("notice: {notice}");
        }
        if cfg!(debug_assertions) {
            log::notice!(
                "notice: packing a debug build ({}); build packages for others with --release",
                self.programs.display()
            );
        }
    }

    /// The standard output of the linksctl that is packed.
    fn linksctl(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let mut command = Command::new(self.programs.join(LINKSCTL));
        command.args(arguments);
        exec::run_command(self.emulator.wrap(command))
    }

    /// The date of the release in the manual pages.
    fn date(&self) -> anyhow::Result<String> {
        let newest = self.releases.first().context("CHANGELOG.md names no release")?;
        Ok(newest.date.to_string())
    }

    fn document(&self, document: Document) -> anyhow::Result<Vec<u8>> {
        match document {
            Document::ManPage => gzip(self.linksctl(&["man", &self.date()?])?.as_bytes()),
            Document::SettingsManPage => gzip(links_toml::man_page(&self.date()?).as_bytes()),
            Document::SettingsExample => Ok(links_toml::example().into_bytes()),
            Document::BashCompletion => Ok(self.linksctl(&["completions", "bash"])?.into_bytes()),
            Document::ZshCompletion => Ok(self.linksctl(&["completions", "zsh"])?.into_bytes()),
            Document::Changelog => {
                let maintainer = control::maintainer()?;
                let text = changelog::debian(&self.releases, layout::PACKAGE, &self.identity.version, maintainer)?;
                gzip(text.as_bytes())
            }
        }
    }

    /// The entries of `Depends:` for the libraries of all programs.
    fn libraries(&self, runtime: &Path) -> anyhow::Result<Vec<String>> {
        let mut needs = Needs::default();
        let own = [LINKSCTL]
            .into_iter()
            .chain(HELPERS)
            .map(|name| self.programs.join(name));
        for program in own.chain([runtime.to_owned()]) {
            let reading = || format!("Reading the libraries of {}", program.display());
            let file = fs::read(&program).with_context(reading)?;
            check_architecture(&file, self.identity.arch)
                .with_context(|| format!("Cannot pack {}", program.display()))?;
            needs = needs.and(Needs::of(&file).with_context(reading)?);
        }
        needs.packages()
    }

    fn write_deb(&self, items: &[Item], libraries: &[String]) -> anyhow::Result<Published> {
        let members: Vec<_> = items.iter().map(Item::member).collect();
        let bar = progress("compressing the .deb", &members);
        let path = self.deb();
        let compressing = || format!("Compressing {}", path.display());
        let data = tar_xz(&members, self.time, &bar).with_context(compressing)?;
        bar.finish_and_clear();
        let control = control::members(&self.identity, items, libraries)?;
        let control = tar_xz(&control, self.time, &ProgressBar::hidden()).with_context(compressing)?;
        publish(&path, |out| {
            archive::write_deb(out, &control, &data, self.time)?;
            Ok(())
        })
    }

    fn write_tarball(&self, items: &[Item]) -> anyhow::Result<Published> {
        let mut list = serde_json::to_vec_pretty(&item::list(&self.identity, items))?;
        list.push(b'\n');
        let added = [
            ("README", Cow::Borrowed(TARBALL_README.as_bytes())),
            (LIST_NAME, Cow::Owned(list)),
        ];
        let mut members: Vec<_> = items.iter().map(Item::member).collect();
        members.extend(added.map(|(path, bytes)| Member {
            path: path.to_owned(),
            mode: 0o644,
            content: Content::Bytes(bytes),
        }));
        let bar = progress("compressing the tarball", &members);
        let published = publish(&self.tarball(), |out| {
            let top = self.identity.top_directory();
            let mut encoder = archive::gzip(out);
            archive::write_tar(bar.wrap_write(&mut encoder), &top, &members, self.time)?;
            encoder.finish()?;
            Ok(())
        })?;
        bar.finish_and_clear();
        Ok(published)
    }
}

/// The directory of this program. Cargo puts all programs there.
fn directory_of_this_program() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("Finding the path of this program")?;
    Ok(own.parent().unwrap_or(Path::new("/")).to_owned())
}

/// Compresses in memory, because a .deb has the size of an archive before its content.
fn tar_xz(members: &[Member], time: u64, bar: &ProgressBar) -> io::Result<Vec<u8>> {
    let threads = std::thread::available_parallelism().map_or(1, |threads| u32::try_from(threads.get()).unwrap_or(1));
    let mut encoder = archive::xz(Vec::new(), threads)?;
    archive::write_tar(bar.wrap_write(&mut encoder), ".", members, time)?;
    encoder.finish()
}

fn gzip(bytes: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut encoder = archive::gzip(Vec::new());
    encoder.write_all(bytes)?;
    Ok(encoder.finish()?)
}

/// A progress bar, which is hidden if standard error is not a terminal.
fn progress(message: &'static str, members: &[Member]) -> ProgressBar {
    let size = members.iter().map(|member| member.content.size()).sum();
    let bar = ProgressBar::new(size).with_style(download::style());
    bar.set_message(message);
    bar
}

/// The result of a pack.
#[derive(Debug, Serialize)]
struct Packed {
    version: String,
    arch: &'static str,
    /// The release's name in the store.
    release: String,
    runtime: ShownRuntime,
    deb: Published,
    tarball: Published,
}

impl Packed {
    fn print(&self, json: bool) -> anyhow::Result<()> {
        let mut out = io::stdout().lock();
        if json {
            writeln!(out, "{}", serde_json::to_string_pretty(self)?)?;
            return Ok(());
        }
        for package in [&self.deb, &self.tarball] {
            writeln!(
                out,
                "{} ({}, sha256 {})",
                package.path.display(),
                indicatif::HumanBytes(package.size),
                package.sha256
            )?;
        }
        let ShownRuntime {
            kind,
            version,
            origin,
            interface,
        } = &self.runtime;
        writeln!(
            out,
            "release {}, runtime {kind} {version} ({origin}), components for {interface}",
            self.release
        )?;
        Ok(())
    }
}

#[derive(Debug, Serialize)]
struct ShownRuntime {
    kind: RuntimeKind,
    version: String,
    origin: String,
    /// The interface that the components are built for.
    interface: String,
}

impl ShownRuntime {
    fn new(program: &Program) -> Self {
        Self {
            kind: program.kind,
            version: program.version.clone(),
            origin: program.origin.clone(),
            interface: program.interface.to_string(),
        }
    }
}

fn describe(program: &Program) -> String {
    format!(
        "{} {} ({}), components for {}",
        program.kind, program.version, program.origin, program.interface
    )
}

#[derive(Serialize)]
struct ShownEntry {
    path: String,
    mode: String,
    conffile: bool,
    source: String,
}

impl ShownEntry {
    fn new(entry: &Entry) -> Self {
        Self {
            path: format!("/{}", entry.path),
            mode: format!("{:04o}", entry.mode),
            conffile: entry.conffile,
            source: entry.source.to_string(),
        }
    }
}
