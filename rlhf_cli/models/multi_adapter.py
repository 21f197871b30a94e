"""Share one base model among roles such as policy, reference, reward and value.

Each role is a LoRA adapter on the base, or a whole model of its own if the recipe has `adapter: null`. The active
adapter is a property of the shared model, so every call goes through `use`. A backward pass that recomputes activations
(gradient checkpointing) must stay inside the `use` of its forward pass.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from rlhf_cli.models import adapter_config, adapters
from rlhf_cli.models.fsdp import find_layers
from rlhf_cli.models.heads import ScalarHead, has_score_head, load_score_head
from rlhf_cli.models.loading import load_causal_lm, load_scorer
from rlhf_cli.models.output_path import OutputPath, find_output_head
from rlhf_cli.recipe.schema import Adapter, Base


class MultiAdapterModel:
    """Roles by name on one base model. Create it with `load`.

    All roles start frozen and in eval mode, so that dropout is off.

    Attributes:
        sharded: Whether the layers of the base are sharded over all processes, which then must call it equally often.
        heads: Name to ScalarHead. A name may have a head and no role: a head on another role's hidden states.
    """

    def __init__(self, base: PreTrainedModel, adapter: Adapter | None, *, sharded: bool = False) -> None:
        self.sharded = sharded
        self.heads = nn.ModuleDict()
        self._base, self._dtype = base, base.dtype
        # Dropout would add noise to PPO's ratios, and a Trainer may put the model in train mode.
        self._adapter = None if adapter is None else adapter.model_copy(update={"dropout": 0.0})
        self._peft: PeftModel | None = None  # the base with adapters; None while every role is the bare base
        self._full_models: dict[str, PreTrainedModel] = {}  # role: its own model, with `adapter: null`
        self._base_roles: set[str] = set()  # roles that are the base without an adapter
        self._adapter_params: dict[str, list[nn.Parameter]] = {}  # role: the parameters of its adapter
        self._has_output_path = False  # whether the logits are more than the output layer's output
        self._hidden_size = base.config.get_text_config().hidden_size
        self._active_adapters: list[str] = []  # PEFT's name of the active adapter, or empty; all layers share this list

    @staticmethod
    def load(
        base: Base,
        adapter: Adapter | None,
        source: str,
        roles: Mapping[str, Path | None],
        *,
        smoke: bool = False,
        sharded: bool = False,
    ) -> MultiAdapterModel:
        """Load one base model and the roles on it.

        Args:
            base: Gives the revision, dtype, attention kernel and quantization.
            adapter: Settings of the adapters, or None if each role is a whole model.
            source: A Hub id or a directory of the base model.
            roles: Role to directory of its adapter or model, or None for the bare base. The score head of a reward
                model is loaded into `heads`.
            smoke: Load random weights of a tiny model (see `models.loading`).
            sharded: Shard the layers of the base over all processes (see `models.fsdp`).

        Raises:
            ModelError: A model is missing, damaged, of another kind, or not supported.
            HardwareError: The machine cannot load the model with these settings.
        """
        for folder in roles.values():
            if folder is not None:
                adapter_config.check_kind(folder, adapter)
        if adapter is None:
            return _load_full_models(base, source, roles, smoke=smoke)
        causal_lm = load_causal_lm(base, source, smoke=smoke, sharded=sharded).requires_grad_(False)
        model = MultiAdapterModel(causal_lm, adapter, sharded=sharded)
        for name, folder in roles.items():
            model._check_new(name)
            if folder is None:
                model._base_roles.add(name)
                continue
            model._attach(name, folder)
            if has_score_head(folder):
                model.heads[name] = load_score_head(folder).requires_grad_(False).to(model.device)
        model._inspect_output(causal_lm)
        return model

    @property
    def roles(self) -> list[str]:
        """The names that `use` accepts."""
        return [*self._adapter_params, *sorted(self._base_roles), *self._full_models]

    @property
    def has_full_models(self) -> bool:
        """Whether each role is a whole model of its own."""
        return bool(self._full_models)

    @property
    def device(self) -> torch.device:
        """The device of this process."""
        return self._base.device

    @property
    def hidden_size(self) -> int:
        """The width H of a hidden state."""
        return self._hidden_size

    @property
    def vocab_size(self) -> int:
        """The number V of token ids."""
        return self._base.config.get_text_config().vocab_size

    @contextmanager
    def use(self, name: str) -> Iterator[PreTrainedModel]:
        """Yield the model to call, with this role active inside the block. Blocks may be nested.

        The requires_grad flags of all roles stay unchanged, and nothing is copied. With bfloat16 weights everything is
        computed in bfloat16, even if the weights of an adapter or of a model in training are float32.
        """
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._dtype == torch.bfloat16):
            if name in self._full_models:
                yield self._full_models[name]
                return
            before = list(self._active_adapters)
            self._activate(name)
            try:
                yield self._base
            finally:
                self._active_adapters[:] = before

    def set_trainable(self, names: Iterable[str], *, in_float32: Iterable[str] = ()) -> None:
        """Make these roles and their heads trainable and freeze all others.

        A role that is the bare base gets a new adapter, which does not change its output: the base is shared and never
        trained. The weights of a whole model become float32, like those of an adapter: in 16 bits most Adam updates
        round to zero. The whole models of the roles `in_float32` become float32, too, but stay frozen. Frozen adapters
        on a bfloat16 base become bfloat16: autocast would cast them at every call, to the same numbers.
        """
        names = list(names)
        for name in [*names, *in_float32]:
            if name in self._full_models:
                self._full_models[name].float()
        for name in names:
            if name in self._base_roles:
                self._base_roles.discard(name)
                self._attach(name, None)
        for name in {*self.roles, *self.heads}:
            for parameter in self.parameters(name):
                parameter.requires_grad_(name in names)
        for name in self._adapter_params.keys() - set(names):
            self._cast_adapter(name)

    def parameters(self, name: str) -> list[nn.Parameter]:
        """Return the parameters of a role's adapter (or whole model) and head. The bare base does not have any."""
        head = list(self.heads[name].parameters()) if name in self.heads else []
        if name in self._full_models:
            # `heads` holds the head in use; the one inside a scorer is updated from it when the role is saved.
            return [p for key, p in self._full_models[name].named_parameters() if not key.startswith("score.")] + head
        assert head or name in self.roles, f"unknown role {name}"
        return [*self._adapter_params.get(name, []), *head]

    def add(self, name: str, copy_of: str) -> None:
        """Add a role as a copy of another one, with its own weights and head, frozen."""
        self._check_new(name)
        assert copy_of in self.roles, f"unknown role {copy_of}"
        if copy_of in self._full_models:
            self._full_models[name] = copy.deepcopy(self._full_models[copy_of]).requires_grad_(False)
        elif copy_of in self._base_roles:
            self._base_roles.add(name)
        else:
            assert self._peft is not None
            self._attach(name, None)
            weights = adapters.adapter_weights(self._peft, _peft_name(copy_of))
            set_peft_model_state_dict(self._peft, weights, adapter_name=_peft_name(name))
        if copy_of in self.heads:
            self.heads[name] = copy.deepcopy(self.heads[copy_of]).requires_grad_(False)

    def recompute_activations(self) -> None:
        """Recompute activations inside each layer in the backward pass instead of keeping them."""
        # Not by the layers' own switch: it needs train mode, where some layers drop activations out by themselves.
        for model in list(self._full_models.values()) or [self._base]:
            for layer in find_layers(model):
                layer.forward = partial(_recomputed, layer.forward)

    def hidden_states(self, name: str, input_ids: Tensor, **padding: Tensor) -> Tensor:
        """Return the last hidden states, after the final norm: (B, T) -> (B, T, H). No output head is applied.

        Args:
            name: The role.
            input_ids: Token ids (B, T).
            **padding: attention_mask and position_ids, (B, T) each, for rows padded on the left. Rows padded on the
                right need neither: causal attention never looks there, and its fastest kernel takes no mask.
        """
        with self.use(name) as model:
            output = model.get_decoder()(input_ids=input_ids, use_cache=False, **padding)
        return output.last_hidden_state

    def output_head(self, name: str) -> nn.Module:
        """Return the layer from hidden states (…, H) to logits (…, V). Call and backpropagate it inside `use`."""
        with self.use(name) as model:
            if self._has_output_path:
                return OutputPath(model)
            head = model.get_output_embeddings()
        assert isinstance(head, nn.Module)
        return head

    def save(self, name: str, folder: Path) -> None:
        """Write the role to `folder` in the format that `load` reads: a PEFT adapter, or a whole model.

        A role with a head is saved as a scorer (SEQ_CLS), one without a head as a language model; plain PEFT and
        transformers load both. The tokenizer is not saved.
        """
        head = next(self.heads[name].parameters()).detach()[None] if name in self.heads else None  # (1, H)
        if name in self._full_models:
            model = self._full_models[name]
            if head is not None:
                with torch.no_grad():
                    model.score.weight.copy_(head)
            folder.mkdir(parents=True, exist_ok=True)
            model.save_pretrained(folder)
            return
        assert self._peft is not None, f"cannot save {name}: it is the bare base"
        assert name in self._adapter_params, f"cannot save {name}: it is the bare base"
        adapters.write(self._peft, folder, name=_peft_name(name), head=head)

    def _cast_adapter(self, name: str) -> None:
        """Cast an adapter to the dtype that `use` computes in. Not one of DoRA, whose norms are not autocast."""
        assert self._adapter is not None
        if self._dtype == torch.bfloat16 and not self._adapter.dora:
            for parameter in self._adapter_params[name]:
                parameter.data = parameter.data.bfloat16()

    def _attach(self, name: str, folder: Path | None) -> None:
        """Add a role with an adapter: a copy of the one in `folder`, or a new one if it is None."""
        assert self._adapter is not None
        trainable = [p for params in self._adapter_params.values() for p in params if p.requires_grad]
        self._peft = adapters.attach(
            self._base if self._peft is None else self._peft,
            self._adapter,
            task="CAUSAL_LM",
            start=folder,
            name=_peft_name(name),
            trainable=False,
        ).eval()
        for layer in self._peft.modules():
            if isinstance(layer, BaseTunerLayer):
                layer.set_adapter(self._active_adapters, inference_mode=True)
                assert layer.active_adapters is self._active_adapters, "PEFT copies the list: call set_adapter instead"
        for parameter in trainable:  # PEFT froze them
            parameter.requires_grad_(True)
        name_part = f".{_peft_name(name)}."
        self._adapter_params[name] = [p for key, p in self._peft.named_parameters() if name_part in f"{key}."]

    def _activate(self, name: str) -> None:
        """Switch the shared model to a role.

        PEFT's own set_adapter and disable_adapter walk all modules (6 ms per switch for 5 layers) and change
        requires_grad. All layers hold the same list, so changing its content switches all of them; with an empty list
        they return the output of the base.
        """
        assert name in self._adapter_params or name in self._base_roles, f"unknown role {name}"
        self._active_adapters[:] = [_peft_name(name)] if name in self._adapter_params else []

    def _inspect_output(self, model: PreTrainedModel) -> None:
        """Find out how a language model maps hidden states to logits. Raise ModelError if it is not supported."""
        self._has_output_path = isinstance(find_output_head(model), OutputPath)
        # Not the config's hidden_size: OPT-350m projects its hidden states to the width of its embeddings.
        self._hidden_size = model.get_output_embeddings().weight.shape[-1]

    def _check_new(self, name: str) -> None:
        assert name.isidentifier(), name
        assert name not in self.roles, f"role {name} already exists"


