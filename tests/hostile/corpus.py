"""Files that must be refused: each a name, what builds it, and what the refusal must say."""

from __future__ import annotations

import os
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, ModelProto, TensorProto, helper, numpy_helper

F = TensorProto.FLOAT
Build = Callable[[Path], Path]


@dataclass(frozen=True)
class Case:
    name: str
    build: Build
    says: str


def graph(
    *nodes: onnx.NodeProto, inits: tuple[TensorProto, ...] = (), shape: tuple[int, ...] = (1, 4)
) -> GraphProto:
    x = helper.make_tensor_value_info("x", F, shape)
    y = helper.make_tensor_value_info("y", F, ["a", "b"])
    return helper.make_graph(list(nodes), "g", [x], [y], list(inits))


def model(*nodes: onnx.NodeProto, inits: tuple[TensorProto, ...] = (), **more: object) -> ModelProto:
    made = helper.make_model(graph(*nodes, inits=inits), opset_imports=[helper.make_opsetid("", 17)])
    made.ir_version = 8
    return made


def relu() -> onnx.NodeProto:
    return helper.make_node("Relu", ["x"], ["y"], name="r")


def saved(make: Callable[[], ModelProto]) -> Build:
    def build(folder: Path) -> Path:
        path = folder / "m.onnx"
        path.write_bytes(make().SerializeToString())
        return path

    return build


def raw(data: bytes) -> Build:
    def build(folder: Path) -> Path:
        path = folder / "m.onnx"
        path.write_bytes(data)
        return path

    return build


def weight(**more: object) -> TensorProto:
    tensor = numpy_helper.from_array(np.ones((4, 4), np.float32), "w")
    for name, value in more.items():
        if name == "dims":
            del tensor.dims[:]
            tensor.dims.extend(value)  # type: ignore[arg-type]
        else:
            setattr(tensor, name, value)
    return tensor


def with_weight(tensor: TensorProto) -> ModelProto:
    return model(helper.make_node("MatMul", ["x", "w"], ["y"], name="m"), inits=(tensor,))


def external(location: str, prepare: Callable[[Path], None] = lambda f: None, **entries: str) -> Build:
    """A model whose one weight of 64 bytes lies elsewhere."""

    def build(folder: Path) -> Path:
        inside = folder / "model"
        inside.mkdir()
        (inside / "w.bin").write_bytes(np.ones(16, np.float32).tobytes())
        (folder / "outside.bin").write_bytes(b"\0" * 64)
        prepare(inside)
        tensor = TensorProto(name="w", data_type=F, dims=(4, 4), data_location=TensorProto.EXTERNAL)
        for key, value in {"location": location, **entries}.items():
            tensor.external_data.add(key=key, value=value)
        path = inside / "m.onnx"
        path.write_bytes(with_weight(tensor).SerializeToString())
        return path

    return build


def _overlapping(folder: Path) -> Path:
    (folder / "w.bin").write_bytes(b"\0" * 128)
    tensors = []
    for name, offset in (("w", 0), ("v", 32)):
        tensor = TensorProto(name=name, data_type=F, dims=(4, 4), data_location=TensorProto.EXTERNAL)
        for key, value in {"location": "w.bin", "offset": str(offset), "length": "64"}.items():
            tensor.external_data.add(key=key, value=value)
        tensors.append(tensor)
    path = folder / "m.onnx"
    nodes = (helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("MatMul", ["h", "v"], ["y"]))
    path.write_bytes(model(*nodes, inits=tuple(tensors)).SerializeToString())
    return path


def _external_attribute() -> ModelProto:
    tensor = TensorProto(name="c", data_type=F, dims=(4,), data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="w.bin")
    return model(
        helper.make_node("Constant", [], ["c"], value=tensor), helper.make_node("Add", ["x", "c"], ["y"])
    )


def loop(trips: int | None, condition: bool = True) -> ModelProto:
    body = helper.make_graph(
        [helper.make_node("Identity", ["ci"], ["co"]), helper.make_node("Identity", ["vi"], ["vo"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("ci", TensorProto.BOOL, []),
            helper.make_tensor_value_info("vi", F, [1, 4]),
        ],
        [
            helper.make_tensor_value_info("co", TensorProto.BOOL, []),
            helper.make_tensor_value_info("vo", F, [1, 4]),
        ],
    )
    inits = [numpy_helper.from_array(np.array(condition), "c")]
    if trips is not None:
        inits.append(numpy_helper.from_array(np.array(trips, np.int64), "n"))
    node = helper.make_node("Loop", ["" if trips is None else "n", "c", "x"], ["y"], body=body, name="l")
    return model(node, inits=tuple(inits))


def nested(depth: int) -> ModelProto:
    inner = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["z"])],
        "leaf",
        [],
        [helper.make_tensor_value_info("z", F, None)],
    )
    condition = helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.array(True)))
    for _ in range(depth):
        node = helper.make_node("If", ["c"], ["z"], then_branch=inner, else_branch=inner)
        inner = helper.make_graph([node], "g", [], [helper.make_tensor_value_info("z", F, None)])
        if len(inner.SerializeToString()) > 1 << 22:
            break
    node = helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)
    return model(condition, node)


