"""Turn text and conversations into token ids: chat templates, end tokens, and where prompts end and completions begin.

Text is used verbatim. A conversation is rendered with the tokenizer's chat template, or with a plain-text one that adds
no tokens. Truncation is left to `tokenization`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

from rlhf_cli.data.rows import Message, Text
from rlhf_cli.errors import ModelError, RecipeError
from rlhf_cli.formatting import escape_control, format_exception

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# The generation prompt ends without a space: most tokenizers put it into the first token of the completion, so that the
# ids of the prompt are the first ids of prompt + completion.
PLAIN_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'assistant' -%}{{- 'Assistant: ' + message['content'] + eos_token + '\n' -}}"
    "{%- else -%}{{- message['role'].capitalize() + ': ' + message['content'] + '\n' -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- 'Assistant:' -}}{%- endif -%}"
)
_PROBE = "rlhfprobe"  # a completion that no template contains
_SHOWN_CHARACTERS = 60  # of each text in a message


class Encoded(NamedTuple):
    """One row in token ids. The completion ends with exactly one end token."""

    prompt_ids: list[int]
    completion_ids: list[int]


def prepare(tokenizer: PreTrainedTokenizerBase, chat_template: str) -> None:
    """Set the tokenizer's chat template, and a pad token other than its end token, without adding tokens.

    Calling it again changes nothing.

    Args:
        tokenizer: The tokenizer.
        chat_template: `auto` (the tokenizer's own template, else a plain-text one), or the path of a .jinja file.

    Raises:
        ModelError: The tokenizer has no end token, or the template cannot be rendered.
        RecipeError: The file of the template does not exist or is not a .jinja file.
    """
    if tokenizer.eos_token_id is None:
        raise ModelError(
            "model.no-end-token",
            "tokenizer: no end token; completions would never end.",
            location=str(tokenizer.name_or_path),
            hint="Set eos_token in its tokenizer_config.json.",
        )
    if chat_template != "auto":
        tokenizer.chat_template = _read_template(Path(chat_template))
    elif not tokenizer.chat_template:
        bos = "{{- bos_token -}}" if tokenizer.bos_token_id in _leading_ids(tokenizer) else ""
        tokenizer.chat_template = bos + PLAIN_TEMPLATE
    _render(tokenizer, [Message(role="user", content=_PROBE)], generate=True)  # fail now if the template is invalid
    if tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
        tokenizer.pad_token = _spare_token(tokenizer)


def _read_template(path: Path) -> str:
    location = "base.chat_template"
    if path.suffix != ".jinja":
        message = f"found {path}, expected auto or a .jinja file."
        raise RecipeError("recipe.invalid-value", message, location=location)
    if not path.is_file():
        raise RecipeError("recipe.path-not-found", f"file not found: {path}.", location=location)
    return path.read_text(encoding="utf-8")


def stop_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Return the ids that end a completion: the end token, and the one that the template writes after a completion."""
    eos = cast(int, tokenizer.eos_token_id)
    conversation = [Message(role="user", content="u"), Message(role="assistant", content=_PROBE)]
    suffix = _render(tokenizer, conversation, generate=False).rpartition(_PROBE)[2].lstrip()
    ids = _tokenize(tokenizer, [suffix])[0] if suffix else []
    first = next((i for i in ids if tokenizer.decode([i]).strip()), eos)
    return (eos, first) if first != eos and _is_special(tokenizer, first) else (eos,)


def encode_prompts(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Text]) -> list[list[int]]:
    """Return the ids from which generation continues."""
    leading = _leading_ids(tokenizer)
    texts = [p if isinstance(p, str) else _render(tokenizer, p, generate=True) for p in prompts]
    ids = _tokenize(tokenizer, texts)
    return [leading + i if isinstance(p, str) else i for p, i in zip(prompts, ids, strict=True)]


def encode_pairs(tokenizer: PreTrainedTokenizerBase, pairs: Sequence[tuple[Text, Text]]) -> list[Encoded]:
    """Return pairs of a prompt and a completion as ids; the prompts as `encode_prompts` returns them.

    Both are tokenized as one text, because that is what the model reads. If that would merge the prompt's end with the
    completion's beginning, the completion is tokenized separately, so that the prompt's ids are those of generation.
    """
    leading = _leading_ids(tokenizer)
    stops = stop_ids(tokenizer)
    prompt_ids = encode_prompts(tokenizer, [prompt for prompt, _ in pairs])
    texts = [_pair_texts(tokenizer, prompt, completion) for prompt, completion in pairs]
    joint_ids = _tokenize(tokenizer, [prompt + completion for prompt, completion in texts])
    encoded = []
    for (prompt, _), start, joint, (_, completion_text) in zip(pairs, prompt_ids, joint_ids, texts, strict=True):
        whole = leading + joint if isinstance(prompt, str) else joint
        if whole[: len(start)] == start:
            completion = whole[len(start) :]
        else:
            completion = _continuation_ids(tokenizer, completion_text)
        encoded.append(Encoded(start, _end_once(tokenizer, completion, stops)))
    return encoded


def decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """Return a completion's text without special tokens, so that prompt + text is the whole text.

    A leading space is kept: strip it if the text becomes a message.
    """
    anchor = _anchor_ids(tokenizer)
    text = _decode(tokenizer, [*anchor, *ids], skip_special=True)
    return text[len(_decode(tokenizer, anchor, skip_special=True)) :]


