"""Features that change what the model reads and how much of it works on a token.

The last three nobody can carry out. They are in the registry so that a wish for them gets an answer, and a roadmap can
name them: each refuses with what is missing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from pydantic import Field

from commons.charter import Charter
from commons.errors import Code, Refusal
from commons.experts.families import FAMILIES
from commons.experts.settings import LARGEST, SettingError
from commons.features.feature import Feature, Patch, replaced
from commons.learning import SEQUENCE_MIN
from commons.section import Name, Section

_CONTEXT, _PER_TOKEN = "/model/config/max_position_embeddings", "/model/config/num_experts_per_tok"


class ContextLength(Section):
    tokens: Annotated[int, Field(ge=SEQUENCE_MIN, le=LARGEST)]
    """Of the sequences that sites train on."""


class TopK(Section):
    experts: Annotated[int, Field(ge=1, le=256)]
    """That work on each token."""


class Images(Section):
    encoder: Name
    """Of the pictures, by name."""


class Distillation(Section):
    teacher: Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
    """Digest of the manifest of the model to learn from."""
    temperature: Annotated[float, Field(gt=0, le=100)] = 1.0


class OtherTokenizer(Section):
    file: Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
    """Digest of a tokenizer.json."""


def _context(charter: Charter, wish: ContextLength) -> Patch | Refusal:
    """The model's own context grows with it where it is shorter, and never shrinks."""
    patch: Patch = [replaced("/learning/sequence_length", wish.tokens)]
    try:
        keys = FAMILIES[charter.model.family].settings(charter.model.config)
    except SettingError as wrong:
        return _cannot("context-length", str(wrong))
    if wish.tokens > keys.whole("max_position_embeddings"):
        patch.append({"op": "add", "path": _CONTEXT, "value": wish.tokens})
    return patch


def _cannot(key: str, why: str) -> Refusal:
    return Refusal(Code.CHARTER_INVALID, f"feature {key} cannot be carried out: {why}")


def _never(key: str, why: str) -> Callable[[Charter, Section], Refusal]:
    return lambda _, __: _cannot(key, why)


_NO_IMAGES = (
    "no trainer here can read pictures: sites have text, and no family here has an encoder for anything else"
)
_NO_TEACHER = "no trainer here can learn from another model's outputs: its objective is the next token of the site's own text"
_NO_OTHER_TOKENS = (
    "embedding, output head and readers are of the founding's tokens, and experts learned from nothing else: with another "
    "tokenizer it is another model, so found another consortium, with a seed of its own"
)

MODEL = (
    Feature(
        "context-length",
        "Train on sequences of so many tokens; the model's context grows with it where it is shorter",
        ContextLength,
        ("/learning/sequence_length", _CONTEXT),
        _context,
        needs="texts and a probe that are longer than a sequence",
    ),
    Feature(
        "top-k",
        "Let so many experts work on each token, from the next round on",
        TopK,
        (_PER_TOKEN,),
        lambda _, wish: [{"op": "add", "path": _PER_TOKEN, "value": wish.experts}],
        needs="as many experts, and a family whose router can learn so",
    ),
    Feature(
        "image-modality",
        "Train on pictures beside text",
        Images,
        (),
        _never("image-modality", _NO_IMAGES),
        needs=_NO_IMAGES,
    ),
    Feature(
        "distillation",
        "Learn from the outputs of a released model",
        Distillation,
        (),
        _never("distillation", _NO_TEACHER),
        needs=_NO_TEACHER,
    ),
    Feature(
        "tokenizer",
        "Read text in the tokens of another tokenizer",
        OtherTokenizer,
        (),
        _never("tokenizer", _NO_OTHER_TOKENS),
        needs=_NO_OTHER_TOKENS,
    ),
)