def chain(depth: int) -> ModelProto:
    """Subgraphs in one branch only: deep, and small."""
    empty = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["z"])],
        "leaf",
        [],
        [helper.make_tensor_value_info("z", F, None)],
    )
    inner = empty
    for _ in range(depth):
        node = helper.make_node("If", ["c"], ["z"], then_branch=inner, else_branch=empty)
        inner = helper.make_graph([node], "g", [], [helper.make_tensor_value_info("z", F, None)])
    condition = helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.array(True)))
    return model(condition, helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=empty))


def deep_bytes(levels: int) -> bytes:
    """Graph in attribute in node in graph …, by hand: deeper than any library writes."""

    def field(number: int, data: bytes) -> bytes:
        return varint(number << 3 | 2) + varint(len(data)) + data

    inner = b""
    for _ in range(levels):
        inner = field(1, field(5, field(6, inner)))  # graph.node.attribute.g
    return b"\x08\x08" + field(7, inner)


def varint(value: int) -> bytes:
    out = bytearray()
    while True:
        byte = value & 0x7F
        value >>= 7
        out.append(byte | (0x80 if value else 0))
        if not value:
            return bytes(out)


def many_nodes(count: int) -> bytes:
    """Empty nodes: two bytes each in the file, hundreds in memory."""
    body = b"\x0a\x00" * count
    return b"\x08\x08\x3a" + varint(len(body)) + body


def functions(circle: bool) -> ModelProto:
    made = model(helper.make_node("f0", ["x"], ["y"], domain="own"))
    made.opset_import.append(helper.make_opsetid("own", 1))
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    count = 2 if circle else 40
    for i in range(count):
        after = f"f{(i + 1) % count}" if circle or i + 1 < count else "Relu"
        domain = "own" if after != "Relu" else ""
        nodes = [
            helper.make_node(after, ["a"], ["m"], domain=domain),
            helper.make_node(after, ["m"], ["b"], domain=domain),
        ]
        made.functions.append(helper.make_function("own", f"f{i}", ["a"], ["b"], nodes, opsets))
    return made


def shape_maker(op: str, amount: int) -> ModelProto:
    shape = numpy_helper.from_array(np.array([amount, 4], np.int64), "s")
    inputs = ["s"] if op == "ConstantOfShape" else ["x", "s"]
    return model(helper.make_node(op, inputs, ["y"], name="big"), inits=(shape,))


def sparse(dims: tuple[int, ...]) -> ModelProto:
    values = numpy_helper.from_array(np.ones(1, np.float32), "sp")
    indices = numpy_helper.from_array(np.zeros(1, np.int64), "si")
    made = model(relu())
    made.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, dims))
    return made


def huge_input() -> ModelProto:
    made = model(relu())
    made.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1 << 40
    return made


def padded() -> ModelProto:
    pads = numpy_helper.from_array(np.array([0, 0, 0, 1 << 40], np.int64), "p")
    return model(helper.make_node("Pad", ["x", "p"], ["y"]), inits=(pads,))


def random_shape() -> ModelProto:
    return model(helper.make_node("RandomNormal", [], ["y"], shape=[1 << 20, 1 << 20]))


def loop_from(*nodes: onnx.NodeProto, inits: tuple[TensorProto, ...] = ()) -> ModelProto:
    """The endless loop, its count from nodes instead of a stored number."""
    made = loop(7)
    kept = [t for t in made.graph.initializer if t.name != "n"]
    del made.graph.initializer[:]
    made.graph.initializer.extend([*kept, *inits])
    for node in reversed(nodes):
        made.graph.node.insert(0, node)
    return made


def loop_below(outer: ModelProto) -> ModelProto:
    """The same inside an If, so that its count stands in the graph around it."""
    inner = helper.make_graph(
        list(outer.graph.node), "then", [], [helper.make_tensor_value_info("y", F, [1, 4])]
    )
    plain = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "else",
        [],
        [helper.make_tensor_value_info("y", F, [1, 4])],
    )
    node = helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=plain)
    return model(node, inits=tuple(outer.graph.initializer))


