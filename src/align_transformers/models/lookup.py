"""`find_slot`: from a site to the module that holds its tensor, without looking at more of the model than that."""

from __future__ import annotations

from torch import nn

from .._errors import SiteError, near_misses
from ..sites import Layers, Site
from .modules import module_width, submodule, uncompiled
from .recurrent_cells import find_step
from .resolve import known_map, resolve
from .slot import Slot


def find_slot(model: nn.Module, site: Site) -> Slot:
    """Return where a site's tensor is in this model.

    In a model that was resolved before, only the modules on the way to the tensor are looked at: where one of them has
    been exchanged since, the model is resolved anew.

    Args:
        model: the user's model.
        site: a named component or a dotted path. `rnn.step[0].output` is at the steps of an `nn.GRU` or `nn.LSTM`
            (`recurrent_cells.find_step` has all such paths).

    Raises:
        SiteError: the layer, the component or the module does not exist here, or has no steps that can be named; or the
            model runs in threads of its own.

    >>> find_slot(nn.Sequential(nn.Linear(3, 5)), Site("0.output")).width
    5
    >>> find_slot(nn.Sequential(nn.GRU(3, 5)), Site("0.step[0].output")).fused
    GRU(3, 5)
    """
    if isinstance(model, nn.DataParallel) and len(model.device_ids) > 1:
        raise SiteError(
            f"nn.DataParallel runs copies of its module in threads of its own ({len(model.device_ids)} devices), where "
            "no edit acts: give its .module, or load the model over the devices with device_map"
        )
    if site.path is None:
        known = known_map(model)
        found = None if known is None or known.note else known.find(site)  # a copy's map holds until there are weights
        return found[0] if found is not None and _is_there(uncompiled(model), *found) else resolve(model).slot(site)
    path, side = site.path
    model = uncompiled(model)
    module = submodule(model, path)
    if module is None:
        step = find_step(model, site)
        if step is not None:
            return step
        known_paths = near_misses(path, [name for name, _ in model.named_modules() if name])
        raise SiteError(f"{type(model).__name__} has no module {path!r}; {known_paths}")
    return Slot(module, path, side, site.call, width=module_width(module, side))


def chosen_layers(model: nn.Module, component: str, layers: Layers) -> tuple[int, ...]:
    """Return the numbers of some layers, from 0, each once.

    Args:
        model: the user's model.
        component: what is looked for in them, by name.
        layers: numbers, negative ones from the last layer; or `"all"` that have the component.

    Raises:
        SiteError: there is no such layer, or no layer has the component.

    >>> import transformers
    >>> sizes = dict(vocab_size=50, n_embd=16, n_head=2, n_layer=3, n_positions=8)
    >>> chosen_layers(transformers.GPT2Model(transformers.GPT2Config(**sizes)), "mlp_output", -1)
    (2,)
    """
    first, found = Site(component, 0), resolve(model)
    if first.stack not in found.stacks:
        found.slot(first)  # which says why
    count = len(found.stacks[first.stack])
    if layers == "all":
        having = tuple(layer for layer in range(count) if found.find(Site(component, layer)) is not None)
        if not having:
            found.slot(first)  # which says why
        return having
    listed = [layers] if isinstance(layers, int) else list(layers)
    for layer in listed:
        if not -count <= layer < count:
            raise SiteError(
                f"layer {layer} does not exist: {found.model_class} has {count} blocks, 0 to {count - 1}, or from the "
                f"last -1 to -{count}"
            )
    return tuple(dict.fromkeys(layer % count for layer in listed))


def _is_there(model: nn.Module, slot: Slot, block: str) -> bool:
    """Whether the model still has, at their paths, the modules that a slot was found in."""
    here = submodule(model, slot.path) is slot.module
    return here and (slot.around is None or submodule(model, block) is slot.around)
