"""Shapes of the layers of real models, read from ``shapes.toml``."""

import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any


@dataclass(frozen=True)
class Layer:
    """A linear or convolutional layer as its matrix product, y = x W^T.

    Attributes
    ----------
    model, name : str
        As in the table, e.g. ``llama-3-8b`` and ``mlp.down_proj``.
    n, k : int
        Outputs and inputs: W has n rows and k columns, in elements.
    count : int
        Such layers in the model.
    m : int
        Rows of x an input: 1 for a token, the number of output positions for an image.
    kernel : int
        Of a convolution the height and width of its kernel: k is the number of channels times its square.
    """

    model: str
    name: str
    n: int
    k: int
    count: int = 1
    m: int = 1
    kernel: int = 1

    @property
    def id(self) -> str:
        """Return model/name."""
        return f"{self.model}/{self.name}"

    @property
    def weights(self) -> int:
        """Return the weights of all such layers of the model."""
        return self.n * self.k * self.count

    def rows(self, batch: int) -> int:
        """Return the rows of x at a batch of tokens or images."""
        return self.m * batch


@cache
def table() -> dict[str, Any]:
    """Return the table as it stands in ``shapes.toml``: `batches` and `models`."""
    return tomllib.loads(files(__package__).joinpath("shapes.toml").read_text(encoding="utf-8"))


def batches() -> tuple[int, ...]:
    """Return the batch sizes of the table, in tokens or images."""
    return tuple(table()["batches"])


def layers(model: str | None = None) -> tuple[Layer, ...]:
    """Return the layers of a model, or of all.

    Raises
    ------
    ValueError
        For a model that is not in the table, with those that are.
    """
    models = table()["models"]
    if model is not None and model not in models:
        raise ValueError(f"model: {model!r} is unknown; admissible: {', '.join(models)}")
    return tuple(Layer(name, **layer) for name in ([model] if model else models) for layer in models[name]["layers"])


def layer(id: str) -> Layer:
    """Return the layer of that id (model/name); ValueError where there is none."""
    model, _, name = id.partition("/")
    found = {layer.name: layer for layer in layers(model)}
    if name not in found:
        raise ValueError(f"layer: {name!r} is not one of {model}; admissible: {', '.join(found)}")
    return found[name]


def workloads(model: str | None = None, sizes: Iterable[int] | None = None) -> Iterator[tuple[Layer, int]]:
    """Yield every layer of a model (or of all) with every batch size (those of the table, or the given)."""
    chosen = batches() if sizes is None else tuple(sizes)
    for each in layers(model):
        for batch in chosen:
            yield each, batch
