//! The walk over one tree that finds closures, each directory once.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use super::{
    Closure, ClosureError, ClosureFile,
    kustomization::{self, KUSTOMIZATION_NAMES, Reference, ReferenceKind},
};
use crate::{
    problem::Problem,
    tree::{ContentId, EntryKind, RepoPath, ResolveError, Resolved, Tree, TreeEntry, resolve},
    yaml::{Value, YamlError},
};

/// The largest single file of a closure.
const MAX_FILE: u64 = 10 * 1024 * 1024;
/// The largest sum of all files of a closure.
const MAX_TOTAL: u64 = 64 * 1024 * 1024;
/// The most files of a closure.
const MAX_FILES: usize = 10_000;
/// The longest chain of kustomizations that include each other.
const MAX_CHAIN: usize = 64;

/// What kustomization files say, by content: good for any tree, so that the next commit costs what it changed.
#[derive(Clone, Debug, Default)]
pub struct ClosureCache(HashMap<ContentId, Arc<Result<Vec<Reference>, YamlError>>>);

/// Finds closures in one tree. Each directory is walked once, however many overlays share it.
pub struct Closures<'t> {
    tree: &'t dyn Tree,
    renderer: String,
    known: ClosureCache,
    met: ClosureCache,
    directories: HashMap<RepoPath, Result<Arc<Files>, ClosureError>>,
    found: HashMap<RepoPath, Result<Arc<Closure>, ClosureError>>,
}

impl std::fmt::Debug for Closures<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Closures")
            .field("renderer", &self.renderer)
            .finish_non_exhaustive()
    }
}

/// The files of a directory's closure, and their sizes.
type Files = BTreeMap<RepoPath, (TreeEntry, u64)>;

/// What the walk of one directory found so far.
#[derive(Default)]
struct Found {
    files: Files,
    /// What needs no second look, however often it is named.
    followed: HashSet<(RepoPath, ReferenceKind)>,
}

/// The closure of each overlay, or why it has none.
pub type OverlayClosures = HashMap<RepoPath, Result<Arc<Closure>, ClosureError>>;

impl<'t> Closures<'t> {
    /// Over `tree`, for the renderer with this [identity](crate::render::Render::identity).
    pub fn new(tree: &'t dyn Tree, renderer: &str) -> Self {
        Self::with_cache(tree, renderer, ClosureCache::default())
    }

    /// The same, knowing what an earlier walk learned.
    pub fn with_cache(tree: &'t dyn Tree, renderer: &str, cache: ClosureCache) -> Self {
        Self {
            tree,
            renderer: renderer.to_owned(),
            known: cache,
            met: ClosureCache::default(),
            directories: HashMap::new(),
            found: HashMap::new(),
        }
    }

    /// What this walk learned, for the next one; what only earlier walks met is forgotten.
    pub fn into_cache(self) -> ClosureCache {
        self.met
    }

    /// The closure of the overlay at `path`, which may pass symlinks.
    ///
    /// # Errors
    /// [`ClosureError::Refused`] where the repo's content is at fault.
    pub fn closure(&mut self, path: &RepoPath) -> Result<Arc<Closure>, ClosureError> {
        if let Some(closure) = self.found.get(path) {
            return closure.clone();
        }
        let closure = self.find(path);
        self.found.insert(path.clone(), closure.clone());
        closure
    }

    /// The closures of all these overlays.
    pub fn closures(&mut self, overlays: impl IntoIterator<Item = RepoPath>) -> OverlayClosures {
        overlays
            .into_iter()
            .map(|overlay| {
                let closure = self.closure(&overlay);
                (overlay, closure)
            })
            .collect()
    }

    fn find(&mut self, path: &RepoPath) -> Result<Arc<Closure>, ClosureError> {
        let resolved = match resolve(self.tree, path) {
            Ok(resolved) => resolved,
            Err(ResolveError::Tree(error)) => return Err(error.into()),
            Err(error) => return Err(Problem::at(path, error.to_string()).into()),
        };
        if resolved.entry.kind != EntryKind::Directory {
            return Err(Problem::at(path, "an overlay must be a directory").into());
        }
        // Through a symlink the same overlay has the same closure.
        if resolved.path != *path {
            return self.closure(&resolved.path);
        }
        let files = self.directory(path, &mut Vec::new())?;
        let files = files
            .iter()
            .map(|(path, (entry, _size))| ClosureFile {
                path: path.clone(),
                kind: entry.kind,
                id: entry.id,
            })
            .collect();
        Ok(Arc::new(Closure::new(&self.renderer, path.clone(), files)))
    }

