"""Word pieces for the text tower: a BERT-style vocabulary trained on captions.

Shapes: B texts, L positions.
"""

import json
import os
import pathlib
import string
import warnings
from collections.abc import Iterable, Sequence

import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from musiclm import bundle
from musiclm.errors import UserError

PAD, UNKNOWN, CLS, SEP = "[PAD]", "[UNK]", "[CLS]", "[SEP]"
SPECIAL = (PAD, UNKNOWN, CLS, SEP)
# Any word of plain English can be spelled, whatever the captions hold.
_ALPHABET = string.ascii_lowercase + string.digits


class WordPiece:
    """A trained vocabulary.

    Text is lower-cased and loses its accents. Digits stand alone ("128" is three pieces): a tempo
    never seen in training shares its pieces with the ones that were.
    """

    def __init__(self, vocab: Sequence[str]):
        """Takes the pieces in the order of their ids, the special ones first."""
        if tuple(vocab[: len(SPECIAL)]) != SPECIAL or len(set(vocab)) != len(vocab):
            raise ValueError(
                f"a WordPiece vocabulary must start with {SPECIAL} and repeat nothing; this one "
                f"starts with {list(vocab[: len(SPECIAL)])}. Train it anew."
            )
        self.vocab = tuple(vocab)
        ids = {piece: i for i, piece in enumerate(self.vocab)}
        self._tokenizer = _tokenizer(models.WordPiece(ids, unk_token=UNKNOWN))

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> "WordPiece":
        """Learns a vocabulary; the same texts in the same order give the same one.

        Args:
          texts: Captions.
          vocab_size: At most this many pieces, the special ones and the alphabet included. Few
            texts may yield fewer.

        Raises:
          UserError: `vocab_size` leaves no room beside the special pieces and the alphabet.
        """
        texts = list(texts)
        tokenizer = _tokenizer(models.WordPiece(unk_token=UNKNOWN))
        words = {
            word
            for text in texts
            for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(
                tokenizer.normalizer.normalize_str(text)
            )
        }
        letters = sorted(set(_ALPHABET).union(*words))
        # Every letter as the start of a word and as a later one. The trainer would find most of
        # them by itself, but in the order of a hash table, and so break ties anew each time.
        fixed = (*SPECIAL, *(prefix + letter for letter in letters for prefix in ("", "##")))
        if vocab_size <= len(fixed):
            raise UserError(
                f"vocab_size is {vocab_size}; the special pieces and the alphabet take "
                f"{len(fixed)}, set it well above that."
            )
        trainer = trainers.WordPieceTrainer(
            vocab_size=vocab_size, special_tokens=list(fixed), show_progress=False
        )
        tokenizer.train_from_iterator(texts, trainer)
        learned = tokenizer.get_vocab()
        return cls(sorted(learned, key=learned.get))

    @classmethod
    def load(cls, path: str | os.PathLike) -> "WordPiece":
        """Reads what `save` wrote.

        Raises:
          UserError: There is no such file, or it is something else.
        """
        try:
            vocab = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))["wordpiece"]
            return cls(vocab)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path} holds no WordPiece vocabulary ({error!r}); give the file that "
                "WordPiece.save wrote."
            ) from error

    def save(self, path: str | os.PathLike) -> None:
        """Writes one JSON file, in one move: an interrupted call leaves the old file."""
        text = json.dumps({"wordpiece": self.vocab}, ensure_ascii=False)
        bundle.write_beside(pathlib.Path(path), text.encode())

    @property
    def vocab_size(self) -> int:
        """Pieces, the special ones included."""
        return len(self.vocab)

    def encode(self, texts: Sequence[str], length: int, *, overlong: str = "error") -> np.ndarray:
        """Encodes texts for `Bert`.

        Args:
          texts: B texts.
          length: L, positions of every row.
          overlong: "error" refuses a text that does not fit; "truncate" keeps its start and the
            final [SEP], and warns.

        Returns:
          int32 [B, L]: [CLS], pieces, [SEP], then 0.

        Raises:
          UserError: A text is blank, or does not fit and `overlong` is "error".
        """
        if overlong not in ("error", "truncate"):
            raise ValueError(f"overlong is {overlong!r}; choose 'error' or 'truncate'.")
        ids_BL = np.zeros((len(texts), length), np.int32)
        cls_id, sep_id = SPECIAL.index(CLS), SPECIAL.index(SEP)
        for row, text in enumerate(texts):
            if not text.strip():
                raise UserError("a text is empty; describe the music in words.")
            pieces = self._tokenizer.encode(text, add_special_tokens=False).ids
            if len(pieces) > length - 2:
                if overlong == "error":
                    raise UserError(
                        f"a text has {len(pieces)} word pieces, {length - 2} fit: {text[:60]!r}… "
                        "Shorten it."
                    )
                # The same words every time, so that Python tells it once.
                warnings.warn(f"texts beyond {length - 2} word pieces are cut off", stacklevel=2)
            ids = [cls_id, *pieces[: length - 2], sep_id]
            ids_BL[row, : len(ids)] = ids
        return ids_BL

    def decode(self, ids_BL: np.ndarray) -> list[str]:
        """The texts of encoded rows, as far as normalisation and truncation left them."""
        special = range(len(SPECIAL))
        rows = [[int(i) for i in row if i not in special or i == 1] for row in ids_BL]
        return [self._tokenizer.decode(row, skip_special_tokens=False) for row in rows]


def fit(*, captions: Iterable[str], vocab_size: int, path: str | os.PathLike) -> None:
    """Trains a vocabulary on captions and saves it."""
    WordPiece.train(captions, vocab_size).save(path)


def _tokenizer(model: models.WordPiece) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.BertPreTokenizer(), pre_tokenizers.Digits(individual_digits=True)]
    )
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer
