"""The template of a Modelfile renders what the tokenizer's chat template renders."""

from __future__ import annotations

import re
from typing import Any

import jinja2
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rlhf_cli.data import chat_template
from rlhf_cli.pipeline import ollama

LOOP = "{% for m in messages %}"
CHATML = (
    LOOP + "{% if loop.first and m['role'] != 'system' %}<|im_start|>system\nYou help.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    + LOOP
    + "<start>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n{{ m['content'] }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}<start>model\n{% endif %}"
)
LLAMA_2 = (  # the system message stands inside the first user turn
    "{% if messages[0]['role'] == 'system' %}{% set system = '<<SYS>>\n' + messages[0]['content'] + '\n<</SYS>>\n\n' %}"
    "{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}"
    + LOOP
    + "{% if m['role'] == 'user' %}<s>[INST] {{ system if loop.first else '' }}{{ m['content'] }} [/INST]"
    "{% else %} {{ m['content'] }} </s>{% endif %}{% endfor %}"
)
TURNS = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Yes"},
    {"role": "user", "content": "Why"},
]


def tokenizer_with(template: str | None) -> PreTrainedTokenizerFast:
    raw = Tokenizer(models.WordLevel({"<unk>": 0, "<s>": 1, "</s>": 2}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    found = PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    found.chat_template = template
    chat_template.prepare(found, "auto")
    return found


def render_as_ollama(modelfile: str, messages: list[dict[str, str]]) -> str:
    """Render the template of a Modelfile by translating Go's template language to Jinja."""
    (template,) = re.findall(r'TEMPLATE """(.*?)"""', modelfile, re.DOTALL)
    if ".Messages" not in template:  # Ollama repeats this form for each exchange
        (prompt,) = messages
        return _go(template.partition("{{ .Response }}")[0], {"System": "", "Prompt": prompt["content"]})
    system = next((m["content"] for m in messages if m["role"] == "system"), "")
    return _go(template, {"System": system, "messages": messages})


def _go(template: str, values: dict[str, Any]) -> str:
    translated = (
        template.replace("{{ range $i, $_ := .Messages }}", "{% for m in messages %}")
        .replace("{{ $last := eq (len (slice $.Messages $i)) 1 }}", "{% set last = loop.last %}")
        .replace("{{ if not .System }}", "{% if not System %}")
        .replace("{{ if .System }}", "{% if System %}")
        .replace("{{ if not $last }}", "{% if not last %}")
        .replace("{{ if $last }}", "{% if last %}")
        .replace("{{ .Content }}", "{{ m.content }}")
    )
    translated = re.sub(r'\{\{ if eq \.Role "(\w+)" \}\}', r'{% if m.role == "\1" %}', translated)
    translated = re.sub(r"\{\{ \.(\w+) \}\}", r"{{ \1 }}", translated)
    loop = translated.partition("{% for")[2]
    translated = translated[: -len("{{ end }}")] + "{% endfor %}" if loop else translated
    translated = translated.replace("{{ end }}", "{% endif %}").replace("{{ else }}", "{% else %}")
    return jinja2.Environment(keep_trailing_newline=True).from_string(translated).render(values)


WITHOUT_SYSTEM = [TURNS[1:2], TURNS[1:]]
CASES = {
    "plain": (None, [*WITHOUT_SYSTEM, TURNS[:2], TURNS]),
    "chatml": (CHATML, [*WITHOUT_SYSTEM, TURNS[:2], TURNS]),
    "gemma": (GEMMA, WITHOUT_SYSTEM),
    "llama-2": (LLAMA_2, WITHOUT_SYSTEM[:1]),  # Ollama's older form is exact for the first exchange
}


@pytest.mark.parametrize("case", CASES)
def test_modelfile_renders_the_chat_template(case: str) -> None:
    template, conversations = CASES[case]
    tokenizer = tokenizer_with(template)
    modelfile = ollama.modelfile(tokenizer, conversational=True)
    for turns in conversations:
        expected: Any = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        assert render_as_ollama(modelfile, turns) == expected.removeprefix("<s>")


def test_modelfile_system_message_inside_the_first_turn_is_kept() -> None:
    tokenizer = tokenizer_with(LLAMA_2)
    text = ollama.modelfile(tokenizer, conversational=True)
    assert "{{ if .System }}[INST] <<SYS>>\n{{ .System }}\n<</SYS>>\n\n{{ else }}[INST] {{ end }}{{ .Prompt }}" in text


def test_modelfile_of_plain_text_passes_prompts_on() -> None:
    text = ollama.modelfile(tokenizer_with(CHATML), conversational=False)
    assert text.endswith('TEMPLATE """{{ .Prompt }}"""\n')
