//! The law that input keys stand on: an incremental render equals a full render.
//!
//! A random fleet repo goes through random edits. After each one every device is successes twice: by us, building
//! only input keys never seen before, from exports that hold the closure only; and by a plain `kustomize build` of
//! the whole tree. Both must give the same objects, or both must fail.

use std::{
    collections::{BTreeMap, HashMap},
    process::Command,
    sync::Arc,
};

use longshore_fleet::{
    ClosureCache, ClosureError, Closures, InputKey, Kustomize, Reader, Render, RenderError,
    RepoPath, Tree, Variables, render::objects,
};
use longshore_protocol::{DeviceName, Object};
use proptest::prelude::*;

use crate::{Repo, config_map, device, rendering::kustomize};

const BASES: usize = 2;
const GROUPS: usize = 3;
const DEVICES: usize = 4;

/// All that varies about the repo; each number is content, or picks a variant.
#[derive(Clone, Debug)]
struct State {
    bases: [u8; BASES],
    /// What the symlink `current` points at.
    current: u8,
    component: u8,
    crd: u8,
    groups: [Group; GROUPS],
    devices: [Device; DEVICES],
}

#[derive(Clone, Debug)]
struct Group {
    base: u8,
    patch: u8,
    extra: u8,
    data: u8,
}

#[derive(Clone, Debug)]
struct Device {
    kind: u8,
    group: u8,
    data: u8,
}

#[derive(Clone, Debug)]
enum Edit {
    Nothing,
    Base(usize, u8),
    Current(u8),
    Component(u8),
    Crd(u8),
    Group(usize, Group),
    Device(usize, Device),
}

fn group() -> impl Strategy<Value = Group> {
    (0..4_u8, 0..6_u8, 0..6_u8, 0..9_u8).prop_map(|(base, patch, extra, data)| Group {
        base,
        patch,
        extra,
        data,
    })
}

fn one_device() -> impl Strategy<Value = Device> {
    (0..6_u8, 0..3_u8, 0..9_u8).prop_map(|(kind, group, data)| Device { kind, group, data })
}

fn state() -> impl Strategy<Value = State> {
    let groups = [group(), group(), group()];
    let devices = [one_device(), one_device(), one_device(), one_device()];
    (
        [0..9_u8, 0..9_u8],
        0..2_u8,
        0..9_u8,
        0..3_u8,
        groups,
        devices,
    )
        .prop_map(|(bases, current, component, crd, groups, devices)| State {
            bases,
            current,
            component,
            crd,
            groups,
            devices,
        })
}

fn edit() -> impl Strategy<Value = Edit> {
    prop_oneof![
        1 => Just(Edit::Nothing),
        3 => (0..BASES, 0..9_u8).prop_map(|(at, value)| Edit::Base(at, value)),
        2 => (0..2_u8).prop_map(Edit::Current),
        2 => (0..9_u8).prop_map(Edit::Component),
        1 => (0..3_u8).prop_map(Edit::Crd),
        3 => (0..GROUPS, group()).prop_map(|(at, group)| Edit::Group(at, group)),
        3 => (0..DEVICES, one_device()).prop_map(|(at, device)| Edit::Device(at, device)),
    ]
}

impl State {
    fn apply(&mut self, edit: Edit) {
        match edit {
            Edit::Nothing => {}
            Edit::Base(at, value) => self.bases[at] = value,
            Edit::Current(value) => self.current = value,
            Edit::Component(value) => self.component = value,
            Edit::Crd(value) => self.crd = value,
            Edit::Group(at, group) => self.groups[at] = group,
            Edit::Device(at, device) => self.devices[at] = device,
        }
    }

    fn repo(&self) -> Repo {
        let mut repo = Repo::new()
            .link("current", &format!("base{}", self.current))
            .write("component/kustomization.yaml", "apiVersion: kustomize.config.k8s.io/v1alpha1\nkind: Component\nconfigMapGenerator: [{name: part, files: [named=part.txt]}]\n")
            .write("component/part.txt", format!("part {}", self.component));
        for (number, value) in self.bases.iter().enumerate() {
            let dir = format!("base{number}");
            repo = repo
                .write(&format!("{dir}/kustomization.yml"), "resources: [map.yaml, app.yaml]\nimages: [{name: app, newTag: v1}]\n")
                .write(&format!("{dir}/map.yaml"), format!("{}  value: \"{value}\"\n  who: ${{DEVICE_NAME}}\n", config_map("map")))
                .write(&format!("{dir}/app.yaml"), format!("apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: app}}\nspec:\n  replicas: {value}\n  template: {{spec: {{containers: [{{name: c, image: app}}]}}}}\n"));
        }
        for (number, group) in self.groups.iter().enumerate() {
            let dir = format!("groups/g{number}");
            repo = group.write(repo, &dir).write(
                &format!("{dir}/schema.json"),
                format!("{{\"x{}\": {{}}}}", self.crd),
            );
        }
        for (number, device) in self.devices.iter().enumerate() {
            repo = device.write(repo, &format!("d{number}"));
        }
        repo
    }
}

