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
    tree::{
        Changes, ContentId, EntryKind, RepoPath, ResolveError, Resolved, Tree, TreeEntry,
        resolve_noting,
    },
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

/// What earlier walks found, for the next one.
///
/// It knows which tree it is about. After [`Self::advance`] it is about the next one, without what the changes may have
/// touched. For any other tree it only remembers what kustomization files say, by content.
#[derive(Clone, Debug, Default)]
pub struct ClosureCache {
    /// The root of the tree that `directories` and `overlays` are about.
    tree: Option<ContentId>,
    /// The renderer that `overlays` are for.
    renderer: String,
    said: HashMap<ContentId, Arc<Result<Vec<Reference>, YamlError>>>,
    directories: HashMap<RepoPath, Arc<Walked>>,
    overlays: HashMap<RepoPath, Overlay>,
    walks: usize,
}

/// Finds closures in one tree. Each directory is walked once, however many overlays share it.
pub struct Closures<'t> {
    tree: &'t dyn Tree,
    cache: ClosureCache,
}

impl std::fmt::Debug for Closures<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Closures")
            .field("renderer", &self.cache.renderer)
            .finish_non_exhaustive()
    }
}

/// The files of a directory's closure, and their sizes.
type Files = BTreeMap<RepoPath, (TreeEntry, u64)>;

/// What the outcome of a walk depends on.
#[derive(Clone, Debug, Default)]
struct Trace {
    /// Where it looked in the tree.
    looked_at: Vec<RepoPath>,
    /// The directories whose walks it took in.
    took_in: Vec<RepoPath>,
    /// The kustomization file that it read.
    said: Option<ContentId>,
}

/// What the walk of one directory found.
#[derive(Clone, Debug)]
struct Walked {
    files: Result<Files, ClosureError>,
    /// How many directories include each other from here down.
    height: usize,
    trace: Trace,
}

/// An overlay's closure.
#[derive(Clone, Debug)]
struct Overlay {
    closure: Result<Arc<Closure>, ClosureError>,
    /// `None` where it says nothing about any other tree: directories include each other in a circle, which looks
    /// different from each of them.
    trace: Option<Trace>,
}

/// Why a walk ended early.
enum Halt {
    /// Because of what one directory says.
    Here(ClosureError),
    /// Because of how directories include each other.
    Chain(ClosureError),
}

impl<E: Into<ClosureError>> From<E> for Halt {
    fn from(error: E) -> Self {
        match error.into() {
            error @ ClosureError::Refused(_) => Self::Here(error),
            error @ ClosureError::Tree(_) => Self::Chain(error),
        }
    }
}

impl Halt {
    fn chain(problem: Problem) -> Self {
        Self::Chain(problem.into())
    }
}

/// What the walk of one directory found so far.
#[derive(Default)]
struct Found {
    files: Files,
    height: usize,
    trace: Trace,
    /// What needs no second look, however often it is named.
    followed: HashSet<(RepoPath, ReferenceKind)>,
}

/// The closure of each overlay, or why it has none.
pub type OverlayClosures = HashMap<RepoPath, Result<Arc<Closure>, ClosureError>>;

impl ClosureCache {
    /// The closure of an overlay, where it was found before.
    pub fn closure(&self, overlay: &RepoPath) -> Option<&Result<Arc<Closure>, ClosureError>> {
        Some(&self.overlays.get(overlay)?.closure)
    }

    /// How many directories were walked so far.
    pub fn walks(&self) -> usize {
        self.walks
    }

    /// Goes on to the tree that `changes` lead to. Returns the overlays that it forgot because the changes may have
    /// touched them; `None` where it forgot all, being about another tree than the changes.
    pub fn advance(&mut self, changes: &Changes) -> Option<Vec<RepoPath>> {
        if self.tree != Some(changes.before()) {
            self.forget();
            self.tree = Some(changes.after());
            return None;
        }
        self.tree = Some(changes.after());
        let mut known = HashMap::new();
        let mut holds = |trace: &Trace| still_holds(trace, &self.directories, changes, &mut known);
        let forgotten: Vec<_> = self
            .overlays
            .extract_if(|_path, overlay| !overlay.trace.as_ref().is_some_and(&mut holds))
            .map(|(path, _overlay)| path)
            .collect();
        let stale: Vec<_> = self
            .directories
            .iter()
            .filter(|(_path, walked)| !holds(&walked.trace))
            .map(|(path, _walked)| path.clone())
            .collect();
        for path in stale {
            self.directories.remove(&path);
        }
        Some(forgotten)
    }

