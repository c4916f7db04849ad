//! Builds by real programs: what comes out, and what happens to those that misbehave.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use longshore_fleet::{
    Closure, Closures, DetectError, Kustomize, Render, RenderError, RenderSettings, Tree,
};
use longshore_protocol::Object;

use crate::{Repo, config_map, path};

/// What scripts need to run in the sandbox.
pub fn script_paths() -> Vec<PathBuf> {
    ["/bin", "/usr/bin", "/lib", "/lib64", "/usr/lib"]
        .map(PathBuf::from)
        .to_vec()
}

pub async fn kustomize() -> Kustomize {
    Kustomize::detect(RenderSettings::default())
        .await
        .expect("these tests need kustomize")
}

/// A renderer that runs `script` where it should build.
pub async fn fake(programs: &Repo, script: &str, settings: RenderSettings) -> Kustomize {
    let text =
        format!("#!/bin/bash\nif [ \"$1\" = version ]; then echo fake; exit; fi\n{script}\n");
    let program = programs.program("kustomize", &text);
    let readable = script_paths();
    Kustomize::detect(RenderSettings {
        program: Some(program),
        readable,
        ..settings
    })
    .await
    .unwrap()
}

pub fn closure(tree: &Arc<dyn Tree>, overlay: &str) -> Arc<Closure> {
    Closures::new(tree.as_ref(), "test")
        .closure(&path(overlay))
        .unwrap()
}

pub async fn render(
    renderer: &Kustomize,
    repo: &Repo,
    overlay: &str,
) -> Result<Vec<Object>, RenderError> {
    let tree = repo.shared();
    renderer
        .render("tenant", &tree, &closure(&tree, overlay))
        .await
}

fn simple() -> Repo {
    Repo::new()
        .write("base/kustomization.yaml", "resources: [map.yaml]\n")
        .write("base/map.yaml", config_map("map"))
        .write(
            "o/kustomization.yaml",
            "namePrefix: x-\nresources: [../base]\n",
        )
}

fn keys(objects: &[Object]) -> Vec<String> {
    objects
        .iter()
        .map(|object| object.key().to_string())
        .collect()
}

fn is_empty(dir: &Path) -> bool {
    fs::read_dir(dir).unwrap().next().is_none()
}

#[tokio::test]
async fn both_programs_build() {
    for name in ["kustomize", "kubectl"] {
        let found = std::env::split_paths(&std::env::var_os("PATH").unwrap())
            .map(|dir| dir.join(name))
            .find(|program| program.is_file());
        let program = found.unwrap_or_else(|| panic!("these tests need {name}"));
        let scratch = tempfile::tempdir().unwrap();
        let settings = RenderSettings {
            program: Some(program),
            scratch: Some(scratch.path().to_owned()),
            ..RenderSettings::default()
        };
        let renderer = Kustomize::detect(settings).await.unwrap();
        assert!(
            renderer.describe().contains("Landlock"),
            "{}",
            renderer.describe()
        );
        assert!(
            renderer.identity().starts_with(name),
            "{}",
            renderer.identity()
        );
        assert_eq!(
            keys(&render(&renderer, &simple(), "o").await.unwrap()),
            ["v1/ConfigMap/x-map"]
        );
        // What it keeps for the next build goes with it.
        drop(renderer);
        assert!(is_empty(scratch.path()));
    }
}

#[tokio::test]
async fn builds_through_symlinks_and_generators() {
    let repo = simple()
        .link("short", "base")
        .link("o2/data", "../deep/data.txt")
        .write("deep/data.txt", "text")
        .write("o2/plugin.yaml", "apiVersion: builtin\nkind: PrefixTransformer\nmetadata: {name: p}\nprefix: p-\nfieldSpecs: [{path: metadata/name}]\n")
        .write(
            "o2/kustomization.yaml",
            "resources: [../short]\ntransformers: [plugin.yaml]\ngeneratorOptions: {disableNameSuffixHash: true}\n\
             secretGenerator: [{name: s, literals: [a=b]}]\n",
        );
    let objects = render(&kustomize().await, &repo, "o2").await.unwrap();
    assert_eq!(keys(&objects), ["v1/ConfigMap/p-map", "v1/Secret/p-s"]);
}

#[tokio::test]
async fn an_empty_render_is_no_error() {
    let repo = simple().write("o/kustomization.yaml", "namePrefix: x-\n");
    assert_eq!(render(&kustomize().await, &repo, "o").await.unwrap(), []);
}

