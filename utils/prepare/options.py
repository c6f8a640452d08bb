"""Options of prepare_data.py. Nothing heavy is imported here, so that `--help` answers at once."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from lit_gpt.errors import raise_problems
from lit_gpt.tokenizer.special_tokens import problems_of_names
from utils.prepare.chat.conversation import Converter
from utils.prepare.dataset_entries import TEXT, DatasetEntry, pairs, read_entries

LEAST = {
    "max_length": 1,
    "multiple_of": 1,
    "num_workers": 1,
    "max_characters": 1,
    "augmentation_level": 0,
    "min_characters": 0,
    "show": 0,
    "contamination_words": 8,
    "seed": 0,
}
MOST = {
    "multiple_of": 256,  # all of a split's shards are open at once, two files each, and a process may open 1,024
    "max_characters": 2**20,  # a document of over 4 MB is read in parts, and a character has at most four bytes
}
OF_CHATS = ("template", "system", "targets", "too_long", "deduplicate_by")
MAIN_MEMORY, WORKER_MEMORY = 300, 300  # MB that the program takes at most, and each process that tokenises


@dataclass(frozen=True)
class PrepareOptions:
    """Turn raw text into packed, tokenised training data; or look at what was made."""

    SECTION = "prepare"

    source_path: Path | None = None
    """Raw corpus: a folder tree, one file, or a .list file that names files. A dataset is a folder with full.txt, or
    train.txt and/or test.txt (conversations), *.jsonl, *.json, *.csv, *.parquet, *.arrow, or *.txt (one document each).
    Text files may be packed. Folders and files named after a split, such as test, dev or validation, are held out."""
    datasets: list[dict[str, Any]] | None = None
    """Instead of --source_path: a list of datasets, best in a --config file. Of each its name; its path or hub (with a
    revision and a subset); split, converter, mapping, filter (field → values to keep), without (texts that no answer
    may hold), join_field, language and group, where they are needed."""
    converter: str = TEXT
    """What makes conversations of the records of --source_path (JSON, CSV, Parquet, Arrow): messages, instruction,
    conversations, prompt_completion, reasoning, reasoning_as_text, roleplay, function_calls, or module:function of
    your own. text: records are plain text."""
    mapping: dict[str, str | list[str]] | None = None
    """Names that the converter reads → the record's field that has it, or several of which the first that holds
    something counts: '{"output": "answer"}'."""
    template: str = "tokenizer"
    """Chat template: the tokenizer's own, a Jinja file, or saiga, impruver, chatml, llama3 or vicuna."""
    system: str | None = None
    """System message of conversations that have none. Default: none is added."""
    targets: Literal["assistant", "last", "all"] = "assistant"
    """Which tokens of a conversation are trained: every answer, the last answer, or all tokens."""
    too_long: Literal["turns", "drop"] = "turns"
    """A conversation that is too long loses whole turns from its end, or is left out."""
    checkpoint_dir: Path | None = None
    """Foundation model directory; with --max_length only its tokenizer is needed."""
    add_tokens: tuple[str, ...] = ()
    """Special tokens to add to the tokenizer, such as '<|im_start|>' '<|im_end|>'. Those it has already stay as they
    are; pretrain.py gives the model a row for each of the others."""
    destination_path: Path | None = None
    """Data folder to write. It belongs to this program: shards of datasets that are gone are deleted."""
    max_length: int | None = None
    """Positions per sequence; rows have one token more. Default: the model's context."""
    multiple_of: int = 8
    """The number of shards of a split is a multiple of this."""
    padding: bool = True
    """Pack whole documents, cut at turns where need be. false: all documents end to end, cut where a row is full."""
    text_field: str = "text"
    """Field of a JSON line, or column of a Parquet file, that holds the text."""
    join_field: str | None = None
    """Field by which rows of text are parts of one document, such as source of the chunks of a book: consecutive rows
    with the same value become one, joined by a blank line, with an end-of-text token at its end alone."""
    group_datasets_by_genre: Path | None = None
    """JSON file, dataset name → group name. A dataset that is not in it is a group of its own."""
    metadata: Path | None = None
    """CSV or JSON file, dataset → language, dialogue, spontaneous, …: its datasets are transcribed dialogue, which is
    normalised and augmented, but where `dialogue` is False; all others are left as they are."""
    augmentation_level: int | None = None
    """Variants per training conversation of a dialogue dataset, at most. Default: the metadata file's, else 8 for
    spontaneous speech and 1 for the rest."""
    seed: int = 1337
    """Decides which variants are made, and which rows --inspect shows."""
    min_characters: int = 0
    """Leave out documents that are shorter."""
    max_characters: int | None = None
    """Leave out documents that are longer."""
    deduplicate: Literal["no", "exact", "near"] = "no"
    """Leave out documents that repeat one of this corpus: the same text or chat, or nearly the same (MinHash)."""
    deduplicate_by: Literal["conversation", "prompt"] = "conversation"
    """Two chats are compared as a whole, or by what the user asks first, without the system message."""
    similarity: float = 0.8
    """Share of common word 5-grams, of prompts word pairs, from which on --deduplicate near finds duplicates."""
    validation_share: float = 0.0
    """Share of the training chats to hold out for validation; nearly equal prompts stay on one side. Without chats:
    share of the *.txt files, such as books, of each dataset."""
    contamination: tuple[str, ...] = ()
    """Test files (*.jsonl, *.json, *.txt, each also packed): what has a run of their words is left out."""
    contamination_words: int = 13
    """Words in a row that are a hit of --contamination. Shorter texts count whole, those of fewer than 8 words not."""
    contaminated: Literal["leave_out", "report"] = "leave_out"
    """What to do about what has a run of a test file's words; both name it in DATA/reports/contamination.txt."""
    on_bad_input: Literal["error", "skip"] = "error"
    """What to do about what is no document (not UTF-8, NUL, broken JSON, no such field); skipped ones are counted."""
    num_workers: int | None = None
    """Processes that tokenise. Default: one per CPU core; in a Slurm step, one per CPU of the task."""
    fast_tokenizer: bool = True
    """Tokenise by gigatoken, if it is installed and proves itself on every character and a sample of the text."""
    max_memory: float | None = None
    """GB of memory to use at most, for all processes: fewer of them tokenise where that is too little."""
    special_tokens_in_text: bool = False
    """Make `<s>` or `<|endoftext|>` in the text that token. Default: text is text, its names of special tokens, too."""
    add_bos: bool | None = None
    """Begin each document with the begin-of-text token. Default: as the tokenizer is configured."""
    add_eos: bool | None = None
    """End each document with the end-of-text token. Default: if the tokenizer has one."""
    check: bool = False
    """Read 100 rows of every source, and print what would become of them; write nothing."""
    inspect: Path | None = None
    """Look at this data folder instead: its table, its checksums, and some rows as text."""
    show: int = 3
    """Rows that --inspect shows, of each split."""
    worst: Literal["longest", "fewest_targets", "most_left_out"] | None = None
    """Rows that --inspect shows: the worst ones by this. Default: some at random."""
    html: Path | None = None
    """Write what --inspect shows as a page to this file."""
    debug: bool = False
    """Show a traceback for any error."""

    def __post_init__(self) -> None:
        values = vars(self)
        problems = [*self._problems_of_sources(), *self._problems_of_chats()]
        for name, bound in LEAST.items():
            if values[name] is not None and values[name] < bound:
                problems.append(f"--{name} must be at least {bound}, not {values[name]}")
        for name, bound in MOST.items():
            if values[name] is not None and values[name] > bound:
                problems.append(f"--{name} must be at most {bound}, not {values[name]}")
        problems += [f"--add_tokens {problem}" for problem in problems_of_names(self.add_tokens)]
        if not 0 < self.similarity <= 1:
            problems.append(f"--similarity must be above 0 and at most 1, not {self.similarity}")
        if self.augmentation_level is not None and self.metadata is None:
            problems.append("--augmentation_level needs --metadata, which says what is dialogue")
        least_memory = (MAIN_MEMORY + WORKER_MEMORY) / 1000
        if self.max_memory is not None and self.max_memory < least_memory:
            problems.append(f"--max_memory must be at least {least_memory} GB, not {self.max_memory}")
        raise_problems(problems)

    def _problems_of_sources(self) -> list[str]:
        if self.inspect is not None:
            return []
        problems = read_entries(self.datasets or [])[1]
        if self.datasets is None and self.source_path is None:
            problems.append("--source_path is missing")
        if self.datasets is not None and self.source_path is not None:
            problems.append("--datasets and --source_path are both given; keep one")
        if self.datasets is not None and not self.datasets:
            problems.append("--datasets names none")
        needed = ["checkpoint_dir"] if self.check else ["checkpoint_dir", "destination_path"]
        problems += [f"--{name} is missing" for name in needed if vars(self)[name] is None]
        return problems

    def _problems_of_chats(self) -> list[str]:
        problems = []
        if self.datasets is not None and (self.converter != TEXT or self.mapping):
            problems.append("--converter and --mapping are of --source_path; --datasets has them in each entry")
        if self.join_field and (self.converter != TEXT or self.datasets is not None):
            problems.append("--join_field is of plain text in --source_path; --datasets has it in each entry")
        if self.join_field and self.join_field == self.text_field:
            problems.append("--join_field and --text_field are the same")
        if self.mapping and self.converter == TEXT:
            problems.append("--mapping needs a --converter; the field of plain text is --text_field")
        converters = [self.converter, *(str(entry.get("converter") or TEXT) for entry in self.datasets or [])]
        defaults = {field.name: field.default for field in fields(self)}
        given = [name for name in OF_CHATS if vars(self)[name] != defaults[name]]
        if self.inspect is None and all(converter == TEXT for converter in converters):
            problems += [f"--{name} is of chats, and there are none: give a --converter" for name in given]
        if not 0 <= self.validation_share < 1:
            problems.append(f"--validation_share must be at least 0 and below 1, not {self.validation_share}")
        if self.inspect is None and (self.worst or self.html):
            problems.append("--worst and --html need --inspect")
        if self.inspect is not None and self.check:
            problems.append("--check and --inspect are both given; keep one")
        return problems

    @property
    def entries(self) -> list[DatasetEntry]:
        return read_entries(self.datasets or [])[0]

    @property
    def own_converter(self) -> Converter | None:
        """What makes conversations of the records of --source_path; None where they are plain text."""
        return None if self.converter == TEXT else Converter(self.converter, pairs(self.mapping))

    @property
    def corpus(self) -> str:
        """Where the data come from, for messages."""
        return "--datasets" if self.datasets is not None else str(self.source_path)
