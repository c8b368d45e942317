"""The methods in the order in which they are shown, each with its name, colour and marker in figures."""

from typing import NamedTuple


class Look(NamedTuple):
    """How a method is named and drawn."""

    label: str
    color: str
    marker: str


METHODS = {
    "dense": Look("dense", "#000000", ""),
    "huggingface": Look("Hugging Face, dense", "#666666", "P"),
    "random": Look("random", "#8C8C8C", "X"),
    "static": Look("static (mean scores)", "#E69F00", "s"),
    "static_tuned": Look("static_tuned (constants tuned)", "#B00000", "."),
    "given": Look("given (static units, gathered)", "#C9A66B", "d"),
    "threshold": Look("threshold (large activations)", "#56B4E9", "p"),
    "cats": Look("cats (large gates)", "#44AA99", "H"),
    "griffin": Look("griffin (large over the prompt)", "#999933", "h"),
    "relu": Look("relu (zeros, lossless)", "#8B4513", "*"),
    "sparseinfer": Look("sparseinfer (sign bits)", "#F0E442", "+"),
    "proxy4": Look("proxy4 (4-bit copy)", "#332288", ">"),
    "proxy3": Look("proxy3 (3-bit copy)", "#6A4FC3", "8"),
    "proxy2": Look("proxy2 (2-bit copy)", "#B39DDB", "x"),
    "proxy4_ahead": Look("proxy4_ahead (before attention)", "#117733", "1"),
    "proxy3_ahead": Look("proxy3_ahead (before attention)", "#66CC33", "2"),
    "proxy2_ahead": Look("proxy2_ahead (before attention)", "#B8E986", "3"),
    "shadow": Look("shadow (one predictor)", "#0072B2", "o"),
    "segments": Look("segments (one per group of layers)", "#882255", "v"),
    "layerwise": Look("layerwise (one per layer)", "#009E73", "^"),
    "layerwise_own": Look("layerwise, reading its own layer", "#D55E00", "<"),
    "dejavu": Look("dejavu (one per layer, after attention)", "#D010D0", "4"),
    "oracle": Look("oracle (true scores)", "#CC79A7", "D"),
}


def look(method: str) -> Look:
    """The look of a method; a tuned proxy has its proxy's colour, one that is not in METHODS is drawn red."""
    if method not in METHODS and (proxy := METHODS.get(method.removesuffix("_tuned"))):
        return Look(f"{method} (gains tuned)", proxy.color, "$t$")
    return METHODS.get(method, Look(method, "#E3000F", "p"))


def method_order(method: str) -> tuple[int, str]:
    """A key to sort by: methods in the order of their looks, others after them by name."""
    names = list(METHODS)
    return names.index(method) if method in METHODS else len(names), method
