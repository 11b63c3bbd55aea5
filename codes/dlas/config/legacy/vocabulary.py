"""Every key of DL-Art-School's files outside the options of registered components, and what becomes of it here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from dlas.config.legacy import actions
from dlas.config.legacy.actions import Action
from dlas.config.legacy.evaluators import evaluators

Fate = Literal["supported", "translated", "dropped", "refused"]


@dataclass(frozen=True)
class Key:
    """One key.

    Args:
        path: where it stands, from the top of the file; `*` stands for any name.
        fate: `supported` as it is; `translated` to ours; `dropped`, since that changes no result; `refused` with the reason.
        words: what it means here, or the reason.
        action: rewrites it; none for what is supported as it is.
        example: a value of it, for tests; where it is refused, one that is refused.
    """

    path: str
    fate: Fate
    words: str
    action: Action | None = None
    example: Any = None


def _supported(path: str, words: str = "", example: Any = None) -> Key:
    return Key(path, "supported", words, None, example)


def _translated(path: str, words: str, action: Action, example: Any) -> Key:
    return Key(path, "translated", words, action, example)


def _moved(path: str, target: str, example: Any, words: str = "") -> Key:
    return Key(path, "translated", f"`{target}`{words}", actions.move(target), example)


def _dropped(path: str, reason: str, example: Any = True) -> Key:
    return Key(path, "dropped", reason, actions.drop(reason), example)


def _refused(
    path: str, reason: str, fix: str, neutral: tuple[Any, ...] = (), why: str = "that is how it is done", example: Any = True
) -> Key:
    words = f"{reason}; {fix}"
    if neutral:
        values = ", ".join(f"`{_yaml(value)}`" for value in neutral)
        words += f". Dropped where it is {values}: {why}"
    return Key(path, "refused", words, actions.refuse(reason, fix, neutral, why), example)


def _yaml(value: Any) -> str:
    return "~" if value is None else str(value).lower()


_UNREAD = "nothing reads it, nor did anything in DL-Art-School"
_NO_WANDB = "Weights & Biases is not written"
_COMPUTED = "it was computed, and is here: 'path.experiments' says where runs are kept"
_VIDEO = "pictures are written, one a frame; ffmpeg joins them into a video"
_COPY = "checkpoints are copied nowhere"

_USE_EMA_MODEL = "DL-Art-School ignored it under this name, and sampled with the network's own weights"
_BY_TORCH = "torch.distributed is used: nccl on GPUs, gloo on CPUs"
_EVENLY = "timesteps are spread evenly over a batch of any size"

TOP = [
    _supported("name"),
    _dropped("model", "there is one trainer", "extensibletrainer"),
    _supported("scale", "where every data set and network of the file says another one, that is taken"),
    _dropped("distortion", _UNREAD, "sr"),
    _dropped("suffix", _UNREAD, None),
    _translated("gpu_ids", "`device`, or `distributed.gpu_ids` where there are several", actions.gpu_ids, [0]),
    _translated("fp16", "`precision: fp16` or `fp32`", actions.fp16, True),
    _refused("grad_scaler_enabled", "gradients are scaled with 'precision: fp16' only", "write that", (False, None)),
    _moved("use_tb_logger", "logger.tensorboard", True),
    _refused("wandb", _NO_WANDB, "TensorBoard files and metrics.jsonl are", (False, None), _NO_WANDB),
    _dropped("wandb_project_name", _NO_WANDB, "x"),
    _dropped("wandb_run_name", _NO_WANDB, "x"),
    _dropped("wandb_progress_use_raw_steps", _NO_WANDB),
    _refused(
        "start_step",
        "a run starts at step 0 and goes on from its newest checkpoint",
        "take it off the gates and milestones, or give 'path.pretrain' to start from weights",
        (-1, 0, None),
        "a run starts at step 0 and goes on from its newest checkpoint",
        5000,
    ),
    _refused(
        "training_data_encountered",
        "samples are counted from the start of the run",
        "remove it",
        (0, None),
        "samples are counted from the start of the run",
        64,
    ),
    _refused(
        "force_start_step",
        "a run goes on from the step of its checkpoint",
        "name the checkpoint with 'path.resume_state'",
        (-1, 0, None),
        "a run goes on from the step of its checkpoint",
        5000,
    ),
    _supported("checkpointing_enabled", "off where it is not given"),
    _moved("cuda_benchmarking_enabled", "cudnn_benchmark", True),
    _supported("anomaly_detection"),
    _dropped("dist_backend", _BY_TORCH, "apex"),
    _dropped("dist", "the way in which it is started decides: torchrun or srun", True),
    _dropped("ddp_find_unused_parameters", "parameters without a gradient need no option", True),
    _dropped("ddp_static_graph", "steps may change while they run, at no cost", True),
    _dropped("keep_optimizer_states_on_cpu", "the states stay on the device: the same result, with more memory"),
    _refused(
        "automatically_scale_grads_for_fanin",
        "gradients are not rescaled by layer size",
        "use an optimiser that does so: 'lamb' or 'lars'",
        (False, None),
    ),
    _dropped("automatically_scale_base_layer_size", "it belongs to 'automatically_scale_grads_for_fanin', which is off", 1024),
    _dropped(
        "automatically_recover_nan_by_reverting_n_saves",
        "a run stops at the first loss that is not finite; DL-Art-School read this and did nothing",
        3,
    ),
    _refused("experiments", "hooks have no place here", "remove it; DL-Art-School failed with any", (None,), example=["x"]),
    _refused(
        "image_normalization_range",
        "pictures are measured and written in [0, 1]",
        "map the output there by an injector under 'eval.injectors', for instance 'denormalize'",
        ([0, 1], None),
        "pictures are in [0, 1]",
        [-1, 1],
    ),
    _refused("amp_opt_level", "apex is not used", "write 'precision: fp16' or 'bf16'", (None,), example="O1"),
    _refused("colab_mode", _COPY, "mount the target and name it as 'path.experiments'", (False, None), _COPY),
    *(
        _refused(name, f"{_COPY}, and a password has no place in a file that is copied into the run", "remove it", example="x")
        for name in ("ssh_server", "ssh_username", "ssh_password", "remote_path")
    ),
    _supported("datasets"),
    _supported("networks"),
    _supported("path"),
    _supported("steps"),
    _supported("train"),
    _supported("eval"),
    _supported("logger"),
    _translated(
        "dataset", "`datasets.video` of mode `video_frames`", actions.dataset_of_video, {"video_file": "v.avi", "batch_size": 1}
    ),
    _dropped("frames_per_mini_vid", _VIDEO, 360),
    _dropped("minivid_crf", _VIDEO, 12),
    _dropped("minivid_start_no", _VIDEO, 0),
    _dropped("mini_vid_output_folder", _VIDEO, "x"),
    _dropped("generator_img_index", _UNREAD, 0),
    _refused("recurrent_mode", "frames go through the network on their own", "write false", (False, None)),
    _dropped("recurrent_hr_generator", "it belongs to 'recurrent_mode', which is off", "generator"),
    _refused(
        "trainer_options",
        "one file is one run",
        "put the networks and steps of the files into one; DL-Art-School's script for this could not run",
        example=["a.yml"],
    ),
    _refused("upgrades", "all checkpoints are kept", "remove older folders of <run>/checkpoints by hand", example={"x": 1}),
]

DATASETS = [
    _translated("datasets.*.mode", "as it is; the ending `_mc` is taken off", actions.memcached, "builtin_photos_mc"),
    _supported("datasets.*.name", "the key of the section where it is not given"),
    _supported("datasets.*.batch_size"),
    _supported("datasets.*.n_workers", "0 where it is not given"),
    _supported("datasets.*.pin_memory"),
    *(
        _refused(
            f"{path}.fetch_alt_image",
            "samples have one image",
            "for two views of each image take 'mode: byol_dataset'",
            (False, None),
            "samples have one image",
        )
        for path in ("datasets.*", "datasets.*.dataset")
    ),
    *(
        _translated(
            f"datasets.*.{name}", "dropped with `mode: fullimage`, which is for validation", actions.fullimage_training, 1
        )
        for name in ("min_tile_size", "tile_scale_normal_stddev", "use_flip", "use_rot")
    ),
    _dropped("datasets.*.cache_path", "nothing is kept in the folder of the data: files are listed at each start", "cache.pth"),
    _dropped("datasets.*.needs_collate", "samples of different lengths are put together as they need it", True),
    _dropped("datasets.*.debug_loading_failures", "the log names each file that was left out", True),
]

NETWORKS = [
    _supported("networks.*.type", "`generator` where it is not given; all networks are found by one name space"),
    _supported("networks.*.which_model", "or `which_model_G`, `which_model_D`"),
    _supported("networks.*.trainable", "false freezes the network and keeps it in evaluation mode, as its name says"),
    _translated("networks.*.after", "`after` of the losses of the steps that train it", actions.network_after, 100),
    _dropped("networks.*.wandb_debug", _NO_WANDB),
    _dropped("networks.*.kwargs.straight_through", _UNREAD, False),
    _dropped(
        "networks.*.kwargs.record_codes",
        "how many codes are in use is an output of the network: show it with the injector 'log'",
    ),
    _dropped("networks.*.kwargs.discretization_loss_averaging_steps", "no loss is computed of how evenly codes are used", 100),
    _supported("networks.*.args", "or `kwargs`: the same as options that stand beside"),
    _translated(
        "networks.*.scale", "an option of architectures that have it; dropped at other discriminators", actions.network_scale, 2
    ),
    _dropped("networks.*.flow.noInitialInj", _UNREAD),
    _dropped("networks.*.flow.patch_size", "pictures of any size go through a flow", 160),
    _dropped("networks.*.flow.fea_up-1", "which of the encoder's features a level is told follows from its size"),
]

PATH = [
    _translated("path.pretrain_model_*", "`path.pretrain.<network>`", actions.pretrain, "w.pth"),
    _refused(
        "path.pretrain_base_path_*",
        "weights are not cut out of a larger file",
        "cut the file beforehand",
        (None,),
        example="x.",
    ),
    _supported("path.strict_load", "true where it is not given: a file that does not fit is an error"),
    _translated(
        "path.resume_state", "a checkpoint folder; a `.state` file is refused", actions.resume_state, "run/checkpoints/5"
    ),
    _refused(
        "path.optimizer_reset",
        "a checkpoint is gone on from as a whole",
        "start a new run from its weights: 'path.pretrain'",
        (False, None),
    ),
    _refused("path.alt_path", _COPY, "copy the folder, or name another 'path.experiments'", (None,), example="x"),
    *(
        _dropped(f"path.{name}", _COMPUTED, "x")
        for name in ("root", "experiments_root", "log", "models", "training_state", "val_images", "results_root")
    ),
]

STEPS = [
    _supported("steps.*.training", "or a list of networks"),
    _supported("steps.*.optimizer"),
    _supported("steps.*.optimizer_params"),
    _translated("steps.*.optimizer_params.after", "`after` of the losses of the step", actions.optimizer_gate, 100),
    _translated("steps.*.optimizer_params.before", "`before` of the losses of the step", actions.optimizer_gate, 100),
    *(
        _translated(f"steps.*.{name}", f"`optimizer_params.{name}`", actions.inline_optimizer_key, value)
        for name, value in (("lr", 1e-4), ("weight_decay", 0), ("beta1", 0.9), ("beta2", 0.99))
    ),
    _supported("steps.*.clip_grad_eps", "the norm is that of all parameters of the step"),
    _dropped(
        "steps.*.check_grads_for_nan", "a run stops at the first loss that is not finite; the older test saw no single NaN"
    ),
    _dropped("steps.*.loss_log_buffer", "each log line averages over the steps since the last one", 50),
    _supported("steps.*.injectors"),
    _supported("steps.*.losses"),
    _supported("steps.*.every"),
    _supported("steps.*.after"),
    *(
        _translated(f"{path}.before", "`before`, one higher in a file for DL-Art-School", actions.before, 100)
        for path in ("steps.*", "steps.*.injectors.*", "steps.*.losses.*", "eval.injectors.*")
    ),
    *(_supported(f"steps.*.injectors.*.{name}") for name in ("type", "after", "every", "train", "eval", "no_grad")),
    _refused(
        "steps.*.injectors.*.no_accum",
        "all micro-batches are treated alike",
        "write 'every' to run it less often",
        (False, None),
    ),
    *(
        key
        for injectors in ("steps.*.injectors.*", "eval.injectors.*")
        for key in (
            _translated(f"{injectors}.use_ema_model", "`use_ema`", actions.rename("use_ema", _USE_EMA_MODEL), True),
            _dropped(f"{injectors}.deterministic_sampler_expected_batch_size", _EVENLY, 2048),
            _refused(
                f"{injectors}.channel_balancer_proportion",
                "errors of channels are not balanced",
                "remove it, or choose channels with 'channel_restriction_low' and 'channel_restriction_high'",
                (None,),
                example=0.5,
            ),
            *(
                _refused(
                    f"{injectors}.{name}",
                    "frozen networks are networks of this file, not of another run's",
                    "write the network under 'networks' and its weights under 'path.pretrain'",
                    (None,),
                    example="../experiments/other.yml",
                )
                for name in ("dvae_config", "gpt_config", "gpt_path", "diffusion_path")
            ),
        )
    ),
    *(_supported(f"steps.*.losses.*.{name}") for name in ("type", "weight", "after", "every")),
    _refused(
        "steps.*.losses.*.min_loss",
        "a loss is not switched off by its value",
        "remove it; DL-Art-School stopped with an error when it did so",
        (0, None),
        "0 switches nothing off",
        0.4,
    ),
    _refused(
        "steps.*.requires",
        "which keys are there is known before the run, and checked",
        "gate the step with 'after', 'before' or 'every'",
        (None, []),
        "nothing is required",
        ["lq"],
    ),
    _dropped(
        "steps.*.step_outputs", "later steps see every key that a step writes, and a key written twice is an error", ["gen"]
    ),
    _dropped("steps.*.generator_outputs", _UNREAD, ["gen"]),
    Key("steps.*.generator", "dropped", _UNREAD, actions.drop_word(_UNREAD), "generator"),
]

TRAIN = [
    _supported("train.niter", "the run stops exactly there"),
    _supported("train.mega_batch_factor", "1 where it is not given; gradients are weighted by the size of each part"),
    *(
        _refused(
            f"train.{name}", "every step has the same micro-batches", "write 'mega_batch_factor'", (None, False), example=2
        )
        for name in ("mod_batch_factor", "mod_batch_factor_every", "mod_batch_factor_also_disable_checkpointing")
    ),
    _supported("train.warmup_iter", "off where it is not given"),
    _translated(
        "train.default_lr_scheme",
        "`train.lr_scheme`, with the options beside it",
        actions.lr_scheme,
        "CosineAnnealingLR_Restart",
    ),
    *(
        _translated(f"train.{name}", "an option of `train.lr_scheme`", actions.scheme_option, value)
        for name, value in (
            ("gen_lr_steps", [10]),
            ("lr_gamma", 0.5),
            ("restarts", [10]),
            ("restart_weights", [1.0]),
            ("warmup_steps", 10),
            ("force_lr", 1e-4),
            ("T_period", [10]),
            ("warmup", 10),
            ("eta_min", 0.0),
        )
    ),
    _refused("train.clear_state", "moments are kept over a restart", "write false", (False, None)),
    _refused(
        "train.progressive_starts",
        "one schedule holds for all groups of a step",
        "write 'lr_scheme' at each step",
        (None,),
        example=[0, 10],
    ),
    _supported("train.val_freq", "0, at the end only, where it is not given"),
    _translated("train.val_freq_megasamples", "`train.val_freq`, by the batch size", actions.val_freq_megasamples, 0.01),
    _moved("train.ema_rate", "train.ema.rate", 0.999),
    _moved("train.ema_enabled", "train.ema.enabled", True),
    _dropped("train.ema_on_cpu", "the average is kept on the device and updated at every step"),
    _moved("train.manual_seed", "seed", 7, "; 0, not a random one, where it is not given"),
    _refused("train.sort_key", "samples keep their order in a batch", "sort in the data set", (None,), example="wav_lengths"),
    _refused("train.auto_collate", "micro-batches are not cropped", "crop by an injector", (False, None)),
    _supported(
        "train.batch_size_optimizer",
        "does what its author intended: DL-Art-School's could not accumulate, and stopped by the reverse of its own comment",
        {"type": "gradient_direction"},
    ),
    _dropped("train.batch_size_optimizer.recalculate_directions_steps", _UNREAD, 1),
    _dropped("train.compute_psnr", "nothing reads it; 'eval.metrics' names the metrics"),
]

EVAL = [
    _supported("eval.output_state", "also evaluated while training"),
    _supported("eval.injectors"),
    Key(
        "eval.evaluators",
        "translated",
        "`flow_gaussian_nll`, `flownet_gaussian`, `mel`: a data set to validate on and one of `eval.values`; left out, with a "
        "notice of what measures the same, where something does (`sr_diffusion_fid`); others are refused until they are built",
        evaluators,
        {"x": {"type": "sr_diffusion_fid"}},
    ),
    _refused("eval.pure", "validation measures 'eval.metrics', not losses", "name metrics there", (False, None)),
    _dropped("eval.compute_psnr", f"{_UNREAD}; 'eval.metrics' names the metrics"),
    _dropped("eval.compute_fea", f"{_UNREAD}; 'eval.metrics' names the metrics"),
]

LOGGER = [
    _supported("logger.print_freq", "100 where it is not given"),
    _supported("logger.save_checkpoint_freq", "1000 where it is not given"),
    _supported("logger.visuals"),
    _supported("logger.visual_debug_rate", "500 where it is not given"),
    _supported("logger.reverse_n1_to_1"),
    _refused(
        "logger.reverse_imagenet_norm",
        "visuals are written as they are in the state",
        "undo the normalisation by an injector and name its output",
        (False, None),
    ),
    _dropped("logger.is_mel_spectrogram", "visuals of three dimensions are drawn as spectrograms"),
    _refused(
        "logger.recurrent_visual_indices",
        "visuals are batches of images",
        "take the frames out by a 'slice' injector and name its output",
        (None, []),
        "there are none",
        [0],
    ),
]

PARTS: dict[str, list[Key]] = {
    "Top level": TOP,
    "Data sets": DATASETS,
    "Networks": NETWORKS,
    "Paths": PATH,
    "Steps": STEPS,
    "The loop": TRAIN,
    "Evaluation": EVAL,
    "Logs": LOGGER,
}
"""The keys, by section of the file. Keys are treated in this order."""

KEYS: list[Key] = [key for part in PARTS.values() for key in part]


def key_tables() -> str:
    """The vocabulary as Markdown tables, for the documentation."""
    lines = []
    for title, keys in PARTS.items():
        lines += [f"### {title}", "", "| key | here | meaning or reason |", "|---|---|---|"]
        lines += [f"| `{key.path}` | {key.fate} | {key.words} |" for key in keys]
        lines.append("")
    return "\n".join(lines)
