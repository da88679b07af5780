"""Whether an ONNX graph from somebody else is safe to run: plain operators on its own numbers.

Reads the protobuf itself: needs neither onnx nor onnxruntime.
"""

from collections.abc import Iterator

# The fields to look at, by their numbers in onnx.proto3 (ONNX 1.23)
MODEL_GRAPH, MODEL_OPSETS, MODEL_TRAINING, MODEL_FUNCTIONS = 7, 8, 20, 25
GRAPH_NODES, GRAPH_TENSORS, GRAPH_SPARSE = 1, 5, 15
NODE_ATTRIBUTES, NODE_DOMAIN = 5, 7
OPSET_DOMAIN = 1
ATTRIBUTE_TENSOR, ATTRIBUTE_GRAPH, ATTRIBUTE_TENSORS, ATTRIBUTE_GRAPHS = 5, 6, 10, 11
ATTRIBUTE_SPARSE = (22, 23)
TENSOR_ELSEWHERE = (13, 14)  # external_data, data_location
VARINT, FIXED_64, BYTES, FIXED_32 = 0, 1, 2, 5  # protobuf's kinds of fields
OWN_DOMAINS = (b"", b"ai.onnx")  # of ONNX's own operators


def check(graph: bytes) -> None:
    """ValueError for a serialised model that could do more than compute with its own numbers.

    onnxruntime would open the files that a model names, and loop as long as it says. Those
    of onnx_graph.export hold all their numbers, and are plain sequences of ONNX's operators.
    """
    for number, part in _fields(memoryview(graph)):
        if number == MODEL_GRAPH:
            _check_graph(part)
        elif number == MODEL_OPSETS:
            _check_domain(part, OPSET_DOMAIN)
        elif number in (MODEL_TRAINING, MODEL_FUNCTIONS):
            raise ValueError("its networks hold functions")


def _check_graph(graph: memoryview) -> None:
    for number, part in _fields(graph):
        if number == GRAPH_TENSORS:
            _check_tensor(part)
        elif number == GRAPH_SPARSE:
            raise ValueError("its networks hold sparse tensors")
        elif number == GRAPH_NODES:
            _check_domain(part, NODE_DOMAIN)
            for of_node, attribute in _fields(part):
                if of_node == NODE_ATTRIBUTES:
                    _check_attribute(attribute)


def _check_attribute(attribute: memoryview) -> None:
    for number, part in _fields(attribute):
        if number in (ATTRIBUTE_GRAPH, ATTRIBUTE_GRAPHS, *ATTRIBUTE_SPARSE):
            raise ValueError("its networks hold loops, branches or sparse tensors")
        if number in (ATTRIBUTE_TENSOR, ATTRIBUTE_TENSORS):
            _check_tensor(part)


def _check_tensor(tensor: memoryview) -> None:
    if any(number in TENSOR_ELSEWHERE for number, _ in _fields(tensor)):
        raise ValueError("its networks read numbers from another file")


def _check_domain(message: memoryview, field: int) -> None:
    for number, part in _fields(message):
        if number == field and bytes(part) not in OWN_DOMAINS:
            raise ValueError("its networks need operators that are not ONNX's own")


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """The fields of a protobuf message: numbers and contents, those of plain numbers empty.

    See protobuf.dev/programming-guides/encoding. ValueError if it is not such a message.
    """
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        kind, length = tag & 7, 0
        if kind == VARINT:
            _, at = _varint(message, at)
        elif kind == BYTES:
            length, at = _varint(message, at)
        elif kind in (FIXED_64, FIXED_32):
            length = 8 if kind == FIXED_64 else 4
        else:
            raise ValueError("its networks are not an ONNX model")
        if at + length > len(message):
            raise ValueError("its networks are cut short")
        yield tag >> 3, message[at : at + length]
        at += length


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """The number at a position, in groups of 7 bits, and the position after it."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            break
        byte, at = message[at], at + 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("its networks are not an ONNX model")
