"""What segmenters have in common whose encoder may start with the weights of others."""

import flax.linen as nn
import jax

TRAINED = ("finetune", "frozen")


def encoder_of(module: type[nn.Module], trained: str) -> type[nn.Module]:
    """The class of the encoder, its weights held where `trained` is 'frozen'."""
    if trained != "frozen":
        return module
    # Its weights, not its features: synthetic images are differentiated through it.
    return nn.map_variables(module, "params", jax.lax.stop_gradient, init=True)


def rates(trained: str, encoder_rate: float, weights: str) -> dict[str, float]:
    """Learning rates of parts of the parameters, relative to that of the others.

    Args:
      trained: one of `TRAINED`.
      encoder_rate: of an encoder that did not start from scratch.
      weights: at the start; '' for none.
    """
    if trained == "frozen":
        return {"encoder": 0.0}
    return {"encoder": encoder_rate} if weights else {}


def notice(weights: str) -> str:
    """What people should know of weights from a file of their own; '' for none."""
    return f"Weights of {weights}: under the terms of who made them." if weights else ""
