//! One kustomization file: which paths it names, and what it may not ask for.
//!
//! Top-level fields are an allow-list, that of kustomize 5 with its deprecated ones. Inside of a field only the
//! paths are looked at; what else is wrong in it, kustomize says.

use crate::yaml::{self, Limits, Node, Value, YamlError};

/// The names that kustomize looks for in a directory.
pub(crate) const KUSTOMIZATION_NAMES: [&str; 3] =
    ["kustomization.yaml", "kustomization.yml", "Kustomization"];

const LIMITS: Limits = Limits { nodes: 200_000 };

/// Fields that name no paths.
const PLAIN: [&str; 17] = [
    "apiVersion",
    "kind",
    "metadata",
    "namePrefix",
    "nameSuffix",
    "namespace",
    "commonLabels",
    "labels",
    "commonAnnotations",
    "images",
    "imageTags",
    "replicas",
    "vars",
    "sortOptions",
    "generatorOptions",
    "inventory",
    "buildMetadata",
];

/// Fields that name paths.
const PATHS: [&str; 16] = [
    "resources",
    "bases",
    "components",
    "crds",
    "configurations",
    "patches",
    "patchesStrategicMerge",
    "patchesJson6902",
    "configMapGenerator",
    "secretGenerator",
    "replacements",
    "openapi",
    "generators",
    "transformers",
    "validators",
    "helmCharts",
];

/// Fields that fetch and run things.
const HELM: [&str; 3] = ["helmCharts", "helmGlobals", "helmChartInflationGenerator"];

/// A path that a file names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reference {
    pub(super) line: u32,
    pub(super) path: String,
    pub(super) kind: ReferenceKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum ReferenceKind {
    /// A file.
    File,
    /// A file of objects, or a directory with a kustomization of its own.
    Resource,
    /// As a resource, but its objects configure builtin generators, transformers or validators.
    Plugin,
}

/// The paths that the kustomization file `bytes` names.
pub(super) fn parse(bytes: &[u8]) -> Result<Vec<Reference>, YamlError> {
    let document = yaml::document(bytes, LIMITS)?;
    if !matches!(document.value, Value::Mapping(_)) {
        return Err(document.error(format!(
            "a kustomization must be a mapping, not {}",
            document.what()
        )));
    }
    let mut found = Vec::new();
    for (key, value) in document.members() {
        let name = key.scalar().unwrap_or_default();
        if HELM.contains(&name) {
            return Err(key.error(format!("`{name}` is refused: Helm charts are not inflated here; commit the rendered manifests")));
        }
        field(key, name, value, &mut found)?;
    }
    Ok(found)
}

fn field(
    key: &Node,
    name: &str,
    value: &Node,
    found: &mut Vec<Reference>,
) -> Result<(), YamlError> {
    use ReferenceKind::{File, Plugin, Resource};
    match name {
        name if PLAIN.contains(&name) => {}
        "resources" | "bases" | "components" => paths(value, name, Resource, found)?,
        "crds" | "configurations" => paths(value, name, File, found)?,
        "patches" | "patchesJson6902" | "replacements" => {
            for item in list(value, name)? {
                // A list of texts is how `patches` was written long ago.
                match &item.value {
                    Value::Scalar(_) => path_or_inline(item, name, found)?,
                    Value::Sequence(_) | Value::Mapping(_) => member(item, "path", found)?,
                }
            }
        }
        "patchesStrategicMerge" => {
            for item in list(value, name)? {
                path_or_inline(item, name, found)?;
            }
        }
        "configMapGenerator" | "secretGenerator" => {
            for item in list(value, name)? {
                sources(item, found)?;
            }
        }
        "openapi" => member(value, "path", found)?,
        "generators" | "transformers" | "validators" => {
            for item in list(value, name)? {
                let text = text(item, name)?;
                match inline(text) {
                    Some(documents) => {
                        for document in &documents {
                            found.extend(
                                plugin(document).map_err(|error| item.error(error.message))?,
                            );
                        }
                    }
                    None => found.push(Reference {
                        line: item.line,
                        path: text.to_owned(),
                        kind: Plugin,
                    }),
                }
            }
        }
        name => {
            let known: Vec<&str> = PLAIN.iter().chain(&PATHS).copied().collect();
            let meant = crate::fleet::closest(name, &known)
                .map_or_else(String::new, |meant| format!("; did you mean `{meant}`?"));
            let message = format!(
                "unknown field `{}` in a kustomization{meant}",
                name.escape_debug()
            );
            return Err(key.error(message));
        }
    }
    Ok(())
}

