"""MSF, the code of mean shift (Koohpayegani et al. 2021): online `encoder_q`, its copy `encoder_t`, a predictor `predict_q`.

The projection head replaces the classifier: `fc.{0,1,3}`. Replicas add `module.` before or behind the network's name.
"""

from __future__ import annotations

from typing import Any

from swav_platform.models.imports.parts import Parts, at, below, split, tensors_in

_NETWORKS = ("encoder_q.", "encoder_t.", "predict_q.")


def parts(tree: Any) -> Parts | None:
    """The online encoder of a checkpoint. None for other names."""
    for name in ("state_dict", "model"):
        if (tensors := tensors_in(at(tree, name))) is not None:
            break
    else:
        tensors = tensors_in(tree)
    if tensors is None:
        return None
    bare = {name.removeprefix("module."): t for name, t in tensors.items()}
    if not any(name.startswith("encoder_q.") for name in bare):
        return None
    if any("." in name and not name.startswith(_NETWORKS) for name in bare):  # names without a dot are the memory bank's
        return None
    online = {name.removeprefix("module."): t for name, t in below(bare, "encoder_q.").items()}
    trunk, head, prototypes, _ = split(online, "fc.", (), ())
    out = tuple(name for name in bare if not name.startswith("encoder_q."))
    return Parts("msf", trunk, head, prototypes, out, method="mean_shift")