def _load_full_models(base: Base, source: str, roles: Mapping[str, Path | None], *, smoke: bool) -> MultiAdapterModel:
    """Load a whole model for each role (`adapter: null`)."""
    full_models: dict[str, PreTrainedModel] = {}
    heads: dict[str, ScalarHead] = {}
    for name, folder in roles.items():
        if folder is not None and has_score_head(folder):
            full_models[name] = load_scorer(base, str(folder))
            heads[name] = load_score_head(folder)
        elif folder is not None:
            full_models[name] = load_causal_lm(base, str(folder))
        else:
            full_models[name] = load_causal_lm(base, source, smoke=smoke)
        full_models[name].requires_grad_(False)
    assert full_models, "a MultiAdapterModel needs a role"
    model = MultiAdapterModel(next(iter(full_models.values())), None)
    model._full_models = full_models
    for name, head in heads.items():
        model.heads[name] = head.requires_grad_(False).to(model.device)
    for name, full_model in full_models.items():
        if name not in heads:
            model._inspect_output(full_model)
    return model


def _recomputed(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a layer, and keep only its inputs for the backward pass."""
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)


def _peft_name(role: str) -> str:
    """Return PEFT's name of a role's adapter.

    PEFT recognizes adapters by substrings of parameter names, and a bare `value` could also be a layer's name.
    """
    return f"role_{role}"
