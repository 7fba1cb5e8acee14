"""Zero-cost scores: how good a network looks before any training, the cheapest rivals of a proxy set.

None costs more than one forward and backward pass of one batch of real images. For every score larger means
better, and its sign is kept, so a score that ranks the wrong way round shows as a negative correlation.
"""

# B images of the batch, C channels, H height, W width, K classes, U units of one activation, P = C * H * W

import copy
import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from atom.errors import ConfigError, ShapeError
from atom.nets import count_multiply_adds, count_parameters

METHODS: tuple[str, ...] = ("parameters", "multiply-adds", "synflow", "naswot", "grad-norm", "jacob-cov")

NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
_BENT = (nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.Hardtanh, nn.Hardsigmoid, nn.Hardswish)
_SMOOTH = (nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus, nn.Softsign, nn.Tanh, nn.Sigmoid)
ACTIVATIONS = (*_BENT, *_SMOOTH)

# Added to the eigenvalues of jacob-cov, which may be 0. Source: published code of Abdelfattah et al.
EIGENVALUE_OFFSET = 1e-5
# Units of one matrix product: sums of so many +1 and -1 are exact in float32, and the memory stays small.
_UNITS_AT_ONCE = 1 << 20


def zero_cost_score(method: str, net: nn.Module, *, images_BCHW: Tensor, labels_B: Tensor) -> float:
    """Score of a network with fresh random weights; larger is better.

    * parameters, multiply-adds: as counted by `atom.nets`.
    * synflow: natural logarithm of the sum of |w * dR/dw| over the weights w of convolutions and linear
      layers; R is the sum of the logits of one image of ones, every parameter replaced by its absolute value,
      in float64. The logarithm ranks as the sum does and can be averaged over seeds. All norm layers are
      taken out, as Abdelfattah et al. do with BatchNorm: a norm centres and rescales the maps, and so undoes
      the product of weights that the score measures. Hence networks that differ in norms alone score the
      same for equal weights. Sources: Tanaka et al., 2020; Abdelfattah et al., 2021.
    * naswot: log |det K| in float64; K_ij counts the activation units that are on for both images i and j or
      off for both. A unit is on where the input of the activation is positive. The published score looks at
      ReLUs only; the same rule for sigmoid, leaky ReLU and others is our extension. Functional activations
      are not seen. Source: Mellor et al., 2021.
    * grad-norm: sum over the weights of convolutions and linear layers of the L2 norm of the gradient of the
      batch's mean cross-entropy. Source: Abdelfattah et al., 2021.
    * jacob-cov: -sum(log(v + 1e-5) + 1 / (v + 1e-5)) over the eigenvalues v, in float64, of the correlation
      matrix (B, B) of the gradients of the summed logits with respect to each image. Sources: Mellor et al.,
      2020, the first version of their paper; Abdelfattah et al., 2021.

    A copy of the network is scored, in its own precision except for synflow. BatchNorm takes the statistics
    of the batch, as in training; all else is in evaluation mode, so that dropout draws nothing.

    Args:
        method: one of METHODS.
        net: gives logits (B, K); float32 or float64, on a CPU or CUDA.
        images_BCHW: preprocessed real images on the network's device; synflow and the counts read the shape
            only. Abdelfattah et al. use B = 64.
        labels_B: int64, 0 <= label < K, same device; only grad-norm reads them.

    Returns:
        Never NaN. -inf, which ranks last: for naswot where K is singular (two images with one code, or too
        few units), for jacob-cov where an image's gradient is constant and so correlates with nothing, for synflow
        where nothing flows from the image to the logits.

    Raises:
        ConfigError: unknown method; the network has nothing that the method looks at; the score is not
            finite and means nothing, such as with NaN weights.
        ShapeError: images are not (B, C, H, W), or there is not one label an image.

    Example:
        >>> from atom.nets import build
        >>> net = build("convnet-w8-d1", channels=1, image_size=(8, 8), num_classes=10)
        >>> images_BCHW, labels_B = torch.zeros(4, 1, 8, 8), torch.zeros(4, dtype=torch.int64)
        >>> zero_cost_score("parameters", net, images_BCHW=images_BCHW, labels_B=labels_B)
        1386.0
    """
    if method not in _SCORES:
        raise ConfigError(f"zero-cost score {method!r} is unknown; known are {', '.join(METHODS)}.")
    if images_BCHW.ndim != 4 or len(images_BCHW) == 0:
        raise ShapeError(
            f"zero-cost score {method}: images have shape {tuple(images_BCHW.shape)}, expected (B, C, H, W) with"
            " at least one image."
        )
    if labels_B.shape != images_BCHW.shape[:1]:
        raise ShapeError(
            f"zero-cost score {method}: labels have shape {tuple(labels_B.shape)} for {len(images_BCHW)} images,"
            " expected one label an image."
        )
    score = _SCORES[method](_working_copy(net), images_BCHW.detach(), labels_B)
    if math.isnan(score) or score == math.inf:
        raise _meaningless(method, f"is {score}")
    return score


