"""A Triton decoder whose layers are one persistent kernel each, for one sequence: an experiment."""

from __future__ import annotations

from shadowcore.decode.kernels.fused_norm import embed
from shadowcore.decode.kernels.persistent_layer import PersistentLayer
from shadowcore.decode.triton_decoder import GraphDecoder
from shadowcore.models.families import KINDS
from shadowcore.models.recording import Site


class PersistentDecoder(GraphDecoder):
    """As `GraphDecoder`, which it is where a step needs something inside a layer, and for more than one sequence."""

    def _allocate(self, batch: int) -> None:
        super()._allocate(batch)
        sizes, self._layer = self.layout.sizes, None
        inside = any(site.what != "residual" for site in self.selection.sites)
        blocks = any(
            (units := self.selection.units(index, kind)) is not None and units.block > 1
            for index in range(sizes.layers)
            for kind in KINDS
        )
        if batch == 1 and not (inside or blocks or self.selection.ahead or self._compacted or self._thresholds):
            self._layer = PersistentLayer(
                sizes.width, sizes.heads, sizes.kv_heads, sizes.head_width, sizes.neurons, self.max_positions,
                self.layout.device,
            )  # fmt: skip

    def launch(self) -> None:
        if self._layer is None:
            super().launch()
            return
        layout = self.layout
        self.selection.start(self._position)
        norm = layout.layers[0].attention_norm
        embed(
            self._token, self._position, layout.embedding, layout.positions, self._residual, norm.weight, self._normed
        )
        for index, layer in enumerate(layout.layers):
            self._see(Site(index, "residual"))
            self._need(index, "heads")
            self._need(index, "neurons")
            following = layout.layers[index + 1].attention_norm if index + 1 < len(layout.layers) else layout.final_norm
            self._layer(
                layer, self._read[index], self._residual, self._normed, following.weight,
                self._keys[index], self._values[index], self._position, self._turns,
                self.selection.units(index, "heads"), self.selection.units(index, "neurons"), layout.activation,
            )  # fmt: skip
        self.emit()
