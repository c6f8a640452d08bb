"""What --validation_share takes from training: chats that two splits share, or whole files of text, such as books."""

from dataclasses import replace
from hashlib import sha256

from lit_gpt.errors import UserError
from utils.data.manifest import TEST, TRAIN
from utils.prepare.file_formats import PLAIN, CorpusFile
from utils.prepare.sources import Source


def with_held_out(sources: list[Source], share: float) -> list[Source]:
    """The sources, and for each of chats to train on one to validate, which shares its files; held-out files stay so.

    Where there are no chats, each source of texts in files of their own, such as books, gives about `share` of its
    files to validation. Raises a UserError if there is neither.
    """
    held_out = _shared_chats(sources) or _whole_texts(sources, share)
    if not held_out:
        raise UserError(
            "--validation_share divides chats, and there are none to train on (--converter, --datasets), nor are "
            "there several texts in files of their own"
        )
    found = {(source.dataset, source.split): source for source in (*sources, *held_out)}
    return sorted(found.values(), key=lambda source: (source.dataset, source.split != TRAIN))


def _shared_chats(sources: list[Source]) -> list[Source]:
    """For each source of chats to train on the one to validate, with files of both."""
    changed = []
    for source in sources:
        chats = tuple(file for file in source.files if source.converter_of(file))
        if source.split == TRAIN and chats:
            test = _test_of(source, sources)
            files = test.files + chats
            changed.append(replace(test, files=files, converter=source.converter, shared=len(chats)))
    return changed


def _whole_texts(sources: list[Source], share: float) -> list[Source]:
    """Both sources of each dataset with several texts to train on, some of which go to the one to validate."""
    changed = []
    for source in sources:
        texts = [file for file in source.files if file.format == PLAIN]
        if source.split == TRAIN and len(texts) > 1:
            held = _held_out_texts(texts, share)
            rest = tuple(file for file in source.files if file not in held)
            test = _test_of(source, sources)
            changed += [replace(source, files=rest), replace(test, files=(*test.files, *held))]
    return changed


def _test_of(source: Source, sources: list[Source]) -> Source:
    """The dataset's source to validate, which may have no files yet."""
    there = (other for other in sources if (other.dataset, other.split) == (source.dataset, TEST))
    return next(there, replace(source, split=TEST, files=()))


def _held_out_texts(texts: list[CorpusFile], share: float) -> list[CorpusFile]:
    """About `share` of the files, at least one and not all, by a hash of the name: other files change nothing."""
    ranks = [int(sha256(file.path.name.encode()).hexdigest(), 16) / 2**256 for file in texts]
    least, most = min(ranks), max(ranks)
    return [text for text, rank in zip(texts, ranks, strict=True) if rank == least or share > rank != most]