def _working_copy(net: nn.Module) -> nn.Module:
    """A copy in evaluation mode but for norms with running statistics, which take those of the batch."""
    net = copy.deepcopy(net).eval()
    for module in net.modules():
        if isinstance(module, _NormBase):
            module.train()
    return net


def _meaningless(method: str, what: str) -> ConfigError:
    return ConfigError(
        f"zero-cost score {method}: the score of the network {what}, expected a finite number; look for NaN,"
        " infinite or all-zero weights, or score other images."
    )


def _layer_weights(net: nn.Module, method: str) -> list[nn.Parameter]:
    """Weights of convolutions and linear layers, each once, ready for gradients."""
    found: dict[int, nn.Parameter] = {}
    for module in net.modules():
        if isinstance(module, _ConvNd | nn.Linear) and isinstance(module.weight, nn.Parameter):
            found[id(module.weight)] = module.weight
    if not found:
        raise ConfigError(
            f"zero-cost score {method}: the network has no convolution or linear layer with a weight of its own,"
            " expected at least one torch.nn module of that kind; choose another score."
        )
    for weight in found.values():
        weight.requires_grad_()
    return list(found.values())


def _in_precision_of(net: nn.Module, images_BCHW: Tensor) -> Tensor:
    """The images, copied, in the network's floating type."""
    dtype = next((each.dtype for each in net.parameters() if each.is_floating_point()), images_BCHW.dtype)
    return images_BCHW.to(dtype, copy=True)


def _count(counter: Callable[..., int], net: nn.Module, images_BCHW: Tensor, labels_B: Tensor) -> float:
    _, channels, height, width = images_BCHW.shape
    return float(counter(net, channels, (height, width)))


@torch.enable_grad()
def _synflow(net: nn.Module, images_BCHW: Tensor, labels_B: Tensor) -> float:
    # float64: the sum is a product over layers, which float32 does not always hold.
    net = net.double()
    norms = [path for path, each in net.named_modules(remove_duplicate=False) if isinstance(each, NORMS)]
    for path in norms:
        net.set_submodule(path, nn.Identity())
    weights = _layer_weights(net, "synflow")
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.abs_()
    logits_1K = net(torch.ones_like(images_BCHW[:1], dtype=torch.float64))
    gradients = torch.autograd.grad(logits_1K.sum(), weights, materialize_grads=True)
    terms = [(weight.detach() * grad).abs().sum() for weight, grad in zip(weights, gradients, strict=True)]
    flow = float(torch.stack(terms).sum())
    if flow == 0:
        return -math.inf
    if not math.isfinite(flow):
        raise _meaningless("synflow", f"is the logarithm of {flow}")
    return math.log(flow)


