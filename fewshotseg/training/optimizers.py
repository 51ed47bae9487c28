"""Optax chains whose steps can be differentiated, from the first step and with dead units present.

The derivative of a square root at 0 is infinite. Adam's `eps_root` and RMSProp's `eps_in_sqrt` put
the epsilon under the root; without them, the hypergradient through a parameter that has never had
a gradient is NaN. The inner players get no other choice here.
"""

import optax

from fewshotseg import errors

EPS_ROOT = 1e-8


def learning_rate_schedule(
    learning_rate: float, num_steps: int, schedule: str, warmup_steps: int = 0
) -> optax.Schedule:
    """Step -> learning rate.

    Args:
      learning_rate: peak value.
      num_steps: length of the training, in steps.
      schedule: 'constant' or 'cosine' (down to 0 at `num_steps`).
      warmup_steps: linear rise from 0 to the peak before it.
    """
    if schedule == "constant":
        body = optax.constant_schedule(learning_rate)
    elif schedule == "cosine":
        body = optax.cosine_decay_schedule(learning_rate, max(1, num_steps - warmup_steps))
    else:
        raise errors.InputError(f"schedule is {schedule!r}: use 'constant' or 'cosine'.")
    if not warmup_steps:
        return body
    warmup = optax.linear_schedule(0.0, learning_rate, warmup_steps)
    return optax.join_schedules([warmup, body], [warmup_steps])


def create_optimizer(
    name: str,
    learning_rate: float,
    num_steps: int,
    *,
    schedule: str = "constant",
    warmup_steps: int = 0,
    weight_decay: float = 0.0,
    momentum: float = 0.0,
    b1: float = 0.9,
    b2: float = 0.999,
) -> optax.GradientTransformation:
    """An optimiser for an inner player (generator, discriminator or segmenter) or for theta.

    Args:
      name: 'sgd', 'adam', 'adamw' or 'rmsprop'.
      learning_rate: peak value.
      num_steps: over which the schedule runs.
      schedule: see `learning_rate_schedule`.
      warmup_steps: likewise.
      weight_decay: decoupled for 'adamw', added to the gradient for the others.
      momentum: of 'sgd' and 'rmsprop'.
      b1: decay of Adam's first moment.
      b2: decay of Adam's and RMSProp's second moment.

    Raises:
      InputError: an unknown name or schedule.
    """
    rate = learning_rate_schedule(learning_rate, num_steps, schedule, warmup_steps)
    decay = [optax.add_decayed_weights(weight_decay)] if weight_decay else []
    if name == "sgd":
        return optax.chain(*decay, optax.sgd(rate, momentum=momentum or None))
    if name == "adam":
        return optax.chain(*decay, optax.adam(rate, b1=b1, b2=b2, eps_root=EPS_ROOT))
    if name == "adamw":
        return optax.adamw(rate, b1=b1, b2=b2, eps_root=EPS_ROOT, weight_decay=weight_decay)
    if name == "rmsprop":
        scale = optax.rmsprop(
            rate, decay=b2, eps=EPS_ROOT, eps_in_sqrt=True, momentum=momentum or None
        )
        return optax.chain(*decay, scale)
    raise errors.InputError(f"optimizer is {name!r}: use 'sgd', 'adam', 'adamw' or 'rmsprop'.")