    /// All files that building `dir` reads; `chain` holds the directories that led here.
    fn directory(
        &mut self,
        dir: &RepoPath,
        chain: &mut Vec<RepoPath>,
    ) -> Result<Arc<Files>, ClosureError> {
        if let Some(files) = self.directories.get(dir) {
            return files.clone();
        }
        if let Some(start) = chain.iter().position(|above| above == dir) {
            let names: Vec<String> = chain
                .iter()
                .skip(start)
                .chain([dir])
                .map(ToString::to_string)
                .collect();
            let message = format!(
                "kustomizations include each other in a cycle: {}",
                names.join(" -> ")
            );
            return Err(Problem::at(dir, message).into());
        }
        if chain.len() >= MAX_CHAIN {
            let message =
                format!("more than {MAX_CHAIN} kustomizations include each other in a chain");
            return Err(Problem::at(dir, message).into());
        }
        chain.push(dir.clone());
        let files = self.walk(dir, chain).map(Arc::new);
        chain.pop();
        self.directories.insert(dir.clone(), files.clone());
        files
    }

    fn walk(&mut self, dir: &RepoPath, chain: &mut Vec<RepoPath>) -> Result<Files, ClosureError> {
        let file = self.kustomization(dir)?;
        let resolved = self.resolve(&file, None, &file)?;
        let mut found = Found::default();
        self.add(&mut found.files, &file, None, &resolved)?;
        for reference in self.references(&file, resolved.entry.id)? {
            self.follow(dir, &file, &reference, &mut found, chain)?;
        }
        bound(&found.files, &file)?;
        Ok(found.files)
    }

    /// The one kustomization file of `dir`.
    fn kustomization(&self, dir: &RepoPath) -> Result<RepoPath, ClosureError> {
        let mut present = Vec::new();
        for name in KUSTOMIZATION_NAMES {
            if self.tree.entry(&dir.join(name))?.is_some() {
                present.push(name);
            }
        }
        match present.as_slice() {
            [name] => Ok(dir.join(name)),
            [] => Err(Problem::at(dir, "there is no kustomization.yaml in this directory").into()),
            several => {
                let message = format!(
                    "there are several kustomization files, keep one: {}",
                    several.join(", ")
                );
                Err(Problem::at(dir, message).into())
            }
        }
    }

    fn references(
        &mut self,
        file: &RepoPath,
        id: ContentId,
    ) -> Result<Vec<Reference>, ClosureError> {
        let parsed = match self.known.0.get(&id).or_else(|| self.met.0.get(&id)) {
            Some(parsed) => parsed.clone(),
            None => Arc::new(kustomization::parse(&self.tree.blob(id)?)),
        };
        self.met.0.insert(id, parsed.clone());
        match parsed.as_ref() {
            Ok(references) => Ok(references.clone()),
            Err(error) => Err(Problem::yaml(file, error).into()),
        }
    }

