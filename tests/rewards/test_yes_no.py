"""Which tokens read yes and which read no."""

import pytest
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from rewards.judges.yes_no import Spellings, spellings


def tokenizer(tokens: list[str], decoder) -> PreTrainedTokenizerFast:
    made = Tokenizer(models.WordLevel({token: index for index, token in enumerate(tokens)}, tokens[0]))
    made.decoder = decoder
    return PreTrainedTokenizerFast(tokenizer_object=made)


@pytest.mark.parametrize(("space", "decoder"), [("Ġ", decoders.ByteLevel()), ("▁", decoders.Metaspace())])
def test_any_case_with_or_without_a_space(space, decoder):
    others = ["?", "yesno", "noyes", "not", "ye", f"{space}now", "Noyes"]
    yes, no = ([word, word.title(), word.upper()] for word in ("yes", "no"))
    tokens = [*others, *yes, *(space + word for word in yes), *no, *(space + word for word in no)]
    found = spellings(tokenizer(tokens, decoder), "judge")
    assert found == Spellings(yes=tuple(range(7, 13)), no=tuple(range(13, 19)))


@pytest.mark.parametrize("word", ["yes", "no"])
def test_a_vocabulary_without_one_of_them_is_refused(word):
    tokens = [token for token in ("?", "yes", "no") if token != word]
    with pytest.raises(ValueError, match=f"judge: its tokenizer has no single token for '{word}'"):
        spellings(tokenizer(tokens, decoders.ByteLevel()), "judge")