def render_with_mask(tokenizer: PreTrainedTokenizerBase, encoded: Encoded) -> str:
    """Return one row as readable text, with special tokens and with the part under the loss in ⟦…⟧."""
    anchor = _anchor_ids(tokenizer)
    anchor_length = len(_decode(tokenizer, anchor, skip_special=False))
    prompt, completion = (
        escape_control(_decode(tokenizer, [*anchor, *ids], skip_special=False)[anchor_length:])
        for ids in (encoded.prompt_ids, encoded.completion_ids)
    )
    return f"{prompt}⟦{completion}⟧" if encoded.completion_ids else prompt


def _pair_texts(tokenizer: PreTrainedTokenizerBase, prompt: Text, completion: Text) -> tuple[str, str]:
    """Return a pair as two texts that, joined, are what the model reads."""
    if isinstance(prompt, str) and isinstance(completion, str):
        return prompt, completion
    assert not isinstance(prompt, str), "a row is either text or conversations"
    assert not isinstance(completion, str), "a row is either text or conversations"
    start = _render(tokenizer, prompt, generate=True)
    whole = _render(tokenizer, [*prompt, *completion], generate=False)
    if not whole.startswith(start):
        raise ModelError(
            "model.inconsistent-chat-template",
            f"chat template: the rendered conversation does not start with the generation prompt; found "
            f"…{whole[-_SHOWN_CHARACTERS:]!r}, expected it to contain …{start[-_SHOWN_CHARACTERS:]!r}. Training and "
            "generation would differ.",
            location=str(tokenizer.name_or_path),
            hint="Set base.chat_template to a .jinja file that renders both the same way.",
        )
    return start, whole[len(start) :]


def _render(tokenizer: PreTrainedTokenizerBase, messages: list[Message], *, generate: bool) -> str:
    """Return a conversation as text; with `generate`, followed by the beginning of an assistant turn."""
    try:
        # transformers renders in jinja's sandbox, so a template cannot run code
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generate))
    except Exception as error:  # a template is a program and may raise anything
        roles = ", ".join(message["role"] for message in messages)
        raise ModelError(
            "model.chat-template-failed",
            f"chat template: cannot render a conversation with the roles {roles}: "
            f"{format_exception(error).rstrip('.')}.",
            location=str(tokenizer.name_or_path),
            hint="Set base.chat_template to a .jinja file that can render it, or change the data.",
        ) from error


def _tokenize(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Return the ids of each text, without special tokens that the tokenizer would add."""
    if not texts:
        return []
    encoded = tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)
    return cast(list[list[int]], encoded["input_ids"])


def _leading_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the special tokens that the tokenizer puts before a text: [bos] or none. A final end token is removed."""
    ids: list[int] = list(tokenizer("")["input_ids"])
    if ids and ids[-1] == tokenizer.eos_token_id and ids != [tokenizer.bos_token_id]:
        ids.pop()
    return ids


def _anchor_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return ids to put before a continuation, or [] if the tokenizer needs none.

    Tokenizers such as Llama's add a space at the start of each text, and remove it when they decode.
    """
    ids = _tokenize(tokenizer, ["x"])[0]
    return ids if ids and tokenizer.convert_ids_to_tokens(ids)[0].startswith("▁") else []


def _continuation_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the ids of a text that continues another one."""
    if _anchor_ids(tokenizer):  # after a line break, the tokenizer adds no space
        line_break, both = _tokenize(tokenizer, ["\n", "\n" + text])
        if both[: len(line_break)] == line_break:
            return both[len(line_break) :]
    return _tokenize(tokenizer, [text])[0]


def _end_once(tokenizer: PreTrainedTokenizerBase, completion: list[int], stops: Sequence[int]) -> list[int]:
    """Return the completion with one end token: the first of the end tokens at its end, or eos if it has none.

    White space between end tokens is ignored.
    """
    end = len(completion)
    for index in range(len(completion) - 1, -1, -1):
        if completion[index] in stops:
            end = index
        elif tokenizer.decode([completion[index]]).strip():
            break
    return completion[: end + 1] if end < len(completion) else [*completion, stops[0]]


def _decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], *, skip_special: bool) -> str:
    text = tokenizer.decode(list(ids), skip_special_tokens=skip_special, clean_up_tokenization_spaces=False)
    return cast(str, text)


def _is_special(tokenizer: PreTrainedTokenizerBase, token_id: int) -> bool:
    """Return whether `decode` removes the token from a completion."""
    added = tokenizer.added_tokens_decoder.get(token_id)
    return token_id in tokenizer.all_special_ids or (added is not None and added.special)


def _spare_token(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a token of the vocabulary to pad with; not eos if possible, so that training keeps a completion's end."""
    special = [str(token) for _, token in sorted(tokenizer.added_tokens_decoder.items()) if token.special]
    spare = [name for part in ("pad", "reserved", "unused") for name in special if part in name.lower()]
    if tokenizer.unk_token:
        spare.append(tokenizer.unk_token)
    return next((name for name in spare if name != tokenizer.eos_token), cast(str, tokenizer.eos_token))
