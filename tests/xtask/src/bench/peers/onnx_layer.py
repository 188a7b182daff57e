"""ONNX Runtime: onnx_layer.py FORMAT E K H I OAI SCALE THREADS FOLDER: `MoE` of f32, or `QMoE` of int4 with f32 rows."""

import onnxruntime
from onnx import TensorProto, helper

from serve import arguments, biases, by_expert, floats, np, read, serve

form, layer, threads, folder, _ = arguments()


def pairs(gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    """Rows of gate and up by turns, as `swiglu_fusion = 1` wants them."""
    return np.stack([gate, up], 2).reshape(layer.experts, 2 * layer.ffn, *gate.shape[2:])


def experts(name: str, cols: int) -> np.ndarray:
    base = read(folder, name, np.uint8, cols // 2) if form == "int4" else floats(folder, name, form, cols)
    return by_expert(base, layer.experts)


def scales(name: str, cols: int) -> np.ndarray:
    return by_expert(floats(folder, f"{name}_scale", "bf16", cols // 32), layer.experts)


attributes = dict(k=layer.top_k, activation_type="swiglu", swiglu_fusion=1, normalize_routing_weights=1)
attributes |= dict(activation_alpha=1.702, activation_beta=1.0, swiglu_limit=7.0) if layer.oai else dict(activation_alpha=1.0, activation_beta=0.0)
held = {"fc1": pairs(experts("gate", layer.hidden), experts("up", layer.hidden)), "fc2": experts("down", layer.ffn)}
operator, names = "MoE", ["x", "logits", "fc1", "", "fc2", ""]
if form == "int4":
    operator, names = "QMoE", ["x", "logits", "fc1", "fc1_scale", "", "fc2", "fc2_scale", ""]
    held["fc1_scale"] = pairs(scales("gate", layer.hidden), scales("up", layer.hidden))
    held["fc2_scale"] = scales("down", layer.ffn)
    attributes |= dict(expert_weight_bits=4, block_size=32)
if bias := biases(folder, layer, form):
    held["fc1_bias"], held["fc2_bias"] = pairs(bias["gate"], bias["up"]), bias["down"]
    for matrix, after in (("fc1", 1), ("fc2", 1)):
        names[names.index(matrix) + after + (form == "int4")] = f"{matrix}_bias"


def initializer(name: str, data: np.ndarray) -> TensorProto:
    """A tensor whose bytes are given in memory: a model of its own cannot have more than 2 GiB, and those in a file would be mapped."""
    kind = {np.dtype(np.uint8): TensorProto.UINT8, np.dtype(np.float32): TensorProto.FLOAT}[data.dtype]
    tensor = TensorProto(name=name, data_type=kind, dims=data.shape, data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=name)
    return tensor


def value(name: str, cols: int):
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["T", cols])


node = helper.make_node(operator, names, ["y"], domain="com.microsoft", **attributes)
inputs = [value("x", layer.hidden), value("logits", layer.experts)]
tensors = [initializer(name, data) for name, data in held.items()]
graph = helper.make_graph([node], "layer", inputs, [value("y", layer.hidden)], tensors)
opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = threads
options.log_severity_level = 3
options.add_external_initializers(list(held), [onnxruntime.OrtValue.ortvalue_from_numpy(data) for data in held.values()])
model = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
# The session has copied them. Until then nothing but `held` keeps the arrays, whatever has been given to the options.
held.clear()


def prepare(x, logits, _ids, _weights):
    return ({"x": x, "logits": logits},)


def run(given):
    return session.run(None, given)[0]


serve(layer, threads, prepare, run, lambda out: layer.scale * out)