def loops_in_loops() -> ModelProto:
    made = loop(1_000_000)
    body = made.graph.node[0].attribute[0].g
    inner = onnx.NodeProto()
    inner.CopyFrom(loop(1_000_000).graph.node[0])
    inner.input[2], inner.output[0] = "vi", "vo2"
    body.node.append(inner)
    return made


def functions_in_ifs() -> ModelProto:
    """Nine functions, each calling the next ten times inside an If: a billion operators in three kilobytes."""
    made = model(helper.make_node("f0", ["x"], ["y"], domain="own"))
    made.opset_import.append(helper.make_opsetid("own", 1))
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    for i in range(9):
        after, domain = (f"f{i + 1}", "own") if i < 8 else ("Relu", "")
        nodes = [helper.make_node(after, ["a"], [f"m{j}"], domain=domain) for j in range(10)]
        branch = helper.make_graph(nodes, "b", [], [helper.make_tensor_value_info("m9", F, None)])
        condition = helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.array(True)))
        chosen = helper.make_node("If", ["c"], ["b"], then_branch=branch, else_branch=branch)
        made.functions.append(helper.make_function("own", f"f{i}", ["a"], ["b"], [condition, chosen], opsets))
    return made


def in_the_wrong_field() -> TensorProto:
    tensor = TensorProto(name="w", data_type=TensorProto.INT64, dims=(4,))
    tensor.float_data.extend([1.0, 2.0, 3.0, 4.0])
    return tensor


def truncated() -> bytes:
    return with_weight(weight()).SerializeToString()[:-20]


def cyclic() -> ModelProto:
    return model(helper.make_node("Relu", ["y"], ["a"]), helper.make_node("Relu", ["a"], ["y"]))


def bad_attribute() -> ModelProto:
    made = model(relu())
    made.graph.node[0].attribute.append(AttributeProto(name="a", type=AttributeProto.GRAPH))
    return made


def _symlink(folder: Path) -> None:
    (folder / "link.bin").symlink_to(folder.parent / "outside.bin")


def _hardlink(folder: Path) -> None:
    os.link(folder.parent / "outside.bin", folder / "hard.bin")


def _linked_folder(folder: Path) -> None:
    (folder / "sub").symlink_to(folder.parent)


def _fifo(folder: Path) -> None:
    os.mkfifo(folder / "pipe.bin")


