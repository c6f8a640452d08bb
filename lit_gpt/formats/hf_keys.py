"""The keys of config.json: those that a family's entry understands and their types, those that are notes, no others.

A key that no class of transformers 5.3 reads when it computes logits is a note, whatever it says; tests/formats/
test_hf_keys.py compares. A key that some class may read is understood, or has the one value that changes nothing.
"""

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

from lit_gpt.errors import DataError, UserError


def _is_whole(value: Any) -> bool:
    return type(value) is int and value > 0


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value > 0


def _is_share(value: Any) -> bool:
    return _is_number(value) and value <= 1


def _is_flag(value: Any) -> bool:
    return type(value) is bool


def _is_word(value: Any) -> bool:
    return type(value) is str


def _is_list_of_words(value: Any) -> bool:
    return type(value) is list and all(map(_is_word, value))


def _is_object(value: Any) -> bool:
    return type(value) is dict


_TYPES: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("a positive whole number", _is_whole, "vocab_size hidden_size intermediate_size num_hidden_layers"),
    ("a positive whole number", _is_whole, "num_attention_heads num_key_value_heads num_kv_heads head_dim"),
    ("a positive whole number", _is_whole, "max_position_embeddings original_max_position_embeddings sliding_window"),
    ("a positive whole number", _is_whole, "n_embd n_layer n_head n_inner n_positions ffn_hidden_size"),
    ("a positive whole number", _is_whole, "num_ln_in_parallel_attn sliding_window_pattern"),
    ("a positive number", _is_number, "rms_norm_eps layer_norm_eps layer_norm_epsilon query_pre_attn_scalar"),
    ("a positive number", _is_number, "rope_theta rotary_emb_base rope_local_base_freq factor"),
    ("a positive number", _is_number, "low_freq_factor high_freq_factor"),
    ("a positive number", _is_number, "attn_logit_softcapping final_logit_softcapping"),
    ("a number from 0 to 1", _is_share, "rotary_pct partial_rotary_factor"),
    ("true or false", _is_flag, "tie_word_embeddings attention_bias mlp_bias bias alibi multi_query parallel_attn"),
    ("true or false", _is_flag, "new_decoder_architecture use_parallel_residual use_qkv_bias use_sliding_window"),
    ("true or false", _is_flag, "qk_layernorm scale_attn_weights scale_attn_by_inverse_layer_idx add_cross_attention"),
    ("true or false", _is_flag, "use_bidirectional_attention"),
    ("a string", _is_word, "hidden_act hidden_activation activation activation_function model_type rope_type type"),
    ("a list of strings", _is_list_of_words, "layer_types architectures"),
    ("an object", _is_object, "rope_scaling rope_parameters full_attention sliding_attention text_config"),
    ("a whole number", lambda value: type(value) is int and value >= 0, "max_window_layers"),
)
_TYPE_OF = {key: (words, is_one) for words, is_one, keys in _TYPES for key in keys.split()}

# Classes take null for these as if the key were not there, or as "none".
_NULLABLE = """
architectures num_key_value_heads num_kv_heads head_dim n_inner ffn_hidden_size num_ln_in_parallel_attn sliding_window
layer_types rope_scaling rope_parameters hidden_activation use_bidirectional_attention attn_logit_softcapping
final_logit_softcapping full_attention sliding_attention
"""

_ROPE_KEYS = """
type rope_type rope_theta factor low_freq_factor high_freq_factor original_max_position_embeddings
partial_rotary_factor full_attention sliding_attention
"""

