"""GRPO: the rewards, the prompts, the trainer beside TRL's own, and all that TRL is told."""

import dataclasses

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

import trl
from datasets import Dataset
from trl import GRPOTrainer

from daedalus.market.bidders import TRAIT, Population
from daedalus.env import suite
from daedalus.training.grpo import (
    REWARDS, GrpoAlgorithm, GrpoSettings, MarketRewards, prompt_rows, reinforce, shared_logprobs, shared_prompt_trainer,
    spread_within, training_populations, trl_config)
from daedalus.designers.base import informed_greedy
from daedalus.designers.language import LanguageDesigner, small_model, small_tokenizer
from daedalus.designers.models import load_model
from daedalus.schema import INFORMED_GREEDY, Mechanism
from daedalus.training.sft import FineTuneSettings, _trainer_settings, design_pairs, fine_tune
from daedalus.designers.states import outlook, restore

SETTINGS = GrpoSettings(steps=2, batch_size=32, generations=8, horizon=2, futures=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "A tiny model that writes valid replies now and then."
    folder, tokenizer = tmp_path_factory.mktemp("model"), small_tokenizer()
    model = small_model(tokenizer, layers=1, width=32, heads=2)
    fine_tune(model, tokenizer, design_pairs(640, 0), FineTuneSettings(steps=60, learning_rate=0.01), folder)
    for part in (model, tokenizer):
        part.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def rows(folder):
    return prompt_rows(LanguageDesigner(*load_model(folder), constrained=False), SETTINGS, 0)


def test_rewards_are_the_markets(rows):
    rewards = MarketRewards(horizon=2, futures=3)
    mechanisms = [INFORMED_GREEDY, Mechanism.random(4)]
    state, seeds = rows[0]["state"], rows[0]["future_seed"]
    found = rewards.scores([mechanisms[0].to_text(), "{}", mechanisms[1].to_text()], [state] * 3, [seeds] * 3)
    expected = outlook(restore(state), [mechanisms], seeds, 2, 3)
    assert found["composite"].tolist() == [*expected["reward"][0, :1].mean(1), 0.0, *expected["reward"][0, 1:].mean(1)]
    assert found["fairness"][2] == expected["fairness"][0, 1].mean() and found["format"].tolist() == [1, 0, 1]
    assert rewards.rounds == 2 * 2 * 3 * 5


def test_rounds_are_those_that_are_played_to_the_end_of_the_episode_where_somebody_plays_on(folder, counted_rounds):
    many = prompt_rows(LanguageDesigner(*load_model(folder), constrained=False), SETTINGS.replace(steps=6), 0)
    last = max(many, key=lambda row: restore(row["state"]).round_number)["state"]
    left = 10 - restore(last).round_number
    for then, steps in ((None, 4), (informed_greedy, left)):
        rewards = MarketRewards(horizon=4, futures=2, then=then)
        with counted_rounds() as spent:
            rewards.scores([INFORMED_GREEDY.to_text(), "no"], [last] * 2, [1] * 2)
        assert left < 4 and sum(spent) == rewards.rounds == steps * 2 * 5


def test_each_reward_is_a_function_of_its_own_and_logs_its_spread(rows):
    rewards, logged = MarketRewards(2, 1), {}
    states, seeds = [rows[0]["state"]] * 2 + [rows[1]["state"]], [1, 1, 1]
    texts = [[{"role": "assistant", "content": text}] for text in (INFORMED_GREEDY.to_text(), "no", "no")]
    by_name = {f.__name__: f(texts, states, seeds, log_metric=logged.__setitem__) for f in rewards.functions()}
    assert tuple(by_name) == REWARDS and by_name["format"] == [1, 0, 0]
    assert logged["within_group/format"] == pytest.approx(0.25)   # spreads .5 and 0
    assert rewards.rounds == 2 * 5   # the market was played once for all four


def test_spread_within_by_hand():
    assert spread_within(np.array([1.0, 3.0, 5.0, 5.0]), ["a", "a", "b", "b"]) == 0.5


def test_prompts_come_from_the_episodes_and_from_both_kinds(rows):
    assert len(rows) == 2 * 32 // 8
    kinds = ["bidders: " in row["prompt"][1]["content"] for row in rows]
    assert any(kinds) and not all(kinds)
    many = GrpoSettings(steps=20, batch_size=64, generations=8)
    everyone = training_populations(many, 500, 0.0, np.random.default_rng(0))
    assert not set(everyone) & set(suite("open")) and set(suite("stages")) <= set(everyone)


def test_the_curriculum_goes_from_truthful_bidders_to_all_adversaries():
    settings = GrpoSettings(populations="curriculum")
    met = [training_populations(settings, 1, p, np.random.default_rng(0))[0] for p in (0, 0.3, 0.5, 0.7, 1)]
    assert met == suite("stages")


def test_populations_are_drawn_as_asked(folder):
    people, crowded = Population(exploiter=16, n_items=4), GrpoSettings(steps=5, batch_size=64, generations=8)
    met = training_populations(crowded, 400, 0.0, np.random.default_rng(0), lambda rng: people)
    assert set(met) == {people, *suite("stages")} and met.count(people) == pytest.approx(300, abs=35)
    staged = crowded.replace(populations="curriculum")
    assert people not in training_populations(staged, 5, 0.5, np.random.default_rng(0), lambda rng: people)
    designer = LanguageDesigner(*load_model(folder), constrained=False)
    asked, usual = ({restore(row["state"]).market.traits[0, TRAIT.bidders] for row in prompt_rows(designer, SETTINGS, 0, **draw)}
                    for draw in ({"draw": lambda rng: people}, {}))
    assert 16 in asked and 16 not in usual   # the usual draw has 12 bidders at most


def padded(tokenizer, rows, replies):
    prompts = [tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True) for row in rows]
    heads = tokenizer(prompts, padding=True, return_tensors="pt", add_special_tokens=False)
    tails = tokenizer([reply + tokenizer.eos_token for reply in replies], padding=True, padding_side="right",
                      return_tensors="pt", add_special_tokens=False)
    return (torch.cat([heads.input_ids, tails.input_ids], 1), torch.cat([heads.attention_mask, tails.attention_mask], 1),
            tails.input_ids.shape[1])


