//! The modules of a crate have no dependency cycles, so each can be read without the modules that use it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use syn::visit::{self, Visit};

/// The path of a module in its crate; empty for the root.
type Name = Vec<String>;

/// The paths that each module of a crate uses, as written in the code.
#[derive(Default)]
struct Crate {
    uses: BTreeMap<Name, BTreeSet<Name>>,
}

impl Crate {
    fn read(root: &Path) -> Result<Self> {
        let mut read = Self::default();
        read.file(root, root.parent().context("the root has no directory")?, vec![])?;
        Ok(read)
    }

    /// Reads the module `name` from `file`. The files of its submodules are in `directory`.
    fn file(&mut self, file: &Path, directory: &Path, name: Name) -> Result<()> {
        let text = fs::read_to_string(file).with_context(|| format!("Reading {}", file.display()))?;
        let parsed = syn::parse_file(&text).with_context(|| format!("Parsing {}", file.display()))?;
        self.items(&parsed.items, directory, name)
    }

    fn items(&mut self, items: &[syn::Item], directory: &Path, name: Name) -> Result<()> {
        let mut paths = Paths::default();
        for item in items {
            match item {
                syn::Item::Mod(module) if !is_for_tests(&module.attrs) => {
                    let ident = module.ident.to_string();
                    let inner = [name.clone(), vec![ident.clone()]].concat();
                    let below = directory.join(&ident);
                    match &module.content {
                        Some((_, items)) => self.items(items, &below, inner)?,
                        None => self.file(&file_of(directory, &ident)?, &below, inner)?,
                    }
                }
                syn::Item::Mod(_) => {}
                item => paths.visit_item(item),
            }
        }
        self.uses.insert(name, paths.0);
        Ok(())
    }

    /// The modules that `name` uses.
    fn dependencies(&self, name: &Name) -> BTreeSet<Name> {
        let used = self.uses[name].iter().filter_map(|path| self.module_of(name, path));
        used.filter(|module| module != name).collect()
    }

    /// The module that `path` leads to from the module `from`; `None` for a path into another crate.
    fn module_of(&self, from: &Name, path: &[String]) -> Option<Name> {
        let mut module = from.clone();
        let mut rest = path;
        while let [first, after @ ..] = rest {
            match first.as_str() {
                "crate" => module.clear(),
                "self" => {}
                "super" => drop(module.pop()),
                _ => break,
            }
            rest = after;
        }
        let is_relative = rest.len() < path.len();
        let mut found = is_relative;
        for segment in rest {
            let inner = [module.clone(), vec![segment.clone()]].concat();
            if !self.uses.contains_key(&inner) {
                break;
            }
            (module, found) = (inner, true);
        }
        found.then_some(module)
    }

    /// The modules that are left after repeatedly removing those that use none of the others.
    fn cycles(&self) -> BTreeMap<Name, BTreeSet<Name>> {
        let mut left: BTreeMap<_, _> = self
            .uses
            .keys()
            .map(|name| (name.clone(), self.dependencies(name)))
            .collect();
        loop {
            let names: BTreeSet<_> = left.keys().cloned().collect();
            let before = left.len();
            left.retain(|_, used| {
                used.retain(|name| names.contains(name));
                !used.is_empty()
            });
            if left.len() == before {
                return left;
            }
        }
    }
}

/// All paths in a piece of code, including those of `use` items.
#[derive(Default)]
struct Paths(BTreeSet<Vec<String>>);

impl Paths {
    fn tree(&mut self, tree: &syn::UseTree, before: &[String]) {
        let with = |ident: &syn::Ident| [before, &[ident.to_string()]].concat();
        match tree {
            syn::UseTree::Path(path) => self.tree(&path.tree, &with(&path.ident)),
            syn::UseTree::Name(name) => drop(self.0.insert(with(&name.ident))),
            syn::UseTree::Rename(rename) => drop(self.0.insert(with(&rename.ident))),
            syn::UseTree::Glob(_) => drop(self.0.insert(before.to_vec())),
            syn::UseTree::Group(group) => group.items.iter().for_each(|tree| self.tree(tree, before)),
        }
    }
}

