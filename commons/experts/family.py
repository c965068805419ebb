"""What a Hugging Face family of mixtures of experts is: keys a charter may set, config.json, and tensors by arithmetic.

A family is a value that says what is its own; what all have in common stands here once. No torch, no weights.
Layouts after transformers 5.23 as `save_pretrained` writes them: one tensor per expert and matrix, except where a family
stacks its experts on disk too (`Mixture.stacked`); each expert then has one slice of the stack.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from commons.experts import settings
from commons.experts.settings import Key, Real, SettingError, Settings, Switch, Value, Whole
from commons.experts.slices import Kind, Slice
from commons.experts.tokenizer import END_OF_DOCUMENT, VOCABULARY
from commons.names import ExpertId

MATRICES = ("gate_proj", "up_proj", "down_proj")
"""SwiGLU: down(silu(gate(x)) * up(x))."""


@dataclass(frozen=True)
class Mixture:
    """How a family names a layer's block of experts."""

    module: str = "mlp"
    """The block as an attribute of the decoder layer in transformers."""
    stored: str = "mlp"
    """The same block on disk."""
    router: str = "gate"
    biased: bool = False
    """The router has `e_score_correction_bias`, which acts on the choice of experts alone."""
    matrices: tuple[str, ...] = MATRICES
    """An expert's gate, up and down projection."""
    stacked: bool = False
    """On disk all experts of a layer are one tensor per matrix, [experts, in, out], gate and up side by side in one."""
    shared: str | None = None
    """The expert every token goes through; part of the trunk."""


@dataclass(frozen=True)
class Routing:
    """From a token's logits, one per expert, to the gates of those chosen."""

    scores: Literal["sigmoid", "softmax"]
    """Sigmoid: of the expert's own row alone. Softmax: over all experts' rows."""
    normalised: bool = False
    """The gates of a token's chosen experts are divided by their sum."""
    scale: float = 1.0
    """Factor on the gates."""
    on_input: bool = False
    """The gate multiplies what goes into the expert, not what comes out."""


@dataclass(frozen=True)
class Widths:
    """Inner widths of the feed-forward parts; 0 where there is none."""

    expert: int
    shared: int = 0
    dense: int = 0


@dataclass(frozen=True)
class Family:
    name: str
    """Hugging Face's `model_type`; a charter's `model.family`."""
    architecture: str
    """The class in transformers."""
    experts_key: str
    """Hugging Face's key for the number of experts, which follows from the sites."""
    keys: Mapping[str, Key]
    check: Callable[[Settings], None]
    """Raises SettingError when values that are right alone do not fit together."""
    config: Callable[[Settings, int], dict[str, object]]
    """What config.json says beside class and tokens, for so many experts."""
    attention: Callable[[str, Settings], Iterator[Slice]]
    """Slices of a layer's attention, behind a prefix."""
    widths: Callable[[Settings], Widths]
    mixed: Callable[[Settings], frozenset[int]]
    """The layers that have experts; the others are dense."""
    routing: Callable[[Settings], Routing]
    mixture: Mixture = Mixture()
    norms: tuple[str, ...] = ("input_layernorm", "post_attention_layernorm")

    def settings(self, config: Mapping[str, Value]) -> Settings:
        """Raises SettingError naming the key of `[model.config]` that is unknown, missing or impossible."""
        found = settings.read(self.name, self.keys, self.experts_key, config)
        self.check(found)
        return found

    def hf_config(
        self, config: Mapping[str, Value], experts: int, *, end: int = END_OF_DOCUMENT
    ) -> dict[str, object]:
        """Content of the released config.json for `experts` routed experts. `end`: token that ends generation.

        Raises SettingError.
        """
        c = self.settings(config)
        per_token = c.whole("num_experts_per_tok")
        if experts < max(2, per_token):
            raise SettingError("num_experts_per_tok", f"is {per_token} but the sites own {experts} experts")
        return {
            "architectures": [self.architecture],
            "model_type": self.name,
            "dtype": "float32",
            "vocab_size": c.whole("vocab_size"),
            "bos_token_id": None,
            "eos_token_id": end,
            "pad_token_id": None,
            **self.config(c, experts),
        }

    def slices(self, config: Mapping[str, Value], experts: Sequence[ExpertId]) -> Iterator[Slice]:
        """Every slice of the released model; expert `experts[i]` is index i on disk. Raises SettingError."""
        c = self.settings(config)
        hidden, widths, mixed = c.whole("hidden_size"), self.widths(c), self.mixed(c)
        yield Slice("model.embed_tokens.weight", (c.whole("vocab_size"), hidden), Kind.TRUNK_MATRIX)
        for layer in range(c.whole("num_hidden_layers")):
            prefix = f"model.layers.{layer}."
            yield from self.attention(f"{prefix}self_attn.", c)
            for norm in self.norms:
                yield Slice(f"{prefix}{norm}.weight", (hidden,), Kind.TRUNK_VECTOR)
            if layer in mixed:
                yield from self._mixture(f"{prefix}{self.mixture.stored}.", hidden, widths, experts)
            else:
                yield from _feed_forward(f"{prefix}{self.mixture.module}.", hidden, widths.dense)
        yield Slice("model.norm.weight", (hidden,), Kind.TRUNK_VECTOR)
        if not c.on("tie_word_embeddings"):
            yield Slice("lm_head.weight", (c.whole("vocab_size"), hidden), Kind.TRUNK_MATRIX)

    def _mixture(
        self, prefix: str, hidden: int, widths: Widths, experts: Sequence[ExpertId]
    ) -> Iterator[Slice]:
        mixture, width = self.mixture, widths.expert
        yield Slice(f"{prefix}{mixture.router}.weight", (len(experts), hidden), Kind.ROUTER)
        if mixture.biased:
            yield Slice(f"{prefix}{mixture.router}.e_score_correction_bias", (len(experts),), Kind.ROUTER)
        if mixture.shared:
            yield from _feed_forward(f"{prefix}{mixture.shared}.", hidden, widths.shared)
        for index, expert in enumerate(experts):
            if mixture.stacked:
                for matrix, shape in (("gate_up_proj", (hidden, 2 * width)), ("down_proj", (width, hidden))):
                    stack = f"{prefix}experts.{matrix}"
                    yield Slice(f"{prefix}experts.{index}.{matrix}", shape, Kind.EXPERT, expert, stack)
            else:
                yield from _feed_forward(
                    f"{prefix}experts.{index}.", hidden, width, matrices=mixture.matrices, expert=expert
                )


