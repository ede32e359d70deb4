"""An exported program as an OpenVINO model with the signature's names and the model's own weight names."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import openvino as ov
import torch
from openvino import opset14 as operators
from openvino._offline_transformations import apply_moc_transformations
from openvino.frontend import FrontEndManager, GeneralFailure, OpConversionFailure, OpValidationFailure
from openvino.frontend.pytorch.fx_decoder import TorchFXPythonDecoder
from torch.export import ExportedProgram
from torch.fx import GraphModule

from ingot.runtimes.signature import Signature

from .openvino_lower import decomposed, lowered
from .openvino_repairs import add_scaled

PREFIX = "source."  # what FlatModule puts before the names of the module that it wraps
TIMESTEP = "timestep"
# What OpenVINO says no with: its frontends' own errors are no RuntimeErrors.
FAILURES = (RuntimeError, GeneralFailure, OpConversionFailure, OpValidationFailure)


def build(program: ExportedProgram, signature: Signature, *, quick: bool = True) -> ov.Model:
    """The program as a model whose weights are still torch's memory: keep the program until it is saved.

    `ov.convert_model` would do, but decomposes everything, as this does where `quick` is off or fails (see
    `openvino_lower`), and sends usage statistics home. Raises one of FAILURES naming operators that OpenVINO cannot translate.
    """
    with _quiet(), torch.no_grad():
        model = _quickly(program, signature) if quick else None
        if model is None:
            model = _translated(decomposed(program), signature)
    if len(model.inputs) != len(signature.inputs):
        raise RuntimeError("at the recorded size its answer does not depend on all of its inputs")
    add_scaled(model)
    _name_ports(model, signature)
    _name_weights(model, program)
    return model


def take_integer_timestep(model: ov.Model) -> None:
    """Have a model that takes a float32 scalar for its timestep take one int64 in a vector, as optimum-intel writes UNets
    and OpenVINO GenAI feeds them.

    Fractions of a step (Euler's 749.25) are lost so; Ingot's engine undoes this when it opens the graph.
    """
    old = next((node for node in model.get_parameters() if TIMESTEP in node.output(0).get_names()), None)
    if old is None or old.get_element_type() != ov.Type.f32 or old.get_partial_shape() != ov.PartialShape([]):
        return
    static = all(port.get_partial_shape().is_static for port in model.inputs)
    new = operators.parameter(ov.PartialShape([1 if static else -1]), ov.Type.i64, name=TIMESTEP)
    scalar = operators.reshape(operators.convert(new, "f32"), operators.constant([], ov.Type.i64), False)
    index = model.get_parameter_index(old)
    for target in old.output(0).get_target_inputs():
        target.replace_source_output(scalar.output(0))
    model.replace_parameter(index, new)
    new.output(0).get_tensor().set_names({TIMESTEP})
    model.validate_nodes_and_infer_types()


def _quickly(program: ExportedProgram, signature: Signature) -> ov.Model | None:
    """By our own rules; None where they do not reach."""
    module = lowered(program)
    if module is None:
        return None
    try:
        return _translated(module, signature)
    except FAILURES:
        return None


def _translated(module: GraphModule, signature: Signature) -> ov.Model:
    decoder = TorchFXPythonDecoder(
        module,
        input_shapes=[[-1 if isinstance(dim, str) else dim for dim in spec.shape] for spec in signature.inputs],
        input_types=[getattr(torch, spec.dtype) for spec in signature.inputs],
        dynamic_shapes=True,
    )
    frontend = FrontEndManager().load_by_framework("pytorch")
    model = frontend.convert(frontend.load(decoder))
    # what convert_model does next: a small UNet's 1,453 nodes become 708
    apply_moc_transformations(model, cf=False, smart_reshape=False)
    return model


def _name_ports(model: ov.Model, signature: Signature) -> None:
    for port, spec in zip(model.inputs, signature.inputs, strict=True):
        port.get_tensor().set_names({spec.name})
        port.get_node().set_friendly_name(spec.name)
    for port, spec in zip(model.outputs, signature.outputs, strict=True):
        port.get_tensor().set_names({spec.name})


def _name_weights(model: ov.Model, program: ExportedProgram) -> None:
    """Name each constant that is a weight's own memory as the model names the weight, and the convolution or product that
    it goes into by its module: how OpenVINO GenAI finds the places of a LoRA.

    What OpenVINO folds away keeps no name: the weights of a norm that are all ones or zeros, as untrained ones are.
    """
    weights = {
        (tensor.data_ptr(), tensor.nbytes): name.removeprefix(PREFIX) for name, tensor in program.state_dict.items()
    }
    for node in model.get_ops():
        if node.get_type_name() != "Constant":
            continue
        data = node.data
        name = weights.pop((data.__array_interface__["data"][0], data.nbytes), None)
        if name is not None:
            node.set_friendly_name(name)
            _name_users(node, name.removesuffix(".weight"))


def _name_users(weight: ov.Node, module: str) -> None:
    users = [target.get_node() for target in weight.output(0).get_target_inputs()]
    products = [user for user in users if user.get_type_name() in ("MatMul", "Convolution")]
    for number, user in enumerate(products):
        user.set_friendly_name(f"{module}/{user.get_type_name()}" + (f"_{number}" if number else ""))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings of OpenVINO's decoder on symbolic sizes."""
    logger = logging.getLogger("openvino.frontend.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