MODELS = [
    Case("empty file", raw(b""), "empty"),
    Case("text", raw(b"this is no model\n" * 20), "not an ONNX"),
    Case("pickle", raw(b"\x80\x04\x95\x1b" + b"\0" * 7 + b"\x8c\x05posix\x94\x8c\x06system\x94\x93."), "not an"),
    Case("zip", raw(b"PK\x03\x04" + b"\0" * 100), "not an ONNX"),
    Case("zeros", raw(b"\0" * 10_000), "not an ONNX"),
    Case("ones", raw(b"\xff" * 10_000), "not an ONNX"),
    Case("random bytes", raw(np.random.default_rng(0).bytes(5000)), "not an ONNX"),
    Case("cut short", raw(truncated()), "not an ONNX"),
    Case("a length of 2^60", raw(b"\x08\x08\x3a" + varint(1 << 60)), "goes beyond its end"),
    Case("a number without an end", raw(b"\x08" + b"\xff" * 50), "number without an end"),
    Case("an old wire type", raw(b"\x08\x08\x3b\x3c"), "wire type"),
    Case("no operators", saved(lambda: ModelProto(ir_version=8)), "no operators"),
    Case("bytes nested 40 deep", raw(deep_bytes(40)), "nested"),
    Case("bytes nested 5,000 deep", raw(deep_bytes(5000)), "nested"),
    Case("ten million empty nodes", raw(many_nodes(10_000_000)), "more than"),
    Case("graphs 20 deep", saved(lambda: chain(20)), "nested"),
    Case("a tree of graphs", saved(lambda: nested(20)), ""),
    Case("parent folder", external("../outside.bin"), "outside the model's folder"),
    Case("hidden parent folder", external("a/../../outside.bin"), "outside the model's folder"),
    Case("absolute path", external("/etc/passwd"), "no relative path"),
    Case("Windows path", external("C:\\\\secret.bin"), "no relative path"),
    Case("a backslash", external("..\\outside.bin"), "no relative path"),
    Case("a name with a zero byte", external("w.bin\0x"), ""),
    Case("no place", external(""), "no relative path"),
    Case("a symbolic link", external("link.bin", _symlink), "behind the link"),
    Case("a linked folder", external("sub/outside.bin", _linked_folder), "behind the link"),
    Case("a hard link", external("hard.bin", _hardlink), "hard link"),
    Case("a pipe", external("pipe.bin", _fifo), "no file"),
    Case("a folder as file", external(".", lambda f: None), ""),
    Case("no such file", external("gone.bin"), "not there"),
    Case("a negative offset", external("w.bin", offset="-64"), "no size"),
    Case("an offset past the end", external("w.bin", offset="64", length="64"), "reaches to byte"),
    Case("a length past the end", external("w.bin", length="6400"), "declares 64 bytes"),
    Case("a length of 2^62", external("w.bin", length=str(1 << 62)), "no size"),
    Case("a length in words", external("w.bin", length="sixty"), "no size"),
    Case("too short for its shape", external("w.bin", length="32"), "declares 64 bytes"),
    Case("unknown words of place", external("w.bin", url="https://example.org"), "words that ONNX does not know"),
    Case("shared bytes", _overlapping, "share bytes"),
    Case("a constant elsewhere", saved(_external_attribute), "lies in another file"),
    Case("more bytes declared than held", saved(lambda: with_weight(weight(dims=(4000, 4000)))), "declares"),
    Case("fewer", saved(lambda: with_weight(weight(dims=(2, 2)))), "declares"),
    Case("a negative size", saved(lambda: with_weight(weight(dims=(-4, -4)))), "negative size"),
    Case("2^80 values", saved(lambda: with_weight(weight(dims=(1 << 40, 1 << 40)))), "values"),
    Case("an unknown type", saved(lambda: with_weight(weight(data_type=99))), "unknown type"),
    Case("no type", saved(lambda: with_weight(weight(data_type=0))), "unknown type"),
    Case("texts that are missing", saved(lambda: with_weight(TensorProto(name="w", data_type=8, dims=(9,)))), "texts"),
    Case("a loop of 2^62 trips", saved(lambda: loop(1 << 62)), "trips"),
    Case("a loop without an end", saved(lambda: loop(None)), "may never end"),
    Case(
        "a loop counted by a constant",
        saved(lambda: loop_from(helper.make_node("Constant", [], ["n"], value_int=1 << 62))), "trips",
    ),
    Case(
        "a loop counted behind an identity",
        saved(
            lambda: loop_from(
                helper.make_node("Identity", ["k"], ["n"]), inits=(numpy_helper.from_array(np.array(1 << 62), "k"),)
            )
        ),
        "trips",
    ),
    Case("a loop inside an If", saved(lambda: loop_below(loop(1 << 62))), "trips"),
    Case("loops inside of loops", saved(loops_in_loops), "trips"),
    Case("a billion operators in Ifs of functions", saved(functions_in_ifs), "operators"),
    Case("300 axes of 2^62", saved(lambda: with_weight(weight(dims=(1 << 62,) * 300))), "axes"),
    Case("60,000 axes", saved(lambda: with_weight(weight(dims=(1 << 62,) * 60_000))), "axes"),
    Case("values in the field of another type", saved(lambda: with_weight(in_the_wrong_field())), "holds 0"),
    Case("sparse and 34 GB written out", saved(lambda: sparse((1 << 16, 1 << 16))), "more values"),
    Case("80 GB from nothing", saved(lambda: shape_maker("ConstantOfShape", 5_000_000_000)), "makes at least"),
    Case("80 GB by Expand", saved(lambda: shape_maker("Expand", 5_000_000_000)), "makes at least"),
    Case("80 GB by Tile", saved(lambda: shape_maker("Tile", 5_000_000_000)), "makes at least"),
    Case("a terabyte of noise", saved(random_shape), "makes at least"),
    Case("a terabyte by Pad", saved(padded), "more values"),
    Case("an input of a terabyte", saved(huge_input), "more values"),
    Case("sparse without bound", saved(lambda: sparse((1 << 40, 1 << 40))), "values"),
    Case("an operator of nobody", saved(lambda: model(helper.make_node("Run", ["x"], ["y"], domain="evil"))), "domain"),
    Case("a function that calls itself", saved(lambda: functions(circle=True)), "calls itself"),
    Case("2^40 operators in functions", saved(lambda: functions(circle=False)), "operators"),
    Case("a circle of operators", saved(cyclic), "not a valid ONNX model"),
    Case("an unknown operator", saved(lambda: model(helper.make_node("Rleu", ["x"], ["y"]))), "not a valid ONNX model"),
    Case("an input of nobody", saved(lambda: model(helper.make_node("Relu", ["z"], ["y"]))), "not a valid ONNX model"),
    Case("an attribute without a graph", saved(bad_attribute), "not a valid ONNX model"),
]  # fmt: skip


