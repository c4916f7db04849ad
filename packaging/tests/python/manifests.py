"""Checks objects against the schemas of the Kubernetes releases that they are to run on."""

import logging
import warnings

import kubernetes_validate

logging.getLogger("kubernetes-validate").setLevel(logging.ERROR)
RELEASES = ("1.25", "1.36")


def check(objects):
    for thing in objects:
        for release in RELEASES:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                kubernetes_validate.validate(thing, release, strict=True)


def by_kind(objects, kind):
    found = [thing for thing in objects if thing["kind"] == kind]
    assert len(found) == 1, f"{len(found)} {kind}s"
    return found[0]


def hardened(pod):
    """What Kubernetes' restricted profile asks of a pod, and a file system that nobody writes to."""
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
    for container in pod["containers"]:
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["readOnlyRootFilesystem"] is True
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert container["resources"]["limits"]["memory"]
    for flag in ("hostNetwork", "hostPID", "hostIPC"):
        assert not pod.get(flag)


def environment(pod):
    return {entry["name"]: entry.get("value") for entry in pod["containers"][0]["env"]}
