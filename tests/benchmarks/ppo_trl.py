"""Worker of the PPO benchmark: TRL 1.12.0's PPOTrainer, run by the interpreter of its own environment.

Its settings are those under which it does the same work in the best way: as many optimizer steps as ours (with
gradient_accumulation_steps it takes one in so many micro-batches, whatever the minibatches), a LoRA critic beside the
LoRA policy, the reward model merged where it can be, no samples or checkpoints on the way. It is timed from outside:
two of its functions are wrapped, and a callback marks where an iteration ends.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import bitsandbytes  # noqa: F401 - loaded with a 4-bit base; here, so that it counts as an import
import torch
import transformers
from datasets import Dataset
from peft import LoraConfig, PeftModel
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    TrainerCallback,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

from tests.benchmarks.ppo_job import LORA_ALPHA, LORA_RANK, Iteration, Job, Memory, Result, asked


class Stopwatch(TrainerCallback):
    """Notes when rollout, scoring and iteration end, and the iteration's figures."""

    def __init__(self, end_id: int) -> None:
        self.end_id = end_id
        self.began = self.rolled_out = self.scored = self.ended = 0.0
        self.tokens = 0
        self.iterations: list[Iteration] = []
        self._generate, ppo_trainer.batch_generation = ppo_trainer.batch_generation, self.generate
        self._whiten, ppo_trainer.masked_whiten = ppo_trainer.masked_whiten, self.whiten

    def generate(self, model: torch.nn.Module, queries: torch.Tensor, *rest: Any) -> Any:
        self.began = time.perf_counter()
        found = self._generate(model, queries, *rest)
        self.rolled_out = time.perf_counter()
        is_end = found[0][:, queries.shape[1] :] == self.end_id  # (B, R)
        is_behind = is_end.cumsum(1) - is_end.long() > 0
        self.tokens = int((~is_behind).sum())
        return found

    def whiten(self, *arguments: Any, **more: Any) -> Any:
        """Advantages are whitened once an iteration, as the last thing before the update."""
        found = self._whiten(*arguments, **more)
        self.scored = time.perf_counter()
        return found

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        end = time.perf_counter()
        self.iterations.append(
            Iteration(
                seconds=end - self.ended,
                rollout=self.rolled_out - self.began,
                scoring=self.scored - self.rolled_out,
                update=end - self.scored,
                tokens=self.tokens,
                reward=logs["objective/scores"],
                kl=logs["objective/kl"],
            )
        )
        self.ended = end


def models(job: Job) -> dict[str, Any]:
    """Policy, reward model and critic. The reference is TRL's own: a copy, or the policy without its adapter."""
    dtype = getattr(torch, job.dtype)
    options: dict[str, Any] = {"dtype": dtype, "device_map": "cuda" if torch.cuda.is_available() else "cpu"}
    if job.tuning == "nf4":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=dtype,
            bnb_4bit_use_double_quant=True,
        )
    base, reward = f"{job.world}/base", f"{job.world}/reward"

    def load(kind: Any, folder: str) -> PreTrainedModel:
        more = {"num_labels": 1} if kind is AutoModelForSequenceClassification else {}
        return kind.from_pretrained(folder, **options, **more)

    policy = load(AutoModelForCausalLM, base)
    scorer, critic = (
        load(AutoModelForSequenceClassification, reward if job.tuning == "full" else base) for _ in range(2)
    )
    if job.activation_checkpointing:
        policy.gradient_checkpointing_enable()
        critic.gradient_checkpointing_enable()
    if job.tuning == "full":
        return {"model": policy, "reward_model": scorer, "value_model": critic}
    judge = PeftModel.from_pretrained(scorer, reward)
    return {
        "model": policy,
        "reward_model": judge.base_model.model if job.tuning == "nf4" else judge.merge_and_unload(),
        # A plain model with the adapter's layers in it: PPOTrainer looks for the scorer's own attributes.
        "value_model": PeftModel.from_pretrained(critic, reward, is_trainable=True).base_model.model,
        "peft_config": LoraConfig(
            task_type="CAUSAL_LM", r=LORA_RANK, lora_alpha=LORA_ALPHA, target_modules="all-linear"
        ),
    }


def main() -> None:
    job, path = asked()
    memory = Memory()
    transformers.set_seed(job.seed)
    tokenizer = AutoTokenizer.from_pretrained(f"{job.world}/base", padding_side="left")
    prompts = [json.loads(line)["prompt"] for line in Path(f"{job.world}/prompts.jsonl").read_text().splitlines()]
    watch = Stopwatch(tokenizer.eos_token_id)
    trainer = PPOTrainer(
        args=PPOConfig(
            output_dir=str(path.parent / "trl"),
            per_device_train_batch_size=job.prompts // job.micro_batches,
            gradient_accumulation_steps=job.micro_batches,
            num_mini_batches=job.minibatches,
            num_ppo_epochs=job.epochs,
            total_episodes=job.prompts * job.iterations,
            local_rollout_forward_batch_size=job.trl_rollout_rows,
            response_length=job.response_tokens,
            stop_token="eos",
            temperature=1.0,
            learning_rate=job.learning_rate,
            lr_scheduler_type="constant",
            kl_coef=job.kl_coef,
            bf16=job.dtype == "bfloat16",
            gradient_checkpointing=False,  # PPOTrainer does not read it: see `models`
            num_sample_generations=0,
            save_strategy="no",
            report_to="none",
            logging_steps=1,
            seed=job.seed,
        ),
        processing_class=tokenizer,
        ref_model=None,
        train_dataset=Dataset.from_dict({"input_ids": tokenizer(prompts)["input_ids"]}),
        callbacks=[watch],
        **models(job),
    )
    trainer.train()
    peak = memory.above()
    if job.policy is not None:
        trainer.accelerator.unwrap_model(trainer.model).policy.save_pretrained(job.policy)
    Result(watch.iterations[1:], peak).write(path)


if __name__ == "__main__":
    main()
