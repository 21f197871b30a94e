"""Write Ollama's Modelfile: the weights, the stop tokens, and the chat template in Ollama's template language.

Ollama does not read Jinja. The template is taken apart by rendering conversations with probes in place of the messages,
and put together as a loop over messages; if that does not render the same text, as Ollama's older form of one exchange.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from rlhf_cli.data import chat_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SYSTEM, PROMPT, COMPLETION, FOLLOW_UP = "rlhfsystem", "rlhfquestion", "rlhfanswer", "rlhffollowup"  # in no template
PLAIN = "{{ .Prompt }}"


class TurnTexts(NamedTuple):
    """The texts around the messages of a conversation.

    Attributes:
        without_system: At the start of a conversation that has no system message, such as a default system message.
        system: Before and after a system message, or None if the template takes none.
        user: Before a user message.
        assistant: Before and after an assistant message.
        generation: After the last user message, before a completion.
    """

    without_system: str
    system: tuple[str, str] | None
    user: str
    assistant: tuple[str, str]
    generation: str


def modelfile(tokenizer: PreTrainedTokenizerBase, *, conversational: bool) -> str:
    """Return a Modelfile for `ollama create`.

    Args:
        tokenizer: The exported tokenizer.
        conversational: Whether the model was trained on conversations; if not, prompts are passed on unchanged.
    """
    lines = ["FROM ."]
    lines += [f'PARAMETER stop "{tokenizer.decode([i])}"' for i in chat_template.stop_ids(tokenizer)]
    template = _template(tokenizer) if conversational else PLAIN
    return "\n".join([*lines, f'TEMPLATE """{template}"""', ""])


def _template(tokenizer: PreTrainedTokenizerBase) -> str:
    texts = _take_apart(tokenizer)
    if texts is not None and all(_put_together(texts, probe) == _render(tokenizer, probe) for probe in _probes(texts)):
        return _message_loop(texts)
    return _single_exchange(tokenizer)


def _message_loop(texts: TurnTexts) -> str:
    """Return a template that loops over messages. A last assistant message is continued."""
    system = ""
    if texts.system is not None:
        before, after = texts.system
        system = f'{{{{ if eq .Role "system" }}}}{before}{{{{ .Content }}}}{after}{{{{ end }}}}'
    before, after = texts.assistant
    start = f"{{{{ if not .System }}}}{texts.without_system}{{{{ end }}}}" if texts.without_system else ""
    return (
        f"{start}{{{{ range $i, $_ := .Messages }}}}{{{{ $last := eq (len (slice $.Messages $i)) 1 }}}}{system}"
        f'{{{{ if eq .Role "user" }}}}{texts.user}{{{{ .Content }}}}{{{{ if $last }}}}{texts.generation}{{{{ end }}}}'
        f'{{{{ end }}}}{{{{ if eq .Role "assistant" }}}}{before}{{{{ .Content }}}}'
        f"{{{{ if not $last }}}}{after}{{{{ end }}}}{{{{ end }}}}{{{{ end }}}}"
    )


def _single_exchange(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a template of one exchange, which Ollama repeats."""
    user, system = _message("user", PROMPT), _message("system", SYSTEM)
    before, _, between = _render(tokenizer, [user]).partition(PROMPT)
    whole = _render(tokenizer, [user, _message("assistant", COMPLETION)], generate=False)
    after = whole.rpartition(COMPLETION)[2]
    if _takes_system(tokenizer):
        start, _, rest = _render(tokenizer, [system, user]).partition(SYSTEM)
        after_system = rest.partition(PROMPT)[0]
        before = f"{{{{ if .System }}}}{start}{{{{ .System }}}}{after_system}{{{{ else }}}}{before}{{{{ end }}}}"
    return f"{before}{{{{ .Prompt }}}}{between}{{{{ .Response }}}}{after}"


def _take_apart(tokenizer: PreTrainedTokenizerBase) -> TurnTexts | None:
    """Return the texts around messages, or None if the turns of a conversation do not look alike."""
    user, answer, second = _message("user", PROMPT), _message("assistant", COMPLETION), _message("user", FOLLOW_UP)
    try:
        conversation = _render(tokenizer, [user, answer, second])
    except Exception:  # a template is a program and may raise anything
        return None
    start, _, rest = conversation.partition(PROMPT)
    before_answer, _, rest = rest.partition(COMPLETION)
    between, _, generation = rest.partition(FOLLOW_UP)
    after_answer = _render(tokenizer, [user, answer], generate=False).rpartition(COMPLETION)[2]
    if not between.startswith(after_answer):
        return None
    before_user = between.removeprefix(after_answer)
    if not start.endswith(before_user):
        return None
    system = None
    if _takes_system(tokenizer):
        before_system, _, rest = _render(tokenizer, [_message("system", SYSTEM), user]).partition(SYSTEM)
        after_system = rest.partition(PROMPT)[0]
        if not after_system.endswith(before_user):
            return None
        system = (before_system, after_system.removesuffix(before_user))
    return TurnTexts(start.removesuffix(before_user), system, before_user, (before_answer, after_answer), generation)


def _probes(texts: TurnTexts) -> list[list[dict[str, str]]]:
    """Return conversations that end with a user message."""
    exchange = [_message("user", PROMPT), _message("assistant", COMPLETION)]
    found = [exchange[:1], [*exchange, _message("user", FOLLOW_UP)]]
    return found if texts.system is None else [*found, *([_message("system", SYSTEM), *probe] for probe in found)]


def _put_together(texts: TurnTexts, messages: list[dict[str, str]]) -> str:
    """Return what the message loop renders."""
    around = {"system": texts.system or ("", ""), "user": (texts.user, ""), "assistant": texts.assistant}
    start = "" if messages[0]["role"] == "system" else texts.without_system
    turns = [around[m["role"]][0] + m["content"] + around[m["role"]][1] for m in messages]
    return start + "".join(turns) + texts.generation


def _takes_system(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether the chat template renders a system message."""
    try:
        return SYSTEM in _render(tokenizer, [_message("system", SYSTEM), _message("user", PROMPT)])
    except Exception:  # a template is a program and may raise anything
        return False


def _render(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], *, generate: bool = True) -> str:
    """Return a conversation as text without the first BOS token, which Ollama adds."""
    text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generate)
    return text.removeprefix(tokenizer.bos_token or "")


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}