def text(body: str | bytes) -> Build:
    def build(folder: Path) -> Path:
        path = folder / "p.yaml"
        path.write_bytes(body if isinstance(body, bytes) else body.encode())
        return path

    return build


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(9)
)
PROFILES = [
    Case("an alias bomb", text(BOMB), "counted with aliases"),
    Case("a tag that runs code", text("name: !!python/object/apply:os.system ['id']\n"), "tag"),
    Case("a tag of one's own", text("name: !mine x\n"), "tag"),
    Case("a tag on nothing", text("!!binary aGk=\n"), "tag"),
    Case("a key twice", text("name: a\nname: b\n"), "stands twice"),
    Case("a merge key", text("a: &a {b: 1}\nc:\n  <<: *a\n"), "merge keys"),
    Case("a key that is a list", text("[a, b]: c\n"), "key must be"),
    Case("nested 200 deep", text("a: " + "[" * 200 + "]" * 200), "nested"),
    Case("nested 100,000 deep", text("[" * 100_000), ""),
    Case("two megabytes", text("a: " + "x" * (2 << 20)), "bytes"),
    Case("100,000 values", text("a:\n" + "- 1\n" * 100_000), "values"),
    Case("a number of 10,000 digits", text("a: " + "9" * 10_000), "digits"),
    Case("an infinity", text("seed: .inf\n"), "finite"),
    Case("no UTF-8", text(b"name: \xff\xfe\n"), "UTF-8"),
    Case("a control character", text("name: \x07\n"), "YAML"),
    Case("several documents", text("a: 1\n---\nb: 2\n"), "YAML"),
    Case("an anchor of nobody", text("a: *b\n"), "YAML"),
    Case("a circle", text("a: &a [*a]\n"), ""),
    Case("nothing", text(""), ""),
    Case("a list", text("- a\n"), "mapping"),
    Case("a directive", text("%YAML 9.9\n---\na: 1\n"), "YAML"),
    Case("a sexagesimal", text("name: a\nseed: 12:30:00\n"), "seed"),
    Case("a Norwegian", text("name: no\nseed: no\n"), "seed"),
]


def npz(**arrays: np.ndarray) -> Build:  # type: ignore[type-arg]
    def build(folder: Path) -> Path:
        np.savez_compressed(folder / "d.npz", **arrays)
        return folder / "d.npz"

    return build


def _objects(folder: Path) -> Path:
    np.savez(folder / "d.npz", x_train=np.array([{}, []], dtype=object))
    return folder / "d.npz"


def _bomb(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "d.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        header = b"\x93NUMPY\x01\x00"
        words = b"{'descr': '<f4', 'fortran_order': False, 'shape': (100000000,), }"
        words += b" " * (118 - len(words) - 1) + b"\n"
        with archive.open("x_train.npy", "w", force_zip64=True) as out:
            out.write(header + struct.pack("<H", len(words)) + words)
            for _ in range(400):
                out.write(b"\0" * 1_000_000)
    return folder / "d.npz"


def _many(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "d.npz", "w") as archive:
        for i in range(10_050):
            archive.writestr(f"{i}.npy", b"")
    return folder / "d.npz"


ARRAYS = [
    Case("pickled objects", _objects, "pickled objects"),
    Case("400 MB in 2", _bomb, "times its size"),
    Case("10,050 arrays", _many, "files"),
    Case("no archive", lambda f: raw(b"no archive")(f).rename(f / "d.npz"), "npz"),
]


def _zip(name: str, data: bytes = b"x", mode: int = 0o100644) -> Build:
    def build(folder: Path) -> Path:
        info = zipfile.ZipInfo(name)
        info.external_attr = mode << 16
        with zipfile.ZipFile(folder / "a.zip", "w") as archive:
            archive.writestr(info, data)
        return folder / "a.zip"

    return build


def _twice(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "a.zip", "w") as archive:
        archive.writestr("a", b"1")
        archive.writestr("b", b"2")
    data = (folder / "a.zip").read_bytes().replace(b"b", b"a")
    (folder / "a.zip").write_bytes(data)
    return folder / "a.zip"


ZIPS = [
    Case("a parent folder", _zip("../evil"), "leads elsewhere"),
    Case("a root", _zip("/evil"), "leads elsewhere"),
    Case("a backslash", _zip("..\\evil"), "leads elsewhere"),
    Case("a drive", _zip("C:evil"), "leads elsewhere"),
    Case("a link", _zip("link", b"/etc/passwd", 0o120777), "no plain file"),
    Case("a device", _zip("dev", b"", 0o020666), "no plain file"),
    Case("one name twice", _twice, ""),
]