impl Group {
    fn write(&self, mut repo: Repo, dir: &str) -> Repo {
        let Self {
            base,
            patch,
            extra,
            data,
        } = self;
        let base = match base {
            0 => "../../base0",
            1 => "../../base1",
            2 => "../../current",
            _ => "../../base0/../current/",
        };
        let mut text = format!("resources: [{base}]\n");
        text += match patch {
            0 => "patches: [{path: patch.yaml}]\n",
            1 => "patchesStrategicMerge: [patch.yaml]\n",
            2 => {
                "patches:\n- target: {kind: ConfigMap}\n  patch: |-\n    - {op: add, path: /data/p, value: q}\n"
            }
            3 => {
                "patchesJson6902: [{target: {kind: ConfigMap, version: v1, name: map}, path: ops.json}]\n"
            }
            4 => "replacements: [{path: replace.yaml}]\n",
            _ => "namePrefix: pre-\n",
        };
        text += match extra {
            0 => "configMapGenerator: [{name: gen, files: [data.txt], envs: [deep/env]}]\n",
            1 => "components: [../../component]\n",
            2 => "transformers: [plugin.yaml]\n",
            3 => {
                "generators:\n- |-\n  apiVersion: builtin\n  kind: ConfigMapGenerator\n  metadata: {name: inline}\n  files: [data.txt]\n"
            }
            4 => "configurations: [config.yaml]\ncrds: [linked.json]\n",
            // A mistake: kustomize finds no such file.
            _ if *data > 6 => "configMapGenerator: [{name: gen, files: [missing.txt]}]\n",
            _ => "secretGenerator: [{name: sec, env: deep/env}]\n",
        };
        for (name, content) in [
            ("kustomization.yaml", text),
            ("patch.yaml", format!("{}  patched: \"{data}\"\n", config_map("map"))),
            ("ops.json", format!("[{{\"op\": \"add\", \"path\": \"/data/op\", \"value\": \"{data}\"}}]")),
            ("replace.yaml", "- source: {kind: ConfigMap, name: map, fieldPath: data.value}\n  targets:\n  - select: {kind: Deployment}\n    fieldPaths: [spec.paused]\n    options: {create: true}\n".to_owned()),
            ("data.txt", format!("data {data} ${{DEVICE_NAME}}\n")),
            ("deep/env", format!("A={data}\n")),
            ("config.yaml", "namePrefix: [{path: metadata/name}]\n".to_owned()),
            ("plugin.yaml", format!("apiVersion: builtin\nkind: PatchTransformer\nmetadata: {{name: p{data}}}\npath: patch.yaml\n")),
        ] {
            repo = repo.write(&format!("{dir}/{name}"), content);
        }
        repo.link(&format!("{dir}/linked.json"), "schema.json")
    }
}

impl Device {
    fn write(&self, repo: Repo, name: &str) -> Repo {
        let Self { kind, group, data } = self;
        let dir = format!("devices/{name}");
        let shared =
            format!("spec:\n  overlay: ../../groups/g{group}\n  variables: {{X: \"{data}\"}}\n");
        let own = |repo: Repo, text: String| {
            repo.write(&format!("{dir}/device.yaml"), device(name, ""))
                .write(&format!("{dir}/kustomization.yaml"), text)
        };
        match kind {
            0 => repo,
            1 | 2 => repo.write(&format!("{dir}/device.yaml"), device(name, &shared)),
            3 => own(
                repo,
                format!("resources: [../../groups/g{group}]\nnameSuffix: -x{data}\n"),
            ),
            4 => own(
                repo,
                format!(
                    "resources: [../../groups/g{group}, own.yaml]\ncommonLabels: {{tier: v{data}}}\n"
                ),
            )
            .write(&format!("{dir}/own.yaml"), config_map("own")),
            _ => own(repo, "resources: [own.yaml]\n".to_owned()).write(
                &format!("{dir}/own.yaml"),
                config_map(&format!("own{data}")),
            ),
        }
    }
}

