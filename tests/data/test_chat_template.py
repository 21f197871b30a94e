"""Chat templates and token ids: where prompts end, how completions end, and that batches change nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from rlhf_cli.data import chat_template
from rlhf_cli.data.rows import Message, Text
from rlhf_cli.errors import Issue, ModelError, RecipeError
from tests.support.issues import raises_issue
from tests.support.shared_data import require_shared

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

USER: Message = {"role": "user", "content": "hello there"}
YES: Message = {"role": "assistant", "content": "good day"}
TOKENIZERS = ["plain", "with_bos", "chatml", "stories"]
PAIRS: list[tuple[Text, Text]] = [
    ("What is the sky?", " The sky is blue."),
    ("What is the sky? ", "blue"),
    ("", "The sky is blue."),
    ("Yes\n\n", "\nno\n"),
    ([USER], [YES]),
    (
        [{"role": "system", "content": "Be kind."}, USER, YES, USER],
        [{"role": "assistant", "content": "Yes, of course!"}],
    ),
]


@pytest.fixture(params=TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    """Return each tokenizer in turn, prepared."""
    tokenizer: Tokenizer = request.getfixturevalue(request.param)
    chat_template.prepare(tokenizer, "auto")
    return tokenizer


def test_encode_pairs_completion_ends_with_one_end_token(tokenizer: Tokenizer) -> None:
    stops = chat_template.stop_ids(tokenizer)
    for encoded in chat_template.encode_pairs(tokenizer, PAIRS):
        assert [i in stops for i in encoded.completion_ids] == [False] * (len(encoded.completion_ids) - 1) + [True]


def test_encode_pairs_prompt_ids_equal_those_of_encode_prompts(tokenizer: Tokenizer) -> None:
    prompts = chat_template.encode_prompts(tokenizer, [prompt for prompt, _ in PAIRS])
    assert [encoded.prompt_ids for encoded in chat_template.encode_pairs(tokenizer, PAIRS)] == prompts


def test_encode_batch_equals_single_rows(tokenizer: Tokenizer) -> None:
    assert chat_template.encode_pairs(tokenizer, PAIRS) == [
        chat_template.encode_pairs(tokenizer, [pair])[0] for pair in PAIRS
    ]
    assert chat_template.encode_pairs(tokenizer, []) == []
    assert chat_template.encode_prompts(tokenizer, []) == []


def test_decode_completion_returns_its_text(tokenizer: Tokenizer) -> None:
    for (prompt, completion), encoded in zip(PAIRS, chat_template.encode_pairs(tokenizer, PAIRS), strict=True):
        text = chat_template.decode(tokenizer, encoded.completion_ids)
        if prompt == "":  # no continuation: a Llama tokenizer's own space is in its first token
            assert text.removeprefix(" ") == completion
        elif isinstance(completion, str):
            assert text == completion
        else:
            assert text.strip() == completion[0]["content"]


def test_encode_prompts_text_starts_with_bos_if_tokenizer_adds_it(plain: Tokenizer, with_bos: Tokenizer) -> None:
    for tokenizer, expected in ((plain, []), (with_bos, [with_bos.bos_token_id])):
        chat_template.prepare(tokenizer, "auto")
        assert chat_template.encode_prompts(tokenizer, [""]) == [expected]
        assert (
            chat_template.encode_prompts(tokenizer, ["sky"])[0]
            == expected + tokenizer("sky", add_special_tokens=False)["input_ids"]
        )
        assert chat_template.encode_prompts(tokenizer, [[USER]])[0][: len(expected)] == expected
        assert chat_template.encode_prompts(tokenizer, [[USER]])[0].count(with_bos.bos_token_id) == len(expected)


def test_encode_prompts_end_token_added_by_tokenizer_is_removed(with_bos: Tokenizer) -> None:
    from tokenizers.processors import TemplateProcessing

    ends = [("<s>", with_bos.bos_token_id), ("</s>", with_bos.eos_token_id)]
    with_bos.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    assert with_bos("sky")["input_ids"][-1] == with_bos.eos_token_id
    assert with_bos.eos_token_id not in chat_template.encode_prompts(with_bos, ["sky"])[0]


def test_encode_pairs_joint_tokens_changing_prompt_are_tokenized_separately(plain: Tokenizer) -> None:
    chat_template.prepare(plain, "auto")
    assert len(plain(" sky")["input_ids"]) == 1, "the tokenizer has a token of the whole word"
    encoded = chat_template.encode_pairs(plain, [(" s", "ky")])[0]
    assert encoded.prompt_ids == plain(" s")["input_ids"]
    assert encoded.completion_ids == [*plain("ky")["input_ids"], plain.eos_token_id]


def test_encode_pairs_llama_tokenizer_adds_no_space_to_continuation(stories: Tokenizer) -> None:
    chat_template.prepare(stories, "auto")
    encoded = chat_template.encode_pairs(stories, [("Once upon a ", "time")])[0]
    whole = stories.decode(encoded.prompt_ids + encoded.completion_ids, skip_special_tokens=True)
    assert whole == "Once upon a time"


def test_encode_pairs_text_with_end_token_gets_no_second_one(plain: Tokenizer) -> None:
    chat_template.prepare(plain, "auto")
    ids = chat_template.encode_pairs(plain, [("sky", " blue</s>"), ("sky", " blue</s>\n"), ("sky", " blue")])
    assert ids[0] == ids[1] == ids[2]


def test_prepare_tokenizer_without_template_gets_plain_one_without_new_tokens(plain: Tokenizer) -> None:
    before = len(plain)
    chat_template.prepare(plain, "auto")
    conversation = [{"role": "system", "content": "Be kind."}, USER, YES, USER]
    text = plain.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
    assert text == "System: Be kind.\nUser: hello there\nAssistant: good day</s>\nUser: hello there\nAssistant:"
    assert len(plain) == before


def test_encode_pairs_template_with_end_of_turn_ends_completion_there(chatml: Tokenizer) -> None:
    chat_template.prepare(chatml, "auto")
    im_end = chatml.convert_tokens_to_ids("<|im_end|>")
    assert chat_template.stop_ids(chatml) == (chatml.eos_token_id, im_end)
    encoded = chat_template.encode_pairs(chatml, [([USER], [YES]), ("sky", " blue")])
    assert encoded[0].completion_ids == [*chatml("good day")["input_ids"], im_end]
    assert encoded[1].completion_ids[-1] == chatml.eos_token_id
    assert chatml.decode(encoded[0].prompt_ids) == "<|im_start|>user\nhello there<|im_end|>\n<|im_start|>assistant\n"


def test_stop_ids_template_without_end_of_turn_returns_end_token(plain: Tokenizer) -> None:
    chat_template.prepare(plain, "auto")
    assert chat_template.stop_ids(plain) == (plain.eos_token_id,)


def test_encode_pairs_text_inserted_by_template_is_part_of_completion(chatml: Tokenizer) -> None:
    chatml.chat_template = chatml.chat_template.replace(
        "m['content'] +", "('<think></think>' if loop.last and m['role'] == 'assistant' else '') + m['content'] +"
    )
    encoded = chat_template.encode_pairs(chatml, [([USER], [YES])])[0]
    assert encoded.prompt_ids == chat_template.encode_prompts(chatml, [[USER]])[0]
    assert chat_template.decode(chatml, encoded.completion_ids) == "<think></think>good day"


def test_encode_pairs_inconsistent_template_raises(chatml: Tokenizer) -> None:
    chatml.chat_template = chatml.chat_template.replace("assistant\n' }}", "assistant\n<think>\n' }}")
    with raises_issue("model.inconsistent-chat-template", error=ModelError) as issues:
        chat_template.encode_pairs(chatml, [([USER], [YES])])
    assert issues[0].message == (
        "chat template: the rendered conversation does not start with the generation prompt; found "
        "…'lo there<|im_end|>\\n<|im_start|>assistant\\ngood day<|im_end|>\\n', expected it to contain "
        "…'t|>user\\nhello there<|im_end|>\\n<|im_start|>assistant\\n<think>\\n'. Training and generation would differ."
    )


def test_encode_prompts_failing_template_raises_with_its_message(chatml: Tokenizer) -> None:
    chatml.chat_template = "{{ raise_exception('no system role') if messages[0]['role'] == 'system' else 'x' }}"
    with raises_issue("model.chat-template-failed", error=ModelError) as issues:
        chat_template.encode_prompts(chatml, [[{"role": "system", "content": "Be kind."}, USER]])
    assert issues[0].message == (
        "chat template: cannot render a conversation with the roles system, user: TemplateError: no system role."
    )


def test_prepare_template_file_is_used(plain: Tokenizer, tmp_path: Path) -> None:
    file = tmp_path / "own.jinja"
    file.write_text("{% for m in messages %}[{{ m['content'] }}]{% endfor %}")
    chat_template.prepare(plain, str(file))
    assert plain.decode(chat_template.encode_prompts(plain, [[USER]])[0]) == "[hello there]"


def test_prepare_invalid_template_file_raises(plain: Tokenizer, tmp_path: Path) -> None:
    file = tmp_path / "own.jinja"
    file.write_text("{% for m in messages %}")
    with raises_issue("model.chat-template-failed", error=ModelError):
        chat_template.prepare(plain, str(file))


@pytest.mark.parametrize(
    ("name", "code", "message"),
    [
        ("absent.jinja", "recipe.path-not-found", "file not found: absent.jinja."),
        ("template.txt", "recipe.invalid-value", "found template.txt, expected auto or a .jinja file."),
    ],
)
def test_prepare_path_that_is_not_a_template_raises(plain: Tokenizer, name: str, code: str, message: str) -> None:
    with pytest.raises(RecipeError) as raised:
        chat_template.prepare(plain, name)
    assert raised.value.issues == (Issue(code, message, "base.chat_template"),)


def test_prepare_twice_changes_nothing(tokenizer: Tokenizer) -> None:
    before = (tokenizer.chat_template, tokenizer.pad_token, len(tokenizer))
    chat_template.prepare(tokenizer, "auto")
    assert (tokenizer.chat_template, tokenizer.pad_token, len(tokenizer)) == before


def test_prepare_pad_token_is_in_vocabulary_and_not_end_token(
    chatml: Tokenizer, stories: Tokenizer, plain: Tokenizer
) -> None:
    size = len(chatml)
    chatml.pad_token = chatml.eos_token
    for tokenizer, expected in ((chatml, "<|vision_pad|>"), (stories, "<unk>"), (plain, "</s>")):
        chat_template.prepare(tokenizer, "auto")
        assert tokenizer.pad_token == expected
    assert len(chatml) == size


def test_prepare_tokenizer_without_end_token_raises(plain: Tokenizer) -> None:
    plain.eos_token = None
    with raises_issue("model.no-end-token", error=ModelError) as issues:
        chat_template.prepare(plain, "auto")
    assert issues[0].message == "tokenizer: no end token; completions would never end."


def test_render_with_mask_shows_loss_and_special_tokens(chatml: Tokenizer, stories: Tokenizer) -> None:
    chat_template.prepare(stories, "auto")
    chat, text = (
        chat_template.encode_pairs(chatml, [([USER], [YES])]),
        chat_template.encode_pairs(stories, [("Once", " upon")]),
    )
    shown = "<|im_start|>user\nhello there<|im_end|>\n<|im_start|>assistant\n⟦good day<|im_end|>⟧"
    assert chat_template.render_with_mask(chatml, chat[0]) == shown
    assert chat_template.render_with_mask(stories, text[0]) == "<s> Once⟦ upon</s>⟧"


def test_render_with_mask_escapes_control_characters(chatml: Tokenizer) -> None:
    encoded = chat_template.encode_pairs(chatml, [("a", " \x1b[2Jb")])[0]
    assert chat_template.render_with_mask(chatml, encoded) == "a⟦ \\x1b[2Jb</s>⟧"


def test_decode_real_demonstrations_returns_them_unchanged(stories: Tokenizer) -> None:
    file = require_shared("data", "self-instruct", "seed_tasks.jsonl")
    chat_template.prepare(stories, "auto")
    tasks = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    pairs = [(task["instruction"], "\n" + task["instances"][0]["output"]) for task in tasks]
    encoded = chat_template.encode_pairs(stories, pairs)
    assert len(encoded) == 175
    assert [chat_template.decode(stories, row.completion_ids) for row in encoded] == [
        completion for _, completion in pairs
    ]
