"""Worker of the PPO benchmark: TRL 1.12.0's PPOTrainer, run by the interpreter of its own environment.

Its settings make it do the same work in the fastest way: as many optimizer steps as ours (with
gradient_accumulation_steps it takes one step per that number of micro-batches, whatever the minibatches), a LoRA
critic beside the LoRA policy, the reward model merged if possible, no samples and no checkpoints during training. It is
timed from outside: two of its functions are wrapped, and a callback marks the end of an iteration.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import bitsandbytes  # noqa: F401 - loaded with a 4-bit base model; imported here to count as an import
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

from tests.benchmarks.ppo_job import LORA_ALPHA, LORA_RANK, Iteration, Job, MemoryMeter, Result, read_arguments


class IterationTimer(TrainerCallback):
    """Records the end of each rollout, scoring and iteration, and the iteration's metrics."""

    def __init__(self, end_id: int) -> None:
        self.end_id = end_id
        self.rollout_start = self.rollout_end = self.scoring_end = self.iteration_end = 0.0
        self.tokens = 0
        self.iterations: list[Iteration] = []
        self._generate, ppo_trainer.batch_generation = ppo_trainer.batch_generation, self.generate
        self._whiten, ppo_trainer.masked_whiten = ppo_trainer.masked_whiten, self.whiten

    def generate(self, model: torch.nn.Module, queries: torch.Tensor, *rest: Any) -> Any:
        """Generate and time a rollout, and count its tokens."""
        self.rollout_start = time.perf_counter()
        output = self._generate(model, queries, *rest)
        self.rollout_end = time.perf_counter()
        is_end = output[0][:, queries.shape[1] :] == self.end_id  # (B, R)
        is_after_end = is_end.cumsum(1) - is_end.long() > 0
        self.tokens = int((~is_after_end).sum())
        return output

    def whiten(self, *arguments: Any, **options: Any) -> Any:
        """Whiten the advantages, which happens once per iteration, just before the update."""
        output = self._whiten(*arguments, **options)
        self.scoring_end = time.perf_counter()
        return output

    def on_log(self, _args: Any, _state: Any, _control: Any, logs: dict[str, float], **_: Any) -> None:
        """Record an iteration."""
        end = time.perf_counter()
        self.iterations.append(
            Iteration(
                seconds=end - self.iteration_end,
                rollout=self.rollout_end - self.rollout_start,
                scoring=self.scoring_end - self.rollout_end,
                update=end - self.scoring_end,
                tokens=self.tokens,
                reward=logs["objective/scores"],
                kl=logs["objective/kl"],
            )
        )
        self.iteration_end = end


def load_models(job: Job) -> dict[str, Any]:
    """Load policy, reward model and critic. The reference is TRL's: a copy, or the policy without its adapter."""
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

    def load(auto_class: Any, folder: str) -> PreTrainedModel:
        head = {"num_labels": 1} if auto_class is AutoModelForSequenceClassification else {}
        model: PreTrainedModel = auto_class.from_pretrained(folder, **options, **head)
        return model

    policy = load(AutoModelForCausalLM, base)
    scorer, critic = (
        load(AutoModelForSequenceClassification, reward if job.tuning == "full" else base) for _ in range(2)
    )
    if job.activation_checkpointing:
        policy.gradient_checkpointing_enable()
        critic.gradient_checkpointing_enable()
    if job.tuning == "full":
        return {"model": policy, "reward_model": scorer, "value_model": critic}
    reward_model = PeftModel.from_pretrained(scorer, reward)
    return {
        "model": policy,
        "reward_model": reward_model.base_model.model if job.tuning == "nf4" else reward_model.merge_and_unload(),
        # The base model with the adapter's layers in it: PPOTrainer reads the scorer's own attributes.
        "value_model": PeftModel.from_pretrained(critic, reward).merge_and_unload().requires_grad_(True)
        if job.trl_whole_critic
        else PeftModel.from_pretrained(critic, reward, is_trainable=True).base_model.model,
        "peft_config": LoraConfig(
            task_type="CAUSAL_LM", r=LORA_RANK, lora_alpha=LORA_ALPHA, target_modules="all-linear"
        ),
    }


def main() -> None:
    """Run the job of the command line and write its result."""
    job, path = read_arguments()
    memory = MemoryMeter()
    transformers.set_seed(job.seed)
    tokenizer = AutoTokenizer.from_pretrained(f"{job.world}/base", padding_side="left")
    prompts = [json.loads(line)["prompt"] for line in Path(f"{job.world}/prompts.jsonl").read_text().splitlines()]
    timer = IterationTimer(tokenizer.eos_token_id)
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
            lr_scheduler_type="linear",
            kl_coef=job.kl_coef,
            bf16=job.dtype == "bfloat16",
            gradient_checkpointing=False,  # PPOTrainer ignores it: see `load_models`
            num_sample_generations=0,
            save_strategy="no",
            report_to="none",
            logging_steps=1,
            seed=job.seed,
        ),
        processing_class=tokenizer,
        ref_model=None,
        train_dataset=Dataset.from_dict({"input_ids": tokenizer(prompts)["input_ids"]}),
        callbacks=[timer],
        **load_models(job),
    )
    trainer.train()
    peak = memory.read()
    if job.policy is not None:
        trainer.accelerator.unwrap_model(trainer.model).policy.save_pretrained(job.policy)
    Result(timer.iterations[1:], peak).write(path)


if __name__ == "__main__":
    main()
