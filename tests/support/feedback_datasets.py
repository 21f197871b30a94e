"""A row of each published dataset of feedback: ours, with the columns and values that the dataset documents."""

from __future__ import annotations

from typing import Any

HH = {
    "chosen": "\n\nHuman: Say hi.\n\nAssistant: Hi.\n\nHuman: Again.\n\nAssistant: Hi again.",
    "rejected": "\n\nHuman: Say hi.\n\nAssistant: Hi.\n\nHuman: Again.\n\nAssistant: No.",
}


def aspects(*ratings: str) -> dict[str, Any]:
    """Return UltraFeedback's annotations of a completion."""
    names = ("instruction_following", "honesty", "truthfulness", "helpfulness")
    return {name: {"Rating": rating, "Rationale": "…"} for name, rating in zip(names, ratings, strict=True)}


ULTRAFEEDBACK: dict[str, Any] = {
    "source": "sharegpt",
    "instruction": "What to see in Cairo?",
    "models": ["falcon-40b-instruct", "gpt-4", "starchat"],
    "correct_answers": ["None"],
    "incorrect_answers": ["None"],
    "completions": [
        {"model": "falcon-40b-instruct", "response": "Pyramids.", "annotations": aspects("2", "3", "3", "3")},
        {"model": "gpt-4", "response": "Giza, museums.", "annotations": aspects("5", "5", "5", "N/A")},
        {"model": "starchat", "response": "Nile.", "annotations": aspects("3", "2", "3", "3")},
    ],
}
HELPSTEER2 = {
    "split": "train",
    "prompt": "c#",
    "response_1": "A language.",
    "response_2": "A language by Microsoft.",
    "preference_strength": 1,
    "preference_statement": "@Response 2 is slightly better than @Response 1.",
    "preference_elaboration": "It says more.",
    "all_preferences_unprocessed": [
        {"strength": 1, "justification": "says more"},
        {"strength": -2, "justification": "short"},
        {"strength": -100, "justification": "neither"},
    ],
}
HELPSTEER3 = {
    "domain": "general",
    "language": "english",
    "context": [{"role": "user", "content": "Say hi."}],
    "response1": "Hi.",
    "response2": "No.",
    "overall_preference": -3,
    "individual_preference": [
        {"score": -3, "reasoning": "polite", "feedback1": "good", "feedback2": "bad"},
        {"score": 0, "reasoning": "same", "feedback1": "good", "feedback2": "good"},
    ],
}
PANDALM = {
    "idx": 7,
    "cmp_key": "bloom-7b_llama-7b",
    "instruction": "Say hi.",
    "input": "In French.",
    "response1": "Salut.",
    "response2": "Hi.",
    "annotator1": 1,
    "annotator2": 2,
    "annotator3": 0,
}
NECTAR = {
    "prompt": "\n\nHuman: Say hi.\n\nAssistant: ",
    "answers": [{"answer": "No.", "rank": 3.0}, {"answer": "Hi!", "rank": 1.0}, {"answer": "Hey", "rank": 2.0}],
}
ARENA = {
    "question_id": "1",
    "model_a": "m",
    "model_b": "n",
    "winner": "model_b",
    "judge": "arena_user_973",
    "language": "English",
    "conversation_a": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "A"}],
    "conversation_b": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "B"}],
}
