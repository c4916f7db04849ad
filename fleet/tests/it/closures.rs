//! Closures: what they hold, what they refuse, and when their keys change.

use std::{fs, sync::Arc};

use longshore_fleet::{Closure, ClosureError, Closures, WorkTree};

use crate::{Repo, config_map, path};

fn closure(repo: &Repo, overlay: &str) -> Result<Arc<Closure>, ClosureError> {
    Closures::new(&repo.tree(), "test").closure(&path(overlay))
}

fn files(repo: &Repo, overlay: &str) -> Vec<String> {
    let closure = closure(repo, overlay).unwrap();
    closure
        .files
        .iter()
        .map(|file| file.path.to_string())
        .collect()
}

fn refusal(repo: &Repo, overlay: &str) -> String {
    match closure(repo, overlay).unwrap_err() {
        ClosureError::Refused(problem) => problem.to_string(),
        ClosureError::Tree(error) => panic!("{error}"),
    }
}

fn layered() -> Repo {
    Repo::new()
        .write("base/kustomization.yaml", "resources: [map.yaml]\n")
        .write("base/map.yaml", config_map("map"))
        .write("base/unused.yaml", config_map("unused"))
        .write(
            "parts/metrics/kustomization.yaml",
            "kind: Component\npatches: [{path: p.yaml}]\n",
        )
        .write("parts/metrics/p.yaml", config_map("map"))
        .link("shortcut", "base")
        .write(
            "a/kustomization.yaml",
            "resources: [../shortcut]\ncomponents: [../parts/metrics]\n\
             configMapGenerator: [{name: g, files: [x=data.txt], envs: [env]}]\n",
        )
        .write("a/data.txt", "data")
        .write("a/env", "A=b")
        .write("b/kustomization.yaml", "resources: [../base]\n")
}

#[test]
fn holds_what_a_build_reads_and_nothing_else() {
    let repo = layered();
    assert_eq!(
        files(&repo, "a"),
        [
            "a/data.txt",
            "a/env",
            "a/kustomization.yaml",
            "base/kustomization.yaml",
            "base/map.yaml",
            "parts/metrics/kustomization.yaml",
            "parts/metrics/p.yaml",
            "shortcut",
        ]
    );
    let tree = repo.tree();
    let mut closures = Closures::new(&tree, "test");
    let direct = closures.closure(&path("base")).unwrap();
    let linked = closures.closure(&path("shortcut")).unwrap();
    assert_eq!(direct, linked);
}

#[test]
fn keys_follow_content() {
    let repo = layered();
    let key = |overlay: &str| closure(&repo, overlay).unwrap().key;
    let (a, b) = (key("a"), key("b"));
    assert_ne!(a, b);
    repo.put("base/unused.yaml", "changed");
    assert_eq!((key("a"), key("b")), (a, b));
    repo.put("a/data.txt", "changed");
    assert_ne!(key("a"), a);
    assert_eq!(key("b"), b);
    repo.put("base/map.yaml", config_map("other"));
    assert_ne!(key("b"), b);
    let other = Closures::new(&repo.tree(), "other renderer")
        .closure(&path("b"))
        .unwrap()
        .key;
    assert_ne!(other, key("b"));
}

#[test]
fn knowledge_carries_over() {
    let repo = layered();
    let first = WorkTree::open(repo.root()).unwrap();
    let mut closures = Closures::new(&first, "test");
    let before = closures.closure(&path("a")).unwrap();
    let cache = closures.into_cache();
    let second = repo.tree();
    let mut closures = Closures::with_cache(&second, "test", cache.clone());
    assert_eq!(closures.closure(&path("a")).unwrap(), before);
    repo.put("base/kustomization.yaml", "resources: [unused.yaml]\n");
    let third = repo.tree();
    let mut closures = Closures::with_cache(&third, "test", cache);
    assert!(
        closures
            .closure(&path("a"))
            .unwrap()
            .files
            .iter()
            .any(|file| file.path == path("base/unused.yaml"))
    );
}

