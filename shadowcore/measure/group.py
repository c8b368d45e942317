"""Conditions that are measured side by side on one model. If one fails, the others continue."""

import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Self, TypeVar

from shadowcore.errors import ShadowcoreError, out_of_memory
from shadowcore.measure.sparsity import SparseModel

T = TypeVar("T")
Thing = TypeVar("Thing")


def attempt(work: Callable[[str, Thing], T], things: Mapping[str, Thing], failed: dict[str, Exception]) -> dict[str, T]:
    """The results of `work(name, thing)` by name. Errors go to `failed`, except a lack of memory, which is raised."""
    made = {}
    for name, thing in things.items():
        try:
            made[name] = work(name, thing)
        except Exception as error:
            if out_of_memory(error):
                raise
            if not isinstance(error, ShadowcoreError):
                traceback.print_exc()
            failed[name] = error
    return made


@dataclass(frozen=True)
class Group:
    """Sparse models by the names of their conditions, and the errors of those that failed."""

    members: Mapping[str, SparseModel]
    failed: dict[str, Exception] = field(default_factory=dict)

    @property
    def alive(self) -> dict[str, SparseModel]:
        """The members that have not failed."""
        return {name: sparse for name, sparse in self.members.items() if name not in self.failed}

    def where(self, test: Callable[[SparseModel], bool]) -> Self:
        """The members that are alive and pass a test, as a group that shares the record of failures."""
        return Group({name: sparse for name, sparse in self.alive.items() if test(sparse)}, self.failed)

    def run(self, work: Callable[[str, SparseModel], T]) -> dict[str, T]:
        """The results of `work` for each member that is alive, by name."""
        return attempt(work, self.alive, self.failed)