/// What the configuration of a plugin names. Only builtin plugins are allowed: they are code of kustomize, while
/// all others are programs or containers that the repo would have us run.
pub(super) fn plugin(document: &Node) -> Result<Vec<Reference>, YamlError> {
    let api_version = document
        .member("apiVersion")
        .and_then(Node::scalar)
        .unwrap_or_default();
    let kind = document
        .member("kind")
        .and_then(Node::scalar)
        .unwrap_or_default();
    if api_version != "builtin" {
        return Err(document.error(format!(
            "the plugin `{}/{}` is refused: only generators, transformers and validators of \
             `apiVersion: builtin` may run",
            api_version.escape_debug(),
            kind.escape_debug()
        )));
    }
    if kind.starts_with("HelmChart") {
        return Err(
            document.error("Helm charts are not inflated here; commit the rendered manifests")
        );
    }
    let annotations = document
        .member("metadata")
        .and_then(|metadata| metadata.member("annotations"));
    for (key, _value) in annotations.map(Node::members).unwrap_or_default() {
        if matches!(
            key.scalar(),
            Some("config.kubernetes.io/function" | "config.k8s.io/function")
        ) {
            return Err(key.error("functions are refused: they run programs or containers"));
        }
    }
    let mut found = Vec::new();
    member(document, "path", &mut found)?;
    if let Some(items) = document.member("paths") {
        for item in list(items, "paths")? {
            path_or_inline(item, "paths", &mut found)?;
        }
    }
    if let Some(items) = document.member("replacements") {
        for item in list(items, "replacements")? {
            member(item, "path", &mut found)?;
        }
    }
    sources(document, &mut found)?;
    Ok(found)
}

/// The documents of a plugin's file.
pub(super) fn plugin_documents(bytes: &[u8]) -> Result<Vec<Node>, YamlError> {
    yaml::documents(bytes, LIMITS)
}

/// `files`, `envs` and `env` of a `ConfigMap` or `Secret` generator.
fn sources(generator: &Node, found: &mut Vec<Reference>) -> Result<(), YamlError> {
    if let Some(files) = generator.member("files") {
        for item in list(files, "files")? {
            let text = text(item, "files")?;
            let path = text.split_once('=').map_or(text, |(_name, path)| path);
            found.push(Reference {
                line: item.line,
                path: path.to_owned(),
                kind: ReferenceKind::File,
            });
        }
    }
    if let Some(envs) = generator.member("envs") {
        paths(envs, "envs", ReferenceKind::File, found)?;
    }
    member(generator, "env", found)
}

fn paths(
    value: &Node,
    name: &str,
    kind: ReferenceKind,
    found: &mut Vec<Reference>,
) -> Result<(), YamlError> {
    for item in list(value, name)? {
        found.push(Reference {
            line: item.line,
            path: text(item, name)?.to_owned(),
            kind,
        });
    }
    Ok(())
}

/// The file that `node.name` names, where it is given.
fn member(node: &Node, name: &str, found: &mut Vec<Reference>) -> Result<(), YamlError> {
    if let Some(path) = node.member(name).filter(|path| !path.is_null()) {
        let text = text(path, name)?;
        if !text.is_empty() {
            found.push(Reference {
                line: path.line,
                path: text.to_owned(),
                kind: ReferenceKind::File,
            });
        }
    }
    Ok(())
}

fn path_or_inline(item: &Node, name: &str, found: &mut Vec<Reference>) -> Result<(), YamlError> {
    let text = text(item, name)?;
    if inline(text).is_none() {
        found.push(Reference {
            line: item.line,
            path: text.to_owned(),
            kind: ReferenceKind::File,
        });
    }
    Ok(())
}

/// The documents of `text`, where it is YAML of objects rather than a path.
fn inline(text: &str) -> Option<Vec<Node>> {
    let documents = yaml::documents(text.as_bytes(), LIMITS).ok()?;
    let all_objects = documents
        .iter()
        .all(|document| matches!(document.value, Value::Mapping(_)));
    (all_objects && !documents.is_empty()).then_some(documents)
}

fn list<'a>(node: &'a Node, name: &str) -> Result<&'a [Node], YamlError> {
    match &node.value {
        Value::Sequence(items) => Ok(items),
        Value::Scalar(_) if node.is_null() => Ok(&[]),
        Value::Scalar(_) | Value::Mapping(_) => {
            Err(node.error(format!("`{name}` must be a list, not {}", node.what())))
        }
    }
}

fn text<'a>(node: &'a Node, name: &str) -> Result<&'a str, YamlError> {
    node.scalar().ok_or_else(|| {
        node.error(format!(
            "an entry of `{name}` must be a text, not {}",
            node.what()
        ))
    })
}

