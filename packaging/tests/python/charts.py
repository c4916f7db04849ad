"""The chart of the agent, as Helm reads it."""

import copy
import sys

import helm_python as helm
import yaml

import manifests

CHART = "charts/longshore-agent"
SECRET = "lst_a_secret_of_the_test"
MINIMAL = {
    "server": "https://longshore.example.com:8443",
    "caFingerprint": "sha256:" + "ab" * 32,
    "deviceName": "store-0001",
    "token": {"existingSecret": "join"},
    "image": {"repository": "registry.example/longshore-agent"},
}


def given(**changes):
    values = copy.deepcopy(MINIMAL)
    values.update(changes)
    return values


def render(values, name="edge"):
    with helm.Chart.load(CHART) as chart:
        rendered = chart.render(values, name=name, namespace="longshore")
    objects = []
    for path, text in rendered.items():
        if path.endswith("NOTES.txt"):
            assert SECRET not in text
            continue
        objects += [thing for thing in yaml.safe_load_all(text) if thing]
    manifests.check(objects)
    for thing in objects:
        if thing["kind"] != "ClusterRoleBinding":
            assert thing["metadata"]["namespace"] == "longshore", thing
    return objects


def pod_of(objects):
    return manifests.by_kind(objects, "Deployment")["spec"]["template"]["spec"]


def named(objects, kind, end):
    return [it for it in objects if it["kind"] == kind and it["metadata"]["name"].endswith(end)]


def refused(words, values):
    try:
        render(values)
    except helm.HelmError as error:
        assert words in str(error), f"`{words}` is not in: {error}"
        return
    raise AssertionError(f"went through: {values}")


def test_lint():
    for values in (MINIMAL, given(token={"value": SECRET}), given(rbac={"scope": "namespace"})):
        found = helm.lint(CHART, values, strict=True)
        messages = found["messages"] if isinstance(found, dict) else found
        serious = [it for it in messages if "icon is recommended" not in str(it)]
        assert not serious, serious


def test_minimal():
    objects = render(MINIMAL)
    deployment = manifests.by_kind(objects, "Deployment")
    assert deployment["spec"]["replicas"] == 1
    assert deployment["spec"]["strategy"] == {"type": "Recreate"}
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"].items() <= labels.items()
    pod = pod_of(objects)
    manifests.hardened(pod)
    account = manifests.by_kind(objects, "ServiceAccount")["metadata"]["name"]
    assert pod["serviceAccountName"] == account
    binding = manifests.by_kind(objects, "ClusterRoleBinding")
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": account, "namespace": "longshore"}]
    environment = manifests.environment(pod)
    assert environment["LONGSHORE_AGENT_SERVER"] == MINIMAL["server"]
    assert environment["LONGSHORE_AGENT_RUNTIME"] == "kube"
    assert "LONGSHORE_AGENT_NAMESPACE" not in environment
    volumes = {it["name"]: it for it in pod["volumes"]}
    assert volumes["token"]["secret"]["secretName"] == "join"
    claim = manifests.by_kind(objects, "PersistentVolumeClaim")["metadata"]["name"]
    assert volumes["state"]["persistentVolumeClaim"]["claimName"] == claim
    assert not named(objects, "Secret", "-token"), "a Secret beside the one that is there"


def test_token():
    objects = render(given(token={"value": SECRET}))
    [secret] = named(objects, "Secret", "-token")
    assert secret["stringData"] == {"token": SECRET}
    volumes = {it["name"]: it for it in pod_of(objects)["volumes"]}
    assert volumes["token"]["secret"]["secretName"] == secret["metadata"]["name"]
    # The token is where only a Secret is.
    assert str(objects).count(SECRET) == 1


def test_namespace():
    objects = render(given(rbac={"scope": "namespace"}))
    assert not [it for it in objects if it["kind"].startswith("Cluster")], "a right beyond the namespace"
    role = manifests.by_kind(objects, "Role")
    assert role["rules"]
    for rule in role["rules"]:
        assert "*" not in rule["apiGroups"] + rule["resources"] + rule["verbs"]
    assert manifests.environment(pod_of(objects))["LONGSHORE_AGENT_NAMESPACE"] == "longshore"
    binding = manifests.by_kind(objects, "RoleBinding")
    assert binding["roleRef"]["name"] == role["metadata"]["name"]