/// What stays between commits.
#[derive(Default)]
struct Controller {
    reader: Reader,
    cache: ClosureCache,
    built: HashMap<InputKey, Option<Vec<Object>>>,
    builds: usize,
}

impl Controller {
    /// The objects of every device; `None` where it cannot be successes.
    async fn render(
        &mut self,
        renderer: &Kustomize,
        tree: &Arc<dyn Tree>,
    ) -> BTreeMap<DeviceName, Option<Vec<Object>>> {
        let fleet = self.reader.read(tree.as_ref(), &RepoPath::root()).unwrap();
        assert_eq!(fleet.problems, []);
        let mut closures = Closures::with_cache(
            tree.as_ref(),
            renderer.identity(),
            std::mem::take(&mut self.cache),
        );
        let mut devices = BTreeMap::new();
        for (name, device) in fleet.devices {
            let closure = match closures.closure(&device.overlay) {
                Ok(closure) => closure,
                Err(ClosureError::Refused(_)) => {
                    devices.insert(name, None);
                    continue;
                }
                Err(ClosureError::Tree(error)) => panic!("{error}"),
            };
            if !self.built.contains_key(&closure.key) {
                self.builds += 1;
                let built = match renderer.render("tenant", tree, &closure).await {
                    Ok(objects) => Some(objects),
                    Err(RenderError::Build { .. }) => None,
                    Err(error) => panic!("{error:?}"),
                };
                self.built.insert(closure.key, built);
            }
            let built = self.built[&closure.key].as_ref();
            devices.insert(
                name,
                built.map(|objects| Variables::of(&device).substitute(objects).unwrap()),
            );
        }
        self.cache = closures.into_cache();
        devices
    }
}

/// The same, by plain kustomize on the whole tree, remembering nothing.
fn full(repo: &Repo) -> BTreeMap<DeviceName, Option<Vec<Object>>> {
    let fleet = Reader::new().read(&repo.tree(), &RepoPath::root()).unwrap();
    let mut overlays: HashMap<RepoPath, Option<Vec<Object>>> = HashMap::new();
    let mut devices = BTreeMap::new();
    for (name, device) in fleet.devices {
        let built = overlays.entry(device.overlay.clone()).or_insert_with(|| {
            let overlay = repo.root().join(device.overlay.as_str());
            let output = Command::new("kustomize")
                .arg("build")
                .arg(overlay)
                .output()
                .unwrap();
            output
                .status
                .success()
                .then(|| objects(&output.stdout).unwrap())
        });
        let variables = Variables::of(&device);
        devices.insert(
            name,
            built
                .as_ref()
                .map(|objects| variables.substitute(objects).unwrap()),
        );
    }
    devices
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, max_shrink_iters: 40, ..ProptestConfig::default() })]
    #[test]
    fn incremental_equals_full(start in state(), edits in proptest::collection::vec(edit(), 4)) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let renderer = runtime.block_on(kustomize());
        let mut controller = Controller::default();
        let mut state = start;
        for edit in [Edit::Nothing].into_iter().chain(edits) {
            let idle = matches!(edit, Edit::Nothing) && controller.builds > 0;
            state.apply(edit);
            let repo = state.repo();
            let before = controller.builds;
            let incremental = runtime.block_on(controller.render(&renderer, &repo.shared()));
            prop_assert!(!idle || controller.builds == before, "nothing changed, and yet it was built");
            let full = full(&repo);
            prop_assert_eq!(incremental, full);
        }
    }
}

/// The walk agrees with kustomize about the state that has everything, so that the property is not vacuous.
#[tokio::test]
async fn most_states_render() {
    let renderer = kustomize().await;
    let mut successes = 0;
    for number in 0..6_u8 {
        let group = |base| Group {
            base,
            patch: number,
            extra: number,
            data: 3,
        };
        let device = |kind| Device {
            kind,
            group: 1,
            data: 1,
        };
        let state = State {
            bases: [1, 2],
            current: 1,
            component: 1,
            crd: 1,
            groups: [group(0), group(2), group(3)],
            devices: [device(1), device(3), device(4), device(5)],
        };
        let repo = state.repo();
        let devices = Controller::default()
            .render(&renderer, &repo.shared())
            .await;
        assert_eq!(devices, full(&repo), "{state:?}");
        successes += devices.values().filter(|objects| objects.is_some()).count();
        assert!(
            devices.values().all(Option::is_some),
            "{number}: {devices:?}"
        );
    }
    assert_eq!(successes, 24);
}