impl<'ast> Visit<'ast> for Paths {
    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.tree(&item.tree, &[]);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let segments: Vec<_> = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        if segments.len() > 1 {
            self.0.insert(segments);
        }
        visit::visit_path(self, path);
    }
}

fn is_for_tests(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let mut mentions_test = false;
        // This covers `cfg(any(test, feature = "testing"))` too. An attribute that cannot be parsed is a different one.
        let _ = attribute.path().is_ident("cfg").then(|| {
            attribute.parse_nested_meta(|meta| {
                mentions_test |= meta.path.is_ident("test");
                if meta.path.is_ident("any") {
                    meta.parse_nested_meta(|meta| {
                        mentions_test |= meta.path.is_ident("test");
                        meta.input.parse::<proc_macro2::TokenStream>().map(drop)
                    })?;
                }
                Ok(())
            })
        });
        mentions_test
    })
}

fn file_of(directory: &Path, module: &str) -> Result<PathBuf> {
    let candidates = [
        directory.join(format!("{module}.rs")),
        directory.join(module).join("mod.rs"),
    ];
    let found = candidates.into_iter().find(|path| path.is_file());
    found.with_context(|| format!("no file for the module {module} in {}", directory.display()))
}

/// The root files of all crates in `directory`.
fn roots(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut roots = vec![];
    for entry in fs::read_dir(directory).with_context(|| format!("Reading {}", directory.display()))? {
        let path = entry?.path();
        let source = path.join("src");
        roots.extend(
            ["lib.rs", "main.rs"]
                .map(|name| source.join(name))
                .into_iter()
                .filter(|root| root.is_file()),
        );
    }
    Ok(roots)
}

#[test]
fn modules_have_no_dependency_cycles() -> Result<()> {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .context("the crate has no parent directory")?;
    let mut all = vec![repository.join("host/src/main.rs"), repository.join("tests/src/lib.rs")];
    for part in ["component", "installer"] {
        all.extend(roots(&repository.join(part))?);
    }
    ensure!(all.len() > 10, "found only these crates: {all:?}");
    let shown = |name: &Name| {
        if name.is_empty() {
            "(root)".to_owned()
        } else {
            name.join("::")
        }
    };
    let mut cycles = String::new();
    for root in all {
        for (name, used) in Crate::read(&root)?.cycles() {
            let used: Vec<_> = used.iter().map(shown).collect();
            cycles.push_str(&format!(
                "\n{}: {} -> {}",
                root.display(),
                shown(&name),
                used.join(", ")
            ));
        }
    }
    ensure!(cycles.is_empty(), "the modules have dependency cycles:{cycles}");
    Ok(())
}

#[test]
fn a_dependency_cycle_is_found() -> Result<()> {
    let directory = tempfile::tempdir()?;
    for (file, text) in [
        (
            "lib.rs",
            "mod a; mod b; mod c; #[cfg(test)] mod tests { use crate::a; }",
        ),
        ("a.rs", "pub fn f() { crate::b::f() }"),
        ("b.rs", "use super::a; pub fn f() { a::f() }"),
        ("c.rs", "use crate::{a, b};"),
    ] {
        fs::write(directory.path().join(file), text)?;
    }
    let cycles = Crate::read(&directory.path().join("lib.rs"))?.cycles();
    let names = |names: &[&str]| -> BTreeSet<Name> { names.iter().map(|name| vec![(*name).to_owned()]).collect() };
    assert_eq!(cycles.keys().cloned().collect::<BTreeSet<_>>(), names(&["a", "b", "c"]));
    assert_eq!(cycles[&vec!["a".to_owned()]], names(&["b"]));
    Ok(())
}
