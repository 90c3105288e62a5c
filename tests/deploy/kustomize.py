"""The part of Kustomize that deploy/kubernetes uses: resources, namespace, labels, generated ConfigMaps, image tags.

What it finds in a kustomization and does not know fails, so that the manifests that are checked are those users get.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

Manifest = dict[str, Any]
_KNOWN = {"apiVersion", "kind", "namespace", "labels", "resources", "configMapGenerator", "images"}
HASH = "hash"
"""Stands for what Kustomize appends to the name of a generated ConfigMap."""


def build(folder: Path) -> list[Manifest]:
    """Return the manifests of a kustomization."""
    text = yaml.safe_load((folder / "kustomization.yaml").read_text())
    assert set(text) <= _KNOWN, folder
    made: list[Manifest] = []
    for resource in text["resources"]:
        path = folder / resource
        made += build(path) if path.is_dir() else list(yaml.safe_load_all(path.read_text()))
    generated = {}
    for generator in text.get("configMapGenerator", []):
        assert set(generator) == {"name", "files"}
        data = {name: (folder / name).read_text() for name in generator["files"]}
        generated[generator["name"]] = f"{generator['name']}-{HASH}"
        metadata = {"name": generated[generator["name"]]}
        made.append({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data})
    tags = {image["name"]: f"{image['name']}:{image['newTag']}" for image in text.get("images", [])}
    for manifest in made:
        _refer(manifest, generated, tags)
        if "namespace" in text:
            manifest["metadata"]["namespace"] = text["namespace"]
        for labels in text.get("labels", []):
            assert set(labels) == {"pairs"}
            manifest["metadata"].setdefault("labels", {}).update(labels["pairs"])
    return made


def _refer(value: Any, generated: dict[str, str], tags: dict[str, str]) -> None:
    """Put in the names of generated ConfigMaps and the tags of images, wherever they are referred to."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key == "configMap" and inner.get("name") in generated:
                inner["name"] = generated[inner["name"]]
            elif key == "image" and inner in tags:
                value[key] = tags[inner]
            else:
                _refer(inner, generated, tags)
    elif isinstance(value, list):
        for inner in value:
            _refer(inner, generated, tags)