#[tokio::test]
async fn a_build_error_tells_no_paths_of_ours() {
    let repo = simple().write("base/map.yaml", "apiVersion: v1\nkind: ConfigMap\n");
    let error = render(&kustomize().await, &repo, "o").await.unwrap_err();
    let RenderError::Build { message } = &error else {
        panic!("{error:?}")
    };
    assert!(error.is_deterministic());
    assert!(message.contains("missing metadata.name"), "{message}");
    assert!(
        !message.contains("longshore-render") && !message.contains("/dev/shm"),
        "{message}"
    );
}

#[tokio::test]
async fn a_build_sees_its_closure_only() {
    let repo = simple();
    let tree = repo.shared();
    let whole = closure(&tree, "o");
    let files = whole
        .files
        .iter()
        .filter(|file| file.path != path("base/map.yaml"))
        .cloned()
        .collect();
    let partial = Closure {
        files,
        ..Closure::clone(&whole)
    };
    let error = kustomize()
        .await
        .render("tenant", &tree, &partial)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("map.yaml"), "{error}");
}

#[tokio::test]
async fn nowhere_to_export_and_nothing_to_run() {
    let scratch = Some("/nonexistent/scratch".into());
    let error = Kustomize::detect(RenderSettings {
        scratch,
        ..RenderSettings::default()
    })
    .await;
    assert!(matches!(error, Err(DetectError::Scratch { .. })));
    let program = Some("/nonexistent/kustomize".into());
    let error = Kustomize::detect(RenderSettings {
        program,
        ..RenderSettings::default()
    })
    .await;
    assert!(matches!(error, Err(DetectError::Unusable { .. })));
    let program = Some("/bin/false".into());
    let error = Kustomize::detect(RenderSettings {
        program,
        ..RenderSettings::default()
    })
    .await;
    assert!(matches!(error, Err(DetectError::Version { .. })));
}

/// How many living processes have `mark` among their arguments.
fn living(mark: &str) -> usize {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    processes
        .filter_map(|process| fs::read(process.path().join("cmdline")).ok())
        .filter(|line| {
            line.split(|byte| *byte == 0)
                .any(|argument| argument == mark.as_bytes())
        })
        .count()
}