@torch.no_grad()
def _naswot(net: nn.Module, images_BCHW: Tensor, labels_B: Tensor) -> float:
    agreements: list[Tensor] = []

    def count(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        agreements.append(_agreement(inputs[0], len(images_BCHW)))

    # Before each activation, which may overwrite its input. The hooks go when the copy goes.
    for module in net.modules():
        if isinstance(module, ACTIVATIONS):
            module.register_forward_pre_hook(count)
    logits_BK = net(_in_precision_of(net, images_BCHW))
    if not agreements:
        raise ConfigError(
            "zero-cost score naswot: the network ran no activation module, expected at least one such as"
            " torch.nn.ReLU; functional activations are not seen, so use modules, or choose another score."
        )
    if not logits_BK.isfinite().all():
        raise _meaningless("naswot", "comes with logits that are NaN or infinite")
    agreement_BB = torch.stack(agreements).sum(0)
    # The determinant of a singular matrix comes out as rounding noise, and its logarithm would rank as such.
    if torch.linalg.matrix_rank(agreement_BB, hermitian=True) < len(agreement_BB):
        return -math.inf
    return float(torch.linalg.slogdet(agreement_BB).logabsdet)


def _agreement(input_BU: Tensor, num_images: int) -> Tensor:
    """Number of units on which two images agree, for all pairs: float64 (B, B), on the CPU, exact."""
    if len(input_BU) != num_images:
        raise ConfigError(
            f"zero-cost score naswot: an activation received shape {tuple(input_BU.shape)} for {num_images} images,"
            " expected the images as its first dimension; keep them there, or choose another score."
        )
    on_BU = (input_BU > 0).flatten(1)
    product_BB = torch.zeros(num_images, num_images, dtype=torch.float64)
    for part_BU in on_BU.split(_UNITS_AT_ONCE, dim=1):
        sign_BU = part_BU.float() * 2 - 1
        product_BB += (sign_BU @ sign_BU.T).double().cpu()
    return (product_BB + on_BU.shape[1]) / 2


@torch.enable_grad()
def _grad_norm(net: nn.Module, images_BCHW: Tensor, labels_B: Tensor) -> float:
    weights = _layer_weights(net, "grad-norm")
    loss = functional.cross_entropy(net(_in_precision_of(net, images_BCHW)), labels_B)
    gradients = torch.autograd.grad(loss, weights, materialize_grads=True)
    lengths = [torch.linalg.vector_norm(each, dtype=torch.float64) for each in gradients]
    return float(torch.stack(lengths).sum())


@torch.enable_grad()
def _jacob_cov(net: nn.Module, images_BCHW: Tensor, labels_B: Tensor) -> float:
    images_BCHW = _in_precision_of(net, images_BCHW).requires_grad_()
    (gradient_BCHW,) = torch.autograd.grad(net(images_BCHW).sum(), images_BCHW, materialize_grads=True)
    eps = torch.finfo(gradient_BCHW.dtype).eps
    rows_BP = gradient_BCHW.flatten(1).double().cpu()
    if not rows_BP.isfinite().all():
        raise _meaningless("jacob-cov", "comes from gradients that are NaN or infinite")
    centred_BP = rows_BP - rows_BP.mean(1, keepdim=True)
    length_B = centred_BP.norm(dim=1)
    # What a constant row keeps after its mean is taken away is the rounding of the gradient, a few eps.
    if (length_B <= 16 * eps * rows_BP.norm(dim=1)).any():
        return -math.inf
    unit_BP = centred_BP / length_B[:, None]
    # Rounding may push a zero eigenvalue below zero.
    values_B = torch.linalg.eigvalsh(unit_BP @ unit_BP.T).clamp(min=0) + EIGENVALUE_OFFSET
    return -float((values_B.log() + 1 / values_B).sum())


_SCORES: dict[str, Callable[[nn.Module, Tensor, Tensor], float]] = {
    "parameters": partial(_count, count_parameters),
    "multiply-adds": partial(_count, count_multiply_adds),
    "synflow": _synflow,
    "naswot": _naswot,
    "grad-norm": _grad_norm,
    "jacob-cov": _jacob_cov,
}
