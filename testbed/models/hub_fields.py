"""Fields of a config.json: types are checked, contradictions found, and no key passes that nobody knows.

A key passes if the layout reads it, because the layout refuses the values that it cannot compute, or if it is in
HARMLESS. Any other key may change the arithmetic of the model, so it is refused.
"""

from __future__ import annotations

from collections.abc import Mapping

LARGEST = 10_000_000  # of any size in config.json; a larger one is a mistake

# Keys that do not change the logits of a forward pass. Those of PreTrainedConfig in the package transformers, 3 to 5:
_ORIGIN = """
model_type _name_or_path name_or_path _commit_hash transformers_version tokenizer_class unsloth_version unsloth_fixed
transformers.js_config
"""
_RUNTIME = """
torch_dtype dtype torchscript use_bfloat16 tf_legacy_loss xla_device gradient_checkpointing chunk_size_feed_forward
output_attentions output_hidden_states output_past output_scores return_dict return_dict_in_generate use_cache
tie_last_hidden_states attn_implementation _attn_implementation_autoset
"""
_TASK = """
_num_labels label2id problem_type finetuning_task task_specific_params prefix loss_type
is_decoder tie_encoder_decoder cross_attention_hidden_size
bos_token_id eos_token_id eos_token_ids pad_token_id sep_token_id decoder_start_token_id
"""
_GENERATION = """
assistant_confidence_threshold assistant_lookbehind bad_words_ids begin_suppress_tokens diversity_penalty do_sample
early_stopping encoder_no_repeat_ngram_size encoder_repetition_penalty epsilon_cutoff eta_cutoff
exponential_decay_length_penalty forced_bos_token_id forced_eos_token_id length_penalty max_length max_new_tokens
min_length no_repeat_ngram_size num_assistant_tokens num_assistant_tokens_schedule num_beam_groups num_beams
num_return_sequences remove_invalid_values repetition_penalty suppress_tokens target_lookbehind temperature top_k top_p
typical_p
"""
_COMMON = f"{_ORIGIN} {_RUNTIME} {_TASK} {_GENERATION}"
# Rotary embeddings have no greatest position.
_LLAMA = """
id2label num_labels initializer_range attention_dropout max_position_embeddings max_sequence_length
original_max_position_embeddings is_llama_config
"""
_GPT2 = """
id2label num_labels initializer_range resid_pdrop embd_pdrop attn_pdrop classifier_dropout reorder_and_upcast_attn
summary_type summary_use_proj summary_activation summary_proj_to_labels summary_first_dropout
n_special predict_special_tokens
"""
_VIT = """
initializer_range hidden_dropout_prob attention_probs_dropout_prob encoder_stride pooler_output_size pooler_act
tie_word_embeddings
"""
HARMLESS = {
    kind: frozenset(f"{_COMMON} {own}".split())
    for kind, own in (("llama", _LLAMA), ("mistral", _LLAMA), ("gpt2", _GPT2), ("vit", _VIT))
}


class FieldError(ValueError):
    """An unusable field of config.json. The message names the field and the supported values."""


class Fields:
    """Fields of config.json, or of an object in it. Methods check types and raise FieldError."""

    def __init__(self, values: Mapping[str, object], prefix: str = ""):
        self.values, self.prefix = values, prefix
        self._read: set[str] = set()
        self._inner: list[Fields] = []

    def integer(self, name: str, default: int | None = None, most: int = LARGEST) -> int:
        """A whole number from 1 to ``most``. Where it is missing or null: ``default``, or an error without default."""
        value = self._get(name, default)
        if type(value) is not int or not 1 <= value <= most:
            raise self.error(name, f"a whole number from 1 to {most}")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A number above 0; ``default`` as in ``integer``."""
        value = self._get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e300:
            raise self.error(name, "a number above 0")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """true or false; ``default`` where it is missing or null."""
        value = self._get(name, default)
        if not isinstance(value, bool):
            raise self.error(name, "true or false")
        return value

    def inner(self, name: str) -> Fields:
        """An object in this one; empty where it is missing or null."""
        inner = Fields(self._object(name), f"{self.prefix}{name}.")
        self._inner.append(inner)
        return inner

    def entries(self, name: str) -> int:
        """How many entries an object has whose keys are free; 0 where it is missing or null."""
        return len(self._object(name))

    def only(self, name: str, *allowed: object) -> None:
        """Raise FieldError for a value that is not in ``allowed``. A missing field or null has the first of them."""
        if self._get(name, allowed[0]) not in allowed:
            raise self.error(name, " or ".join("null" if value is None else str(value) for value in allowed))

    def each(self, name: str, *allowed: str) -> None:
        """Raise FieldError unless the field is missing, null, or a list of names in ``allowed``."""
        value = self._get(name, [])
        if not isinstance(value, list) or any(entry not in allowed for entry in value):
            raise self.error(name, f"a list of {' or '.join(allowed)}")

    def refuse_unknown(self, harmless: frozenset[str], kind: str) -> None:
        """Raise FieldError for a key that is not null, not in ``harmless``, and that no other method has read."""
        for name, value in self.values.items():
            if value is not None and name not in self._read | harmless:
                unknown = f"which is not known for {kind} and may change its results"
                raise FieldError(f"{self.shown(name)}, {unknown}; remove it if the model does not use it")
        for inner in self._inner:
            inner.refuse_unknown(frozenset(), kind)

    def error(self, name: str, allowed: str) -> FieldError:
        """The error for a field whose value is not in ``allowed``."""
        return FieldError(f"{self.shown(name)}; supported: {allowed}")

    def has(self, name: str) -> bool:
        """Whether the field is there and not null."""
        return self._get(name, None) is not None

    def shown(self, name: str) -> str:
        """``name is value``, for messages."""
        value = str(self.values[name]) if name in self.values else "missing"
        value = value if len(value) <= 60 else f"{value[:60]}..."
        return f"{self.prefix}{name} is {value}"

    def _object(self, name: str) -> Mapping[str, object]:
        value = self._get(name, {})
        if not isinstance(value, dict):
            raise self.error(name, "an object or null")
        return value

    def _get(self, name: str, default: object) -> object:
        self._read.add(name)
        value = self.values.get(name)
        return default if value is None else value


def agreed(default: tuple[Fields, str], *places: tuple[Fields, str]) -> tuple[Fields, str]:
    """(object, name) of the value that stands in one of these places, or in ``default``, or the same in several.

    ``default`` where all are missing or null. Raises FieldError if two places hold different values.
    """
    found = [(fields, name) for fields, name in (default, *places) if fields.has(name)]
    for (fields, name), (others, other) in zip(found, found[1:], strict=False):
        if fields.values[name] != others.values[other]:
            both = f"{fields.shown(name)} and {others.shown(other)}"
            raise FieldError(f"{both}; remove the one that the model does not use")
    return found[0] if found else default