async fn all_gone(mark: &str) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while living(mark) > 0 {
        assert!(Instant::now() < deadline, "processes outlive their build");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A number of seconds to sleep that no other test uses.
fn mark(number: u32) -> String {
    format!("{}{}", 40_000 + number, std::process::id())
}

#[tokio::test]
async fn a_hanging_build_is_killed_with_its_group() {
    let programs = Repo::new();
    let seconds = mark(1);
    let settings = RenderSettings {
        timeout: Duration::from_millis(400),
        ..RenderSettings::default()
    };
    let script = format!("sleep {seconds} & sleep {seconds} & trap '' TERM; sleep {seconds}");
    let renderer = fake(&programs, &script, settings).await;
    let error = render(&renderer, &simple(), "o").await.unwrap_err();
    assert!(matches!(error, RenderError::TimedOut { .. }), "{error:?}");
    assert!(!error.is_deterministic());
    all_gone(&seconds).await;
}

#[tokio::test]
async fn what_a_build_leaves_behind_is_killed() {
    let programs = Repo::new();
    let seconds = mark(2);
    // The child keeps the pipes open; waiting for their end would take until the timeout.
    let renderer = fake(
        &programs,
        &format!("sleep {seconds} &"),
        RenderSettings::default(),
    )
    .await;
    let started = Instant::now();
    assert_eq!(render(&renderer, &simple(), "o").await.unwrap(), []);
    assert!(started.elapsed() < Duration::from_secs(20));
    all_gone(&seconds).await;
}

#[tokio::test]
async fn a_dropped_build_is_killed() {
    let programs = Repo::new();
    let seconds = mark(3);
    let renderer = Arc::new(
        fake(
            &programs,
            &format!("sleep {seconds} & sleep {seconds}"),
            RenderSettings::default(),
        )
        .await,
    );
    let task = tokio::spawn(async move { render(&renderer, &simple(), "o").await });
    let deadline = Instant::now() + Duration::from_secs(10);
    while living(&seconds) < 2 {
        assert!(Instant::now() < deadline, "the build does not start");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    task.abort();
    all_gone(&seconds).await;
}

#[tokio::test]
async fn a_flood_of_output_is_cut() {
    let programs = Repo::new();
    let seconds = mark(4);
    let settings = RenderSettings {
        max_output: 100_000,
        ..RenderSettings::default()
    };
    let renderer = fake(&programs, &format!("sleep {seconds} & yes"), settings).await;
    let error = render(&renderer, &simple(), "o").await.unwrap_err();
    assert!(
        matches!(error, RenderError::OutputTooLarge { limit: 100_000 }),
        "{error:?}"
    );
    all_gone(&seconds).await;
    let renderer = fake(
        &programs,
        "yes >&2 & for i in {1..20}; do echo '# x'; done; wait",
        RenderSettings {
            timeout: Duration::from_millis(500),
            ..RenderSettings::default()
        },
    )
    .await;
    let error = render(&renderer, &simple(), "o").await.unwrap_err();
    assert!(matches!(error, RenderError::TimedOut { .. }), "{error:?}");
}

#[tokio::test]
async fn memory_is_bounded() {
    let programs = Repo::new();
    let settings = RenderSettings {
        memory_limit: 64 * 1024 * 1024,
        ..RenderSettings::default()
    };
    let script = "x=$(yes | tr -d '\\n' | head -c 400000000); echo \"got ${#x}\"";
    let renderer = fake(&programs, script, settings).await;
    let error = render(&renderer, &simple(), "o").await.unwrap_err();
    assert!(
        matches!(error, RenderError::OutOfMemory { .. }),
        "{error:?}"
    );
    assert!(!error.is_deterministic());

    // The same with the real one, which needs more than this to start.
    let settings = RenderSettings {
        memory_limit: 24 * 1024 * 1024,
        ..RenderSettings::default()
    };
    let error = match Kustomize::detect(settings).await {
        Err(DetectError::Version { source, .. }) => source,
        Err(error) => panic!("{error}"),
        Ok(renderer) => render(&renderer, &simple(), "o").await.unwrap_err(),
    };
    assert!(
        matches!(error, RenderError::OutOfMemory { .. }),
        "{error:?}"
    );
}

#[tokio::test]
async fn processor_time_is_bounded() {
    let programs = Repo::new();
    let settings = RenderSettings {
        timeout: Duration::from_millis(300),
        ..RenderSettings::default()
    };
    let renderer = fake(&programs, "while :; do :; done", settings).await;
    let error = render(&renderer, &simple(), "o").await.unwrap_err();
    assert!(matches!(error, RenderError::TimedOut { .. }), "{error:?}");
}

#[tokio::test]
async fn output_that_is_not_objects() {
    let programs = Repo::new();
    for (script, expected) in [
        ("echo 'a: ['", "not valid YAML"),
        ("echo hello", "no object"),
        ("kill -9 $$", "killed by signal 9"),
        ("exit 3", "exit status: 3"),
    ] {
        let renderer = fake(&programs, script, RenderSettings::default()).await;
        let error = render(&renderer, &simple(), "o").await.unwrap_err();
        assert!(error.to_string().contains(expected), "{script}: {error}");
    }
}

#[tokio::test]
async fn leftovers_of_a_killed_process_are_swept() {
    let scratch = tempfile::tempdir().unwrap();
    let dead = scratch.path().join("longshore-render-2147483646-old");
    let fresh = scratch.path().join("longshore-render-2147483646-new");
    let alive = scratch
        .path()
        .join(format!("longshore-render-{}-old", std::process::id()));
    let long_ago = SystemTime::now() - Duration::from_hours(1);
    for (dir, modified) in [
        (&dead, long_ago),
        (&fresh, SystemTime::now()),
        (&alive, long_ago),
    ] {
        fs::create_dir_all(dir.join("tree")).unwrap();
        fs::File::open(dir).unwrap().set_modified(modified).unwrap();
    }
    let settings = RenderSettings {
        scratch: Some(scratch.path().to_owned()),
        ..RenderSettings::default()
    };
    Kustomize::detect(settings).await.unwrap();
    assert_eq!(
        [dead, fresh, alive].map(|dir| dir.exists()),
        [false, true, true]
    );
}

#[tokio::test]
async fn a_replaced_program_is_not_mistaken_for_the_old_one() {
    let programs = Repo::new();
    let renderer = fake(&programs, "true", RenderSettings::default()).await;
    let identity = renderer.identity().to_owned();
    assert_eq!(render(&renderer, &simple(), "o").await.unwrap(), []);
    let renewed = fake(&programs, "echo", RenderSettings::default()).await;
    assert_ne!(renewed.identity(), identity);
    let error = render(&renderer, &simple(), "o").await.unwrap_err();
    assert!(
        matches!(error, RenderError::Environment { .. }),
        "{error:?}"
    );
}