/// Whether kustomize would, or might, fetch `path` from another place.
pub(super) fn is_remote(path: &str) -> bool {
    let lower = path.to_ascii_lowercase();
    let host = lower.split(['/', ':']).next().unwrap_or_default();
    let scp = lower.split_once('@').is_some_and(|(user, host)| {
        !user.is_empty() && !user.contains('/') && host.contains([':', '/'])
    });
    lower.contains("://")
        || lower.starts_with("git::")
        || scp
        || (host == "github.com" && lower != host)
}

/// Whether a `path` that does not exist was likely meant to be fetched.
pub(super) fn looks_remote(path: &str) -> bool {
    let (host, rest) = path.split_once('/').unwrap_or((path, ""));
    let domain = !host.starts_with('.') && host.contains('.') && rest.contains('/');
    is_remote(path) || domain || path.contains("?ref=") || path.contains(".git/")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn named(text: &str) -> Vec<(u32, String)> {
        parse(text.as_bytes())
            .unwrap()
            .into_iter()
            .map(|found| (found.line, found.path))
            .collect()
    }

    #[test]
    fn finds_every_path() {
        let text = "\
resources: [a.yaml, ../b]
bases:
- c
components: [d]
crds: [e]
configurations: [f]
patches:
- path: g
- patch: '{}'
patchesStrategicMerge:
- h
- |
  apiVersion: v1
  kind: X
patchesJson6902: [{path: i, target: {}}]
configMapGenerator:
- name: x
  files: [j, key=k]
  envs: [l]
  env: m
secretGenerator:
- files: [n]
replacements: [{path: o}, {source: {}}]
openapi: {path: p}
generators:
- q
- |
  apiVersion: builtin
  kind: ConfigMapGenerator
  files: [r]
transformers: [s]
validators: [t]
";
        let expected: Vec<String> = "a.yaml ../b c d e f g h i j k l m n o p q r s t"
            .split(' ')
            .map(str::to_owned)
            .collect();
        let paths: Vec<String> = named(text).into_iter().map(|(_line, path)| path).collect();
        assert_eq!(paths, expected);
        assert!(named(text).contains(&(3, "c".to_owned())));
    }

    #[test]
    fn refuses_with_line() {
        for (text, line, message) in [
            ("resources: []\nhelmCharts: []\n", 2, "Helm"),
            ("helmGlobals: {}\n", 1, "Helm"),
            ("helmChartInflationGenerator: []\n", 1, "Helm"),
            ("resource: [a]\n", 1, "did you mean `resources`?"),
            ("resources: a\n", 1, "must be a list"),
            ("resources: [{a: b}]\n", 1, "must be a text"),
            ("- a\n", 1, "must be a mapping"),
            (
                "generators:\n- |\n  apiVersion: x/v1\n  kind: Y\n",
                3,
                "plugin `x/v1/Y` is refused",
            ),
            (
                "generators:\n- |\n  apiVersion: builtin\n  kind: HelmChartInflationGenerator\n",
                3,
                "Helm",
            ),
            (
                "transformers:\n- |\n  apiVersion: builtin\n  kind: Y\n  metadata:\n    annotations:\n      \
                 config.kubernetes.io/function: 'container: {image: x}'\n",
                3,
                "functions are refused",
            ),
        ] {
            let error = parse(text.as_bytes()).unwrap_err();
            assert_eq!(error.line, Some(line), "{text}: {error:?}");
            assert!(error.message.contains(message), "{text}: {error:?}");
        }
    }

    #[test]
    fn knows_remote_from_local() {
        for remote in [
            "https://example.com/x.yaml",
            "HTTP://a/b",
            "git@github.com:a/b",
            "git::https://a/b",
            "ssh://a/b",
            "file:///etc",
            "github.com/a/b",
            "github.com:a/b",
            "org-1@github.com:a/b.git",
        ] {
            assert!(is_remote(remote), "{remote}");
        }
        for local in [
            "../base",
            "a@b.yaml",
            "github.com",
            "x/github.com/y",
            "a.git",
        ] {
            assert!(!is_remote(local), "{local}");
        }
        assert!(looks_remote("gitlab.com/a/b?ref=v1"));
        assert!(looks_remote("example.org/a/b"));
        assert!(!looks_remote("../a/b") && !looks_remote("a.yaml"));
    }

    proptest! {
        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            drop(parse(&bytes));
        }

        #[test]
        fn never_panics_on_near_kustomizations(
            field in prop::sample::select(PATHS.to_vec()), text in "[a-c:{}\\[\\]|\n \"'-]{0,40}",
        ) {
            drop(parse(format!("{field}: {text}").as_bytes()));
        }
    }
}