    /// How many overlays it knows.
    pub fn len(&self) -> usize {
        self.overlays.len()
    }

    /// Whether it knows none.
    pub fn is_empty(&self) -> bool {
        self.overlays.is_empty()
    }

    /// Forgets all but these overlays, and what only others needed.
    pub fn retain(&mut self, mut is_used: impl FnMut(&RepoPath) -> bool) {
        self.overlays.retain(|path, _overlay| is_used(path));
        let mut said = HashSet::new();
        let mut used = HashSet::new();
        let mut ahead = Vec::new();
        for trace in self.overlays.values().filter_map(|it| it.trace.as_ref()) {
            ahead.extend(trace.took_in.iter());
        }
        while let Some(path) = ahead.pop() {
            if let Some(walked) = self.directories.get(path)
                && used.insert(path.clone())
            {
                said.extend(walked.trace.said);
                ahead.extend(walked.trace.took_in.iter());
            }
        }
        self.directories.retain(|path, _walked| used.contains(path));
        self.said.retain(|id, _references| said.contains(id));
    }

    /// Forgets the tree. What kustomization files say is remembered.
    pub fn forget(&mut self) {
        self.tree = None;
        self.directories.clear();
        self.overlays.clear();
    }
}

/// Whether a walk would come to the same after these changes. `known` has the answers for directories.
fn still_holds<'a>(
    trace: &Trace,
    directories: &'a HashMap<RepoPath, Arc<Walked>>,
    changes: &Changes,
    known: &mut HashMap<&'a RepoPath, bool>,
) -> bool {
    if trace.looked_at.iter().any(|path| changes.concern(path)) {
        return false;
    }
    trace.took_in.iter().all(|path| {
        if let Some(holds) = known.get(path) {
            return *holds;
        }
        let Some((path, walked)) = directories.get_key_value(path) else {
            return false;
        };
        let holds = still_holds(&walked.trace, directories, changes, known);
        known.insert(path, holds);
        holds
    })
}

impl<'t> Closures<'t> {
    /// Over `tree`, for the renderer with this [identity](crate::render::Render::identity).
    pub fn new(tree: &'t dyn Tree, renderer: &str) -> Self {
        Self::with_cache(tree, renderer, ClosureCache::default())
    }

    /// The same, knowing what an earlier walk learned.
    pub fn with_cache(tree: &'t dyn Tree, renderer: &str, mut cache: ClosureCache) -> Self {
        // A tree that cannot be read says so when it is walked.
        let root = tree.entry(&RepoPath::root()).ok().flatten();
        let root = root.map(|entry| entry.id);
        if root.is_none() || cache.tree != root {
            cache.forget();
            cache.tree = root;
        }
        if cache.renderer != renderer {
            cache.overlays.clear();
            renderer.clone_into(&mut cache.renderer);
        }
        Self { tree, cache }
    }

    /// What was learned, for the next walk.
    pub fn into_cache(self) -> ClosureCache {
        self.cache
    }

