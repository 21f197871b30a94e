"""Text and conversations to token ids: templates, end tokens, and where a prompt ends and its completion begins.

Text is used as it stands; a conversation goes through the tokenizer's chat template, or through a plain-text one that
adds no tokens. Truncation is left to the stages.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

from rlhf_cli.data.rows import Message, Text
from rlhf_cli.errors import ModelError, RecipeError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# The space stands behind the colon, where most tokenizers take it into the answer's first token: so the prompt's ids
# are the first ids of prompt and answer.
PLAIN_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'assistant' -%}{{- 'Assistant: ' + message['content'] + eos_token + '\n' -}}"
    "{%- else -%}{{- message['role'].capitalize() + ': ' + message['content'] + '\n' -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- 'Assistant:' -}}{%- endif -%}"
)
_PROBE = "rlhfprobe"  # an answer that no template contains


class Encoded(NamedTuple):
    """One row in token ids. The completion ends with exactly one end token."""

    prompt_ids: list[int]
    completion_ids: list[int]


def prepare(tokenizer: PreTrainedTokenizerBase, chat_template: str) -> None:
    """Give the tokenizer a chat template and a pad token that is not its end token, without adding tokens.

    `chat_template`: auto (the tokenizer's own, else a plain-text one) or the path of a .jinja file. A second call
    changes nothing.
    """
    if tokenizer.eos_token_id is None:
        raise ModelError(
            "the tokenizer has no end token, so that no answer could ever end.",
            location=str(tokenizer.name_or_path),
            hint="Set eos_token in its tokenizer_config.json.",
        )
    if chat_template != "auto":
        path = Path(chat_template)
        if path.suffix != ".jinja" or not path.is_file():
            issue = "there is no such file" if path.suffix == ".jinja" else "it must be auto or a .jinja file"
            raise RecipeError(f"base.chat_template is {chat_template}: {issue}.")
        tokenizer.chat_template = path.read_text(encoding="utf-8")
    elif not tokenizer.chat_template:
        bos = "{{- bos_token -}}" if tokenizer.bos_token_id in _leading_ids(tokenizer) else ""
        tokenizer.chat_template = bos + PLAIN_TEMPLATE
    _render(tokenizer, [Message(role="user", content=_PROBE)], generate=True)  # a broken template is told here
    if tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
        tokenizer.pad_token = _spare_token(tokenizer)


def stop_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Ids that end an answer: the end token, and the one that the template writes right behind an answer."""
    eos = cast(int, tokenizer.eos_token_id)
    conversation = [Message(role="user", content="u"), Message(role="assistant", content=_PROBE)]
    behind = _render(tokenizer, conversation, generate=False).rpartition(_PROBE)[2].lstrip()
    ids = _tokenize(tokenizer, [behind])[0] if behind else []
    first = next((i for i in ids if tokenizer.decode([i]).strip()), eos)
    return (eos, first) if first != eos and _is_special(tokenizer, first) else (eos,)


def encode_prompts(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Text]) -> list[list[int]]:
    """What generation continues from."""
    leading = _leading_ids(tokenizer)
    texts = [p if isinstance(p, str) else _render(tokenizer, p, generate=True) for p in prompts]
    ids = _tokenize(tokenizer, texts)
    return [leading + i if isinstance(p, str) else i for p, i in zip(prompts, ids, strict=True)]


def encode_pairs(tokenizer: PreTrainedTokenizerBase, pairs: Sequence[tuple[Text, Text]]) -> list[Encoded]:
    """Prompts, as `encode_prompts` has them, and their completions.

    Both are tokenised as one text, because that is what the model reads. Where that would merge the prompt's end with
    the completion's beginning, the completion is tokenised alone: the prompt's ids must be what generation sees.
    """
    leading, stops = _leading_ids(tokenizer), stop_ids(tokenizer)
    prompt_ids = encode_prompts(tokenizer, [prompt for prompt, _ in pairs])
    texts = [_joint(tokenizer, prompt, completion) for prompt, completion in pairs]
    joint_ids = _tokenize(tokenizer, [prompt + completion for prompt, completion in texts])
    encoded = []
    for (prompt, _), start, joint, (_, completion_text) in zip(pairs, prompt_ids, joint_ids, texts, strict=True):
        whole = leading + joint if isinstance(prompt, str) else joint
        joined = whole[: len(start)] == start
        completion = whole[len(start) :] if joined else _continuation(tokenizer, completion_text)
        encoded.append(Encoded(start, _end_once(tokenizer, completion, stops)))
    return encoded


def decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """A response's text, end token and other special tokens removed, so that prompt + text is the whole text.

    A space that the response begins with is kept: strip it where the response becomes a message.
    """
    anchor = _anchor(tokenizer)
    text = _decode(tokenizer, [*anchor, *ids], skip_special=True)
    return text[len(_decode(tokenizer, anchor, skip_special=True)) :]


def render_with_mask(tokenizer: PreTrainedTokenizerBase, encoded: Encoded) -> str:
    """One example for the eye: special tokens by name, what is under the loss in ⟦…⟧.

    A prompt alone has no such part.
    """
    anchor = _anchor(tokenizer)
    cut = len(_decode(tokenizer, anchor, skip_special=False))
    prompt, completion = (
        _printable(_decode(tokenizer, [*anchor, *ids], skip_special=False)[cut:])
        for ids in (encoded.prompt_ids, encoded.completion_ids)
    )
    if not encoded.completion_ids:
        return prompt
    return f"{prompt}⟦{completion}⟧"


def _joint(tokenizer: PreTrainedTokenizerBase, prompt: Text, completion: Text) -> tuple[str, str]:
    """A pair as two texts whose sum is what the model reads."""
    if isinstance(prompt, str) and isinstance(completion, str):
        return prompt, completion
    assert not isinstance(prompt, str), "rows hold text or conversations, never both"
    assert not isinstance(completion, str), "rows hold text or conversations, never both"
    start = _render(tokenizer, prompt, generate=True)
    whole = _render(tokenizer, [*prompt, *completion], generate=False)
    if not whole.startswith(start):
        raise ModelError(
            f"the chat template is not additive: what it asks an answer behind (…{start[-60:]!r}) is not how it writes "
            f"the conversation with that answer (…{whole[-60:]!r}), so that training and generation would differ.",
            location=str(tokenizer.name_or_path),
            hint="Set base.chat_template to a .jinja file in which they agree.",
        )
    return start, whole[len(start) :]


def _render(tokenizer: PreTrainedTokenizerBase, messages: list[Message], *, generate: bool) -> str:
    try:
        # The rendering is transformers' own, which runs in jinja's sandbox.
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generate))
    except Exception as error:  # a template is a program, and may raise anything
        raise ModelError(
            f"the chat template does not take this conversation "
            f"({', '.join(message['role'] for message in messages)}): {str(error).rstrip('.')}.",
            location=str(tokenizer.name_or_path),
            hint="Set base.chat_template to a .jinja file that does, or change the data.",
        ) from error


def _tokenize(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Each text's ids, in one call, without special tokens of the tokenizer's own accord."""
    if not texts:
        return []
    encoded = tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)
    return cast(list[list[int]], encoded["input_ids"])


def _leading_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The special tokens that the tokenizer puts before a text: [bos], or none. An end token is no part of a prompt."""
    ids: list[int] = list(tokenizer("")["input_ids"])
    if ids and ids[-1] == tokenizer.eos_token_id and ids != [tokenizer.bos_token_id]:
        ids.pop()
    return ids


def _anchor(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids to put before a continuation where the tokenizer, as Llama's, adds a space to the beginning of each text
    and takes it off again; else none."""
    ids = _tokenize(tokenizer, ["x"])[0]
    return ids if ids and tokenizer.convert_ids_to_tokens(ids)[0].startswith("▁") else []


def _continuation(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The ids of a text that goes on from another one."""
    if _anchor(tokenizer):  # behind a line break, no space is added
        line_break, both = _tokenize(tokenizer, ["\n", "\n" + text])
        if both[: len(line_break)] == line_break:
            return both[len(line_break) :]
    return _tokenize(tokenizer, [text])[0]


def _end_once(tokenizer: PreTrainedTokenizerBase, completion: list[int], stops: Sequence[int]) -> list[int]:
    """The completion with one end token: the first of those it ends with, white space between them aside, or eos."""
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
    """Whether `decode` takes it out of a response."""
    added = tokenizer.added_tokens_decoder.get(token_id)
    return token_id in tokenizer.all_special_ids or (added is not None and added.special)


def _spare_token(tokenizer: PreTrainedTokenizerBase) -> str:
    """A token of the vocabulary to pad with, other than eos: training must not take an answer's end for padding."""
    special = [str(token) for _, token in sorted(tokenizer.added_tokens_decoder.items()) if token.special]
    spare = [name for part in ("pad", "reserved", "unused") for name in special if part in name.lower()]
    spare += [tokenizer.unk_token] if tokenizer.unk_token else []
    return next((name for name in spare if name != tokenizer.eos_token), cast(str, tokenizer.eos_token))


def _printable(text: str) -> str:
    """Data must not steer the terminal that shows it."""
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)