# What a class does not compute with: notes, dropout (this program trains without), settings of generation and of heads
# for other tasks.
_NOTES = """
_name_or_path name_or_path _commit_hash transformers_version torch_dtype dtype auto_map architectures model_type
custom_pipelines transformers.js_config keys_to_ignore_at_inference unsloth_version unsloth_fixed attn_implementation
_attn_implementation _attn_implementation_autoset _flash_attn_2_enabled max_sequence_length model_max_length n_ctx
tokenizer_class prefix cache_implementation cache_config original_max_position_embeddings _sliding_window_pattern
initializer_range use_cache gradient_checkpointing torchscript use_bfloat16 pretraining_tp output_past
attention_dropout hidden_dropout attn_pdrop embd_pdrop resid_pdrop classifier_dropout dropout output_attentions
output_hidden_states output_scores return_dict_in_generate reorder_and_upcast_attn bos_token_id eos_token_id
pad_token_id unk_token_id sep_token_id cls_token_id mask_token_id decoder_start_token_id bos_token eos_token pad_token
unk_token predict_special_tokens n_special is_decoder num_labels id2label label2id problem_type finetuning_task
task_specific_params summary_type summary_use_proj summary_activation summary_first_dropout summary_proj_to_labels
max_length min_length do_sample early_stopping num_beams num_beam_groups diversity_penalty temperature top_k top_p
typical_p repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids
num_return_sequences chunk_size_feed_forward forced_bos_token_id forced_eos_token_id remove_invalid_values
exponential_decay_length_penalty suppress_tokens begin_suppress_tokens epsilon_cutoff eta_cutoff
encoder_repetition_penalty max_new_tokens _num_labels attention_probs_dropout_prob hidden_dropout_prob ff_factor
"""

# Some classes read these, of this or another version; at these values they change nothing.
_NEUTRAL: dict[str, Any] = {
    "return_dict": True,
    "is_encoder_decoder": False,
    "tie_encoder_decoder": False,
    "add_cross_attention": False,
    "pruned_heads": {},
    "is_causal": True,
    "is_llama_config": True,
    "attention_bias": False,
    "mlp_bias": False,
    "lm_head_bias": False,
    "qk_layernorm": False,
    "rope_interleaved": False,
    "rope_interleave": False,
    "use_mrope": False,
    "use_bidirectional_attention": False,
    "apply_residual_connection_post_layernorm": False,
    "full_attn_mod": 1,
    "interpolate_factor": 1,
    "rotary_scaling_factor": 1.0,
}


def check_keys(hf: Mapping[str, Any], understood: Collection[str]) -> None:
    """Raises a DataError for a value of the wrong type, and a UserError for a key that is not `understood`."""
    unknown, notes = [], set(_NOTES.split())
    for key, value in hf.items():
        if key in understood:
            check_type(key, value)
        elif key not in notes and not _is_neutral(key, value):
            unknown.append(f"{key} {value!r}")
    if unknown:
        raise UserError(
            f"config.json has {', '.join(unknown)}, and it is not known here what that does;"
            " if it is a note only, remove it from config.json"
        )


def _is_neutral(key: str, value: Any) -> bool:
    if value is None:
        return not _NEUTRAL.get(key)  # like a key that is not there, or like false
    return key in _NEUTRAL and type(value) is type(_NEUTRAL[key]) and value == _NEUTRAL[key]


def check_type(key: str, value: Any, where: str = "") -> None:
    """Raises a DataError if the value of a key that is understood, which stands in `where`, is of another type."""
    words, is_one = _TYPE_OF[key]
    if value is None and key in _NULLABLE.split():
        return
    if not is_one(value):
        shown = "null" if value is None else repr(value)
        raise DataError(f"config.json: {where}{key} is {shown[:60]}, not {words}")
    if is_one is not _is_object or key == "text_config":
        return
    known = set(_ROPE_KEYS.split())
    for name in value.keys() & known:
        check_type(name, value[name], f"{where}{key}.")
    # of other kinds it is said later that they are not supported
    if value.get("rope_type", value.get("type", "default")) in ("default", "linear", "llama3"):
        others = {name: inner for name, inner in value.items() if name not in known and inner is not None}
        if others:
            raise UserError(f"config.json: {where}{key} has {others}, and it is not known here what that does")
