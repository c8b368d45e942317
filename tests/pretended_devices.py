"""GPUs that are pretended: tensors stay on the CPU, but each belongs to a device, and two devices may not meet."""

from __future__ import annotations

import torch
from torch.overrides import TorchFunctionMode

CPU = torch.device("cpu")
# may have tensors of two devices; the first stays where it is
MOVES = ("__set__", "copy_", "_has_compatible_shallow_copy_type")


def where(x: torch.Tensor) -> torch.device:
    """The pretended device of a tensor; views and parameters share a storage, and so a device."""
    return getattr(x.untyped_storage(), "pretended", CPU)


def leaves(value):
    """The tensors in nested tuples, lists and dictionaries."""
    if isinstance(value, torch.Tensor):
        return [value]
    values = value.values() if isinstance(value, dict) else value if isinstance(value, (tuple, list)) else ()
    return [x for one in values for x in leaves(one)]


def put(value, device: torch.device):
    for x in leaves(value):
        x.untyped_storage().pretended = device
    return value


def device(kind, index: int | None = None) -> torch.device:
    """As torch.device, which refuses a number where there is no GPU; `cuda` is the first."""
    made = torch.device("cuda", kind) if isinstance(kind, int) else torch.device(kind)
    return torch.device("cuda", index or made.index or 0) if made.type == "cuda" else made


class PretendedGPUs(TorchFunctionMode):
    """While the block runs, `cuda:0`, `cuda:1` ... exist; RuntimeError where an operation reads two devices.

    As on a GPU, a number on the CPU (a tensor without dimensions) may meet any device, and numpy reads the CPU only.
    """

    backward = False  # while it is True, tensors that were never on a device are gradients, made outside of Python

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs, name = dict(kwargs or {}), getattr(function, "__name__", "")
        if function is torch.device:
            return device(*args, **kwargs)
        if function == torch.Tensor.device.__get__:
            return where(args[0])
        if function == torch.Tensor.is_cuda.__get__:
            return where(args[0]).type == "cuda"
        if name in ("to", "cpu"):
            return self._moved(name, *args, **kwargs)
        if name == "register_hook":  # gradients are made outside of Python
            x, hook = args
            return function(x, lambda g: hook(put(g, where(x))))
        if function is torch.Tensor.backward:  # hooks run inside, where devices may not meet either
            start, self.backward = torch.ones_like(args[0]), True
            with self:
                run = torch.autograd.Variable._execution_engine.run_backward
                run((args[0],), (start,), False, False, (), allow_unreachable=True, accumulate_grad=True)
            self.backward = False
            return None
        if function is torch.autograd.grad:
            found = function(*args, **kwargs)
            return tuple(put(g, where(x)) for g, x in zip(found, args[1], strict=True))
        wanted = kwargs.pop("device", None)
        inputs = leaves([args, kwargs])
        known = [x for x in inputs if not self.backward or hasattr(x.untyped_storage(), "pretended")]
        found = {where(x) for x in known if x.dim() or where(x) != CPU}
        if len(found) > 1 and name not in MOVES:
            raise RuntimeError(f"{name} got tensors on {', '.join(sorted(map(str, found)))}")
        if name == "numpy" and where(args[0]) != CPU:
            raise TypeError(f"numpy got a tensor on {where(args[0])}")
        made = function(*args, **kwargs)
        if self.backward and inputs and not known:
            return made
        if wanted is None and inputs:
            wanted = where(inputs[0]) if name in MOVES else next(iter(found), CPU)
        return put(made, device(wanted or CPU))

    def _moved(self, name, x, *args, **kwargs):
        there, dtype = where(x), kwargs.get("dtype")
        target = CPU if name == "cpu" else kwargs.get("device")
        for value in args:
            if isinstance(value, torch.Tensor):
                target, dtype = where(value), value.dtype
            elif isinstance(value, torch.dtype):
                dtype = value
            elif isinstance(value, (str, torch.device)) or type(value) is int:
                target = value
        target = there if target is None else device(target)
        y = x if dtype is None else x.to(dtype)
        if kwargs.get("copy") or target != there:
            y = y.clone() if y is x else y
        return put(y, target)
