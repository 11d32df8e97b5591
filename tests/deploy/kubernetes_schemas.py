"""What is wrong with a Kubernetes object, found without a cluster.

Dask's own kinds are judged by the schemas that ship with dask-kubernetes, with unknown fields forbidden as the server
does under strict validation; all other kinds by kubernetes-validate.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

Object = dict[str, Any]
KUBERNETES_VERSION = "1.30"
_CRDS = Path("operator/deployment/helm/dask-kubernetes-operator/crds")


def problems_of(manifest: Object) -> list[str]:
    """Return one line for each violation of the object's schema."""
    if manifest["apiVersion"].startswith("kubernetes.dask.org/"):
        errors = _dask_validator(manifest["kind"]).iter_errors(manifest)
        return [f"{'/'.join(map(str, error.absolute_path))}: {error.message}" for error in errors]
    return _core_problems(manifest)


def _core_problems(manifest: Object) -> list[str]:
    validate = pytest.importorskip("kubernetes_validate", reason="needs `pip install 'spatialscope_dist[deploy]'`")
    try:
        validate.validate(manifest, KUBERNETES_VERSION, strict=True)
    except validate.ValidationError as error:
        return [str(error.message)]
    return []


@cache
def _dask_validator(kind: str) -> Any:
    jsonschema = pytest.importorskip("jsonschema", reason="needs `pip install 'spatialscope_dist[deploy]'`")
    package = pytest.importorskip("dask_kubernetes", reason="needs `pip install 'spatialscope_dist[deploy]'`")
    file = Path(package.__file__).parent / _CRDS / f"{kind.lower()}.yaml"
    definition = yaml.load(file.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    (version,) = [each for each in definition["spec"]["versions"] if each["name"] == "v1"]
    schema = _closed(version["schema"]["openAPIV3Schema"])
    # Every object has these; a CRD leaves them out.
    schema["properties"] |= {"apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": {}}
    return jsonschema.Draft202012Validator(schema)


def _closed(node: Any) -> Any:
    """Return the JSON schema that says what an OpenAPI schema of Kubernetes means, with unknown fields forbidden."""
    if isinstance(node, list):
        return [_closed(each) for each in node]
    if not isinstance(node, dict):
        return node
    closed = {
        key: {name: _closed(each) for name, each in value.items()} if key == "properties" else _closed(value)
        for key, value in node.items()
    }
    if node.get("x-kubernetes-int-or-string"):
        closed["anyOf"] = [{"type": "integer"}, {"type": "string"}]
        closed.pop("type", None)
    if node.get("nullable") and isinstance(closed.get("type"), str):
        closed["type"] = [closed["type"], "null"]
    opened = "additionalProperties" in node or node.get("x-kubernetes-preserve-unknown-fields")
    if "properties" in node and not opened:
        closed["additionalProperties"] = False
    return closed
