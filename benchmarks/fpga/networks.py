"""Topologies of the networks whose overlay (DPU, CHaiDNN) results are published.

GOP in a docstring means 2 x GMAC as printed by the source. Batch normalisation, bias and
activations are fused and therefore absent.
"""

from collections.abc import Callable
from typing import Any, Literal

from benchmarks.fpga.net import Net

Layers = Any
TfPad = tuple[int, int, int, int]


def _same(size: int, kernel: int, stride: int) -> TfPad:
    """TensorFlow 'SAME' padding of a square input."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    before = total // 2
    return (before, before, total - before, total - before)


def _residual(
    net: Net,
    blocks: tuple[int, ...],
    strided: Literal["first", "middle"],
    stride_at: Literal["start", "end"] = "start",
    pool: TfPad | int = 1,
    ceil: bool = False,
) -> str:
    """Bottleneck ResNet trunk: strided first 1x1 or middle 3x3, in the first or last unit of a stage."""
    x = net.pool(net.conv(net.input, 64, 7, 2, 3), 3, 2, pool, ceil)
    channels = 64
    for stage, count in enumerate(blocks):
        width = 64 << stage
        for unit in range(count):
            if stride_at == "start":
                stride = 2 if stage and unit == 0 else 1
            else:
                stride = 2 if stage < len(blocks) - 1 and unit == count - 1 else 1
            first, middle = (stride, 1) if strided == "first" else (1, stride)
            y = net.conv(x, width, 1, first)
            y = net.conv(y, width, 3, middle)
            y = net.conv(y, width * 4)
            if channels != width * 4:
                x = net.conv(x, width * 4, 1, stride)
            elif stride > 1:
                x = net.pool(x, 1, stride)
            x = net.add(x, y)
            channels = width * 4
    return x


def resnet50_v15() -> Layers:
    """ResNet-50 v1.5 (torchvision resnet50, stride in the 3x3): 8.2 GOP, `pt_resnet50`."""
    net = Net(3, 224, 224)
    net.dense(net.global_pool(_residual(net, (3, 4, 6, 3), "middle")), 1000)
    return net.layers


def resnet50_v1() -> Layers:
    """ResNet-50 v1 (Caffe, stride in the first 1x1): 7.7 GOP, `cf_resnet50`, `tf2_resnet50` 7.76."""
    net = Net(3, 224, 224)
    net.dense(net.global_pool(_residual(net, (3, 4, 6, 3), "first", pool=0, ceil=True)), 1000)
    return net.layers


def _slim_v1(blocks: tuple[int, ...]) -> Layers:
    net = Net(3, 224, 224)
    trunk = _residual(net, blocks, "middle", "end", (0, 0, 1, 1))
    net.dense(net.global_pool(trunk), 1000)
    return net.layers


def resnet50_slim() -> Layers:
    """TF-slim resnet_v1_50 (stride in the last unit of a stage): 6.97 GOP."""
    return _slim_v1((3, 4, 6, 3))


def resnet101_slim() -> Layers:
    """TF-slim resnet_v1_101: 14.4 GOP."""
    return _slim_v1((3, 4, 23, 3))


def resnet152_slim() -> Layers:
    """TF-slim resnet_v1_152: 21.83 GOP."""
    return _slim_v1((3, 8, 36, 3))


def _slim_v2(blocks: tuple[int, ...]) -> Layers:
    """Pre-activation; its lone batch norms and ReLUs are not represented."""
    net = Net(3, 299, 299)
    trunk = _residual(net, blocks, "middle", "end", (0, 0, 1, 1))
    net.dense(net.global_pool(trunk), 1001)
    return net.layers


def resnet50_v2() -> Layers:
    """TF-slim resnet_v2_50 at 299: 13.1 GOP."""
    return _slim_v2((3, 4, 6, 3))


def resnet101_v2() -> Layers:
    """TF-slim resnet_v2_101 at 299: 26.78 GOP."""
    return _slim_v2((3, 4, 23, 3))


def resnet152_v2() -> Layers:
    """TF-slim resnet_v2_152 at 299: 40.47 GOP."""
    return _slim_v2((3, 8, 36, 3))


def _basic(blocks: tuple[int, ...], classes: int = 1000) -> Layers:
    net = Net(3, 224, 224)
    x = net.pool(net.conv(net.input, 64, 7, 2, 3), 3, 2, 1)
    channels = 64
    for stage, count in enumerate(blocks):
        width = 64 << stage
        for unit in range(count):
            stride = 2 if stage and unit == 0 else 1
            y = net.conv(net.conv(x, width, 3, stride), width, 3)
            if channels != width:
                x = net.conv(x, width, 1, stride)
            x = net.add(x, y)
            channels = width
    net.dense(net.global_pool(x), classes)
    return net.layers


def resnet18() -> Layers:
    """ResNet-18 (torchvision): 3.63 GOP, `vehicle_*_resnet18` and `cf_resnet18` 3.65."""
    return _basic((2, 2, 2, 2))


def resnet34() -> Layers:
    """ResNet-34 (torchvision): 7.3 GOP."""
    return _basic((3, 4, 6, 3))


def _vgg(counts: tuple[int, ...]) -> Layers:
    net = Net(3, 224, 224)
    x = net.input
    for count, width in zip(counts, (64, 128, 256, 512, 512), strict=True):
        for _ in range(count):
            x = net.conv(x, width, 3)
        x = net.pool(x, 2, 2)
    for out in (4096, 4096, 1000):
        x = net.dense(x, out)
    return net.layers


def vgg16() -> Layers:
    """VGG-16 with its three dense layers: 30.96 GOP, `tf_vgg16`."""
    return _vgg((2, 2, 3, 3, 3))


def vgg19() -> Layers:
    """VGG-19: 39.28 GOP, `tf_vgg19`."""
    return _vgg((2, 2, 4, 4, 4))


def _mobilenet_v1_trunk(net: Net, alpha: float, size: int) -> tuple[str, str]:
    """All 13 blocks; returns the outputs of blocks 11 and 13 (both used by SSD)."""
    x = net.conv(net.input, max(8, int(32 * alpha)), 3, 2, _same(size, 3, 2))
    size = -(-size // 2)
    middle = x
    plan = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)]
    plan += [(512, 1)] * 5 + [(1024, 2), (1024, 1)]
    for index, (width, stride) in enumerate(plan, 1):
        x = net.depthwise(x, 3, stride, _same(size, 3, stride))
        size = -(-size // stride)
        x = net.conv(x, max(8, int(width * alpha)))
        if index == 11:
            middle = x
    return middle, x


def _mobilenet_v1(alpha: float, size: int, classes: int = 1001) -> Layers:
    net = Net(3, size, size)
    net.dense(net.global_pool(_mobilenet_v1_trunk(net, alpha, size)[1]), classes)
    return net.layers


def mobilenet_v1() -> Layers:
    """MobileNetV1 1.0 at 224 (TF-slim): 1.14 GOP."""
    return _mobilenet_v1(1.0, 224)


def mobilenet_v1_050_160() -> Layers:
    """MobileNetV1 0.5 at 160 (TF-slim): 0.150 GOP (this gives 0.153)."""
    return _mobilenet_v1(0.5, 160)


def mobilenet_v1_025_128() -> Layers:
    """MobileNetV1 0.25 at 128 (TF-slim): 0.02715 GOP."""
    return _mobilenet_v1(0.25, 128)


def _rounded(value: float) -> int:
    """Channel count as a multiple of 8, at most 10 % below the request."""
    result = max(8, int(value + 4) // 8 * 8)
    return result + 8 if result < 0.9 * value else result


def _inverted(net: Net, x: str, size: int, source: int, out: int, kernel: int, stride: int, t: int) -> str:
    y = net.conv(x, source * t) if t > 1 else x
    y = net.depthwise(y, kernel, stride, _same(size, kernel, stride))
    y = net.conv(y, out)
    return net.add(x, y) if stride == 1 and source == out else y


MOBILENET_V2 = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2))


def _mobilenet_v2_trunk(net: Net, alpha: float, size: int) -> tuple[str, str, int]:
    """Trunk with the 1280-channel head; also returns the expansion of block 13 (for SSD)."""
    channels = _rounded(32 * alpha)
    x = net.conv(net.input, channels, 3, 2, _same(size, 3, 2))
    size = -(-size // 2)
    branch = x
    for t, width, count, first in (*MOBILENET_V2, (6, 320, 1, 1)):
        out = _rounded(width * alpha)
        for unit in range(count):
            stride = first if unit == 0 else 1
            before = x
            x = _inverted(net, x, size, channels, out, 3, stride, t)
            if width == 160 and unit == 0:
                branch = next(layer.name for layer in net.layers if layer.inputs == (before,))
            size = -(-size // stride)
            channels = out
    return branch, net.conv(x, max(1280, _rounded(1280 * alpha))), size


def _mobilenet_v2(alpha: float) -> Layers:
    net = Net(3, 224, 224)
    net.dense(net.global_pool(_mobilenet_v2_trunk(net, alpha, 224)[1]), 1001)
    return net.layers


def mobilenet_v2() -> Layers:
    """MobileNetV2 1.0 at 224 (TF-slim): 0.602 GOP."""
    return _mobilenet_v2(1.0)


def mobilenet_v2_14() -> Layers:
    """MobileNetV2 1.4 at 224 (TF-slim): 1.16 GOP."""
    return _mobilenet_v2(1.4)


def _squeezenet(size: int) -> Layers:
    net = Net(3, size, size)
    x = net.pool(net.conv(net.input, 64, 3, 2, 0), 3, 2, 0, True)
    for index, (squeeze, expand) in enumerate(
        ((16, 64), (16, 64), (32, 128), (32, 128), (48, 192), (48, 192), (64, 256), (64, 256))
    ):
        if index in (2, 4):
            x = net.pool(x, 3, 2, 0, True)
        x = net.conv(x, squeeze)
        x = net.concat(net.conv(x, expand), net.conv(x, expand, 3))
    net.global_pool(net.conv(x, 1000))
    return net.layers


def squeezenet() -> Layers:
    """SqueezeNet 1.1 at 224 (torchvision): 0.7035 GOP (0.352 GMAC), `pt_squeezenet`."""
    return _squeezenet(224)


def squeezenet_227() -> Layers:
    """SqueezeNet 1.1 at 227 (Caffe): 0.76 GOP (this gives 0.776), `cf_squeeze`."""
    return _squeezenet(227)


def _darknet_unit(net: Net, x: str, inner: int, outer: int) -> str:
    return net.add(x, net.conv(net.conv(x, inner), outer, 3))


def _yolo_neck(net: Net, x: str, width: int) -> str:
    for _ in range(2):
        x = net.conv(net.conv(x, width), width * 2, 3)
    return net.conv(x, width)


def _yolov3(size: int, outputs: int) -> Layers:
    net = Net(3, size, size)
    x = net.conv(net.input, 32, 3)
    taps = []
    for width, count in ((64, 1), (128, 2), (256, 8), (512, 8), (1024, 4)):
        x = net.conv(x, width, 3, 2)
        for _ in range(count):
            x = _darknet_unit(net, x, width // 2, width)
        taps.append(x)
    for index, width in enumerate((512, 256, 128)):
        if index:
            x = net.concat(net.upsample(net.conv(x, width), 2), taps[4 - index])
        x = _yolo_neck(net, x, width)
        net.conv(net.conv(x, width * 2, 3), outputs)
    return net.layers


def yolov3_voc() -> Layers:
    """darknet cfg/yolov3-voc.cfg at 416: 65.63 GOP, `tf_yolov3_voc` (`dk_yolov3_voc` 65.42)."""
    return _yolov3(416, 75)


def yolov3_coco() -> Layers:
    """darknet cfg/yolov3.cfg at 416: 65.9 GOP, `tf2_yolov3_coco`."""
    return _yolov3(416, 255)


def _yolov4(size: int) -> Layers:
    net = Net(3, size, size)
    x = net.conv(net.input, 32, 3)
    taps = []
    for width, count in ((64, 1), (128, 2), (256, 8), (512, 8), (1024, 4)):
        x = net.conv(x, width, 3, 2)
        half = width if width == 64 else width // 2
        side = net.conv(x, half)
        x = net.conv(x, half)
        for _ in range(count):
            x = _darknet_unit(net, x, 32 if width == 64 else half, half)
        x = net.conv(net.concat(net.conv(x, half), side), width)
        taps.append(x)
    x = net.conv(net.conv(net.conv(x, 512), 1024, 3), 512)
    x = net.concat(*(net.pool(x, k, 1, k // 2) for k in (13, 9, 5)), x)
    deep = net.conv(net.conv(net.conv(x, 512), 1024, 3), 512)
    up = net.upsample(net.conv(deep, 256), 2)
    middle = _yolo_neck(net, net.concat(net.conv(taps[3], 256), up), 256)
    up = net.upsample(net.conv(middle, 128), 2)
    x = _yolo_neck(net, net.concat(net.conv(taps[2], 128), up), 128)
    net.conv(net.conv(x, 256, 3), 255)
    for side, width in ((middle, 256), (deep, 512)):
        x = _yolo_neck(net, net.concat(net.conv(x, width, 3, 2), side), width)
        net.conv(net.conv(x, width * 2, 3), 255)
    return net.layers


def yolov4_416() -> Layers:
    """darknet cfg/yolov4.cfg at 416 (Vitis AI swaps mish for leaky ReLU): 60.3 GOP."""
    return _yolov4(416)


def yolov4_512() -> Layers:
    """darknet cfg/yolov4.cfg at 512: 91.2 GOP."""
    return _yolov4(512)


def yolov2_voc() -> Layers:
    """darknet cfg/yolov2-voc.cfg at 448 (reorg shown as a strided pool): 34 GOP, `dk_yolov2_voc`."""
    net = Net(3, 448, 448)
    x = net.input
    tap = x
    plan = ((32,), (64,), (128, 64, 128), (256, 128, 256), (512, 256, 512, 256, 512))
    for stage in plan:
        for index, width in enumerate(stage):
            x = net.conv(x, width, 1 if index % 2 else 3)
        tap = x
        x = net.pool(x, 2, 2)
    for width, kernel in ((1024, 3), (512, 1), (1024, 3), (512, 1), (1024, 3), (1024, 3), (1024, 3)):
        x = net.conv(x, width, kernel)
    tap = net.conv(tap, 64)
    x = net.concat(*(net.pool(tap, 1, 2) for _ in range(4)), x)
    net.conv(net.conv(x, 1024, 3), 125)
    return net.layers


def _ssd_extras(net: Net, x: str, widths: tuple[tuple[int, int], ...]) -> list[str]:
    maps = []
    for squeeze, out in widths:
        x = net.conv(x, squeeze)
        size = next(layer for layer in reversed(net.layers) if layer.name == x).out_shape[1]
        x = net.conv(x, out, 3, 2, _same(size, 3, 2))
        maps.append(x)
    return maps


def ssd_mobilenet_v1() -> Layers:
    """TF object detection ssd_mobilenet_v1_coco at 300 (91 classes): 2.47 GOP."""
    net = Net(3, 300, 300)
    middle, last = _mobilenet_v1_trunk(net, 1.0, 300)
    extras = _ssd_extras(net, last, ((256, 512), (128, 256), (128, 256), (64, 128)))
    for index, source in enumerate((middle, last, *extras)):
        anchors = 3 if index == 0 else 6
        net.conv(source, anchors * 4)
        net.conv(source, anchors * 91)
    return net.layers


def ssd_mobilenet_v2() -> Layers:
    """TF object detection ssd_mobilenet_v2_coco at 300 (91 classes, 3x3 heads): 3.75 GOP (here 3.81)."""
    net = Net(3, 300, 300)
    middle, last, _ = _mobilenet_v2_trunk(net, 1.0, 300)
    extras = _ssd_extras(net, last, ((256, 512), (128, 256), (128, 256), (64, 128)))
    for index, source in enumerate((middle, last, *extras)):
        anchors = 3 if index == 0 else 6
        net.conv(source, anchors * 4, 3)
        net.conv(source, anchors * 91, 3)
    return net.layers


def ssdlite_mobilenet_v2() -> Layers:
    """TF object detection ssdlite_mobilenet_v2_coco at 300 (separable heads): 1.5 GOP."""
    net = Net(3, 300, 300)
    middle, last, size = _mobilenet_v2_trunk(net, 1.0, 300)
    maps = [middle, last]
    for squeeze, out in ((256, 512), (128, 256), (128, 256), (64, 128)):
        x = net.depthwise(net.conv(maps[-1], squeeze), 3, 2, _same(size, 3, 2))
        size = -(-size // 2)
        maps.append(net.conv(x, out))
    for index, source in enumerate(maps):
        anchors = 3 if index == 0 else 6
        net.conv(net.depthwise(source), anchors * 4)
        net.conv(net.depthwise(source), anchors * 91)
    return net.layers


INCEPTION_V1 = (
    (64, 96, 128, 16, 32, 32),
    (128, 128, 192, 32, 96, 64),
    (192, 96, 208, 16, 48, 64),
    (160, 112, 224, 24, 64, 64),
    (128, 128, 256, 24, 64, 64),
    (112, 144, 288, 32, 64, 64),
    (256, 160, 320, 32, 128, 128),
    (256, 160, 320, 32, 128, 128),
    (384, 192, 384, 48, 128, 128),
)


def _googlenet(kernel: int, classes: int) -> Layers:
    net = Net(3, 224, 224)
    x = net.pool(net.conv(net.input, 64, 7, 2, 3), 3, 2, 0, True)
    x = net.conv(net.conv(x, 64), 192, 3)
    x = net.pool(x, 3, 2, 0, True)
    for index, (one, three_in, three, five_in, five, proj) in enumerate(INCEPTION_V1):
        if index in (2, 7):
            x = net.pool(x, 3, 2, 0, True)
        x = net.concat(
            net.conv(x, one),
            net.conv(net.conv(x, three_in), three, 3),
            net.conv(net.conv(x, five_in), five, kernel),
            net.conv(net.pool(x, 3, 1, 1), proj),
        )
    if classes:
        net.dense(net.global_pool(x), classes)
    return net.layers


def googlenet() -> Layers:
    """BVLC GoogLeNet with 5x5 branches: 3.16 GOP, `cf_inceptionv1`."""
    return _googlenet(5, 1000)


def googlenet_without_dense() -> Layers:
    """BVLC GoogLeNet up to the last inception block (CHaiDNN rows)."""
    return _googlenet(5, 0)


def inception_v1() -> Layers:
    """TF-slim inception_v1, 3x3 instead of 5x5 branches: 3.0 GOP, `tf_inceptionv1`."""
    return _googlenet(3, 1001)


def _stem_v3(net: Net) -> str:
    x = net.conv(net.conv(net.conv(net.input, 32, 3, 2, 0), 32, 3, 1, 0), 64, 3)
    x = net.conv(net.conv(net.pool(x, 3, 2), 80), 192, 3, 1, 0)
    return net.pool(x, 3, 2)


def inception_v3() -> Layers:
    """Inception-v3 at 299 (torchvision and TF-slim): 11.4 / 11.45 GOP."""
    net = Net(3, 299, 299)
    x = _stem_v3(net)
    for proj in (32, 64, 64):
        x = net.concat(
            net.conv(x, 64),
            net.conv(net.conv(x, 48), 64, 5),
            net.conv(net.conv(net.conv(x, 64), 96, 3), 96, 3),
            net.conv(net.pool(x, 3, 1, 1), proj),
        )
    x = net.concat(
        net.conv(x, 384, 3, 2, 0),
        net.conv(net.conv(net.conv(x, 64), 96, 3), 96, 3, 2, 0),
        net.pool(x, 3, 2),
    )
    for width in (128, 160, 160, 192):
        double = net.conv(net.conv(net.conv(x, width), width, (7, 1)), width, (1, 7))
        x = net.concat(
            net.conv(x, 192),
            net.conv(net.conv(net.conv(x, width), width, (1, 7)), 192, (7, 1)),
            net.conv(net.conv(double, width, (7, 1)), 192, (1, 7)),
            net.conv(net.pool(x, 3, 1, 1), 192),
        )
    x = net.concat(
        net.conv(net.conv(x, 192), 320, 3, 2, 0),
        net.conv(net.conv(net.conv(net.conv(x, 192), 192, (1, 7)), 192, (7, 1)), 192, 3, 2, 0),
        net.pool(x, 3, 2),
    )
    for _ in range(2):
        a = net.conv(x, 384)
        b = net.conv(net.conv(x, 448), 384, 3)
        x = net.concat(
            net.conv(x, 320),
            net.conv(a, 384, (1, 3)),
            net.conv(a, 384, (3, 1)),
            net.conv(b, 384, (1, 3)),
            net.conv(b, 384, (3, 1)),
            net.conv(net.pool(x, 3, 1, 1), 192),
        )
    net.dense(net.global_pool(x), 1000)
    return net.layers


def inception_v4() -> Layers:
    """TF-slim inception_v4 at 299: 24.55 GOP."""
    net = Net(3, 299, 299)
    x = net.conv(net.conv(net.conv(net.input, 32, 3, 2, 0), 32, 3, 1, 0), 64, 3)
    x = net.concat(net.pool(x, 3, 2), net.conv(x, 96, 3, 2, 0))
    x = net.concat(
        net.conv(net.conv(x, 64), 96, 3, 1, 0),
        net.conv(net.conv(net.conv(net.conv(x, 64), 64, (1, 7)), 64, (7, 1)), 96, 3, 1, 0),
    )
    x = net.concat(net.conv(x, 192, 3, 2, 0), net.pool(x, 3, 2))
    for _ in range(4):
        x = net.concat(
            net.conv(x, 96),
            net.conv(net.conv(x, 64), 96, 3),
            net.conv(net.conv(net.conv(x, 64), 96, 3), 96, 3),
            net.conv(net.pool(x, 3, 1, 1), 96),
        )
    x = net.concat(
        net.conv(x, 384, 3, 2, 0),
        net.conv(net.conv(net.conv(x, 192), 224, 3), 256, 3, 2, 0),
        net.pool(x, 3, 2),
    )
    for _ in range(7):
        double = net.conv(net.conv(net.conv(x, 192), 192, (7, 1)), 224, (1, 7))
        x = net.concat(
            net.conv(x, 384),
            net.conv(net.conv(net.conv(x, 192), 224, (1, 7)), 256, (7, 1)),
            net.conv(net.conv(double, 224, (7, 1)), 256, (1, 7)),
            net.conv(net.pool(x, 3, 1, 1), 128),
        )
    x = net.concat(
        net.conv(net.conv(x, 192), 192, 3, 2, 0),
        net.conv(net.conv(net.conv(net.conv(x, 256), 256, (1, 7)), 320, (7, 1)), 320, 3, 2, 0),
        net.pool(x, 3, 2),
    )
    for _ in range(3):
        a = net.conv(x, 384)
        b = net.conv(net.conv(net.conv(x, 384), 448, (3, 1)), 512, (1, 3))
        x = net.concat(
            net.conv(x, 256),
            net.conv(a, 256, (1, 3)),
            net.conv(a, 256, (3, 1)),
            net.conv(b, 256, (1, 3)),
            net.conv(b, 256, (3, 1)),
            net.conv(net.pool(x, 3, 1, 1), 256),
        )
    net.dense(net.global_pool(x), 1001)
    return net.layers


def _alexnet(dense: bool) -> Layers:
    net = Net(3, 227, 227)
    x = net.pool(net.conv(net.input, 96, 11, 4, 0), 3, 2)
    x = net.pool(net.conv(x, 256, 5, groups=2), 3, 2)
    x = net.conv(net.conv(x, 384, 3), 384, 3, groups=2)
    x = net.pool(net.conv(x, 256, 3, groups=2), 3, 2)
    for out in (4096, 4096, 1000) if dense else ():
        x = net.dense(x, out)
    return net.layers


def alexnet() -> Layers:
    """BVLC AlexNet (grouped, 227) with its dense layers: 1.45 GOP (0.724 GMAC)."""
    return _alexnet(True)


def alexnet_without_dense() -> Layers:
    """BVLC AlexNet convolutions only (CHaiDNN rows): 1.33 GOP (0.666 GMAC)."""
    return _alexnet(False)


def efficientnet_lite0() -> Layers:
    """EfficientNet-Lite0 at 224 (tensorflow/tpu lite README, 407 M multiply-adds): 0.77 GOP."""
    net = Net(3, 224, 224)
    x = net.conv(net.input, 32, 3, 2, _same(224, 3, 2))
    size, channels = 112, 32
    plan = (
        (1, 16, 1, 1, 3),
        (6, 24, 2, 2, 3),
        (6, 40, 2, 2, 5),
        (6, 80, 3, 2, 3),
        (6, 112, 3, 1, 5),
        (6, 192, 4, 2, 5),
        (6, 320, 1, 1, 3),
    )
    for t, out, count, first, kernel in plan:
        for unit in range(count):
            stride = first if unit == 0 else 1
            x = _inverted(net, x, size, channels, out, kernel, stride, t)
            size = -(-size // stride)
            channels = out
    net.dense(net.global_pool(net.conv(x, 1280)), 1000)
    return net.layers


NETWORKS: dict[str, Callable[[], Layers]] = {
    function.__name__: function
    for function in (
        resnet50_v15,
        resnet50_v1,
        resnet50_slim,
        resnet101_slim,
        resnet152_slim,
        resnet50_v2,
        resnet101_v2,
        resnet152_v2,
        resnet18,
        resnet34,
        vgg16,
        vgg19,
        mobilenet_v1,
        mobilenet_v1_050_160,
        mobilenet_v1_025_128,
        mobilenet_v2,
        mobilenet_v2_14,
        squeezenet,
        squeezenet_227,
        yolov3_voc,
        yolov3_coco,
        yolov4_416,
        yolov4_512,
        yolov2_voc,
        ssd_mobilenet_v1,
        ssd_mobilenet_v2,
        ssdlite_mobilenet_v2,
        googlenet,
        googlenet_without_dense,
        inception_v1,
        inception_v3,
        inception_v4,
        alexnet,
        alexnet_without_dense,
        efficientnet_lite0,
    )
}
