"""What the model reads: where prompts end, how completions end, and that a batch changes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlhf_cli.data import chat_template
from rlhf_cli.errors import ModelError, RecipeError

USER = {"role": "user", "content": "hello there"}
YES = {"role": "assistant", "content": "good day"}
TOKENIZERS = ["plain", "with_bos", "chatml", "stories"]
PAIRS = [
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
def tokenizer(request: pytest.FixtureRequest) -> Any:
    tokenizer = request.getfixturevalue(request.param)
    chat_template.prepare(tokenizer, "auto")
    return tokenizer


def test_completion_ends_with_exactly_one_end_token(tokenizer: Any) -> None:
    stops = chat_template.stop_ids(tokenizer)
    for encoded in chat_template.encode_pairs(tokenizer, PAIRS):
        assert [i in stops for i in encoded.completion_ids] == [False] * (len(encoded.completion_ids) - 1) + [True]


def test_prompt_ids_are_what_generation_continues_from(tokenizer: Any) -> None:
    prompts = chat_template.encode_prompts(tokenizer, [prompt for prompt, _ in PAIRS])
    assert [encoded.prompt_ids for encoded in chat_template.encode_pairs(tokenizer, PAIRS)] == prompts


def test_batch_equals_single_rows(tokenizer: Any) -> None:
    assert chat_template.encode_pairs(tokenizer, PAIRS) == [
        chat_template.encode_pairs(tokenizer, [pair])[0] for pair in PAIRS
    ]
    assert chat_template.encode_pairs(tokenizer, []) == []
    assert chat_template.encode_prompts(tokenizer, []) == []


def test_decode_gives_the_text_behind_the_prompt_back(tokenizer: Any) -> None:
    for (prompt, completion), encoded in zip(PAIRS, chat_template.encode_pairs(tokenizer, PAIRS), strict=True):
        text = chat_template.decode(tokenizer, encoded.completion_ids)
        if prompt == "":  # no continuation: a Llama tokenizer's own space is in its first token
            assert text.removeprefix(" ") == completion
        elif isinstance(prompt, str):
            assert text == completion
        else:
            assert text.strip() == completion[0]["content"]


def test_text_begins_with_bos_only_where_the_tokenizer_adds_it(plain: Any, with_bos: Any) -> None:
    for tokenizer, expected in ((plain, []), (with_bos, [with_bos.bos_token_id])):
        chat_template.prepare(tokenizer, "auto")
        assert chat_template.encode_prompts(tokenizer, [""]) == [expected]
        assert (
            chat_template.encode_prompts(tokenizer, ["sky"])[0]
            == expected + tokenizer("sky", add_special_tokens=False)["input_ids"]
        )
        assert chat_template.encode_prompts(tokenizer, [[USER]])[0][: len(expected)] == expected
        assert chat_template.encode_prompts(tokenizer, [[USER]])[0].count(with_bos.bos_token_id) == len(expected)


def test_end_token_that_the_tokenizer_adds_is_no_part_of_a_prompt(with_bos: Any) -> None:
    from tokenizers.processors import TemplateProcessing

    ends = [("<s>", with_bos.bos_token_id), ("</s>", with_bos.eos_token_id)]
    with_bos.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    assert with_bos("sky")["input_ids"][-1] == with_bos.eos_token_id
    assert with_bos.eos_token_id not in chat_template.encode_prompts(with_bos, ["sky"])[0]


def test_completion_is_tokenised_alone_where_joining_would_change_the_prompt(plain: Any) -> None:
    chat_template.prepare(plain, "auto")
    assert len(plain(" sky")["input_ids"]) == 1, "the tokenizer has a token of the whole word"
    encoded = chat_template.encode_pairs(plain, [(" s", "ky")])[0]
    assert encoded.prompt_ids == plain(" s")["input_ids"]
    assert encoded.completion_ids == [*plain("ky")["input_ids"], plain.eos_token_id]


def test_continuation_gets_no_space_of_its_own_from_a_llama_tokenizer(stories: Any) -> None:
    chat_template.prepare(stories, "auto")
    encoded = chat_template.encode_pairs(stories, [("Once upon a ", "time")])[0]
    whole = stories.decode(encoded.prompt_ids + encoded.completion_ids, skip_special_tokens=True)
    assert whole == "Once upon a time"


def test_text_that_brings_its_own_end_token_gets_no_second_one(plain: Any) -> None:
    chat_template.prepare(plain, "auto")
    ids = chat_template.encode_pairs(plain, [("sky", " blue</s>"), ("sky", " blue</s>\n"), ("sky", " blue")])
    assert ids[0] == ids[1] == ids[2]


def test_plain_template_is_readable_and_adds_no_tokens(plain: Any) -> None:
    before = len(plain)
    chat_template.prepare(plain, "auto")
    conversation = [{"role": "system", "content": "Be kind."}, USER, YES, USER]
    text = plain.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
    assert text == "System: Be kind.\nUser: hello there\nAssistant: good day</s>\nUser: hello there\nAssistant:"
    assert len(plain) == before


def test_completion_ends_behind_the_templates_end_of_turn(chatml: Any) -> None:
    chat_template.prepare(chatml, "auto")
    im_end = chatml.convert_tokens_to_ids("<|im_end|>")
    assert chat_template.stop_ids(chatml) == (chatml.eos_token_id, im_end)
    encoded = chat_template.encode_pairs(chatml, [([USER], [YES]), ("sky", " blue")])
    assert encoded[0].completion_ids == [*chatml("good day")["input_ids"], im_end]
    assert encoded[1].completion_ids[-1] == chatml.eos_token_id
    assert chatml.decode(encoded[0].prompt_ids) == "<|im_start|>user\nhello there<|im_end|>\n<|im_start|>assistant\n"


def test_stop_ids_without_an_end_of_turn_token(plain: Any) -> None:
    chat_template.prepare(plain, "auto")
    assert chat_template.stop_ids(plain) == (plain.eos_token_id,)


def test_thinking_that_the_template_puts_before_an_answer_is_under_the_loss(chatml: Any) -> None:
    chatml.chat_template = chatml.chat_template.replace(
        "m['content'] +", "('<think></think>' if loop.last and m['role'] == 'assistant' else '') + m['content'] +"
    )
    encoded = chat_template.encode_pairs(chatml, [([USER], [YES])])[0]
    assert encoded.prompt_ids == chat_template.encode_prompts(chatml, [[USER]])[0]
    assert chat_template.decode(chatml, encoded.completion_ids) == "<think></think>good day"


def test_template_whose_prompt_is_no_beginning_of_the_conversation_is_refused(chatml: Any) -> None:
    chatml.chat_template = chatml.chat_template.replace("assistant\n' }}", "assistant\n<think>\n' }}")
    with pytest.raises(ModelError, match="chat template"):
        chat_template.encode_pairs(chatml, [([USER], [YES])])


def test_template_that_refuses_a_conversation_says_so(chatml: Any) -> None:
    chatml.chat_template = "{{ raise_exception('no system role') if messages[0]['role'] == 'system' else 'x' }}"
    with pytest.raises(ModelError, match="no system role"):
        chat_template.encode_prompts(chatml, [[{"role": "system", "content": "Be kind."}, USER]])


def test_template_from_a_file(plain: Any, tmp_path: Path) -> None:
    file = tmp_path / "own.jinja"
    file.write_text("{% for m in messages %}[{{ m['content'] }}]{% endfor %}")
    chat_template.prepare(plain, str(file))
    assert plain.decode(chat_template.encode_prompts(plain, [[USER]])[0]) == "[hello there]"
    with pytest.raises(RecipeError, match="no such file"):
        chat_template.prepare(plain, str(tmp_path / "absent.jinja"))
    file.write_text("{% for m in messages %}")
    with pytest.raises(ModelError, match="chat template"):
        chat_template.prepare(plain, str(file))


def test_prepare_twice_changes_nothing(tokenizer: Any) -> None:
    before = (tokenizer.chat_template, tokenizer.pad_token, len(tokenizer))
    chat_template.prepare(tokenizer, "auto")
    assert (tokenizer.chat_template, tokenizer.pad_token, len(tokenizer)) == before


def test_pad_token_is_one_of_the_vocabulary_and_not_the_end_token(chatml: Any, stories: Any, plain: Any) -> None:
    size = len(chatml)
    chatml.pad_token = chatml.eos_token
    for tokenizer, expected in ((chatml, "<|vision_pad|>"), (stories, "<unk>"), (plain, "</s>")):
        chat_template.prepare(tokenizer, "auto")
        assert tokenizer.pad_token == expected
    assert len(chatml) == size


def test_tokenizer_without_end_token_is_refused(plain: Any) -> None:
    plain.eos_token = None
    with pytest.raises(ModelError, match="no end token"):
        chat_template.prepare(plain, "auto")


def test_example_shows_the_loss_and_the_special_tokens(chatml: Any, stories: Any) -> None:
    chat_template.prepare(stories, "auto")
    chat, text = (
        chat_template.encode_pairs(chatml, [([USER], [YES])]),
        chat_template.encode_pairs(stories, [("Once", " upon")]),
    )
    shown = "<|im_start|>user\nhello there<|im_end|>\n<|im_start|>assistant\n⟦good day<|im_end|>⟧"
    assert chat_template.render_with_mask(chatml, chat[0]) == shown
    assert chat_template.render_with_mask(stories, text[0]) == "<s> Once⟦ upon</s>⟧"


def test_data_cannot_steer_the_terminal(chatml: Any) -> None:
    encoded = chat_template.encode_pairs(chatml, [("a", " \x1b[2Jb")])[0]
    assert chat_template.render_with_mask(chatml, encoded) == "a⟦ \\x1b[2Jb</s>⟧"


def test_real_demonstrations_come_back_whole(stories: Any) -> None:
    file = Path(__file__).parents[3] / "shared/data/self-instruct/seed_tasks.jsonl"
    if not file.is_file():
        pytest.skip(f"{file} is absent")
    chat_template.prepare(stories, "auto")
    tasks = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    pairs = [(task["instruction"], "\n" + task["instances"][0]["output"]) for task in tasks]
    encoded = chat_template.encode_pairs(stories, pairs)
    assert len(encoded) == 175
    assert [chat_template.decode(stories, row.completion_ids) for row in encoded] == [
        completion for _, completion in pairs
    ]
