"""Command lines of pretrain.py and validate_pretrain.py."""

from __future__ import annotations

from tests.conftest import TOKENIZER
from utils import cli
from utils.train.options import PretrainOptions, ValidateOptions


def test_the_original_command_lines_parse() -> None:
    """The README's of the scripts this program succeeds, a backslash at the end included."""
    line = """--data_dir $DATA_DIR --checkpoint_dir $FOUNDATION_MODEL_DIR --out_dir $TRAINING_DIR --devices 8
    --language fr --precision bf16-true --micro_batch_size 12 --batch_size 16 --num_epochs 1000 --max_checkpoints 20
    --save_interval 1800 --eval_interval 1800 --enable_validation true --early_stopping 2"""
    options = cli.parse(PretrainOptions, line.split())
    assert (options.devices, options.precision, options.interval_unit) == (8, "bf16-true", "time")
    assert (options.enable_validation, options.early_stopping, options.save_interval) == (True, 2, 1800)
    line = "--out_dir $TRAINING_DIR --language fr --max 40 --batch_size 8"
    assert cli.parse(ValidateOptions, line.split()).max_batches == 40
    with_lora = "--use_lora true --lora_r 8 --lora_alpha 16 --lora_dropout 0.05 --lora_query true --lora_key false"
    with_lora += " --lora_value true --lora_projection false --lora_mlp false --lora_head false --seed 1 --debug true"
    with_lora += " --num_nodes 2 --weight_decay 0.01 --grad_clip 1 --warmup_steps 10 --interval_unit time"
    with_lora += f" --data_dir a --checkpoint_dir {TOKENIZER} --out_dir b --learning_rate 1e-4 --try_small false"
    assert cli.parse(PretrainOptions, with_lora.split()).use_lora