def _feed_forward(
    prefix: str,
    hidden: int,
    width: int,
    *,
    matrices: tuple[str, ...] = MATRICES,
    expert: ExpertId | None = None,
) -> Iterator[Slice]:
    kind = Kind.TRUNK_MATRIX if expert is None else Kind.EXPERT
    gate, up, down = matrices
    yield Slice(f"{prefix}{gate}.weight", (width, hidden), kind, expert)
    yield Slice(f"{prefix}{up}.weight", (width, hidden), kind, expert)
    yield Slice(f"{prefix}{down}.weight", (hidden, width), kind, expert)


def decoder_keys(*, rope_theta: float, rms_norm_eps: float) -> dict[str, Key]:
    """Keys of every family; the defaults are those of its published models."""
    return {
        "hidden_size": Whole(),
        "num_hidden_layers": Whole(),
        "num_attention_heads": Whole(),
        "num_experts_per_tok": Whole(),
        "max_position_embeddings": Whole(4096),
        "vocab_size": Whole(VOCABULARY),
        "rms_norm_eps": Real(rms_norm_eps),
        "rope_theta": Real(rope_theta),
        "initializer_range": Real(0.02),
        "tie_word_embeddings": Switch(False),
    }


def decoder_config(c: Settings) -> dict[str, object]:
    """What config.json of every family says alike."""
    same = (
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_experts_per_tok",
        "max_position_embeddings",
        "initializer_range",
        "rms_norm_eps",
        "tie_word_embeddings",
    )
    return {
        **{key: c[key] for key in same},
        "hidden_act": "silu",
        "rope_parameters": {"rope_type": "default", "rope_theta": c["rope_theta"]},
        "attention_dropout": 0.0,
        "use_cache": True,
    }


def every_layer(c: Settings) -> frozenset[int]:
    return frozenset(range(c.whole("num_hidden_layers")))


def after_dense_layers(c: Settings) -> frozenset[int]:
    """All layers but the first `first_k_dense_replace`."""
    return frozenset(range(c.whole("first_k_dense_replace"), c.whole("num_hidden_layers")))


def check_layers(c: Settings, mixed: frozenset[int], *, chosen_by: str, dense_width: str) -> None:
    """Some layer has experts, all that are named exist, and the width of dense layers is known where there are any."""
    layers = every_layer(c)
    if not mixed & layers:
        raise SettingError(chosen_by, "leaves no layer with experts")
    if mixed - layers:
        raise SettingError(chosen_by, f"names layer {max(mixed)}, but there are {len(layers)} layers from 0")
    if mixed != layers and not c[dense_width]:
        raise SettingError(dense_width, "is missing: it is the width of the dense layers")


def check_gates(c: Settings, *, normalised: bool) -> None:
    """Of one expert per token, a gate divided by itself is 1 whatever the router says: it would never learn."""
    if normalised and c.whole("num_experts_per_tok") == 1:
        raise SettingError(
            "num_experts_per_tok", "is 1 and gates are normalised, so the router has no gradient"
        )