#[test]
fn refuses_with_file_and_line() {
    for (kustomization, expected) in [
        (
            "resources: [https://example.com/x.yaml]\n",
            "o/kustomization.yaml:1: the remote base `https://example.com/x.yaml` is refused",
        ),
        (
            "\nresources:\n- github.com/a/b?ref=v1\n",
            "o/kustomization.yaml:3: the remote base",
        ),
        (
            "resources: [example.org/a/b?ref=v1]\n",
            "o/kustomization.yaml:1: the remote base",
        ),
        (
            "components: ['git@github.com:a/b']\n",
            "o/kustomization.yaml:1: the remote base",
        ),
        (
            "patches: [{path: 'http://example.com/p'}]\n",
            "o/kustomization.yaml:1: the remote base",
        ),
        (
            "resources: [none.yaml]\n",
            "o/kustomization.yaml:1: `none.yaml` does not exist",
        ),
        (
            "resources:\n- ../../x\n",
            "o/kustomization.yaml:2: the path `../../x` leaves the repo",
        ),
        (
            "resources: [/etc/passwd]\n",
            "o/kustomization.yaml:1: the path `/etc/passwd` is absolute",
        ),
        (
            "resources: [out]\n",
            "o/kustomization.yaml:1: the symlink `o/out` is refused: it leaves the repo",
        ),
        (
            "resources: [abs]\n",
            "o/kustomization.yaml:1: the symlink `o/abs` is refused: its target `/etc/passwd` is absolute",
        ),
        (
            "resources: [loop]\n",
            "o/kustomization.yaml:1: `o/loop` passes more than 8 symlinks",
        ),
        (
            "resources: ['']\n",
            "o: kustomizations include each other in a cycle: o -> o",
        ),
        (
            "resources: [../p]\n",
            "o: kustomizations include each other in a cycle: o -> p -> o",
        ),
        (
            "resources: [../empty]\n",
            "empty: there is no kustomization.yaml",
        ),
        (
            "resources: [../two]\n",
            "two: there are several kustomization files, keep one: kustomization.yaml, kustomization.yml",
        ),
        (
            "patches: [{path: ../empty}]\n",
            "o/kustomization.yaml:1: `../empty` is a directory, but a file is needed",
        ),
        (
            "resource: []\n",
            "o/kustomization.yaml:1: unknown field `resource`",
        ),
        (
            "helmCharts: []\n",
            "o/kustomization.yaml:1: `helmCharts` is refused",
        ),
        ("resources: [\n", "o/kustomization.yaml:2: not valid YAML"),
        ("", "o/kustomization.yaml: the file is empty"),
        (
            "generators: [plugin.yaml]\n",
            "o/plugin.yaml:1: the plugin `example.com/v1/Exec` is refused",
        ),
        (
            "transformers: [../plugins]\n",
            "plugins/fn.yaml:1: the plugin `example.com/v1/Fn` is refused",
        ),
        (
            "validators: [chart.yaml]\n",
            "o/chart.yaml:1: Helm charts are not inflated",
        ),
        (
            "resources: [big]\n",
            "o/kustomization.yaml:1: `o/big` is too large: 100 MiB",
        ),
    ] {
        let repo = Repo::new()
            .write("o/kustomization.yaml", kustomization)
            .write("p/kustomization.yaml", "resources: [../o]\n")
            .write("empty/x", "")
            .write("two/kustomization.yaml", "")
            .write("two/kustomization.yml", "")
            .write(
                "o/plugin.yaml",
                "apiVersion: example.com/v1\nkind: Exec\nmetadata: {name: x}\n",
            )
            .write("plugins/kustomization.yaml", "resources: [fn.yaml]\n")
            .write(
                "plugins/fn.yaml",
                "apiVersion: example.com/v1\nkind: Fn\nmetadata: {name: x}\n",
            )
            .write(
                "o/chart.yaml",
                "apiVersion: builtin\nkind: HelmChartInflationGenerator\n",
            )
            .link("o/out", "../../x")
            .link("o/abs", "/etc/passwd")
            .link("o/loop", "loop");
        if kustomization.contains("big") {
            let big = fs::File::create(repo.root().join("o/big")).unwrap();
            big.set_len(100 * 1024 * 1024).unwrap();
        }
        let found = refusal(&repo, "o");
        assert!(found.starts_with(expected), "{kustomization}: {found}");
    }
}

#[test]
fn refuses_what_is_too_much() {
    let mut repo = Repo::new();
    let mut resources = String::from("resources:\n");
    for number in 0..8 {
        repo = repo.write(&format!("o/{number}.yaml"), vec![b'#'; 9 * 1024 * 1024]);
        resources += &format!("- {number}.yaml\n");
    }
    let repo = repo.write("o/kustomization.yaml", resources);
    let found = refusal(&repo, "o");
    assert!(found.contains("more than 10000 files or 64 MiB"), "{found}");
}

#[test]
fn names_that_are_not_utf8_do_not_disturb_a_neighbour() {
    use std::{ffi::OsStr, os::unix::ffi::OsStrExt};
    let repo = layered();
    fs::write(
        repo.root()
            .join("base")
            .join(OsStr::from_bytes(b"\xff.yaml")),
        "",
    )
    .unwrap();
    assert_eq!(files(&repo, "b").len(), 3);
}

#[test]
fn builtin_plugins_may_bring_data() {
    let repo = Repo::new()
        .write(
            "o/kustomization.yaml",
            "resources: [map.yaml]\ntransformers: [../plugins]\n",
        )
        .write("o/map.yaml", config_map("map"))
        .write("o/p.yaml", config_map("map"))
        .write(
            "plugins/kustomization.yaml",
            "resources: [t.yaml]\nconfigMapGenerator: [{name: x, files: [data]}]\n",
        )
        .write("plugins/data", "%: not YAML: [")
        .write(
            "plugins/t.yaml",
            "apiVersion: builtin\nkind: PatchTransformer\nmetadata: {name: t}\npath: p.yaml\n",
        );
    assert_eq!(
        files(&repo, "o"),
        [
            "o/kustomization.yaml",
            "o/map.yaml",
            "o/p.yaml",
            "plugins/data",
            "plugins/kustomization.yaml",
            "plugins/t.yaml"
        ]
    );
}