def test_reading_prompts_once_gives_the_same_probabilities_and_gradients(folder, rows):
    model, tokenizer = load_model(folder)
    order = [0, 3, 0, 1, 3, 0]   # groups need not be in one piece
    replies = [Mechanism.random(seed).to_text() for seed in range(6)]
    tokens, mask, kept = padded(tokenizer, [rows[at] for at in order], replies)
    shared, entropy = shared_logprobs(model, tokens, mask, kept, 0.7)
    logits = model(input_ids=tokens, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0)).logits
    plain = (logits[:, -kept - 1:-1] / 0.7).log_softmax(-1)
    chosen = plain.gather(-1, tokens[:, -kept:, None])[..., 0]
    text = mask[:, -kept:].bool()
    assert torch.allclose(shared[text], chosen[text], atol=1e-5)
    assert torch.allclose(entropy[text], -(plain.exp() * plain).sum(-1)[text], atol=1e-5)
    gradients = []
    for loss in (shared[text].sum(), chosen[text].sum()):
        model.zero_grad()
        loss.backward(retain_graph=True)
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert torch.allclose(*gradients, atol=1e-3 * gradients[1].abs().max().item())


def test_the_trainer_agrees_with_trls(folder, rows, tmp_path):
    found = []
    for kind in (shared_prompt_trainer(), GRPOTrainer):
        model, tokenizer = load_model(folder)
        trainer = kind(model=model, reward_funcs=MarketRewards(2, 1).functions(), processing_class=tokenizer,
                       args=trl_config(SETTINGS, 24, str(tmp_path), 0), train_dataset=Dataset.from_list(rows))
        tokens, mask, kept = padded(tokenizer, [rows[at // 8] for at in range(32)],
                                    [Mechanism.random(seed).to_text() for seed in range(32)])
        logprobs, entropies, _ = trainer._get_per_token_logps_and_entropies(
            model, tokens, mask, kept, compute_entropy=True)
        text = mask[:, -kept:].bool()
        found.append((logprobs[text].detach(), entropies[text]))
    assert torch.allclose(found[0][0], found[1][0], atol=1e-4)
    assert torch.allclose(found[0][1], found[1][1], atol=1e-4)


def test_a_phase_is_deterministic_starts_at_its_reference_and_logs_what_is_promised(folder, tmp_path):
    phases, weights = [], []
    for _ in range(2):
        model, tokenizer = load_model(folder)
        phases.append(reinforce(model, tokenizer, SETTINGS, 5, str(tmp_path)))
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(*weights) and phases[0].history == phases[1].history
    assert len(phases[0].history) == 2 and phases[0].rounds > 0
    assert abs(phases[0].history[0]["kl"]) < 1e-6   # the first step is taken at the reference
    wanted = {"grad_norm", "reward", "reward_std", "entropy", "completions/mean_length", "invalid"}
    wanted |= {name for reward in REWARDS for name in (reward, f"{reward} within group")}
    assert wanted <= set(phases[0].history[0])
    assert set(phases[0].seconds) == {"states", "generation", "reward", "update"}


# What TRL is told: the values with which the committed designers were trained

TOLD = {
    "GRPOConfig": {
        "activation_checkpointing": False, "adam_beta1": 0.9, "adam_beta2": 0.99, "adam_epsilon": 1e-08,
        "average_tokens_across_devices": True, "beta": 0.7, "cast_lm_head_to_fp32": False, "data_seed": 3, "delta":
        None, "disable_dropout": False, "entropy_coef": 0.0, "epsilon": 0.2, "epsilon_high": None,
        "gradient_accumulation_steps": 1, "gradient_checkpointing": False, "importance_sampling_level": "token",
        "label_smoothing_factor": 0.0, "learning_rate": 0.0002, "loss_type": "dapo", "lr_scheduler_kwargs":
        {"min_lr_rate": 0.1}, "lr_scheduler_type": "cosine_with_min_lr", "mask_truncated_completions": False,
        "max_completion_length": 24, "max_grad_norm": 1.0, "max_steps": 2, "min_p": None,
        "multi_objective_aggregation": "sum_then_normalize", "neftune_noise_alpha": None, "num_generations": 8,
        "num_iterations": 1, "off_policy_mask_threshold": None, "optim": "adamw_torch_fused", "optim_args": None,
        "per_device_train_batch_size": 32, "repetition_penalty": 1.0, "reward_weights": [0.5, 0.0, 0.0, 1.0],
        "scale_rewards": "batch", "seed": 3, "shuffle_dataset": False, "steps_per_generation": 1, "sync_ref_model":
        False, "temperature": 1.0, "top_entropy_quantile": 1.0, "top_k": 0, "top_p": 1.0, "torch_compile": False,
        "use_adaptive_entropy": False, "use_bias_correction_kl": True, "use_liger_kernel": False, "warmup_steps": 5,
        "weight_decay": 0.0},
    "SFTConfig": {
        "activation_checkpointing": False, "adam_beta1": 0.9, "adam_beta2": 0.95, "adam_epsilon": 1e-08,
        "assistant_only_loss": False, "average_tokens_across_devices": True, "completion_only_loss": None,
        "dataset_kwargs": {"skip_prepare_dataset": True}, "gradient_accumulation_steps": 1,
        "gradient_checkpointing": False, "label_smoothing_factor": 0.0, "learning_rate": 0.002, "loss_type": "nll",
        "lr_scheduler_kwargs": {"min_lr_rate": 0.1}, "lr_scheduler_type": "cosine_with_min_lr", "max_grad_norm":
        1.0, "max_steps": 2, "neftune_noise_alpha": None, "optim": "adamw_torch_fused", "optim_args": None,
        "packing": False, "padding_free": False, "per_device_train_batch_size": 8, "remove_unused_columns": False,
        "seed": 3, "shuffle_dataset": False, "torch_compile": False, "train_sampling_strategy": "sequential",
        "use_liger_kernel": False, "warmup_steps": 20, "weight_decay": 0.01},
}
# What has no bearing here: other ways to generate and other hardware, evaluation, logs, places.
SILENT = {
    "both": """
    accelerator_config activation_checkpointing_kwargs auto_find_batch_size batch_eval_metrics bf16 bf16_full_eval
    dataloader_drop_last dataloader_in_order dataloader_multiprocessing_context dataloader_num_workers
    dataloader_persistent_workers dataloader_pin_memory dataloader_prefetch_factor ddp_backend ddp_broadcast_buffers
    ddp_bucket_cap_mb ddp_find_unused_parameters ddp_static_graph ddp_timeout debug deepspeed disable_tqdm do_eval
    do_predict do_train enable_jit_checkpoint eval_accumulation_steps eval_delay eval_do_concat_batches
    eval_on_start eval_steps eval_strategy eval_use_gather_object fp16 fp16_full_eval fsdp fsdp_config
    full_determinism gradient_checkpointing_kwargs greater_is_better hub_always_push hub_model_id hub_private_repo
    hub_revision hub_strategy hub_token ignore_data_skip include_for_metrics include_num_input_tokens_seen
    label_names length_column_name liger_kernel_config load_best_model_at_end local_rank log_level log_level_replica
    log_on_each_node logging_first_step logging_nan_inf_filter logging_steps logging_strategy metric_for_best_model
    model_init_kwargs num_train_epochs optim_target_modules output_dir pad_to_multiple_of parallelism_config
    per_device_eval_batch_size prediction_loss_only project push_to_hub report_to
    restore_callback_states_from_checkpoint resume_from_checkpoint router_aux_loss_coef run_name save_on_each_node
    save_only_model save_steps save_strategy save_total_limit skip_memory_metrics tf32 torch_compile_backend
    torch_compile_mode torch_empty_cache_steps trackio_bucket_id trackio_space_id trackio_static_space_id
    trust_remote_code use_cache use_cpu""",
    "GRPOConfig": """
    cache_implementation chat_template_kwargs ds3_gather_for_generation entropy_coef_delta entropy_coef_max
    entropy_coef_min entropy_target generation_batch_size generation_kwargs log_completions log_completions_hub_repo
    log_multimodal log_unique_prompts max_tool_calling_iterations num_completions_to_print num_generations_eval
    ref_model_mixup_alpha ref_model_sync_steps remove_unused_columns sapo_temperature_neg sapo_temperature_pos
    train_sampling_strategy transformers_continuous_batching_config use_transformers_continuous_batching
    use_transformers_paged use_vllm vespo_k_neg vespo_k_pos vespo_lambda_neg vespo_lambda_pos vllm_enable_sleep_mode
    vllm_gpu_memory_utilization vllm_group_port vllm_importance_sampling_cap vllm_importance_sampling_clip_max
    vllm_importance_sampling_clip_min vllm_importance_sampling_correction vllm_importance_sampling_mode
    vllm_max_model_length vllm_mode vllm_model_impl vllm_server_base_url vllm_server_host vllm_server_port
    vllm_server_timeout vllm_structured_outputs_regex vllm_tensor_parallel_size""",
    "SFTConfig": """
    activation_offloading chat_template_path data_seed dataset_num_proc dataset_text_field eos_token eval_packing
    max_length packing_strategy pad_token truncation_mode""",
}
MAKERS = {"GRPOConfig": lambda: trl_config(SETTINGS, 24, "folder", 3),
          "SFTConfig": lambda: _trainer_settings(FineTuneSettings(steps=2, batch_size=8, seed=3), "folder")}


@pytest.mark.parametrize("name", MAKERS)
def test_every_field_of_trls_settings_is_told_or_has_no_bearing(name):
    fields = {field.name for field in dataclasses.fields(getattr(trl, name))}
    assert fields == TOLD[name].keys() | set((SILENT["both"] + SILENT[name]).split())


@pytest.mark.parametrize("name", MAKERS)
def test_what_bears_on_what_is_learned_has_the_committed_value_and_is_passed_on(name, monkeypatch):
    made, passed = MAKERS[name](), {}
    assert {field: getattr(getattr(made, field), "value", getattr(made, field)) for field in TOLD[name]} == TOLD[name]
    monkeypatch.setattr(trl, name, lambda **fields: passed.update(fields))
    MAKERS[name]()
    assert TOLD[name].keys() <= passed.keys()   # so that TRL's defaults do not matter


def test_the_algorithm_is_a_setting_that_is_passed_on_and_names_a_training_where_it_is_unusual():
    usual, unusual = GrpoSettings(), GrpoSettings(algorithm=GrpoAlgorithm(loss_type="grpo", epsilon_high=0.28))
    told = trl_config(unusual, 24, "folder", 0)
    assert (told.loss_type, told.epsilon, told.epsilon_high) == ("grpo", 0.2, 0.28)
    assert "algorithm" not in usual.to_json() and '"epsilon_high":0.28' in unusual.to_json()
    assert GrpoSettings.from_json(usual.to_json()) == usual and GrpoSettings.from_json(unusual.to_json()) == unusual
    with pytest.raises(ValueError, match="loss_type must be one of grpo, bnpo, dr_grpo, dapo, not 'ppo'"):
        GrpoAlgorithm(loss_type="ppo")