def test_without_rights():
    objects = render(given(rbac={"create": False}, serviceAccount={"name": "mine"}))
    assert {it["kind"] for it in objects} == {"Deployment", "PersistentVolumeClaim", "Secret"}
    assert pod_of(objects)["serviceAccountName"] == "mine"


def test_identity():
    narrow = {"scope": "namespace", "rules": []}
    objects = render(given(rbac=narrow))
    [secret] = named(objects, "Secret", "-identity")
    # The agent's content, which an upgrade must not take away.
    assert not {"data", "stringData"} & secret.keys()
    assert secret["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    name = secret["metadata"]["name"]
    assert manifests.environment(pod_of(objects))["LONGSHORE_AGENT_IDENTITY_SECRET"] == name
    own = {"apiGroups": [""], "resources": ["secrets"], "resourceNames": [name], "verbs": ["get", "patch"]}
    logs = {"apiGroups": [""], "resources": ["pods", "pods/log"], "verbs": ["get", "list"]}
    assert manifests.by_kind(objects, "Role")["rules"] == [own, logs], "rights beyond its own Secret and logs"

    objects = render(given(identity={"secret": False}, rbac={"scope": "namespace"}))
    assert not named(objects, "Secret", "-identity")
    assert "LONGSHORE_AGENT_IDENTITY_SECRET" not in manifests.environment(pod_of(objects))
    assert "resourceNames" not in str(manifests.by_kind(objects, "Role")["rules"])


def test_places_for_state():
    for persistence, expected in (
        ({"enabled": False}, {"emptyDir": {}}),
        ({"hostPath": "/var/lib/edge"}, {"hostPath": {"path": "/var/lib/edge", "type": "DirectoryOrCreate"}}),
        ({"existingClaim": "mine"}, {"persistentVolumeClaim": {"claimName": "mine"}}),
    ):
        objects = render(given(persistence=persistence))
        state = [it for it in pod_of(objects)["volumes"] if it["name"] == "state"]
        assert state == [{"name": "state", **expected}]
        assert not [it for it in objects if it["kind"] == "PersistentVolumeClaim"]


def test_openshift():
    pod = pod_of(render(given(runAsUser=None, fsGroup=None)))
    manifests.hardened(pod)
    assert not {"runAsUser", "runAsGroup", "fsGroup"} & pod["securityContext"].keys()


def test_everything():
    digest = "sha256:" + "cd" * 32
    objects = render(
        given(
            image={"repository": "registry.example/agent", "digest": digest},
            imagePullSecrets=[{"name": "pull"}],
            env=[{"name": "LONGSHORE_AGENT_LOG", "value": "debug"}],
            podAnnotations={"a": "b"},
            podLabels={"c": "d"},
            nodeSelector={"kubernetes.io/os": "linux"},
            tolerations=[{"operator": "Exists"}],
            affinity={"nodeAffinity": {}},
            priorityClassName="system-cluster-critical",
            persistence={"storageClass": "local", "size": "2Gi"},
        ),
        name="x" * 53,
    )
    pod = pod_of(objects)
    assert pod["containers"][0]["image"] == f"registry.example/agent@{digest}"
    assert manifests.environment(pod)["LONGSHORE_AGENT_LOG"] == "debug"
    for thing in objects:
        if thing["kind"] != "ClusterRoleBinding":
            assert len(thing["metadata"]["name"]) <= 63, thing["metadata"]["name"]


def test_refusals():
    refused("server", given(server="http://a"))
    refused("caFingerprint", given(caFingerprint="abc"))
    refused("deviceName", given(deviceName="Store 1"))
    refused("token", given(token={}))
    refused("token", given(token={"value": "a", "existingSecret": "b"}))
    refused("repository", given(image={}))
    refused("scope", given(rbac={"scope": "everything"}))
    refused("colour", given(colour="red"))


def test_package(scratch):
    packed = helm.package(CHART, destination=scratch)
    with helm.Chart.load(packed) as chart:
        assert chart.name == "longshore-agent"
        with open("Cargo.toml", encoding="utf-8") as file:
            assert f'version = "{chart.version}"' in file.read(), "the chart is of another version"
        assert chart.metadata["appVersion"] == chart.version


def run_all(tests, scratch=None):
    for name, test in list(tests.items()):
        if name.startswith("test_"):
            try:
                test(*[scratch] if test.__code__.co_argcount else [])
            except Exception:
                print(f"FAILED: {name}", file=sys.stderr)
                raise


if __name__ == "__main__":
    run_all(globals(), sys.argv[1])