    /// The closure of the overlay at `path`, which may pass symlinks.
    ///
    /// # Errors
    /// [`ClosureError::Refused`] where the repo's content is at fault.
    pub fn closure(&mut self, path: &RepoPath) -> Result<Arc<Closure>, ClosureError> {
        if let Some(known) = self.cache.closure(path) {
            return known.clone();
        }
        let mut trace = Trace::default();
        let (closure, trace) = match self.find(path, &mut trace) {
            Ok(closure) => (Ok(closure), Some(trace)),
            Err(Halt::Here(error)) => (Err(error), Some(trace)),
            // It may pass, so nobody remembers it.
            Err(Halt::Chain(error @ ClosureError::Tree(_))) => return Err(error),
            Err(Halt::Chain(error)) => (Err(error), None),
        };
        let overlay = Overlay {
            closure: closure.clone(),
            trace,
        };
        self.cache.overlays.insert(path.clone(), overlay);
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

    fn find(&mut self, path: &RepoPath, trace: &mut Trace) -> Result<Arc<Closure>, Halt> {
        let resolved = match resolve_noting(self.tree, path, &mut trace.looked_at) {
            Ok(resolved) => resolved,
            Err(ResolveError::Tree(error)) => return Err(error.into()),
            Err(error) => return Err(Problem::at(path, error.to_string()).into()),
        };
        if resolved.entry.kind != EntryKind::Directory {
            return Err(Problem::at(path, "an overlay must be a directory").into());
        }
        let path = resolved.path;
        let walked = self.directory(&path, &mut Vec::new())?;
        trace.took_in.push(path.clone());
        let files = walked.files.as_ref().map_err(Clone::clone)?;
        let files = files
            .iter()
            .map(|(path, (entry, _size))| ClosureFile {
                path: path.clone(),
                kind: entry.kind,
                id: entry.id,
            })
            .collect();
        // Through a symlink the same overlay has the same closure.
        Ok(Arc::new(Closure::new(&self.cache.renderer, path, files)))
    }

    /// All files that building `dir` reads; `chain` holds the directories that led here.
    fn directory(
        &mut self,
        dir: &RepoPath,
        chain: &mut Vec<RepoPath>,
    ) -> Result<Arc<Walked>, Halt> {
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
            return Err(Halt::chain(Problem::at(dir, message)));
        }
        let known = self.cache.directories.get(dir);
        let height = known.map_or(1, |walked| walked.height);
        if let Some(first) = chain.first()
            && chain.len() + height > MAX_CHAIN
        {
            let message =
                format!("more than {MAX_CHAIN} kustomizations include each other in a chain");
            return Err(Halt::chain(Problem::at(first, message)));
        }
        if let Some(walked) = known {
            return Ok(walked.clone());
        }
        let mut found = Found::default();
        chain.push(dir.clone());
        let outcome = self.walk(dir, &mut found, chain);
        chain.pop();
        self.cache.walks += 1;
        let files = match outcome {
            Ok(()) => Ok(found.files),
            Err(Halt::Here(error)) => Err(error),
            Err(halt @ Halt::Chain(_)) => return Err(halt),
        };
        let walked = Arc::new(Walked {
            files,
            height: found.height + 1,
            trace: found.trace,
        });
        self.cache.directories.insert(dir.clone(), walked.clone());
        Ok(walked)
    }

    fn walk(
        &mut self,
        dir: &RepoPath,
        found: &mut Found,
        chain: &mut Vec<RepoPath>,
    ) -> Result<(), Halt> {
        let file = self.kustomization(dir, &mut found.trace)?;
        let resolved = self.resolve(&file, &mut found.trace)?;
        if resolved.entry.kind == EntryKind::Directory {
            return Err(Problem::at(&file, "it is a directory, but a file is needed").into());
        }
        self.add(&mut found.files, &file, None, &resolved)?;
        found.trace.said = Some(resolved.entry.id);
        for reference in self.references(&file, resolved.entry.id)? {
            self.follow(dir, &file, &reference, found, chain)?;
        }
        Ok(bound(&found.files, &file)?)
    }

    /// The one kustomization file of `dir`.
    fn kustomization(&self, dir: &RepoPath, trace: &mut Trace) -> Result<RepoPath, ClosureError> {
        let mut present = Vec::new();
        for name in KUSTOMIZATION_NAMES {
            let path = dir.join(name);
            if self.tree.entry(&path)?.is_some() {
                present.push(name);
            }
            trace.looked_at.push(path);
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
        let parsed = if let Some(parsed) = self.cache.said.get(&id) {
            parsed.clone()
        } else {
            let parsed = Arc::new(kustomization::parse(&self.tree.blob(id)?));
            self.cache.said.insert(id, parsed.clone());
            parsed
        };
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
    ) -> Result<(), Halt> {
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
        let resolved = match resolve_noting(self.tree, &path, &mut found.trace.looked_at) {
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
                found.trace.took_in.push(resolved.path.clone());
                let below = self.directory(&resolved.path, chain)?;
                found.height = found.height.max(below.height);
                let below = below.files.as_ref().map_err(Clone::clone)?;
                if kind == ReferenceKind::Plugin {
                    for (path, (entry, _size)) in below {
                        self.plugin(dir, path, *entry, found, chain)?;
                    }
                }
                let below = below.iter().map(|(path, file)| (path.clone(), *file));
                found.files.extend(below);
                Ok(bound(&found.files, file)?)
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
    ) -> Result<(), Halt> {
        let is_kustomization = path
            .name()
            .is_some_and(|name| KUSTOMIZATION_NAMES.contains(&name));
        if !matches!(entry.kind, EntryKind::File { .. }) || is_kustomization {
            return Ok(());
        }
        let refused = |error: &YamlError| Halt::from(Problem::yaml(path, error));
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

    fn resolve(&self, file: &RepoPath, trace: &mut Trace) -> Result<Resolved, ClosureError> {
        resolve_noting(self.tree, file, &mut trace.looked_at).map_err(|error| match error {
            ResolveError::Tree(error) => ClosureError::Tree(error),
            error => Problem::at(file, error.to_string()).into(),
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
