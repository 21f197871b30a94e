"""One base model in memory, and the roles that play on it: policy, reference, reward, value.

Each role is a LoRA adapter on the one base (with `adapter: null`, a whole model of its own). Which one is active is a
property of the shared model, so every call goes through `use`, and a backward pass that recomputes activations
(gradient checkpointing) has to stay inside the `use` of its forward pass.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import PeftModel, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from rlhf_cli.errors import ModelError
from rlhf_cli.models import adapters
from rlhf_cli.models.heads import ScalarHead, has_score_head, load_score_head
from rlhf_cli.models.loading import load_causal_lm, load_scorer
from rlhf_cli.recipe.schema import Adapter, Base


class MultiAdapterModel:
    """Roles by name. Made by `Bank.load`; all start frozen and in eval mode, so that dropout is off."""

    def __init__(self, base: PreTrainedModel, adapter: Adapter | None) -> None:
        self.sharded = False
        self.heads = nn.ModuleDict()  # name -> ScalarHead; a name may have a head alone (a head on another's trunk)
        self._base, self._dtype = base, base.dtype
        # Dropout is noise in PPO's ratios, and a Trainer may put the model in train mode.
        self._adapter = None if adapter is None else adapter.model_copy(update={"dropout": 0.0})
        self._peft: PeftModel | None = None  # the base with adapters on it; None while every role is bare
        self._whole: dict[str, PreTrainedModel] = {}  # role -> its own model, with `adapter: null`
        self._bare: set[str] = set()  # roles that are the base with adapters off
        self._own: dict[str, list[nn.Parameter]] = {}  # adapter role -> its adapter's parameters
        self._recomputed: list[nn.Module] = []  # layers that keep no activations for the backward pass
        self._switch: list[str] = []  # the active adapter's PEFT name, or nothing: one list that all layers hold

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
        """Load one base and the roles' folders onto it; None is the bare base.

        `is_split`: over all processes, as `models.splitting` does it; all have to call it equally often.
        A reward model's folder brings its score head into `heads`. With `adapter=None` each role is a whole model.
        """
        for folder in roles.values():
            if folder is not None:
                adapters.check_form(folder, adapter)
        if adapter is None:
            return _load_whole(base, source, roles, smoke=smoke)
        bank = MultiAdapterModel(
            load_causal_lm(base, source, smoke=smoke, sharded=sharded).requires_grad_(False), adapter
        )
        bank.sharded = sharded
        for name, folder in roles.items():
            bank._check_new(name)
            if folder is None:
                bank._bare.add(name)
                continue
            bank._attach(name, folder)
            if has_score_head(folder):
                bank.heads[name] = load_score_head(folder).requires_grad_(False).to(bank.device)
        bank._check_head_alone_makes_logits(bank._base)
        return bank

    @property
    def roles(self) -> list[str]:
        """The names that `use` takes."""
        return [*self._own, *sorted(self._bare), *self._whole]

    @property
    def device(self) -> torch.device:
        return self._base.device

    @property
    def hidden_size(self) -> int:
        return self._base.config.get_text_config().hidden_size

    @property
    def vocab_size(self) -> int:
        return self._base.config.get_text_config().vocab_size

    @contextmanager
    def use(self, name: str) -> Iterator[PreTrainedModel]:
        """The model to call, with this role active inside the block. May be nested.

        The requires_grad flags of all roles stay as they are, and nothing is copied. With bfloat16 weights everything
        is computed in bfloat16, also where an adapter's weights, or those of a model under training, are float32.
        """
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._dtype == torch.bfloat16):
            if name in self._whole:
                yield self._whole[name]
                return
            before = list(self._switch)
            self._activate(name)
            try:
                yield self._base
            finally:
                self._switch[:] = before

    def train(self, names: Iterable[str]) -> None:
        """Let gradients flow to these roles' parameters and heads, and to nothing else.

        A role that is the bare base gets a new adapter here (which changes nothing yet): the base is shared, and is
        never trained. A whole model's weights become float32, as an adapter's are: in 16 bits most of Adam's steps
        would be rounded away.
        """
        names = list(names)
        for name in names:
            if name in self._whole:
                self._whole[name].float()
        for name in names:
            if name in self._bare:
                self._bare.discard(name)
                self._attach(name, None)
        for name in {*self.roles, *self.heads}:
            for parameter in self.parameters(name):
                parameter.requires_grad_(name in names)

    def parameters(self, name: str) -> list[nn.Parameter]:
        """The role's own parameters: its adapter's (or whole model's) and its head's. None for the bare base."""
        head = list(self.heads[name].parameters()) if name in self.heads else []
        if name in self._whole:
            # The head in use is ours; the one inside a scorer follows it when it is saved.
            return [p for key, p in self._whole[name].named_parameters() if not key.startswith("score.")] + head
        assert head or name in self.roles, f"no role {name}"
        return [*self._own.get(name, []), *head]

    def add(self, name: str, copy_of: str) -> None:
        """A further role that starts as a copy of another, its head included, with weights of its own; frozen."""
        self._check_new(name)
        assert copy_of in self.roles, f"no role {copy_of}"
        if copy_of in self._whole:
            self._whole[name] = copy.deepcopy(self._whole[copy_of]).requires_grad_(False)
        elif copy_of in self._bare:
            self._bare.add(name)
        else:
            assert self._peft is not None
            self._attach(name, None)
            weights = adapters.adapter_weights(self._peft, _peft_name(copy_of))
            set_peft_model_state_dict(self._peft, weights, adapter_name=_peft_name(name))
        if copy_of in self.heads:
            self.heads[name] = copy.deepcopy(self.heads[copy_of]).requires_grad_(False)

    def recompute_activations(self) -> None:
        """Keep no activations inside a layer for the backward pass, but compute them again there."""
        for model in list(self._whole.values()) or [self._base]:
            model.activation_checkpointing_enable({"use_reentrant": False})
            self._recomputed += [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]

    def hidden(self, name: str, input_ids: Tensor, **padding: Tensor) -> Tensor:
        """The last hidden states, after the final norm: (B, T) -> (B, T, H). No output head is applied.

        `padding`: attention_mask and position_ids, (B, T) each, for rows padded on the left. On the right neither is
        needed: causal attention never looks there, and without a mask its quickest kernel runs.
        """
        with self.use(name) as model, self._recomputing():
            output = model.get_decoder()(input_ids=input_ids, use_cache=False, **padding)
        return output.last_hidden_state

    def output_head(self, name: str) -> nn.Module:
        """The layer from hidden states (…, H) to logits (…, V). Call it, and its backward pass, inside `use`."""
        with self.use(name) as model:
            head = model.get_output_embeddings()
        assert isinstance(head, nn.Module)
        return head

    def save(self, name: str, folder: Path) -> None:
        """Write the role to `folder` as `load` reads it: a PEFT adapter, or a whole model.

        A role with a head becomes a scorer (SEQ_CLS), one without a language model; both load with plain peft and
        transformers. The tokenizer is the caller's to add.
        """
        head = next(self.heads[name].parameters()).detach()[None] if name in self.heads else None  # (1, H)
        if name in self._whole:
            model = self._whole[name]
            if head is not None:
                with torch.no_grad():
                    model.score.weight.copy_(head)
            folder.mkdir(parents=True, exist_ok=True)
            model.save_pretrained(folder)
            return
        assert self._peft is not None, f"{name} is the bare base, which has nothing to save"
        assert name in self._own, f"{name} is the bare base, which has nothing to save"
        adapters.write(self._peft, folder, name=_peft_name(name), head=head)

    def _attach(self, name: str, folder: Path | None) -> None:
        assert self._adapter is not None
        trained = [p for own in self._own.values() for p in own if p.requires_grad]
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
                layer.set_adapter(self._switch, inference_mode=True)
                assert layer.active_adapters is self._switch, "PEFT copies the list now: set_adapter in _activate"
        for parameter in trained:  # PEFT froze them
            parameter.requires_grad_(True)
        own_part = f".{_peft_name(name)}."
        self._own[name] = [p for key, p in self._peft.named_parameters() if own_part in f"{key}."]

    def _activate(self, name: str) -> None:
        """Switch the shared model over to a role.

        PEFT's own set_adapter and disable_adapter walk all modules (6 ms for 5 layers, at every switch) and change
        requires_grad on the way. The layers hold the one list `_switch`, so changing what is in it does the same to
        all of them; with nothing in it they pass the base through.
        """
        assert name in self._own or name in self._bare, f"no role {name}"
        self._switch[:] = [_peft_name(name)] if name in self._own else []

    @contextmanager
    def _recomputing(self) -> Iterator[None]:
        """Layers checkpoint in train mode alone, and everything here runs in eval mode: their own flag, and not
        those of the modules in them, is set for a forward pass with gradients."""
        layers = self._recomputed if torch.is_grad_enabled() else []
        for layer in layers:
            layer.training = True
        try:
            yield
        finally:
            for layer in layers:
                layer.training = False

    def _check_new(self, name: str) -> None:
        assert name.isidentifier(), name
        assert name not in self.roles, f"role {name} is there already"

    def _check_head_alone_makes_logits(self, model: PreTrainedModel) -> None:
        """`hidden` and `output_head` leave out what some architectures do to logits after the head (caps, scales)."""
        ids = torch.arange(4, device=model.device)[None]  # (1, 4)
        with torch.no_grad():
            expected = model(input_ids=ids, use_cache=False).logits.float()
            hidden = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
            ours = model.get_output_embeddings()(hidden).float()
        if not torch.allclose(ours, expected, rtol=1e-3, atol=1e-3):
            raise ModelError(
                f"{type(model).__name__} changes its logits after the output head (a cap or a scale), "
                "which is not supported",
                location=model.name_or_path,
                hint="Take a base without one, such as Llama, Qwen or Mistral.",
            )


def _load_whole(base: Base, source: str, roles: Mapping[str, Path | None], *, smoke: bool) -> MultiAdapterModel:
    models: dict[str, PreTrainedModel] = {}
    heads: dict[str, ScalarHead] = {}
    for name, folder in roles.items():
        if folder is not None and has_score_head(folder):
            models[name] = load_scorer(base, str(folder))
            heads[name] = load_score_head(folder)
        elif folder is not None:
            models[name] = load_causal_lm(base, str(folder))
        else:
            models[name] = load_causal_lm(base, source, smoke=smoke)
        models[name].requires_grad_(False)
    assert models, "a bank needs a role"
    bank = MultiAdapterModel(next(iter(models.values())), None)
    bank._whole = models
    for name, head in heads.items():
        bank.heads[name] = head.requires_grad_(False).to(bank.device)
    for name, model in models.items():
        if name not in heads:
            bank._check_head_alone_makes_logits(model)
    return bank


def _peft_name(role: str) -> str:
    """The adapter's name in PEFT, which tells adapters apart by substrings of parameter names: `value` alone could
    be a layer's name as well."""
    return f"role_{role}"