    /// Adds to `found` what `reference`, which stands in `file`, leads to from `dir`.
    fn follow(
        &mut self,
        dir: &RepoPath,
        file: &RepoPath,
        reference: &Reference,
        found: &mut Found,
        chain: &mut Vec<RepoPath>,
    ) -> Result<(), ClosureError> {
        let refused = |message: String| Problem::at_line(file, reference.line, message);
        let shown = reference.path.escape_debug();
        if kustomization::is_remote(&reference.path) {
            return Err(refused(format!(
                "the remote base `{shown}` is refused; commit a copy of it"
            ))
            .into());
        }
        let path = dir
            .resolve(&reference.path)
            .map_err(|error| refused(error.to_string()))?;
        let resolved = match resolve(self.tree, &path) {
            Ok(resolved) => resolved,
            Err(ResolveError::Tree(error)) => return Err(error.into()),
            Err(ResolveError::NotFound(_)) if kustomization::looks_remote(&reference.path) => {
                let message = format!("the remote base `{shown}` is refused; commit a copy of it");
                return Err(refused(message).into());
            }
            Err(ResolveError::NotFound(_)) => {
                return Err(refused(format!("`{shown}` does not exist")).into());
            }
            Err(error) => return Err(refused(error.to_string()).into()),
        };
        self.add(&mut found.files, file, Some(reference.line), &resolved)?;
        if !found
            .followed
            .insert((resolved.path.clone(), reference.kind))
        {
            return Ok(());
        }
        match (resolved.entry.kind, reference.kind) {
            (EntryKind::Directory, ReferenceKind::File) => {
                Err(refused(format!("`{shown}` is a directory, but a file is needed")).into())
            }
            (EntryKind::Directory, kind) => {
                let below = self.directory(&resolved.path, chain)?;
                if kind == ReferenceKind::Plugin {
                    for (path, (entry, _size)) in below.iter() {
                        self.plugin(dir, path, *entry, found, chain)?;
                    }
                }
                let below = below.iter().map(|(path, file)| (path.clone(), *file));
                found.files.extend(below);
                bound(&found.files, file)
            }
            (_, ReferenceKind::Plugin) => {
                self.plugin(dir, &resolved.path, resolved.entry, found, chain)
            }
            (_, ReferenceKind::File | ReferenceKind::Resource) => Ok(()),
        }
    }

    /// Follows what the plugin configurations in the file at `path` name; their paths start at `dir`.
    fn plugin(
        &mut self,
        dir: &RepoPath,
        path: &RepoPath,
        entry: TreeEntry,
        found: &mut Found,
        chain: &mut Vec<RepoPath>,
    ) -> Result<(), ClosureError> {
        let is_kustomization = path
            .name()
            .is_some_and(|name| KUSTOMIZATION_NAMES.contains(&name));
        if !matches!(entry.kind, EntryKind::File { .. }) || is_kustomization {
            return Ok(());
        }
        let refused = |error: &YamlError| ClosureError::from(Problem::yaml(path, error));
        // What is not YAML, kustomize cannot take for a plugin either; it may be the data of one.
        let documents = kustomization::plugin_documents(&self.tree.blob(entry.id)?);
        for document in documents.unwrap_or_default() {
            if !matches!(document.value, Value::Mapping(_)) {
                continue;
            }
            for reference in kustomization::plugin(&document).map_err(|error| refused(&error))? {
                self.follow(dir, path, &reference, found, chain)?;
            }
        }
        Ok(())
    }

    fn resolve(
        &self,
        file: &RepoPath,
        line: Option<u32>,
        path: &RepoPath,
    ) -> Result<Resolved, ClosureError> {
        resolve(self.tree, path).map_err(|error| match error {
            ResolveError::Tree(error) => ClosureError::Tree(error),
            error => Problem {
                line,
                ..Problem::at(file, error.to_string())
            }
            .into(),
        })
    }

    /// Adds what `resolved` passed and found; a directory itself is nothing to add.
    fn add(
        &self,
        files: &mut Files,
        file: &RepoPath,
        line: Option<u32>,
        resolved: &Resolved,
    ) -> Result<(), ClosureError> {
        for (path, entry) in &resolved.symlinks {
            files.insert(path.clone(), (*entry, self.tree.size(entry.id)?));
        }
        if let EntryKind::File { .. } = resolved.entry.kind {
            let size = self.tree.size(resolved.entry.id)?;
            if size > MAX_FILE {
                let mib = size / (1024 * 1024);
                let message = format!(
                    "`{}` is too large: {mib} MiB, and at most 10 MiB are read",
                    resolved.path
                );
                return Err(Problem {
                    line,
                    ..Problem::at(file, message)
                }
                .into());
            }
            files.insert(resolved.path.clone(), (resolved.entry, size));
        }
        Ok(())
    }
}

/// Refuses a closure that has grown too large.
fn bound(files: &Files, file: &RepoPath) -> Result<(), ClosureError> {
    let total: u64 = files.values().map(|(_entry, size)| size).sum();
    if files.len() <= MAX_FILES && total <= MAX_TOTAL {
        return Ok(());
    }
    let message = format!("the build would read more than {MAX_FILES} files or 64 MiB");
    Err(Problem::at(file, message).into())
}
