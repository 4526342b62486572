"""Networks as tables of layers, without weights: enough for a cost model."""

from __future__ import annotations

from math import prod

from hwopt.layer_table import Layer, LayerKind

Padding = int | tuple[int, int, int, int] | None  # all sides; top, left, bottom, right; None keeps the size


class Net:
    """Builds a list of layers; every method returns the name of the new one."""

    def __init__(self, channels: int = 3, height: int = 224, width: int = 224, bits: int = 8) -> None:
        self.input, self.bits = "", bits
        self.layers: list[Layer] = []
        self.shapes: dict[str, tuple[int, ...]] = {"": (channels, height, width)}

    def conv(
        self,
        source: str,
        out: int,
        kernel: int | tuple[int, int] = 1,
        stride: int = 1,
        padding: Padding = None,
        groups: int = 1,
    ) -> str:
        return self._windowed("Conv", LayerKind.CONV, source, out, kernel, stride, padding, groups)

    def depthwise(self, source: str, kernel: int = 3, stride: int = 1, padding: Padding = None) -> str:
        channels = self.shapes[source][0]
        return self._windowed(
            "Conv", LayerKind.DEPTHWISE, source, channels, kernel, stride, padding, channels
        )

    def pool(self, source: str, kernel: int, stride: int, padding: Padding = 0, ceil: bool = False) -> str:
        channels = self.shapes[source][0]
        return self._windowed(
            "MaxPool", LayerKind.POOL, source, channels, kernel, stride, padding, channels, ceil
        )

    def global_pool(self, source: str) -> str:
        return self._push(
            "GlobalAveragePool", LayerKind.GLOBAL_POOL, (source,), (self.shapes[source][0], 1, 1)
        )

    def dense(self, source: str, out: int) -> str:
        features = prod(self.shapes[source])
        return self._push(
            "Gemm",
            LayerKind.DENSE,
            (source,),
            (out, 1, 1),
            in_shape=(features, 1, 1),
            macs=features * out,
            weights=features * out,
        )

    def add(self, a: str, b: str) -> str:
        assert self.shapes[a] == self.shapes[b], (self.shapes[a], self.shapes[b])
        return self._push("Add", LayerKind.ADD, (a, b), self.shapes[a])

    def concat(self, *sources: str) -> str:
        channels = sum(self.shapes[s][0] for s in sources)
        return self._push("Concat", LayerKind.CONCAT, sources, (channels, *self.shapes[sources[0]][1:]))

    def upsample(self, source: str, factor: int) -> str:
        channels, height, width = self.shapes[source]
        return self._push(
            "Resize", LayerKind.UPSAMPLE, (source,), (channels, height * factor, width * factor)
        )

    def _windowed(
        self,
        op: str,
        kind: LayerKind,
        source: str,
        out: int,
        kernel: int | tuple[int, int],
        stride: int,
        padding: Padding,
        groups: int,
        ceil: bool = False,
    ) -> str:
        k = (kernel, kernel) if isinstance(kernel, int) else kernel
        half = ((k[0] - 1) // 2, (k[1] - 1) // 2)
        top, left, bottom, right = (
            (*half, *half) if padding is None else (padding,) * 4 if isinstance(padding, int) else padding
        )
        channels, height, width = self.shapes[source]
        up = stride - 1 if ceil else 0
        size = (
            (height + top + bottom - k[0] + up) // stride + 1,
            (width + left + right - k[1] + up) // stride + 1,
        )
        weights = 0 if kind is LayerKind.POOL else channels // groups * out * prod(k)
        return self._push(
            op,
            kind,
            (source,),
            (out, *size),
            kernel=k,
            stride=(stride, stride),
            padding=(top, left),
            pad_after=(bottom, right),
            groups=groups,
            weights=weights,
            macs=weights * prod(size),
        )

    def _push(
        self, op: str, kind: LayerKind, sources: tuple[str, ...], out: tuple[int, ...], **more: object
    ) -> str:
        name = f"{op.lower()}{len(self.layers)}"
        fields = {"in_shape": self.shapes[sources[0]]} | more
        weighted = kind in {LayerKind.CONV, LayerKind.DEPTHWISE, LayerKind.DENSE}
        self.layers.append(
            Layer(
                name=name,
                op=op,
                kind=kind,
                inputs=sources,
                out_shape=out,
                activation_bits=self.bits,
                out_bits=self.bits,
                weight_bits=self.bits if weighted else 32,
                **fields,
            )
        )  # type: ignore[arg-type]
        self.shapes[name] = out
        return name
