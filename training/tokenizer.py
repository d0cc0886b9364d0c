"""Train the byte-level BPE tokenizer that the embedded models share.

python -m training.tokenizer src/moescope/models/zoo/dense-tiny
"""

from __future__ import annotations

import sys
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from training.corpus import CATEGORIES, MIXTURE, split

VOCABULARY = 4096
BOS, EOS, PAD = "<|bos|>", "<|eos|>", "<|pad|>"


def train_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Fit the BPE merges on the training documents (mixture-weighted) and save the tokenizer in `folder`."""
    tokenizer = Tokenizer(models.BPE())
    # Digits one by one, so that numbers are spelled alike everywhere; then GPT-2's own splitting of words.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"\d"), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    texts: list[str] = []
    for category in CATEGORIES:
        budget = int(8_000_000 * MIXTURE[category])
        for document in split(category)[0]:
            budget -= len(document)
            if budget < 0:
                break
            texts.append(document)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    bos_id = tokenizer.token_to_id(BOS)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, bos_id)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=PAD, model_max_length=256
    )
    fast.save_pretrained(folder)
    return fast


if __name__ == "__main__":
    train_tokenizer(Path(sys.argv[1]))
