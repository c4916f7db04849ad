"""The OpenShift template and the manifests for MicroShift: valid, and the same pod as the chart makes."""

import re
import subprocess

import yaml

import charts
import manifests

TEMPLATE = "packaging/openshift/longshore-agent.yaml"
GIVEN = {
    "token": charts.SECRET,
    "devicename": charts.MINIMAL["deviceName"],
    "server": charts.MINIMAL["server"],
    "cafingerprint": charts.MINIMAL["caFingerprint"],
    "image": "registry.example/longshore-agent:0.1.0",
}
# oc itself replaces these, and nothing else: https://docs.openshift.com, "Writing templates".
REFERENCE = re.compile(r"\$\{([a-zA-Z0-9_]+?)\}")


def load():
    with open(TEMPLATE, encoding="utf-8") as file:
        return yaml.safe_load(file)


def process(template, given):
    """What `oc process` does."""
    values = {}
    for parameter in template["parameters"]:
        assert re.fullmatch(r"[a-zA-Z0-9_]+", parameter["name"]), parameter
        value = given.get(parameter["name"], parameter.get("value"))
        if parameter.get("required") and not value:
            raise ValueError(f"parameter {parameter['name']} is required")
        values[parameter["name"]] = value or ""
    unknown = given.keys() - values.keys()
    assert not unknown, unknown
    used = set()

    def replaced(match):
        used.add(match[1])
        return values[match[1]]

    def walk(thing):
        if isinstance(thing, dict):
            return {REFERENCE.sub(replaced, key): walk(value) for key, value in thing.items()}
        if isinstance(thing, list):
            return [walk(it) for it in thing]
        return REFERENCE.sub(replaced, thing) if isinstance(thing, str) else thing

    objects = walk(template["objects"])
    assert used == values.keys(), f"parameters of no use: {values.keys() - used}"
    for thing in objects:
        labels = thing["metadata"].setdefault("labels", {})
        labels.update(walk(template["labels"]))
    return objects


def pod_of(objects):
    deployment = manifests.by_kind(objects, "Deployment")["spec"]
    labels = deployment["template"]["metadata"]["labels"]
    assert deployment["selector"]["matchLabels"].items() <= labels.items()
    assert deployment["replicas"] == 1
    assert deployment["strategy"] == {"type": "Recreate"}
    return deployment["template"]["spec"]


def as_chart_makes_it():
    """The chart's pod with the settings for OpenShift, its environment as a dictionary."""
    values = charts.given(
        runAsUser=None,
        fsGroup=None,
        token={"value": charts.SECRET},
        image={"repository": "registry.example/longshore-agent"},
    )
    return comparable(pod_of(charts.render(values, name="longshore-agent")))


def comparable(pod):
    pod["containers"][0]["env"] = manifests.environment(pod)
    return pod


def test_template():
    template = load()
    assert template["apiVersion"] == "template.openshift.io/v1"
    assert template["kind"] == "Template"
    objects = process(template, GIVEN)
    manifests.check(objects)
    pod = pod_of(objects)
    manifests.hardened(pod)
    assert comparable(pod) == as_chart_makes_it()
    assert manifests.by_kind(objects, "Secret")["stringData"] == {"token": charts.SECRET}
    assert str(objects).count(charts.SECRET) == 1
    kinds = [thing["kind"] for thing in objects]
    assert kinds[0] == "Namespace", "made before what is in it"
    for thing in objects:
        if thing["kind"] not in ("Namespace", "ClusterRoleBinding"):
            assert thing["metadata"]["namespace"] == "longshore"


def test_what_is_required():
    for name in GIVEN:
        missing = {key: value for key, value in GIVEN.items() if key != name}
        try:
            process(load(), missing)
        except ValueError as error:
            assert name in str(error)
        else:
            raise AssertionError(f"{name} may be left out")


def test_microshift():
    built = subprocess.run(
        ["kustomize", "build", "packaging/microshift"], check=True, capture_output=True, text=True
    )
    assert not built.stderr, built.stderr
    objects = list(yaml.safe_load_all(built.stdout))
    manifests.check(objects)
    pod = pod_of(objects)
    manifests.hardened(pod)
    expected = as_chart_makes_it()
    config = manifests.by_kind(objects, "ConfigMap")
    container = pod["containers"][0]
    assert container.pop("envFrom") == [{"configMapRef": {"name": config["metadata"]["name"]}}]
    pod = comparable(pod)
    container["env"].update(config["data"])
    for settings in (container["env"], expected["containers"][0]["env"]):
        assert settings.keys() == expected["containers"][0]["env"].keys()
        settings.pop("LONGSHORE_AGENT_CA_FINGERPRINT")
        settings.pop("LONGSHORE_AGENT_SERVER")
    for container in pod["containers"] + expected["containers"]:
        assert container.pop("image").endswith("/longshore-agent:0.1.0")
    assert pod == expected
    secret = manifests.by_kind(objects, "Secret")
    assert secret["data"] == {"token": ""}, "a token was committed"
    binding = manifests.by_kind(objects, "ClusterRoleBinding")
    account = manifests.by_kind(objects, "ServiceAccount")["metadata"]
    assert binding["subjects"][0]["name"] == account["name"]
    assert binding["subjects"][0]["namespace"] == account["namespace"] == "longshore"


if __name__ == "__main__":
    charts.run_all(globals())
